"""Expiry has a place in the order of commits.

A transaction that saw a key alive does not commit after one that saw it expired.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from occamdb import Database, Transaction
from occamdb.engine.model.errors import ConflictError
from occamdb.engine.model.public_types import RunId
from tests.support.databases import own_engine
from tests.support.engines import Engine

LEASE = 3600.0

# A database of the module's own: the tests step its clock, and count on no other key with a time to live.
engine = own_engine


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"still waiting for {what}"
        time.sleep(0.001)


def lease(db: Database, run: RunId, key: str = "lease/x", value: Any = 1) -> None:
    db.put(run, key, value, ttl=LEASE)


@pytest.fixture
def until_expired(engine: Engine) -> Callable[..., None]:
    """Lets the lease expire, however long the test took so far: its clock is stepped, not waited for."""

    def wait(db: Database, run: RunId, key: str = "lease/x") -> None:
        found = db.get_versioned(run, key)
        assert found is not None and found.expires_at_ns is not None

        def expired() -> bool:
            engine.step_clock(db, found.expires_at_ns + 1)
            return db.get(run, key) is None

        wait_until(expired, f"{key} to expire")

    return wait


def saw_by_scan(txn: Transaction) -> bool:
    return [key for key, _ in txn.scan("lease/")] == ["lease/x"]


def saw_by_reverse_scan(txn: Transaction) -> bool:
    return next(txn.scan("lease/", reverse=True, limit=1), None) is not None


def saw_by_increment(txn: Transaction) -> bool:
    txn.add("lease/x", 1)
    return bool(txn.get("lease/x") == 2)


WAYS: dict[str, Callable[[Transaction], bool]] = {
    "get": lambda txn: txn.get("lease/x") == 1,
    "exists": lambda txn: txn.exists("lease/x"),
    "scan": saw_by_scan,
    "reverse scan": saw_by_reverse_scan,
    "keys": lambda txn: list(txn.keys("lease/")) == ["lease/x"],
    "count": lambda txn: txn.count("lease/") == 1,
    "delete": lambda txn: txn.delete("lease/x"),
    "increment": saw_by_increment,
}


@pytest.mark.parametrize("removed", [True, False], ids=["removed", "overtaken"])
@pytest.mark.parametrize("way", WAYS)
def test_who_saw_it_alive_does_not_commit_after_who_saw_it_expired(
    engine: Engine, db: Database, run: RunId, until_expired: Callable[..., None], way: str, removed: bool
) -> None:
    """T saw the lease, U saw it gone and committed; T did not see what U wrote, so T cannot come before or after U."""
    lease(db, run)
    db.put(run, "y", "old")
    t = db.begin(run)
    assert WAYS[way](t)
    until_expired(db, run)
    if removed:
        wait_until(lambda: engine.has_removed_expired(db), "the background removal")
    u = db.begin(run)
    assert u.count("lease/") == 0
    assert u.get("y") == "old"
    u.put("z", 1)
    u.commit()
    t.put("y", "new")
    with pytest.raises(ConflictError):
        t.commit()


def test_a_cas_of_the_version_that_expired_fails(
    db: Database, run: RunId, until_expired: Callable[..., None]
) -> None:
    lease(db, run)
    t = db.begin(run)
    found = t.get_versioned("lease/x", track=False)
    assert found is not None
    until_expired(db, run)
    t.cas("lease/x", found.version, 2)
    with pytest.raises(ConflictError):
        t.commit()


@pytest.mark.parametrize("way", ["get", "scan", "count", "exists"])
def test_a_snapshot_from_before_an_expiry_shows_the_key_whenever_it_first_looks(
    db: Database, run: RunId, until_expired: Callable[..., None], way: str
) -> None:
    """U saw the key alive and wrote; a reader that does not see what U wrote comes before U, so it sees the key too."""
    lease(db, run)
    reader = db.begin(run, read_only=True)
    u = db.begin(run)
    assert u.get("lease/x") == 1
    u.put("y", 1)
    u.commit()
    until_expired(db, run)
    assert reader.get("y") is None
    assert WAYS[way](reader)


def test_who_saw_the_key_expired_commits_after_its_removal(
    engine: Engine, db: Database, run: RunId, until_expired: Callable[..., None]
) -> None:
    """The removal itself is nobody's write."""
    lease(db, run)
    until_expired(db, run)
    late = db.begin(run)
    assert late.count("lease/") == 0 and late.get("lease/x") is None
    wait_until(lambda: engine.has_removed_expired(db), "the background removal")
    db.put(run, "elsewhere", 1)
    late.put("y", 1)
    late.commit()


def test_a_put_does_not_care_whether_the_key_expired(
    db: Database, run: RunId, until_expired: Callable[..., None]
) -> None:
    lease(db, run)
    writer = db.begin(run)
    writer.put("lease/x", 2)
    until_expired(db, run)
    writer.commit()
    assert db.get(run, "lease/x") == 2


def test_a_ttl_counts_by_the_clock_of_the_engine(engine: Engine, db: Database, run: RunId) -> None:
    """Also in the first call of a handle, and where the clock of this process is hours behind."""
    engine.step_clock(db, engine.expiry_clock(db) + int(2 * LEASE * 1e9))
    other = engine.again(db)
    lease(other, run)
    assert db.get(run, "lease/x") == 1
    engine.discard(other)
