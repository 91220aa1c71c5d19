"""Shared by every test: hypothesis profiles, and the guard that nothing outlives the test that started it.

The guard runs around each test and once more around the whole session. It looks only at processes and
segments it can attribute to this test process (see `tests.support.leaks`), so xdist workers do not see each
other's.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from occamdb import RunId
from occamdb.engine.disk import failpoints
from occamdb.ipc.errors import LockHeldError
from tests.support import leaks, processes
from tests.support.engine_selection import (
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_generate_tests,
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
)
from tests.support.servers import clustered, etcd, postgres, server_url

__all__ = [
    "clustered",
    "database_path",
    "etcd",
    "nothing_left_armed",
    "nothing_left_at_the_end",
    "nothing_left_behind",
    "postgres",
    "pytest_addoption",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_generate_tests",
    "pytest_sessionfinish",
    "pytest_terminal_summary",
    "pytest_testnodedown",
    "run",
    "server_url",
    "start",
]

# Thousands of processes import the package: each would compile it anew, and every run the rewritten tests.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
_MARKER = leaks.mark_this_process()
leaks.record_segments()
# A shell starts what it puts in the background with SIGINT ignored, and every program a test starts would inherit it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
settings.register_profile("dev", deadline=None, max_examples=50, suppress_health_check=_QUIET)
settings.register_profile(
    "ci", deadline=None, max_examples=50, derandomize=True, print_blob=True, suppress_health_check=_QUIET
)
settings.register_profile("deep", deadline=None, max_examples=2000, suppress_health_check=_QUIET)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


@pytest.fixture
def database_path(tmp_path: Path) -> Iterator[Path]:
    """A fresh path for a database; a coordinator serving it at the end of the test is stopped cleanly."""
    path = tmp_path / "db"
    yield path
    stop_coordinator(path)


def stop_coordinator(path: Path) -> None:
    """End this test's coordinator of `path` by SIGTERM, if one runs, and wait for it."""
    from occamdb.tools import coordinator

    with contextlib.suppress(LockHeldError):
        holder = coordinator.coordinator_of(path)
        if holder is not None and holder.pid in leaks.own_processes(_MARKER):
            coordinator.stop_coordinator(path, timeout=leaks.GRACE_S)


@pytest.fixture
def run() -> RunId:
    """A run nobody else uses."""
    return RunId.new()


@pytest.fixture
def start() -> Iterator[Callable[..., processes.Worker]]:
    """Starts worker processes; kills at the end what is left of them."""
    with processes.workers() as starter:
        yield starter


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a process or a segment; remove both, so that the next test starts clean.

    Requested first of all, so it ends last: a test's own fixtures have cleaned up by then. What a fixture of
    wider scope started before the test is not the test's.
    """
    directory = Path(request.getfixturevalue("tmp_path")) if "tmp_path" in request.fixturenames else None
    pids_before = leaks.all_pids()
    segments_before = leaks.own_segments(None)
    yield
    pids = leaks.wait_until_gone(lambda: leaks.own_processes(_MARKER, besides=pids_before))
    description = leaks.describe(pids)
    leaks.kill(pids)
    names = leaks.wait_until_gone(lambda: leaks.own_segments(directory) - segments_before)
    leaks.unlink(names)
    if pids:
        pytest.fail(f"the test left processes behind:\n{description}", pytrace=False)
    if names:
        pytest.fail(f"the test left shared memory behind: {names}", pytrace=False)


@pytest.fixture(autouse=True)
def nothing_left_armed(nothing_left_behind: None) -> Iterator[None]:
    """No failpoint of this process outlives the test that set it."""
    yield
    failpoints.clear()


@pytest.fixture(scope="session", autouse=True)
def nothing_left_at_the_end(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The same for the whole session of this process, fixtures of wide scope included."""
    yield
    pids = leaks.wait_until_gone(lambda: leaks.own_processes(_MARKER))
    description = leaks.describe(pids)
    leaks.kill(pids)
    base = tmp_path_factory.getbasetemp()
    names = leaks.wait_until_gone(lambda: leaks.own_segments(base))
    leaks.unlink(names)
    assert not pids, f"the session left processes behind:\n{description}"
    assert not names, f"the session left shared memory behind: {names}"
