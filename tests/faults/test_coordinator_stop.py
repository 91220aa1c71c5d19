"""C12, W11, M7: coordinators that end as they should, and what is left afterwards: nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import occamdb
from occamdb import CoordinatorUnavailable, DatabaseClosedError, RunId, TooManyChannelsError
from occamdb.ipc.process import is_alive
from tests.support import processes
from tests.support.processes import (
    Peer,
    Worker,
    coordinator_identity,
    open_database,
    segments_of,
    state_of,
    stop_coordinator,
    wait_gone,
    wait_until,
)


def count_until_told(peer: Peer, path: Path, run: RunId, name: str) -> int:
    """Count in a shared and in an own key; an error is a failure of the test."""
    count = 0
    with open_database(path) as db:
        # It is there before the first stop: an insert that is under way at a restart may meet a conflict.
        db.put(run, name, count)
        peer.say("ready")
        while not peer.told():
            with db.begin(run, isolation="snapshot") as txn:
                txn.kv.increment("shared")
                txn.put(name, count + 1)
            count += 1
    return count


def test_stopped_cleanly_under_load(database_path: Path, run: RunId, start: Callable[..., Worker]) -> None:
    """SIGTERM while four workers commit: none fails or hangs, nothing acknowledged is lost, nothing is twice."""
    path = database_path
    with open_database(path) as db:
        team = [start(count_until_told, path, run, f"worker {n}") for n in range(4)]
        for worker in team:
            worker.hear()
        for _ in range(3):
            floor = db.stats()["version"] + 50
            wait_until(lambda f=floor: db.stats()["version"] > f, what="commits")  # type: ignore[misc]
            stopped = stop_coordinator(path)
            assert not is_alive(stopped)
        for worker in team:
            worker.say("stop")
        counts = [worker.result() for worker in team]
        assert min(counts) > 0
        assert db.get(run, "shared") == sum(counts)
        assert [db.get(run, f"worker {n}") for n in range(4)] == counts
        # The last of them left a checkpoint. What was committed while that was written may be replayed.
        recovery = db.stats()["durable"]["recovery"]
        assert recovery["version"] - recovery["transactions_replayed"] > floor


def test_a_clean_stop_leaves_nothing_but_the_data(database_path: Path, run: RunId) -> None:
    path = database_path
    with open_database(path) as db:
        version = db.put(run, "k", 1)
        view = db.snapshot(run)
        assert segments_of(path)
        stop_coordinator(path)
        assert segments_of(path) == []
        left = {entry.name for entry in path.iterdir()}
        assert not left & {"coordinator.sock", "coordinator.json"}
        assert (path / "LOCK").read_bytes() == b""
        # Open snapshots go on; a begin after the stop may miss what is committed next, so it waits for somebody.
        assert view.get("k") == 1
        with open_database(path) as other:
            assert other.put(run, "k", 2) == version + 1
        assert view.get("k") == 1 and db.get(run, "k") == 2
        view.close()


@contextlib.contextmanager
def starting(path: Path, failpoint: str) -> Iterator[subprocess.Popen[bytes]]:
    """`occamdb serve`, stopped by SIGSTOP at a point of its start."""
    process = subprocess.Popen(
        [processes.python(), "-m", "occamdb.tools", "serve", str(path)],
        env=processes.environment(OCCAMDB_FAILPOINTS=failpoint),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: state_of(process.pid) == "T", what=f"the start to reach {failpoint}")
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("failpoint", "number"),
    [
        ("recovery.begin=stop", signal.SIGTERM),
        ("recovery.begin=stop", signal.SIGINT),
        ("recovery.after_replay=stop", signal.SIGTERM),
        ("meta.before_rename=stop@2", signal.SIGTERM),
        ("coordinator.before_ready=stop", signal.SIGTERM),
    ],
)
def test_told_to_end_while_it_starts(
    database_path: Path, run: RunId, failpoint: str, number: signal.Signals
) -> None:
    """Wherever it was: exit code 0, no segment left, and the next open finds everything."""
    path = database_path
    with open_database(path) as db:
        for n in range(10):
            db.put(run, "k", n)
        processes.kill_coordinator(path)
        leftovers = segments_of(path)
    for name in ("coordinator.sock", "coordinator.json"):
        (path / name).unlink()
    with starting(path, failpoint) as process:
        assert set(segments_of(path)) - set(leftovers)
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        assert process.wait(processes.DEADLINE_S) == 0
    assert set(segments_of(path)) <= set(leftovers)
    assert not {entry.name for entry in path.iterdir()} & {"coordinator.sock", "coordinator.json"}
    assert (path / "LOCK").read_bytes() == b""
    with open_database(path) as db:
        assert db.get(run, "k") == 9
        db.put(run, "k", 10)


def test_nobody_who_waits_for_a_start_is_told_of_its_stop(
    database_path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    """The coordinator that it started is told to end: the opener starts another, as after any clean stop."""
    path = database_path
    with open_database(path) as db:
        db.put(run, "k", 1)
        processes.kill_coordinator(path)
    opener = start(open_through_a_stopped_start, path, run)
    opener.hear()
    wait_until((path / "LOCK").read_bytes, what="the lock to be taken")
    identity = coordinator_identity(path)
    wait_until(lambda: state_of(identity.pid) == "T", what="the start to reach recovery")
    os.kill(identity.pid, signal.SIGTERM)
    opener.say("go on")
    opener.hear()
    os.kill(identity.pid, signal.SIGCONT)
    assert opener.result() == 1
    assert not is_alive(identity)


def open_through_a_stopped_start(peer: Peer, path: Path, run: RunId) -> object:
    """Open with a coordinator that stands still in its recovery; the one after it does not."""
    os.environ["OCCAMDB_FAILPOINTS"] = "recovery.begin=stop@1"
    threading.Thread(target=drop_failpoints_when_told, args=(peer,), daemon=True).start()
    with open_database(path) as db:
        return db.get(run, "k")


def drop_failpoints_when_told(peer: Peer) -> None:
    peer.say("ready")
    peer.hear()
    del os.environ["OCCAMDB_FAILPOINTS"]
    peer.say("dropped")


def test_start_never_after_a_clean_stop(database_path: Path, run: RunId) -> None:
    path = database_path
    with pytest.raises(CoordinatorUnavailable):
        occamdb.open(path, start="never", timeout=0.05)
    assert not path.exists() or not any(path.iterdir())
    with open_database(path) as db, occamdb.open(path, start="never", timeout=0.2) as guest:
        db.put(run, "k", 1)
        stop_coordinator(path)
        for call in (
            lambda: guest.get(run, "k"),
            lambda: guest.put(run, "k", 2),
            guest.stats,
            lambda: guest.begin(run),
        ):
            with pytest.raises(CoordinatorUnavailable) as refused:
                call()
            assert refused.value.hint
        assert db.put(run, "k", 2)
        assert guest.get(run, "k") == 2


def test_an_idle_one_ends_by_itself(database_path: Path, run: RunId) -> None:
    """Only once the last worker has left, however it left; and the next open finds everything."""
    path = database_path
    with open_database(path, idle_timeout=0.1) as db:
        identity = coordinator_identity(path)
        for number in range(40):
            with open_database(path, idle_timeout=0.1) as other:
                other.put(run, "k", number)
        assert is_alive(identity) and coordinator_identity(path) == identity
        assert db.get(run, "k") == 39
    wait_gone(identity)
    assert segments_of(path) == []
    with open_database(path) as db:
        assert db.get(run, "k") == 39
        assert coordinator_identity(path) != identity


def test_its_end_by_idleness_races_with_openers(database_path: Path, run: RunId) -> None:
    """Whoever opens in the instant of its end gets the next one, never an error."""
    path = database_path
    for number in range(12):
        with open_database(path, idle_timeout=0.0) as db:
            assert db.get(run, "k") == (number - 1 if number else None)
            db.put(run, "k", number)
            identity = coordinator_identity(path)
        if number % 3 == 0:
            wait_gone(identity)


def test_more_workers_than_there_is_room_for(
    database_path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    """W11: a clear error for the one too many, nothing left of its try, and room again when one leaves."""
    path = database_path
    with open_database(path, channel_count_max=4) as first:
        others = [open_database(path) for _ in range(3)]
        before = segments_of(path, "c")
        assert len(before) == 4
        for _ in range(20):
            with pytest.raises(TooManyChannelsError) as refused:
                open_database(path)
            assert refused.value.details["limit"] == 4 and "channel_count_max" in refused.value.hint
        assert start(try_to_open, path).result() == "TooManyChannelsError"
        wait_until(lambda: segments_of(path, "c") == before, what="the removal of what the refused left")
        # Everybody inside is unharmed, and a place that is given up goes to the next.
        for number, db in enumerate([first, *others]):
            db.put(run, "k", number)
        others.pop().close()
        wait_until(lambda: len(segments_of(path, "c")) == 3, what="the end of the one that left")
        with open_database(path) as late:
            assert late.get(run, "k") == 3
        for db in others:
            db.close()


def try_to_open(_: Peer, path: Path) -> str:
    """The name of the error that opening raises."""
    try:
        open_database(path)
    except Exception as error:
        return type(error).__name__
    return "no error"


def test_segments_of_a_killed_family_are_cleared_by_the_next_open(
    database_path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    """M7: coordinator and workers killed together, as by the kernel out of memory (C13); all data is there."""
    path = database_path
    team = [start(count_until_told, path, run, f"worker {n}") for n in range(2)]
    for worker in team:
        worker.hear()
    identity = coordinator_identity(path)
    with occamdb.open(path, start="never") as db:
        wait_until(lambda: (db.get(run, "shared") or 0) > 20, what="commits")
    for worker in team:
        worker.signal(signal.SIGSTOP)
    os.kill(identity.pid, signal.SIGKILL)
    for worker in team:
        worker.kill()
    wait_gone(identity)
    assert segments_of(path)
    with open_database(path) as db:
        assert db.get(run, "shared") == sum(db.get(run, f"worker {n}", 0) for n in range(2)) > 20
        assert len(segments_of(path, "c")) == 1 and len(segments_of(path)) == 3


def empty(path: Path) -> None:
    """`rm -rf path/*`."""
    for entry in path.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


@pytest.mark.parametrize("checkpointed", [False, True], ids=["log", "checkpoint"])
def test_its_files_are_deleted_while_it_runs(database_path: Path, run: RunId, checkpointed: bool) -> None:
    """F15: it ends by itself within moments and writes nothing into a directory that is no longer its own."""
    path = database_path
    with open_database(path) as db:
        db.put(run, "k", 1)
        if checkpointed:
            db.checkpoint()
        identity = coordinator_identity(path)
        segments = segments_of(path)
        empty(path)
        wait_gone(identity)
        assert {entry.name for entry in path.iterdir()} <= {"coordinator.log"}
        assert not set(segments) & set(os.listdir("/dev/shm"))
    with open_database(path) as db:
        assert db.get(run, "k") is None
        db.put(run, "k", 2)


def test_another_database_is_made_among_its_deleted_files(database_path: Path, run: RunId) -> None:
    """F15: while the old one has not noticed yet. Its end changes nothing of the new one's."""
    path = database_path
    with open_database(path) as old:
        old.put(run, "k", 1)
        old.checkpoint()
        identity = coordinator_identity(path)
        processes.stop_process(identity.pid)
        segments = segments_of(path)
        empty(path)
        with open_database(path) as new:
            new.put(run, "k", 2)
            meta, note = (path / "meta").read_bytes(), (path / "coordinator.json").read_bytes()
            os.kill(identity.pid, signal.SIGCONT)
            wait_gone(identity)
            assert (path / "meta").read_bytes() == meta and (path / "coordinator.json").read_bytes() == note
            assert not set(segments) & set(os.listdir("/dev/shm"))
            processes.kill_coordinator(path)
            assert new.get(run, "k") == 2
            new.put(run, "k", 3)


def test_its_directory_is_moved_while_it_runs(database_path: Path, tmp_path: Path, run: RunId) -> None:
    """F15: what was acknowledged goes with the directory, and is left as by a clean stop."""
    path = database_path
    with open_database(path) as db:
        db.put(run, "k", 1)
        identity = coordinator_identity(path)
        path.rename(tmp_path / "moved")
        wait_gone(identity)
    names = {entry.name for entry in (tmp_path / "moved").iterdir()}
    assert "coordinator.json" not in names and segments_of(tmp_path / "moved") == []
    with open_database(tmp_path / "moved") as db:
        assert db.get(run, "k") == 1
        assert db.stats()["durable"]["recovery"]["transactions_replayed"] == 0
    stop_coordinator(tmp_path / "moved")


@pytest.mark.parametrize("again", [False, True], ids=["nothing", "another database"])
def test_a_handle_does_not_go_on_with_another_database(database_path: Path, run: RunId, again: bool) -> None:
    """F15: neither with one that it would make itself, nor with somebody else's."""
    path = database_path
    with open_database(path) as old:
        old.put(run, "k", 1)
        stop_coordinator(path)
        shutil.rmtree(path)
        with open_database(path) if again else contextlib.nullcontext() as new:
            for use in (lambda: old.put(run, "k", 2), lambda: old.get(run, "k"), old.stats):
                with pytest.raises(DatabaseClosedError, match="not in"):
                    use()
            assert path.exists() is again
            assert new is None or new.get(run, "k") is None


@pytest.mark.parametrize("kind", ["store", "bell"])
def test_its_names_in_shared_memory_are_removed(database_path: Path, run: RunId, kind: str) -> None:
    """As by systemd's RemoveIPC: it ends cleanly, so that the next one can serve those who come."""
    path = database_path
    with open_database(path) as db:
        db.put(run, "k", 1)
        identity = coordinator_identity(path)
        for name in segments_of(path, kind):
            os.unlink(f"/dev/shm/{name}")
        with open_database(path) as other:
            wait_gone(identity)
            assert other.get(run, "k") == 1
            other.put(run, "k", 2)
            assert other.stats()["durable"]["recovery"]["transactions_replayed"] == 0
        assert db.get(run, "k") == 2


def test_its_name_in_shared_memory_is_taken_by_another_file(database_path: Path, run: RunId) -> None:
    """What stands there instead is not a store: nobody can attach until it has ended."""
    path = database_path
    with open_database(path) as db:
        db.put(run, "k", 1)
        identity = coordinator_identity(path)
        (store,) = segments_of(path, "store")
        os.unlink(f"/dev/shm/{store}")
        Path(f"/dev/shm/{store}").touch(0o600)
        wait_gone(identity)
        assert db.get(run, "k") == 1


def test_a_reader_whose_store_lost_its_name_notices_the_next_one(database_path: Path, run: RunId) -> None:
    """The names go, the coordinator dies before it notices, and its successor has no store to mark superseded."""
    path = database_path
    with open_database(path) as reader, open_database(path) as never_asked:
        reader.put(run, "k", 1)
        identity = coordinator_identity(path)
        processes.stop_process(identity.pid)
        for name in segments_of(path):
            os.unlink(f"/dev/shm/{name}")
        # Stopped, but alive: nobody can have committed anything since.
        assert reader.get(run, "k") == 1
        os.kill(identity.pid, signal.SIGKILL)
        wait_gone(identity)
        with open_database(path) as writer:
            writer.put(run, "k", 2)
            wait_until(lambda: reader.get(run, "k") == 2, what="the reader to attach anew")
            with never_asked.snapshot(run) as view:
                assert view.get("k") == 2
