"""Which engines the semantic tests run over, and how the choice is made and reported.

A test is semantic when it uses the fixture `engine`, itself or through another fixture (`db`, `db_factory`, `do`,
`opened`, `place`). It speaks of the public API alone, so every engine has to pass it:

    pytest                          memory and shared, as each test's `by_default` mark says
    pytest --engine postgres        only the semantic tests, each over PostgreSQL; may be given several times

A test that only the engine in this machine's memory can pass has the mark `local_only` with the documented difference
as its reason; one that a single engine cannot pass has `not_on`. The summary at the end counts tests by
engine, and what was left out by reason.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from tests.support import servers

__all__ = [
    "ENGINES",
    "LOCAL",
    "SERVERS",
    "pytest_addoption",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_generate_tests",
    "pytest_sessionfinish",
    "pytest_terminal_summary",
    "pytest_testnodedown",
    "selected_engines",
]

LOCAL = ("memory", "shared")
IN_ONE_PROCESS = ("memory", "dict")
SERVERS = ("postgres", "etcd")
ENGINES = (*LOCAL, "dict", *SERVERS)
_LEFT_OUT = pytest.StashKey[Counter[tuple[str, str]]]()


def selected_engines(config: pytest.Config) -> list[str]:
    """The engines that were asked for; empty: none by name."""
    return list(dict.fromkeys(config.getoption("engine") or ()))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--engine",
        action="append",
        choices=ENGINES,
        help="run the semantic tests, and only them, over this engine; may be given several times",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "by_default(*engines): the engines of a semantic test when none is asked for"
    )
    config.addinivalue_line(
        "markers", "local_only(reason): a server differs here, by a difference that the documentation names"
    )
    config.addinivalue_line(
        "markers", "not_on(engine, reason): a documented limit of this engine is in the way"
    )
    config.stash[_LEFT_OUT] = Counter()
    if set(selected_engines(config)) & set(SERVERS):
        os.environ[servers.SWITCH] = "1"  # who names a server wants it started


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine" not in metafunc.fixturenames:
        return
    mark = metafunc.definition.get_closest_marker("by_default")
    names = selected_engines(metafunc.config) or list(mark.args if mark is not None else LOCAL)
    metafunc.parametrize("engine", names, indirect=True)  # in the scope of the fixture


def engine_of(item: pytest.Item) -> str | None:
    """The engine of a test; None: it is not a semantic test."""
    callspec = getattr(item, "callspec", None)
    return None if callspec is None else callspec.params.get("engine")


def _left_out(item: pytest.Item, engine: str) -> str | None:
    """Why a semantic test cannot run over an engine; None: it can."""
    local_only = item.get_closest_marker("local_only")
    if local_only is not None and engine not in LOCAL:
        return str(local_only.args[0])
    for mark in item.iter_markers("not_on"):
        if mark.args[0] == engine:
            return str(mark.args[1])
    if engine in IN_ONE_PROCESS and "place" in getattr(item, "fixturenames", ()):
        return "it lives in one process"
    return None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    asked = selected_engines(config)
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        engine = engine_of(item)
        if engine is None:
            (dropped if asked else kept).append(item)
            continue
        reason = _left_out(item, engine)
        if reason is not None:
            config.stash[_LEFT_OUT][engine, reason] += 1
            dropped.append(item)
            continue
        item.user_properties.append(("engine", engine))
        kept.append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of xdist tells its controller what it left out: the same in each of them."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["left_out"] = [[*key, count] for key, count in session.config.stash[_LEFT_OUT].items()]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    for engine, reason, count in getattr(node, "workeroutput", {}).get("left_out", ()):
        node.config.stash[_LEFT_OUT][engine, reason] = count


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    counts = {outcome: _by_engine(terminalreporter.getreports(outcome)) for outcome in ("passed", "failed")}
    counts["errors"] = _by_engine(terminalreporter.getreports("error"))
    engines = [name for name in ENGINES if any(name in counter for counter in counts.values())]
    if not engines:
        return
    terminalreporter.section("semantic tests by engine")
    left_out = config.stash[_LEFT_OUT]
    for engine in engines:
        words = [f"{counter[engine]} {what}" for what, counter in counts.items() if counter[engine]]
        without = sum(count for (name, _), count in left_out.items() if name == engine)
        words += [f"{without} left out"] if without else []
        terminalreporter.write_line(f"{engine}: {', '.join(words)}")
        for (name, reason), count in sorted(left_out.items(), key=lambda pair: -pair[1]):
            if name == engine:
                terminalreporter.write_line(f"    {count:4} {reason}")


def _by_engine(reports: Sequence[Any]) -> Counter[str]:
    pairs = (pair for report in reports for pair in getattr(report, "user_properties", ()))
    return Counter(value for name, value in pairs if name == "engine")
