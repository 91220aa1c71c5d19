"""The sparklines of `occamdb top`: on a terminal, and not in a pipe."""

from typing import Any

import occamdb
from occamdb.tools.pictures import ASCII_BLOCKS
from occamdb.tools.pictures.sparkline import BLOCKS
from occamdb.tools.top_history import READINGS_MAX, History
from tests.support.shell import RUN, Shell
from tests.tools.test_pipe_output import on_a_terminal


def reading(at: float, commits: int, **others: Any) -> dict[str, Any]:
    return {
        "read_at": at,
        "commits": commits,
        "conflicts": {"read": commits // 10, "write": 0},
        "log": {"bytes": commits * 100},
        "latency_us": {"p50": 128},
        "store": {"used": 1 << 20},
    } | others


def test_rates_become_sparklines() -> None:
    history = History()
    assert history.lines(ascii_only=False) == {}
    for at, commits in enumerate([0, 100, 100, 500]):
        history.add(reading(at, commits))
    lines = history.lines(ascii_only=False)
    assert lines["commits/s"] == "▃▁█  400, at most 400"
    assert lines["log/s"].endswith("39.1 KiB, at most 39.1 KiB")
    assert lines["batch p50"] == "███  0.1 ms, at most 0.1 ms"
    assert lines["store used"].endswith("1.0 MiB, at most 1.0 MiB")
    assert history.lines(ascii_only=True)["commits/s"].startswith(ASCII_BLOCKS[2] + "_#")


def test_a_restart_is_a_gap_and_a_database_without_a_log_has_its_line() -> None:
    history = History()
    for at, commits in enumerate([1000, 2000, 5, 1005]):
        history.add(reading(at, commits, log=None))
    assert history.lines(ascii_only=False)["commits/s"] == "█ █  1,000, at most 1,000"


def test_only_the_latest_readings_are_kept() -> None:
    history = History()
    for at in range(3 * READINGS_MAX):
        history.add(reading(at, at))
    line = history.lines(ascii_only=False)["commits/s"]
    assert len(line.split("  ")[0]) == READINGS_MAX


def test_top_has_sparklines_on_a_terminal_and_not_in_a_pipe(shell: Shell, db: occamdb.Database) -> None:
    db.kv.put(RUN, "k", 1)
    options = ("--interval", "0.1", "--count", "3")
    seen = on_a_terminal("top", shell.path, *options)
    for name in ("commits/s", "conflicts/s", "log/s", "batch p50", "store used"):
        (*_, line) = [each for each in seen.splitlines() if name in each]
        assert set(line) & {*BLOCKS, *ASCII_BLOCKS}, line
    piped = shell("top", "DB", *options)
    assert "commits/s" not in piped and not set(piped) & set(BLOCKS)
