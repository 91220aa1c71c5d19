"""Keys with a time to live, between processes: absent at once for everybody, deleted in the background by the log."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from occamdb import ConflictError, Database, RunId
from tests.support import processes
from tests.support.processes import Peer, Worker, open_database, wait_until


def expire_soon(peer: Peer, path: Path, run: RunId, count: int) -> None:
    """Put keys that expire in a moment, and one that does not."""
    with open_database(path) as db:
        for number in range(count):
            db.put(run, f"soon/{number:04}", number, ttl=0.05)
        db.put(run, "later", 1, ttl=3600)
        peer.say("done")


def test_expired_keys_are_deleted_in_the_background(
    shared: Database, shared_path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    before = shared.stats()
    worker = start(expire_soon, shared_path, run, 300)
    worker.hear()
    wait_until(lambda: shared.stats()["expired"] >= before["expired"] + 300, what="the background deletion")
    figures = shared.stats()
    assert figures["expired"] == before["expired"] + 300
    assert figures["pending_expiries"] >= 1
    assert shared.list(run) == ["later"]
    # They are gone for good: nodes and records too, once nobody can see them.
    wait_until(lambda: shared.stats()["keys"] <= before["keys"] + 1, what="the nodes to go")
    assert (shared.kv.ttl(run, "later") or 0) > 3000


def test_deletion_by_time_goes_through_the_log(tmp_path: Path, run: RunId) -> None:
    """A recovery that starts after it finds them deleted, versions exact; what was overwritten in time stays."""
    path = tmp_path / "db"
    with open_database(path) as db:
        db.put(run, "gone", 1, ttl=0.05)
        db.put(run, "kept", 1, ttl=0.05)
        version = db.put(run, "kept", 2)
        wait_until(lambda: db.stats()["expired"] == 1, what="the background deletion")
        deleted = db.stats()["version"]
        assert deleted == version + 1
        processes.kill_coordinator(path)
        assert db.put(run, "next", 1) == deleted + 1
        assert db.list(run) == ["kept", "next"]
        assert db.stats()["pending_expiries"] == 0
        found = db.get_versioned(run, "kept")
        assert found is not None and (found.value, found.version) == (2, version)
        # Its next version is higher than any it had.
        assert db.cas(run, "gone", 0, 3) > deleted
    processes.stop_coordinator(path)


def test_keys_that_expire_while_nobody_serves(tmp_path: Path, run: RunId) -> None:
    path = tmp_path / "db"
    with open_database(path) as db:
        for number in range(50):
            db.put(run, f"k{number}", number, ttl=1.0)
        processes.kill_coordinator(path)
        view_end = time.time() + 1.0
        wait_until(lambda: time.time() > view_end, what="the time to pass")
        assert db.list(run) == []
        assert db.put(run, "new", 1)
        wait_until(lambda: db.stats()["expired"] == 50, what="the background deletion")
        assert db.list(run) == ["new"]
    processes.stop_coordinator(path)


def test_an_expiry_is_nobodys_write(shared: Database, run: RunId) -> None:
    """A transaction that read the key as expired, or not at all, commits after the background deleted it."""
    before = shared.stats()["expired"]
    shared.put(run, "k", 1, ttl=0.05)
    live = shared.begin(run)
    assert live.get("k") == 1
    wait_until(lambda: shared.get(run, "k") is None, what="the expiry")
    late = shared.begin(run)
    assert late.get("k") is None
    writer = shared.begin(run)
    writer.put("k", 2)
    wait_until(lambda: shared.stats()["expired"] > before, what="the background deletion")
    late.put("seen absent", 1)
    late.commit()
    writer.commit()
    assert shared.get(run, "k") == 2
    live.put("seen live", 1)
    with pytest.raises(ConflictError):
        live.commit()
