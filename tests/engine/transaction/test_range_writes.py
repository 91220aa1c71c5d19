"""Deleting a range counts as a write of every possible key in it: nothing older gets in behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from occamdb import ConflictError, RunId, WriteConflict
from occamdb.engine.model.public_types import IsolationName
from occamdb.primitives import Thought
from tests.support.databases import DatabaseFactory

WRITES: dict[str, Callable[[Any], Any]] = {
    "a new key": lambda txn: txn.put("new", 1),
    "an increment": lambda txn: txn.add("counter", 1),
    "a key that is created": lambda txn: txn.cas("created", 0, 1),
    "a delete": lambda txn: txn.delete("new"),
}


@pytest.mark.parametrize("isolation", ["serializable", "snapshot"])
@pytest.mark.parametrize("keys_before", [0, 3, 600])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_what_began_before_conflicts(
    db_factory: DatabaseFactory, write: Callable[[Any], Any], keys_before: int, isolation: IsolationName
) -> None:
    db = db_factory()
    run = RunId.new()
    with db.begin(run) as txn:
        for number in range(keys_before):
            txn.put(f"{number:04d}", number)
    late = db.begin(run, isolation=isolation)
    write(late)
    with db.begin(run) as deleter:
        deleter.delete_run_range()
    erased = deleter.receipt.version
    with pytest.raises(ConflictError) as caught:
        late.commit()
    (conflict,) = caught.value.conflicts
    assert isinstance(conflict, WriteConflict)
    assert (conflict.found_version, conflict.run_id) == (erased, run)
    assert conflict.expected_version < erased
    assert "deleted" in str(conflict)
    with db.begin(run) as txn:
        assert txn.count() == 0


def test_implicit_operations_go_on(db_factory: DatabaseFactory) -> None:
    db = db_factory()
    run = RunId.new()
    with db.begin(run) as txn:
        txn.delete_run_range()
    db.put(run, "key", 1)
    assert db.get(run, "key") == 1


def test_a_trace_does_not_outlive_its_run(db_factory: DatabaseFactory) -> None:
    db = db_factory()
    run = db.runs.create_run("r").run_id
    late = db.begin(run)
    late.traces.record(Thought("late"))
    db.runs.delete_run(run)
    with pytest.raises(ConflictError):
        late.commit()
    assert db.traces.count(run) == 0


def test_two_deletions_that_meet_conflict(db_factory: DatabaseFactory) -> None:
    db = db_factory()
    run = RunId.new()
    second = db.begin(run)
    second.delete_range(start="b", end="d")
    with db.begin(run) as first:
        first.delete_range(start="a", end="c")
    with pytest.raises(ConflictError):
        second.commit()


def test_deletions_side_by_side_do_not(db_factory: DatabaseFactory) -> None:
    db = db_factory()
    run = RunId.new()
    second = db.begin(run)
    second.delete_range(start="c", end="d")
    second.put("x", 1)
    with db.begin(run) as first:
        first.delete_range(start="a", end="c")
    second.commit()


@pytest.mark.local_only("the ranges deleted last are remembered, 256 of them; a server forgets none")
def test_more_deletions_than_are_remembered_refuse_what_is_older(db_factory: DatabaseFactory) -> None:
    """A new key is refused, because its history is forgotten; a key that kept its value is not."""
    db = db_factory()
    run = RunId.new()
    db.put(run, "kept", 1)
    new, kept = db.begin(run), db.begin(run)
    new.put("new", 1)
    kept.put("kept", 2)
    for number in range(300):
        with db.begin(run) as txn:
            txn.delete_range(start=f"r{number}", end=f"r{number}~")
    with pytest.raises(ConflictError):
        new.commit()
    kept.commit()
    assert db.get(run, "kept") == 2
