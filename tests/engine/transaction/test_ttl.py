"""Time to live: expiry times, one clock reading per transaction, and what an expired key is to every operation."""

import datetime as dt
import time
from collections.abc import Callable
from typing import Any

import pytest

from occamdb import Database
from occamdb.engine.model.errors import ConflictError, InvalidArgumentError
from occamdb.engine.model.public_types import RunId

SOON = 0.02


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"still waiting for {what}"
        time.sleep(0.001)


def put_and_let_expire(db: Database, run: RunId, key: str, value: Any = "old") -> int:
    version = db.put(run, key, value, ttl=SOON)
    wait_until(lambda: db.get(run, key) is None, "the key to expire")
    return version


def test_expiry_time_is_the_clock_reading_plus_ttl(db: Database, run: RunId) -> None:
    with db.begin(run) as txn:
        for key, ttl, seconds in (("a", 90, 90), ("b", 1.5, 1.5), ("c", dt.timedelta(hours=2), 7200)):
            txn.put(key, 1, ttl=ttl)
            found = txn.get_versioned(key)
            assert found is not None
            assert found.expires_at_ns - txn.read_time == pytest.approx(seconds * 1e9, abs=1000)
        txn.cas("d", 0, 1, ttl=90)
        own = {key: row.expires_at_ns for key, row in txn.scan()}
    stored = {key: row.expires_at_ns for key, row in db.begin(run).scan()}
    assert stored == own
    assert set(stored) == {"a", "b", "c", "d"}


def test_a_later_put_replaces_the_ttl(db: Database, run: RunId) -> None:
    db.put(run, "k", 1, ttl=100)
    db.put(run, "k", 2)
    found = db.get_versioned(run, "k")
    assert found is not None and found.expires_at is None


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), 1e30, "1", True, dt.timedelta(0), [1]])
def test_bad_ttls_are_refused(db: Database, run: RunId, ttl: Any) -> None:
    with db.begin(run) as txn:
        for call in (
            lambda: txn.put("k", 1, ttl=ttl),
            lambda: txn.cas("k", 0, 1, ttl=ttl),
            lambda: db.put(run, "k", 1, ttl=ttl),
            lambda: db.cas(run, "k", 0, 1, ttl=ttl),
        ):
            with pytest.raises(InvalidArgumentError):
                call()
    assert db.list(run) == []


def test_an_expired_key_is_absent_to_everything(db: Database, run: RunId) -> None:
    put_and_let_expire(db, run, "k")
    with db.begin(run) as txn:
        assert txn.get("k", "default") == "default"
        assert txn.get("k", "default", track=False) == "default"
        assert txn.get_versioned("k") is None
        assert not txn.exists("k")
        assert list(txn.scan()) == [] and list(txn.keys(reverse=True)) == [] and txn.count() == 0
        assert txn.delete("k") is False
    with db.snapshot(run) as view:
        assert view.get("k") is None
        assert list(view.scan_prefix()) == []
    assert db.delete(run, "k") is False


def test_an_expired_key_has_version_zero_for_cas(db: Database, run: RunId) -> None:
    version = put_and_let_expire(db, run, "k")
    with pytest.raises(ConflictError):
        db.cas(run, "k", version, "no")
    again = db.cas(run, "k", 0, "new")
    assert again > version
    assert db.get(run, "k") == "new"


def test_expiry_is_judged_by_one_clock_reading(db: Database, run: RunId) -> None:
    db.put(run, "k", "v", ttl=SOON)
    db.put(run, "other", 1)
    early = db.begin(run)
    reading = early.read_time
    alive = early.get("k")
    wait_until(lambda: db.get(run, "k") is None, "the key to expire")
    for _ in range(3):
        assert early.get("k") == alive
        assert early.exists("k") == (alive is not None)
        assert len(list(early.scan())) == 1 + (alive is not None)
    assert early.read_time == reading
    assert db.begin(run).get("k") is None


def test_own_puts_do_not_expire_inside_their_transaction(db: Database, run: RunId) -> None:
    txn = db.begin(run)
    txn.put("k", "v", ttl=1e-6)
    deadline = time.monotonic_ns() + 100_000
    wait_until(lambda: time.monotonic_ns() > deadline, "the clock")
    assert txn.get("k") == "v"
    assert txn.count() == 1
    txn.commit()
    wait_until(lambda: db.get(run, "k") is None, "the key to expire")


def test_add_to_an_expired_key_counts_from_zero(db: Database, run: RunId) -> None:
    put_and_let_expire(db, run, "n", 41)
    assert db.space(run, 1).add("n", 1) == 1
    put_and_let_expire(db, run, "m", 41)
    with db.begin(run) as txn:
        txn.add("m", 2)
        assert txn.get("m") == 2
        assert [(key, row.value) for key, row in txn.scan("m")] == [("m", 2)]
    assert db.get(run, "m") == 2


def test_a_read_of_an_expired_key_conflicts_with_its_return(db: Database, run: RunId) -> None:
    put_and_let_expire(db, run, "k")
    txn = db.begin(run)
    assert txn.get("k") is None
    txn.put("other", 1)
    db.put(run, "k", "back")
    with pytest.raises(ConflictError):
        txn.commit()


def test_reading_an_expired_key_does_not_conflict_by_itself(db: Database, run: RunId) -> None:
    put_and_let_expire(db, run, "k")
    txn = db.begin(run)
    assert txn.get("k") is None
    assert txn.count("k") == 0
    txn.put("k", "again")
    db.put(run, "elsewhere", 1)
    txn.commit()
    assert db.get(run, "k") == "again"
