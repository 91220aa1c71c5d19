"""Transactions that are open, and workers that come, while one coordinator gives way to the next."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from occamdb import ConflictError, DatabaseClosedError, RunId
from occamdb.engine.client.shared_handle import SharedHandle
from occamdb.ipc.control import ControlClient
from occamdb.ipc.lock import FileLock, lock_holder
from tests.support.processes import (
    Peer,
    Worker,
    coordinator_pid,
    kill_coordinator,
    open_database,
    stop_coordinator,
)


def test_an_open_transaction_makes_a_new_key_in_the_next_life(tmp_path: Path, run: RunId) -> None:
    """Others committed after it began, but other keys: a coordinator's death is not a conflict."""
    path = tmp_path / "db"
    with open_database(path) as db:
        db.put(run, "read", 1)
        txn = db.begin(run)
        assert txn.get("read") == 1
        assert list(txn.scan("range/")) == []
        for count in range(5):
            db.put(run, "other", count)
        kill_coordinator(path)
        txn.put("new", 1)
        txn.put("range/new", 1)
        txn.commit()
        assert db.get(run, "other") == 4
    stop_coordinator(path)


def test_an_open_transaction_goes_on_after_a_clean_stop(tmp_path: Path, run: RunId) -> None:
    """A checkpoint holds no deletes, so an older transaction cannot be sure of absent keys; of the others it can."""
    path = tmp_path / "db"
    with open_database(path) as db:
        db.put(run, "read", 1)
        txn = db.begin(run)
        assert txn.get("read") == 1
        db.put(run, "other", 1)
        stop_coordinator(path)
        txn.put("read", 2)
        txn.commit()
        assert db.get(run, "read") == 2
    stop_coordinator(path)


@pytest.mark.parametrize("write", ["deleted", "changed", "range/new"])
def test_a_conflict_is_one_in_the_next_life_too(tmp_path: Path, run: RunId, write: str) -> None:
    path = tmp_path / "db"
    with open_database(path) as db:
        db.put(run, "deleted", 1)
        db.put(run, "changed", 1)
        txn = db.begin(run)
        list(txn.scan("range/"))
        db.delete(run, "deleted")
        db.put(run, "changed", 2)
        db.put(run, "range/new", 2)
        kill_coordinator(path)
        txn.put(write, 3)
        with pytest.raises(ConflictError):
            txn.commit()
        assert db.get(run, "changed") == 2
    stop_coordinator(path)


def test_a_transaction_does_not_trust_what_was_lost_without_a_log(tmp_path: Path, run: RunId) -> None:
    path = tmp_path / "db"
    with open_database(path, durability="none") as db:
        db.put(run, "range/a", 1)
        txn = db.begin(run)
        assert len(list(txn.scan("range/"))) == 1
        db.put(run, "k", 1)
        kill_coordinator(path)
        txn.put("k", 2)
        with pytest.raises(ConflictError):
            txn.commit()
    stop_coordinator(path)


def test_a_database_that_was_closed_meanwhile_starts_no_coordinator(tmp_path: Path, run: RunId) -> None:
    """A thread still wants a link while another one closes the database, and the coordinator is stopped then."""
    path = tmp_path / "db"
    db = open_database(path)
    db.put(run, "k", 1)
    assert isinstance(db.handle, SharedHandle)
    pool = db.handle.pool
    connect = pool._launcher.connect

    def connect_too_late(limit: float) -> ControlClient | None:
        db.close()
        stop_coordinator(path)
        return connect(limit)

    pool._launcher.connect = connect_too_late  # type: ignore[method-assign]
    with pytest.raises(DatabaseClosedError):
        pool.attach(time.monotonic() + 60, session=0)
    assert lock_holder(path / "LOCK") is None


def test_a_worker_may_come_in_any_moment_of_an_idle_end(tmp_path: Path, run: RunId) -> None:
    """The coordinator ends soon after its last worker left; one that comes meanwhile gets it or the next."""
    path = tmp_path / "db"
    lives = set()
    for number in range(16):
        with open_database(path, idle_timeout=0.02) as db:
            assert db.put(run, "k", number) > 0
            assert db.get(run, "k") == number
            lives.add(coordinator_pid(path))
        # Sweep over the phases of the end, which comes within a quarter of a second.
        time.sleep(0.022 * number)
    assert len(lives) > 1
    with open_database(path) as db:
        assert db.get(run, "k") == 15
    stop_coordinator(path)


def hold_starter(peer: Peer, path: str) -> None:
    """Be about to start a coordinator, and go no further."""
    lock = FileLock(f"{path}/STARTER")
    lock.acquire()
    peer.say("held")
    peer.hear()


def test_a_stopped_starter_holds_nobody_up(tmp_path: Path, start: Callable[..., Worker], run: RunId) -> None:
    path = tmp_path / "db"
    with open_database(path) as db:
        db.put(run, "k", 1)
        starter = start(hold_starter, str(path))
        assert starter.hear() == "held"
        starter.stop()
        kill_coordinator(path)
        assert db.put(run, "k", 2) > 0
        starter.resume()
    stop_coordinator(path)


def test_an_interrupted_start_gives_the_lock_back(
    tmp_path: Path, run: RunId, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "db"
    with open_database(path) as db:
        db.put(run, "k", 1)
        kill_coordinator(path)
        acquire = FileLock.acquire

        def acquire_and_be_interrupted(lock: FileLock) -> None:
            acquire(lock)
            raise KeyboardInterrupt

        monkeypatch.setattr(FileLock, "acquire", acquire_and_be_interrupted)
        with pytest.raises(KeyboardInterrupt):
            db.put(run, "k", 2)
        monkeypatch.undo()
        with FileLock(str(path / "STARTER")):  # free: raises LockHeldError otherwise
            pass
        assert db.put(run, "k", 3) > 0
    stop_coordinator(path)
