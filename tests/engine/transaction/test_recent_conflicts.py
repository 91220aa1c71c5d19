"""The conflicts that `stats` lists one by one: who lost, with which attempt, to which version."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

import occamdb
from occamdb import RetryPolicy, RunId, Transaction, TypeTag
from occamdb.engine.coordinator.recent_conflicts import KeptConflicts, conflict_figures, read_conflicts
from occamdb.ipc import layout
from tests.support.databases import DatabaseFactory
from tests.support.transactions import lose_by_read

pytestmark = pytest.mark.local_only(
    "figures of the coordinator: retries, conflicts by kind, hot keys, turns, expiries"
)
KEPT = 10


def conflicts(db: occamdb.Database) -> list[dict[str, Any]]:
    """The newest first."""
    found: list[dict[str, Any]] = db.stats()["recent_conflicts"]
    return found


def test_a_read_that_lost_is_listed_with_both_sides(db_factory: DatabaseFactory, run: RunId) -> None:
    db = db_factory()
    before = db.put(run, "k", 1)
    won = lose_by_read(db, run, "k")
    newest = conflicts(db)[0]
    assert (newest["kind"], newest["run"], newest["tag"], newest["key"]) == (
        "read",
        str(run),
        TypeTag.KV,
        "k",
    )
    assert (newest["expected"], newest["found"], newest["attempt"]) == (before, won, 1)
    assert newest["pid"] == os.getpid()
    assert abs(newest["at"] - time.time()) < 60


def test_a_write_that_lost_is_listed(db_factory: DatabaseFactory, run: RunId) -> None:
    db = db_factory()
    txn = db.begin(run, isolation="snapshot")
    start = txn.start_version
    txn.put("w", 1)
    won = db.put(run, "w", 2)
    with pytest.raises(occamdb.ConflictError):
        txn.commit()
    newest = conflicts(db)[0]
    assert (newest["kind"], newest["key"], newest["found"]) == ("write", "w", won)
    assert newest["expected"] >= start


def test_a_scan_that_lost_is_listed(db_factory: DatabaseFactory, run: RunId) -> None:
    db = db_factory()
    txn = db.begin(run)
    list(txn.scan("s/"))
    txn.put("other", 1)
    db.put(run, "s/1", 2)
    with pytest.raises(occamdb.ConflictError):
        txn.commit()
    newest = conflicts(db)[0]
    assert (newest["kind"], newest["run"]) == ("range", str(run))


def test_a_cas_that_lost_is_listed(db_factory: DatabaseFactory, run: RunId) -> None:
    db = db_factory()
    won = db.put(run, "c", 1)
    with pytest.raises(occamdb.CASConflict):
        db.cas(run, "c", won + 1000, 2)
    newest = conflicts(db)[0]
    assert (newest["kind"], newest["key"]) == ("cas", "c")
    assert (newest["expected"], newest["found"]) == (won + 1000, won)


def test_attempts_are_counted(db_factory: DatabaseFactory, run: RunId) -> None:
    db = db_factory()
    tried = 0

    def work(txn: Transaction) -> None:
        nonlocal tried
        tried += 1
        txn.get("a")
        txn.put("b", tried)
        if tried < 3:
            db.put(run, "a", tried)

    db.transaction(run, work, retry=RetryPolicy(max_attempts=5))
    assert [each["attempt"] for each in conflicts(db)[:2]] == [2, 1]


def test_a_question_about_conflicts_is_not_a_conflict(db_factory: DatabaseFactory, run: RunId) -> None:
    db = db_factory()
    before = len(conflicts(db)), conflicts(db)[:1]
    with db.begin(run) as txn:
        txn.get("q")
        txn.put("other", 1)
        db.put(run, "q", 1)
        assert txn.validate()
        txn.abort()
    assert (len(conflicts(db)), conflicts(db)[:1]) == before


def test_a_worker_keeps_the_newest_few(db_factory: DatabaseFactory, run: RunId) -> None:
    db = db_factory(max_store_size="16MiB")
    for at in range(KEPT + 7):
        lose_by_read(db, run, f"k{at}")
    keys = [each["key"] for each in conflicts(db)]
    assert keys == [f"k{at}" for at in reversed(range(7, KEPT + 7))]


def test_those_of_a_worker_that_left_stay(database_path: Path, run: RunId) -> None:
    with occamdb.open(database_path) as db:
        with occamdb.open(database_path) as other:
            won = lose_by_read(other, run, "left")
            assert conflicts(db)[0]["found"] == won
        found = [each for each in conflicts(db) if each["key"] == "left"]
        assert [each["found"] for each in found] == [won]


def test_a_long_key_is_cut_and_bytes_are_text(db_factory: DatabaseFactory, run: RunId) -> None:
    db = db_factory()
    lose_by_read(db, run, "x" * 500)
    assert conflicts(db)[0]["key"] == "x" * (96 - 3 - 16 - 1)
    txn = db.begin(run)
    txn.get(b"\xff\xfe")
    txn.put("other", 1)
    db.put(run, b"\xff\xfe", 2)
    with pytest.raises(occamdb.ConflictError):
        txn.commit()
    assert conflicts(db)[0]["key"] == "\\udcff\\udcfe"


@pytest.mark.parametrize("filling", [0x00, 0x01, 0x55, 0xAA, 0xFF])
def test_whatever_a_process_writes_there_gives_figures(filling: int) -> None:
    channel = bytes([filling]) * layout.RINGS_OFFSET
    kept = KeptConflicts()
    kept.keep(read_conflicts(channel, 1, 2))
    for row in conflict_figures(kept):
        assert row["kind"] in ("read", "range", "write", "cas")
        row["key"].encode()
