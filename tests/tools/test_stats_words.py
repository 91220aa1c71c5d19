"""Figures that are true and explained: `stats`, `top`, and the page of docs made from them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import occamdb
from occamdb.engine.coordinator.figures import percentile
from occamdb.tools.figure_words import WORDS
from occamdb.tools.log_size import log_size
from tests.support import figures as page
from tests.support.shell import RUN, Shell

# Their fields are named in the explanation of the whole.
WHOLE = {"group_commit", "latency_us", "durable.checkpoint", "durable.recovery", "hot_keys"}


def names(figures: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted name of each figure."""
    for key, value in figures.items():
        name = prefix + key
        rows = value if isinstance(value, list) else [value]
        if name in WHOLE or not any(isinstance(row, dict) for row in rows):
            yield name
            continue
        for row in rows:
            yield from names(row, name + ".")


def test_every_figure_is_explained_and_nothing_else(shell: Shell, db: occamdb.Database) -> None:
    db.kv.put(RUN, "k", 1)
    with pytest.raises(occamdb.CASConflict):
        db.kv.cas(RUN, "k", 1 << 40, 2)
    shown = set(names(shell.json("stats", "DB", "--json")))
    assert shown - set(WORDS) == set()
    assert set(WORDS) - shown - {"workers", "sessions", "recent_conflicts"} == set()


def test_explain_needs_no_database(shell: Shell) -> None:
    rows = dict(line.split("\t") for line in shell("stats", "--explain").splitlines())
    assert rows == WORDS
    assert shell.json("stats", "--explain", "--json") == WORDS
    shell("stats", code=2)


def test_the_page_has_the_table_that_the_code_makes() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.page_with_table(text) == text, "run python -m tests.support.figures"


@pytest.mark.parametrize("value", [0, 1, 2, 3, 4, 7, 8, 1000, 2**30])
def test_a_percentile_is_a_bound_within_a_factor_of_two(value: int) -> None:
    buckets = [0] * 40
    buckets[value.bit_length()] = 10
    for share in (0.01, 0.5, 1.0):
        found = percentile(buckets, share)
        assert value <= found
        assert found <= max(value, 2 * value - 1)
    assert percentile([0] * 40, 0.5) == 0


def test_one_worker_commits_in_groups_of_one(shell: Shell, db: occamdb.Database) -> None:
    for number in range(50):
        db.kv.put(RUN, "k", number)
    sizes = shell.json("stats", "DB", "--json")["group_commit"]
    assert (sizes["p50"], sizes["max"]) == (1, 1)
    text = dict(line.split("\t", 1) for line in shell("stats", "DB").splitlines())
    assert text["group size"] == "p50 <= 1, p99 <= 1 commits a batch (buckets)"


def test_status_and_stats_agree_on_the_log(shell: Shell, db: occamdb.Database) -> None:
    for number in range(100):
        db.kv.put(RUN, "k", number)
    status, stats = shell.json("status", "DB", "--json"), shell.json("stats", "DB", "--json")
    on_disk = sum(file.stat().st_size for file in (shell.path / "wal").iterdir())
    assert status["log_used_bytes"] == stats["log"]["used"] > 0
    assert status["log_set_aside_bytes"] == stats["log"]["set_aside"]
    assert status["log_bytes"] == on_disk == stats["log"]["used"] + stats["log"]["set_aside"]
    text = dict(line.split("\t", 1) for line in shell("stats", "DB").splitlines())
    shared = text["log"].partition(", written")[0]
    assert shared in shell("status", "DB")


def test_the_size_of_a_log_is_found_behind_many_zeros(tmp_path: Path) -> None:
    (tmp_path / "wal").mkdir()
    (tmp_path / "wal" / "1").write_bytes(b"entry\0\0entry" + bytes(1_000_000))
    (tmp_path / "wal" / "2").write_bytes(bytes(70_000))
    (tmp_path / "wal" / "3").write_bytes(b"")
    assert log_size(tmp_path) == (12, 1_070_000)
    assert log_size(tmp_path / "none") == (0, 0)


def test_top_prints_one_line_an_update_into_a_pipe(shell: Shell, db: occamdb.Database) -> None:
    db.kv.put(RUN, "k", 1)
    shown = shell("top", "DB", "--interval", "0.1", "--count", "3")
    assert shown.endswith("\n")
    lines = [line.split("\t") for line in shown.splitlines()]
    assert len(lines) == 3
    assert all("commits " in line[2] and "/s)" in line[2] for line in lines)


def test_stats_are_one_line_a_figure_in_a_pipe(shell: Shell, db: occamdb.Database) -> None:
    rows = [line.split("\t") for line in shell("stats", "DB").splitlines()]
    assert {"database", "commits", "latency", "store", "log", "worker"} <= {row[0] for row in rows}
    assert all(len(row) >= 2 for row in rows)
