"""C1-C6, C9-C11, C14, M7, M8 as workers live through them: the coordinator dies, stalls, comes back.

Where exactly it dies is tests/engine/log's subject; here it is what its workers are told, and that they go on.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import occamdb
from occamdb import CommitOutcomeUnknown, ConflictError, CoordinatorUnavailable, Database, RunId, Transaction
from occamdb.engine.coordinator.coordinator import Coordinator
from occamdb.ipc.errors import LockHeldError
from occamdb.ipc.lock import lock_holder
from occamdb.ipc.process import is_alive
from tests.support import processes
from tests.support.processes import (
    Peer,
    Worker,
    coordinator_identity,
    kill_coordinator,
    open_database,
    segments_of,
    set_coordinator_failpoint,
    wait_until,
)

# ---- killed during a commit -----------------------------------------------------------------------------------

DYING = [
    "commit.before_validate",
    "commit.after_validate",
    "commit.after_apply",
    "wal.before_write",
    "wal.after_write",
    "commit.before_publish",
    "commit.after_publish",
    "commit.before_reply",
    "commit.after_reply",
]


def test_every_commit_has_one_outcome(path: Path, db: Database, run: RunId) -> None:
    """C1-C6: killed there, the worker starts another one, asks, and goes on. No error, nothing twice, results true."""
    for number, point in enumerate(DYING):
        for commit in COMMITS if point == "commit.after_publish" else (COMMITS[number % len(COMMITS)],):
            before = db.put(run, "doomed", number)
            counted = db.get(run, "counter", 0)
            incarnation = db.stats()["incarnation"]
            set_coordinator_failpoint(path, point, "kill@1")
            commit(db, run, number)
            # Whoever was killed after the reply was noticed only now.
            assert db.kv.increment(run, "adds") == db.get(run, "adds"), point
            assert db.get(run, "key") == number, point
            assert db.get(run, "counter", 0) == counted + (commit is _count), point
            found = db.get_versioned(run, "adds")
            assert found is not None and found.version > before
            assert db.stats()["incarnation"] == incarnation + 1
    assert db.get(run, "adds") == len(DYING) + len(COMMITS) - 1
    assert len(segments_of(path, "store")) == 1


def _put(db: Database, run: RunId, number: int) -> None:
    version = db.put(run, "key", number)
    found = db.get_versioned(run, "key")
    assert found is not None and (found.value, found.version) == (number, version)


def _delete(db: Database, run: RunId, number: int) -> None:
    db.put(run, "key", number)
    # The answer of a delete that was lost is rebuilt from the log.
    assert db.delete(run, "doomed") is True


def _count(db: Database, run: RunId, number: int) -> None:
    def step(txn: Transaction) -> None:
        txn.put("counter", txn.get("counter", 0) + 1)
        txn.put("key", number)

    db.transaction(run, step)


COMMITS = (_put, _delete, _count)


def test_an_open_transaction_survives_a_restart(path: Path, db: Database, run: RunId) -> None:
    """It reads its old state, commits to the new coordinator; what others wrote meanwhile conflicts as ever."""
    db.put(run, "a", 1)
    db.put(run, "b", 1)
    lucky, unlucky, phantom, cas = (db.begin(run) for _ in range(4))
    with db.snapshot(run) as view:
        assert unlucky.get("a") == lucky.get("b") == 1
        assert len(list(phantom.scan())) == 2
        kill_coordinator(path)
        assert db.put(run, "a", 2) > unlucky.start_version
        # Old snapshots go on in the old store.
        assert view.get("a") == 1 and lucky.get("a", track=False) == 1
        lucky.put("lucky", lucky.get("b"))
        lucky.commit()
        unlucky.put("c", 1)
        with pytest.raises(ConflictError):
            unlucky.commit()
        phantom.put("d", 1)
        with pytest.raises(ConflictError):
            phantom.commit()
        cas.cas("new", 0, 1)
        cas.commit()
        assert view.get("lucky") is None
    assert (db.get(run, "a"), db.get(run, "lucky"), db.get(run, "new")) == (2, 1, 1)
    assert db.get(run, "c") is None and db.get(run, "d") is None


def test_reading_goes_on_while_there_is_no_coordinator(path: Path, db: Database, run: RunId) -> None:
    db.put(run, "k", 1)
    patient = occamdb.open(path, start="never", timeout=0.3)
    with patient, patient.snapshot(run) as view:
        kill_coordinator(path)
        assert view.get("k") == 1
        # Begin too: nothing newer can have been acknowledged.
        assert patient.get(run, "k") == 1
        with patient.begin(run, read_only=True) as txn:
            assert txn.get("k") == 1
        with pytest.raises(CoordinatorUnavailable):
            patient.put(run, "k", 2)
        assert patient.get(run, "k") == 1
        # Somebody else starts one: the same handle goes on, and sees what was acknowledged there.
        db.put(run, "k", 3)
        assert patient.get(run, "k") == 3
        assert view.get("k") == 1
        patient.put(run, "k", 4)
    assert db.get(run, "k") == 4


def test_unknown_only_when_nobody_comes_back(path: Path, db: Database, run: RunId) -> None:
    """Sent, then nobody left to ask: unknown. Not sent: a plain refusal. The next open tells the truth."""
    never = occamdb.open(path, start="never", timeout=0.3)
    with never:
        never.put(run, "k", 1)
        set_coordinator_failpoint(path, "commit.after_publish", "kill@1")
        with pytest.raises(CommitOutcomeUnknown) as unknown:
            never.put(run, "k", 2)
        assert unknown.value.txn_id is not None
        with pytest.raises(CoordinatorUnavailable):
            never.put(run, "k", 3)
        assert db.put(run, "other", 1)
        assert never.get(run, "k") == 2


def test_a_deadline_during_a_stall_is_never_a_conflict(path: Path, db: Database, run: RunId) -> None:
    """C11: SIGSTOP is a stall. Within the time nothing happens but waiting; past it, unknown. Nothing commits twice."""
    identity = coordinator_identity(path)
    counts: list[int] = []

    def add() -> None:
        counts.append(db.kv.increment(run, "n"))

    add()
    processes.stop_process(identity.pid)
    try:
        waiting = threading.Thread(target=add)
        waiting.start()
        with occamdb.open_in_memory(max_store_size="1MiB"):
            pass  # other databases do not care
        assert db.get(run, "n") == 1
        txn = db.begin(run, timeout=0.2)
        txn.put("late", 1)
        with pytest.raises((CommitOutcomeUnknown, occamdb.TransactionTimeout)) as error:
            txn.commit()
        assert not isinstance(error.value, ConflictError)
        assert waiting.is_alive() and counts == [1]
    finally:
        os.kill(identity.pid, signal.SIGCONT)
    waiting.join(60)
    assert counts == [1, 2]
    add()
    assert counts == [1, 2, 3] and db.get(run, "n") == 3
    assert db.get(run, "late") in (None, 1)
    assert is_alive(identity)


def commit_until_told(peer: Peer, path: Path, run: RunId, name: str) -> int:
    """Count own commits while coordinators come and go; every error is a failure."""
    count = 0
    with open_database(path) as db:
        peer.say("ready")
        while not peer.told():
            version = db.put(run, name, count)
            found = db.get_versioned(run, name)
            # It was acknowledged, so every later snapshot shows it, through whichever coordinator.
            assert found is not None and (found.value, found.version) == (count, version)
            assert db.kv.increment(run, f"{name}/count") == count + 1
            count += 1
    return count


def test_killed_again_and_again_under_load(
    path: Path, db: Database, run: RunId, start: Callable[..., Worker]
) -> None:
    """Workers see no error, their commits are exact, versions only grow (M8), and one store is left (M7)."""
    team = [start(commit_until_told, path, run, f"worker {n}") for n in range(3)]
    for worker in team:
        worker.hear()
    versions = [db.stats()["version"]]
    for number in range(6):
        kill_coordinator(path)
        versions.append(db.put(run, "tick", number))
        floor = versions[-1] + 20
        wait_until(lambda f=floor: db.stats()["version"] > f, what="commits")  # type: ignore[misc]
    for worker in team:
        worker.say("stop")
    for number, worker in enumerate(team):
        count = worker.result()
        assert count > 0
        assert db.get(run, f"worker {number}/count") == count
    assert versions == sorted(set(versions))
    assert len(segments_of(path, "store")) == len(segments_of(path, "bell")) == 1
    wait_until(
        lambda: len(segments_of(path, "c")) == len(db.stats()["workers"]),
        what="the channels of those who left to go",
    )


# ---- what a dead one leaves, and who may start ----------------------------------------------------------------


def test_leftovers_of_a_dead_one_are_cleared(path: Path, db: Database, run: RunId) -> None:
    """C9: socket, LOCK content, coordinator.json, segments of every kind."""
    version = db.put(run, "k", 1)
    kill_coordinator(path)
    left = segments_of(path)
    assert left and (path / "coordinator.sock").exists() and (path / "coordinator.json").exists()
    assert (path / "LOCK").read_bytes()
    with open_database(path) as other:
        assert other.get_versioned(run, "k").version == version  # type: ignore[union-attr]
        assert not set(left) & set(segments_of(path))
        assert other.put(run, "k", 2) > version


def test_junk_in_the_files_of_a_dead_one(path: Path, db: Database, run: RunId) -> None:
    for junk in (b"", b"garbage\0\xff", b'{"pid": 1, "start_time": 1, "boot": "x"}'):
        kill_coordinator(path)
        (path / "LOCK").write_bytes(junk)
        (path / "coordinator.json").write_bytes(junk)
        (path / "coordinator.sock").unlink()
        db.put(run, "k", junk)
        assert db.get(run, "k") == junk


def test_a_second_coordinator_is_refused(path: Path, db: Database, run: RunId) -> None:
    """C10: in this process and as one of its own; the first is unharmed."""
    identity = coordinator_identity(path)
    db.put(run, "k", 1)
    with pytest.raises(LockHeldError) as refused:
        Coordinator(str(path), "standard", {}, auto=True).start()
    assert refused.value.pid == identity.pid
    done = subprocess.run(
        [sys.executable, "-m", "occamdb.tools", "serve", str(path)],
        env=processes.environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0 and str(identity.pid) in done.stdout + done.stderr
    db.put(run, "k", 2)
    assert coordinator_identity(path) == identity and db.get(run, "k") == 2


def open_and_tell(peer: Peer, path: Path) -> None:
    """Start the coordinator, say so, wait to be killed."""
    with open_database(path) as db:
        db.put(RunId.new(), "k", 1)
        peer.say(coordinator_identity(path).pid)
        peer.hear()


def test_the_death_of_its_starter_is_nothing_to_it(
    path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    """C14: killed, or interrupted with its whole group as by Ctrl-C."""
    starter = start(open_and_tell, path)
    pid = starter.hear()
    identity = coordinator_identity(path)
    assert identity.pid == pid
    with open_database(path, start="never") as db:
        starter.signal(signal.SIGINT)
        starter.wait_dead()
        assert os.getpgid(pid) != os.getpgid(os.getpid()) and os.getsid(pid) != os.getsid(os.getpid())
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGQUIT)
        db.put(run, "k", 1)
        assert is_alive(identity) and db.stats()["pid"] == pid


def test_it_keeps_none_of_its_starters_descriptors(path: Path, run: RunId) -> None:
    """A pipe that the starter left inheritable ends when the starter closes it, not when the coordinator does."""
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    os.set_inheritable(read_end, True)
    with open_database(path) as db:
        os.close(write_end)
        with os.fdopen(read_end, "rb") as pipe:
            assert select.select([pipe], [], [], 60)[0] and pipe.read() == b""
        held = [os.readlink(entry) for entry in Path(f"/proc/{db.stats()['pid']}/fd").iterdir()]
        assert all(".log" in name or str(path) in name for name in held if name.startswith("/tmp")), held


def test_the_starter_dies_before_it_serves(tmp_path: Path) -> None:
    """C14: the process that waited for its report is gone; it comes up nevertheless and serves the others."""
    path = tmp_path / "db"
    with processes.unheard_coordinator(path) as process:
        with occamdb.open(path, start="never", timeout=60) as db:
            assert db.stats()["pid"] == process.pid
        process.terminate()
        assert process.wait(60) == 0


def start_slowly(peer: Peer, path: Path) -> None:
    """Start a coordinator that takes its time, holding the lock of who starts one meanwhile."""
    os.environ["OCCAMDB_FAILPOINTS"] = "coordinator.before_ready=sleep:1000"
    peer.say("starting")
    open_database(path)


def test_killed_while_it_holds_the_starters_lock(
    path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    """W4: the lock goes with its holder. What it started serves the others, or they start another one."""
    starter = start(start_slowly, path)
    starter.hear()
    # The one being started has LOCK by then; killed any earlier, it may come up long after somebody else's.
    wait_until(lambda: is_held(path / "LOCK"), what="the coordinator's lock")
    assert is_held(path / "STARTER")
    starter.kill()
    with open_database(path) as db:
        assert db.put(run, "k", 1)
        assert len(segments_of(path, "store")) == 1


def is_held(lock: Path) -> bool:
    try:
        return lock_holder(lock) is not None
    except LockHeldError:
        return True


def test_two_of_many_workers_elect_one(path: Path, run: RunId, start: Callable[..., Worker]) -> None:
    """After a death all of them want a new coordinator at once; there is one, and none of them fails."""
    team = [start(commit_when_told, path, run) for _ in range(6)]
    for worker in team:
        worker.hear()
    for round_ in range(3):
        kill_coordinator(path)
        for worker in team:
            worker.say(round_)
        assert len({worker.hear() for worker in team}) == 1
    for worker in team:
        worker.say(None)
    assert [worker.result() for worker in team] == [3] * 6
    with open_database(path) as db:
        assert db.get(run, "n") == 18


def commit_when_told(peer: Peer, path: Path, run: RunId) -> int:
    """One add a word; says which incarnation took it."""
    count = 0
    with open_database(path) as db:
        peer.say("ready")
        while peer.hear() is not None:
            db.kv.increment(run, "n")
            count += 1
            peer.say(db.stats()["incarnation"])
    return count


def test_durability_none_starts_empty_but_never_reuses_a_version(tmp_path: Path, run: RunId) -> None:
    """M8 without a log: what was there is gone, as promised; its versions are not given out again."""
    path = tmp_path / "db"
    with open_database(path, durability="none") as db:
        version = [db.put(run, "k", n) for n in range(10)][-1]
        txn = db.begin(run)
        assert txn.get("k") == 9
        kill_coordinator(path)
        assert db.put(run, "other", 1) > version
        assert db.get(run, "k") is None
        txn.put("k", 10)
        with pytest.raises(ConflictError):
            txn.commit()
    processes.stop_coordinator(path)


def test_what_a_slow_start_is_told(
    path: Path, db: Database, run: RunId, start: Callable[..., Worker]
) -> None:
    """A coordinator that is stopped while it starts: those who wait say so in time, and go on when it does."""
    db.put(run, "k", 1)
    kill_coordinator(path)
    os.environ["OCCAMDB_FAILPOINTS"] = "coordinator.before_ready=stop@1"
    try:
        began = time.monotonic()
        with pytest.raises(CoordinatorUnavailable):
            open_database(path, timeout=1.5)
        assert time.monotonic() - began < 30
    finally:
        del os.environ["OCCAMDB_FAILPOINTS"]
    identity = coordinator_identity(path)
    with pytest.raises(CoordinatorUnavailable):
        occamdb.open(path, start="never", timeout=0.2)
    os.kill(identity.pid, signal.SIGCONT)
    with open_database(path) as other:
        assert other.get(run, "k") == 1
        assert other.stats()["pid"] == identity.pid
