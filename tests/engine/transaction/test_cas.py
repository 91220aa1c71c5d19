"""Versions of own writes, and compare-and-swap."""

import datetime as dt

import pytest

from occamdb import Database, TransactionStatus
from occamdb.engine.model.errors import (
    CASConflict,
    ConflictError,
)
from occamdb.engine.model.public_types import RunId, TypeTag

# --- Versions of own writes, and CAS --------------------------------------------------------------


def test_versions_and_times_of_committed_values(db: Database, run: RunId) -> None:
    version = db.put(run, "k", "v")
    with db.begin(run) as txn:
        found = txn.get_versioned("k")
        assert found is not None
        assert (found.value, found.version, found.expires_at) == ("v", version, None)
        assert abs(found.timestamp - dt.datetime.now(dt.UTC)) < dt.timedelta(minutes=5)


def test_own_write_shows_the_version_a_cas_has_to_expect(db: Database, run: RunId) -> None:
    version = db.put(run, "k", 1)
    with db.begin(run) as txn:
        txn.put("k", 2)
        txn.put("new", 1)
        assert txn.get_versioned("k").version == version  # type: ignore[union-attr]
        assert txn.get_versioned("new").version == 0  # type: ignore[union-attr]
        assert [row.version for _, row in txn.scan()] == [version, 0]


def test_cas_is_checked_by_its_version_alone(db: Database, run: RunId) -> None:
    version = db.put(run, "k", 1)
    txn = db.begin(run)
    newer = db.put(run, "k", 2)
    txn.cas("k", newer, 3)  # written after the snapshot, and yet as expected
    assert txn.get("k") == 3
    txn.commit()
    assert db.get(run, "k") == 3
    txn = db.begin(run)
    txn.cas("k", version, 4)
    with pytest.raises(ConflictError) as caught:
        txn.commit()
    (conflict,) = caught.value.conflicts
    assert isinstance(conflict, CASConflict)
    assert (conflict.key, conflict.expected_version) == ("k", version)
    assert conflict.found_version == txn.start_version


def test_cas_with_zero_creates(db: Database, run: RunId) -> None:
    with db.begin(run) as txn:
        txn.cas("k", 0, "made")
    txn = db.begin(run)
    txn.cas("k", 0, "again")
    with pytest.raises(ConflictError):
        txn.commit()
    assert db.get(run, "k") == "made"
    db.delete(run, "k")
    with db.begin(run) as txn:
        txn.cas("k", 0, "anew")
    assert db.get(run, "k") == "anew"


def test_cas_adds_nothing_to_the_read_set(db: Database, run: RunId) -> None:
    txn = db.begin(run)
    txn.cas("k", 0, 1)
    db.put(run, "k", 0)
    db.delete(run, "k")
    txn.commit()  # absent again: as expected, though it was written meanwhile
    assert db.get(run, "k") == 1


@pytest.mark.parametrize("then", ["put", "delete"])
def test_write_after_cas_keeps_the_check(db: Database, run: RunId, then: str) -> None:
    version = db.put(run, "k", 1)
    for expected, commits in ((version, True), (version + 1_000, False)):
        txn = db.begin(run)
        txn.cas("k", expected, 2)
        if then == "put":
            txn.put("k", 3)
        else:
            assert txn.delete("k") is True
        if commits:
            txn.commit()
            assert db.get(run, "k") == (3 if then == "put" else None)
            db.put(run, "k", 1)
        else:
            with pytest.raises(ConflictError) as caught:
                txn.commit()
            assert isinstance(caught.value.conflicts[0], CASConflict)


def test_read_and_cas_repeat_inside_one_transaction(db: Database, run: RunId) -> None:
    db.put(run, "k", 0)
    with db.begin(run) as txn:
        for _ in range(3):
            found = txn.get_versioned("k")
            assert found is not None
            txn.cas("k", found.version, found.value + 1)
    assert db.get(run, "k") == 3


def test_cas_after_own_delete_expects_absence(db: Database, run: RunId) -> None:
    version = db.put(run, "k", 1)
    with db.begin(run) as txn:
        txn.delete("k")
        txn.cas("k", 0, 2)
    assert db.get(run, "k") == 2
    version = db.get_versioned(run, "k").version  # type: ignore[union-attr]
    txn = db.begin(run)
    txn.delete("k")
    txn.cas("k", version, 3)
    with pytest.raises(ConflictError) as caught:
        txn.commit()
    assert caught.value.conflicts == (CASConflict("k", version, 0, run, TypeTag.KV),)


def test_cas_after_own_delete_still_meets_other_writers(db: Database, run: RunId) -> None:
    db.put(run, "k", 1)
    txn = db.begin(run)
    txn.delete("k")
    txn.cas("k", 0, 2)
    db.put(run, "k", 9)
    with pytest.raises(ConflictError):
        txn.commit()
    assert db.get(run, "k") == 9


def test_two_expectations_of_one_key_cannot_both_hold(db: Database, run: RunId) -> None:
    version = db.put(run, "k", 1)
    txn = db.begin(run)
    txn.cas("k", version, 2)
    txn.cas("k", version + 5, 3)
    assert txn.validate()
    with pytest.raises(ConflictError) as caught:
        txn.commit()
    assert caught.value.conflicts == (CASConflict("k", version + 5, version, run, TypeTag.KV),)
    assert txn.status is TransactionStatus.ABORTED
