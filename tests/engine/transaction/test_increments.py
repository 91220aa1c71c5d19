"""Increments: what they show inside their transaction, how they merge at the commit, what they refuse."""

import pytest

from occamdb import Database, TransactionStatus
from occamdb.engine.model.errors import (
    ConflictError,
    IntegerOverflowError,
    NotAnIntegerError,
    ReadConflict,
)
from occamdb.engine.model.public_types import RunId

# --- Increments --------------------------------------------------------------------------------------


def test_add_shows_inside_and_merges_at_commit(db: Database, run: RunId) -> None:
    db.put(run, "n", 10)
    one, two = db.begin(run), db.begin(run)
    one.add("n", 5)
    two.add("n", -3)
    two.add("n", 1)
    one.commit()
    two.commit()
    assert db.get(run, "n") == 13


def test_reading_a_key_added_to_enters_the_read_set(db: Database, run: RunId) -> None:
    db.put(run, "n", 10)
    txn = db.begin(run)
    txn.add("n", 5)
    assert txn.get("n") == 15
    assert txn.get_versioned("n").value == 15  # type: ignore[union-attr]
    assert [(k, v.value) for k, v in txn.scan()] == [("n", 15)]
    db.put(run, "n", 20)
    with pytest.raises(ConflictError) as caught:
        txn.commit()
    assert any(isinstance(conflict, ReadConflict) for conflict in caught.value.conflicts)


def test_add_to_absent_put_and_deleted_keys(db: Database, run: RunId) -> None:
    db.put(run, "gone", 5)
    with db.begin(run) as txn:
        txn.add("fresh", 2)
        txn.put("own", 7)
        txn.add("own", 3)
        txn.delete("gone")
        txn.add("gone", 4)
        txn.add("replaced")
        txn.put("replaced", "text")
        txn.add("dropped")
        assert txn.delete("dropped") is True
        expected = {"fresh": 2, "gone": 4, "own": 10, "replaced": "text"}
        assert {key: row.value for key, row in txn.scan()} == expected
        assert txn.exists("fresh")
    assert {key: db.get(run, key) for key in db.list(run)} == expected


def test_add_refuses_what_is_no_integer(db: Database, run: RunId) -> None:
    for value in ("text", 1.0, True, None):
        db.put(run, "n", value)
        txn = db.begin(run)
        txn.add("n")
        with pytest.raises(NotAnIntegerError) as caught:
            txn.get("n")
        assert caught.value.key == "n"
        with pytest.raises(NotAnIntegerError):
            txn.commit()
        assert txn.status is TransactionStatus.ABORTED
        assert db.get(run, "n") == value
    with db.begin(run) as txn:
        txn.put("own", "text")
        with pytest.raises(NotAnIntegerError):
            txn.add("own")


def test_add_refuses_overflow(db: Database, run: RunId) -> None:
    db.put(run, "n", 2**64 - 1)
    txn = db.begin(run)
    txn.add("n")
    with pytest.raises(IntegerOverflowError):
        txn.get("n")
    with pytest.raises(IntegerOverflowError) as caught:
        txn.commit()
    assert caught.value.key == "n"
    assert db.get(run, "n") == 2**64 - 1
    with db.begin(run) as txn:
        txn.add("m", 2**63 - 1)
        with pytest.raises(IntegerOverflowError):
            txn.add("m")
        assert txn.get("m") == 2**63 - 1
