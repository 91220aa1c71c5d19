"""Ephemeral keys between processes: they live as long as the open database that wrote them, and no longer."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from occamdb import Database, DatabaseClosedError, InvalidArgumentError, RunId
from tests.support.processes import (
    Peer,
    Worker,
    ask_coordinator,
    kill_coordinator,
    open_database,
    set_coordinator_failpoint,
    stop_coordinator,
    wait_until,
)

GRACE_S = 0.6


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A database whose coordinator is stopped at the end."""
    yield tmp_path / "db"
    if (tmp_path / "db").exists():
        stop_coordinator(tmp_path / "db")


@pytest.fixture
def db(path: Path) -> Iterator[Database]:
    with open_database(path, session_grace=GRACE_S) as database:
        yield database


def own(peer: Peer, path: Path, run: RunId, *names: str) -> None:
    """Put ephemeral keys, say so, then do as told: another name to put, "close", "fork" or nothing."""
    db = open_database(path)
    for name in names:
        db.put(run, name, os.getpid(), ephemeral=True)
    peer.say(db.session)
    while True:
        match peer.hear():
            case "close":
                db.close()
                peer.say("closed")
            case "fork":
                child = os.fork()
                if child == 0:
                    os._exit(0)
                os.waitpid(child, 0)
                peer.say("the child is dead")
            case "fork and use":
                child = os.fork()
                if child == 0:
                    db.put(run, "of the child", 1, ephemeral=True)
                    os._exit(0)
                os.waitpid(child, 0)
                peer.say("the child is dead")
            case "session":
                peer.say(db.session)
            case name:
                db.put(run, name, os.getpid(), ephemeral=True)
                peer.say(db.session)


def gone(db: Database, run: RunId, *names: str, within: float = 30.0) -> None:
    wait_until(lambda: not any(db.exists(run, name) for name in names), within, what=f"the end of {names}")


# ---- the end of an owner -----------------------------------------------------------------------------------------


def test_a_key_is_gone_within_a_second_of_sigkill(
    db: Database, path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    owner = start(own, path, run, "lock", "other")
    session = owner.hear()
    db.put(run, "plain", 1)
    found = db.get_versioned(run, "lock")
    assert found is not None and found.ephemeral and found.session == session != db.session
    owner.kill()
    gone(db, run, "lock", "other", within=1.0)
    assert db.list(run) == ["plain"]


def test_closing_the_database_ends_its_keys(
    db: Database, path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    owner = start(own, path, run, "lock")
    owner.hear()
    owner.say("close")
    assert owner.hear() == "closed"
    gone(db, run, "lock", within=1.0)


def test_each_handle_of_a_process_has_keys_of_its_own(db: Database, path: Path, run: RunId) -> None:
    second = open_database(path)
    assert second.session != db.session
    second.put(run, "second", 1, ephemeral=True)
    db.put(run, "first", 1, ephemeral=True)
    second.close()
    gone(db, run, "second", within=1.0)
    assert db.list(run) == ["first"]


def test_all_links_of_a_handle_bind_to_its_session(db: Database, run: RunId) -> None:
    """Threads that commit at the same time use links of their own; the keys belong to the handle all the same."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda number: db.put(run, f"k{number}", number, ephemeral=True), range(60)))
    assert {value.session for _, value in db.scan(run)} == {db.session}
    entries = [each for each in db.stats()["sessions"] if each["session"] == db.session]
    assert len(entries) == 1 and entries[0]["pid"] == os.getpid()


def test_transactions_cells_and_cas_bind_too(
    db: Database, path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    db.cells.init(run, "cell", 1, ephemeral=True)
    db.cells.set(run, "set", 1, ephemeral=True)
    db.cas(run, "cas", 0, 1, ephemeral=True)
    db.kv.put(run, "kv", 1, ttl=3600, ephemeral=True)
    with db.begin(run) as txn:
        txn.put("txn", 1, ephemeral=True)
        seen = txn.get_versioned("txn")
        assert seen is not None and seen.session == db.session  # before the commit too
    with open_database(path) as other:
        assert {name: found.session for name, found in other.scan(run)} == dict.fromkeys(
            ("cas", "kv", "txn"), db.session
        )
        assert db.stats()["session_keys"] == 5
        db.close()
        gone(other, run, "cas", "kv", "txn", within=1.0)
        wait_until(lambda: not other.cells.list(run), 1.0, what="the end of the cells")
        assert other.stats()["session_keys"] == 0


def test_who_writes_last_decides(db: Database, path: Path, run: RunId, start: Callable[..., Worker]) -> None:
    owner = start(own, path, run, "plain", "mine", "count", "ours", "deleted")
    session = owner.hear()
    db.put(run, "plain", 1)
    db.put(run, "mine", 1, ephemeral=True)
    db.increment(run, "count")
    db.delete(run, "deleted")
    db.put(run, "deleted", "again")
    sessions = {name: found.session for name, found in db.scan(run)}
    assert sessions == {"plain": 0, "mine": db.session, "count": session, "ours": session, "deleted": 0}
    owner.kill()
    gone(db, run, "count", "ours", within=1.0)
    assert db.list(run) == ["deleted", "mine", "plain"]


# ---- what does not end it ----------------------------------------------------------------------------------------


def test_a_stopped_owner_keeps_its_keys(
    db: Database, path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    """Stopped for longer than the grace, while others of its kind come and go."""
    owner = start(own, path, run, "lock")
    owner.hear()
    owner.stop()
    witness = start(own, path, run, "witness")
    witness.hear()
    ends = time.monotonic() + 2 * GRACE_S
    wait_until(lambda: time.monotonic() > ends and db.exists(run, "lock"))
    witness.kill()
    gone(db, run, "witness", within=1.0)
    assert db.exists(run, "lock")
    owner.resume()
    owner.say("more")
    owner.hear()
    assert db.list(run) == ["lock", "more"]
    owner.stop()
    owner.kill()
    gone(db, run, "lock", "more", within=1.0)


@pytest.mark.parametrize("how", ["fork", "fork and use"])
def test_the_death_of_a_forked_child_does_not_end_it(
    db: Database, path: Path, run: RunId, start: Callable[..., Worker], how: str
) -> None:
    owner = start(own, path, run, "lock")
    owner.hear()
    owner.say(how)
    assert owner.hear() == "the child is dead"
    gone(db, run, "of the child", within=1.0)
    witness = start(own, path, run, "witness")
    witness.hear()
    witness.kill()
    gone(db, run, "witness", within=1.0)
    assert db.list(run) == ["lock"]


def fork_and_stay(peer: Peer, path: Path, run: RunId) -> None:
    db = open_database(path)
    db.put(run, "lock", 1, ephemeral=True)
    child = os.fork()
    if child == 0:
        while True:
            signal.pause()
    peer.say(child)
    peer.hear()


def test_a_child_that_lives_on_does_not_keep_the_keys_of_its_parent(
    db: Database, path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    owner = start(fork_and_stay, path, run)
    child = owner.hear()
    try:
        owner.kill()
        gone(db, run, "lock", within=1.5)
    finally:
        os.kill(child, signal.SIGKILL)


# ---- restarts of the coordinator ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_an_owner_that_makes_no_call_keeps_its_keys_across_restarts(
    db: Database, path: Path, run: RunId, start: Callable[..., Worker], how: str
) -> None:
    """It does nothing at all: its session comes back by itself, with the same identity."""
    owner = start(own, path, run, "lock")
    session = owner.hear()
    for _ in range(2):
        kill_coordinator(path) if how == "killed" else stop_coordinator(path)
        db.put(run, "plain", 1)  # starts the next one
        began = time.monotonic()
        wait_until(lambda: time.monotonic() > began + 2 * GRACE_S)  # noqa: B023
        found = db.get_versioned(run, "lock")
        assert found is not None and found.session == session
    owner.say("more")
    assert owner.hear() == session
    owner.kill()
    gone(db, run, "lock", "more", within=1.0)


def test_an_owner_that_dies_during_the_restart_is_over_after_the_grace(
    db: Database, path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    owner = start(own, path, run, "lock", "lock2")
    owner.hear()
    db.put(run, "mine", 1, ephemeral=True)
    kill_coordinator(path)
    owner.kill()
    db.put(run, "plain", 1)
    assert db.exists(run, "lock")
    gone(db, run, "lock", "lock2")
    assert db.list(run) == ["mine", "plain"]


def test_an_owner_that_comes_too_late_gets_a_new_session_and_learns_it(
    db: Database, path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    """Stopped while the coordinator restarts, for longer than the grace."""
    owner = start(own, path, run, "lock")
    session = owner.hear()
    owner.stop()
    kill_coordinator(path)
    db.put(run, "plain", 1)
    gone(db, run, "lock")
    owner.resume()
    owner.say("again")
    assert owner.hear() != session
    found = db.get_versioned(run, "again")
    assert found is not None and found.session not in (0, session)
    owner.kill()
    gone(db, run, "again", within=1.0)


def test_keys_of_an_owner_that_is_gone_without_a_coordinator_go_at_the_next_start(
    path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    """Everybody dies; who opens the database next finds the keys, and after the grace no more."""
    with open_database(path, session_grace=GRACE_S) as first:
        owner = start(own, path, run, "lock")
        owner.hear()
        first.put(run, "plain", 1)
        kill_coordinator(path)
        owner.kill()
    with open_database(path, session_grace=GRACE_S) as db:
        gone(db, run, "lock")
        assert db.list(run) == ["plain"]


def cut_all_links(peer: Peer, path: Path, run: RunId) -> None:
    """Lose every connection, and make no call."""
    db = open_database(path)
    db.put(run, "lock", 1, ephemeral=True)
    pool = db.handle.pool  # type: ignore[attr-defined]
    for link in set(pool._all):
        link.client.hang_up()
    pool._keeper._client.hang_up()
    peer.say(db.session)
    peer.hear()
    peer.say(db.put(run, "more", 1, ephemeral=True) and db.session)
    peer.hear()


def test_an_owner_whose_links_break_comes_back_within_the_grace(
    db: Database, path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    owner = start(cut_all_links, path, run)
    session = owner.hear()
    began = time.monotonic()
    wait_until(lambda: time.monotonic() > began + 2 * GRACE_S)
    assert db.exists(run, "lock")
    owner.say("go on")
    assert owner.hear() == session
    assert {found.session for _, found in db.scan(run)} == {session}


# ---- what others may not do --------------------------------------------------------------------------------------


def test_a_session_of_another_process_cannot_be_named(
    db: Database, path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    owner = start(own, path, run, "lock")
    session = owner.hear()
    for other in (session, 0, -1, "x", None):
        with pytest.raises(InvalidArgumentError):
            ask_coordinator(path, "hold", owner=other, process=None)
        with pytest.raises(InvalidArgumentError):
            ask_coordinator(path, "attach", owner=other, session=0, process=None, asked={}, durability="none")
    assert db.exists(run, "lock")
    owner.kill()
    gone(db, run, "lock", within=1.0)


# ---- in memory, closed ---------------------------------------------------------------------------------------------


def test_in_memory_the_keys_end_with_the_database(run: RunId) -> None:
    import occamdb

    db = occamdb.open_in_memory()
    db.put(run, "lock", 1, ephemeral=True)
    found = db.get_versioned(run, "lock")
    assert found is not None and found.session == db.session
    txn = db.begin(run)
    txn.put("more", 1, ephemeral=True)
    db.close()
    for call in (
        lambda: db.put(run, "x", 1, ephemeral=True),
        lambda: db.get(run, "lock"),
        txn.commit,
    ):
        with pytest.raises(DatabaseClosedError) as caught:
            call()
        assert caught.value.hint


def session_threads() -> set[threading.Thread]:
    """Those of this process. Databases that several tests share may have some."""
    return {thread for thread in threading.enumerate() if thread.name == "occamdb session"}


def test_a_closed_database_takes_no_ephemeral_key_and_leaves_no_thread(
    db: Database, path: Path, run: RunId
) -> None:
    before = session_threads()
    db.put(run, "lock", 1, ephemeral=True)
    assert session_threads() > before
    db.close()
    assert session_threads() == before
    with pytest.raises(DatabaseClosedError):
        db.put(run, "lock", 1, ephemeral=True)


def test_a_handle_that_writes_no_ephemeral_key_has_no_thread(db: Database, run: RunId) -> None:
    before = session_threads()
    db.put(run, "plain", 1)
    assert session_threads() == before


# ---- a commit whose answer was lost --------------------------------------------------------------------------------


def test_an_increment_of_an_ephemeral_key_is_answered_after_a_restart(
    db: Database, path: Path, run: RunId
) -> None:
    """What it resulted in is read back from the log, where it is the write of a bound key."""
    db.put(run, "count", 5, ephemeral=True)
    set_coordinator_failpoint(path, "commit.before_reply", "kill@1")
    assert db.increment(run, "count", 3) == 8
    found = db.get_versioned(run, "count")
    assert found is not None and (found.value, found.session) == (8, db.session)


def test_a_database_that_was_never_closed_goes_when_nobody_refers_to_it(
    db: Database, path: Path, run: RunId
) -> None:
    """Its thread does not keep it. Its process lives, so the keys go after the grace."""
    before = session_threads()
    forgotten = open_database(path)
    forgotten.put(run, "lock", 1, ephemeral=True)
    assert session_threads() > before
    del forgotten
    gc.collect()
    wait_until(lambda: session_threads() == before, what="the end of the thread")
    gone(db, run, "lock")
