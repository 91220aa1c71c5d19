"""Two things go wrong at once: workers and coordinator die, outcomes are asked for in between, stops, idleness.

Also the canary: a database that promises nothing across a crash must be found out by the writers' own checks.
"""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from occamdb import CommitOutcomeUnknown, ConflictError, Database, RunId
from occamdb.ipc.process import is_alive
from tests.support import processes
from tests.support.crash import arm_next, arms_left, scene_at
from tests.support.processes import (
    Peer,
    Worker,
    coordinator_identity,
    kill_coordinator,
    open_database,
    set_coordinator_failpoint,
    wait_until,
)

LOST_REPLIES = ["wal.after_write", "commit.before_publish", "commit.after_publish", "commit.before_reply"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "db"


@pytest.fixture
def db(path: Path) -> Iterator[Database]:
    with open_database(path, timeout=60.0, wal_segment_size=16 << 10) as database:
        yield database
    processes.stop_coordinator(path)


def test_the_canary_dies(path: Path, start: Callable[..., Worker]) -> None:
    """What the writers check is checked: with no log behind it, a killed coordinator is an acknowledged commit lost."""
    with pytest.raises(AssertionError, match=r"last acknowledged|is lost|and 1 is"):
        with scene_at(path, start, writers=1, settings={"durability": "none"}) as scene:
            try:
                kill_coordinator(path)
                scene.carry_on()
            finally:
                for number in list(scene.writers):
                    scene.kill_writer(number)
                processes.stop_coordinator(path)


# ---- workers and coordinator ------------------------------------------------------------------------------


def test_a_worker_and_the_coordinator_at_once(path: Path, start: Callable[..., Worker]) -> None:
    """The dead writer's last commit is there whole or not at all; the others carry on, and so does one in its place."""
    dice = random.Random(7)
    with scene_at(path, start) as scene:
        for _ in range(4):
            scene.carry_on(dice.randrange(1, 20))
            victim = dice.choice(list(scene.writers))
            identity = coordinator_identity(path)
            first, second = dice.sample([scene.writers[victim].pid, identity.pid], 2)
            os.kill(first, signal.SIGKILL)
            os.kill(second, signal.SIGKILL)
            scene.kill_writer(victim)
            wait_until(lambda who=identity: not is_alive(who), what="the death")  # type: ignore[misc]
            scene.start_writers()
            scene.carry_on()
            scene.verify()


def test_a_worker_dies_while_the_coordinator_recovers(path: Path, start: Callable[..., Worker]) -> None:
    """Whoever started the new one may die with the STARTER lock in hand; the next one takes it."""
    with scene_at(path, start) as scene:
        for point in ("recovery.after_checkpoint", "coordinator.before_ready"):
            victim = coordinator_identity(path)
            arm_next(scene.plan.arms, [f"{point}=stop"])
            kill_coordinator(path)
            wait_until(lambda: not arms_left(scene.plan.arms), what="a successor")
            successor = wait_until(lambda: _successor(path, victim.pid), what="a successor with the lock")  # noqa: B023
            wait_until(lambda: processes.state_of(successor) == "T", what="its stop")  # noqa: B023
            for number in list(scene.writers)[:2]:
                scene.kill_writer(number)
            os.kill(successor, signal.SIGKILL)
            scene.start_writers(2)
            scene.carry_on()
            scene.verify()


def _successor(path: Path, former: int) -> int:
    pid = coordinator_identity(path).pid
    return pid if pid != former else 0


def test_everybody_dies(path: Path, start: Callable[..., Worker]) -> None:
    """kill -9 of every process at one moment, twice: only the files are left (durability "standard")."""
    with scene_at(path, start) as scene:
        for _ in range(2):
            scene.carry_on(10)
            os.kill(coordinator_identity(path).pid, signal.SIGKILL)
            for number in list(scene.writers):
                scene.kill_writer(number)
            scene.verify()
            scene.start_writers(3)
            scene.carry_on()


# ---- answers rebuilt --------------------------------------------------------------------------------------


def _transaction(db: Database, run: RunId) -> Any:
    with db.begin(run) as txn:
        assert txn.delete("there") is True
        txn.kv.increment("n", 5)
        txn.put("there", "again")
    return db.get(run, "n"), db.get(run, "there")


OPERATIONS: list[tuple[str, Callable[[Database, RunId], Any], Any]] = [
    ("increment", lambda db, run: db.kv.increment(run, "n", 7), 107),
    ("increment down", lambda db, run: db.kv.increment(run, "n", -250), -150),
    ("increment nothing", lambda db, run: db.kv.increment(run, "new"), 1),
    ("increment to the largest", lambda db, run: db.kv.increment(run, "large", 5), 2**64 - 1),
    ("increment to the smallest", lambda db, run: db.kv.increment(run, "small", -5), -(2**63)),
    ("delete", lambda db, run: db.delete(run, "there"), True),
    ("delete nothing", lambda db, run: db.delete(run, "nothing"), False),
    ("delete expired", lambda db, run: db.delete(run, "expired"), False),
    ("put if absent", lambda db, run: db.kv.put_if_absent(run, "absent", 1), True),
    ("cas", lambda db, run: _cas(db, run), True),
    ("append", lambda db, run: db.events.append(run, "t", {"x": 1}).sequence, 1),
    ("transition", lambda db, run: db.cells.transition(run, "cell", lambda s: (s.value + 1, s.value)), 41),
    ("transaction", _transaction, (105, "again")),
]


def _cas(db: Database, run: RunId) -> bool:
    found = db.get_versioned(run, "there")
    assert found is not None
    version = db.cas(run, "there", found.version, "swapped")
    now = db.get_versioned(run, "there")
    assert now is not None
    with pytest.raises(ConflictError):
        db.cas(run, "there", found.version, "twice")
    return (now.value, now.version) == ("swapped", version)


def test_answers_that_were_lost(path: Path, db: Database) -> None:
    """Killed with the commit in the log and nobody told: the answer is the same, and it happened once."""
    for number, (name, operation, expected) in enumerate(OPERATIONS):
        run = RunId.new()
        db.kv.put_many(run, {"n": 100, "large": 2**64 - 6, "small": 5 - 2**63, "there": "x"})
        db.kv.put_with_ttl(run, "expired", 1, ttl=1e-6)
        db.events.append(run, "t", {"x": 0})
        db.cells.init(run, "cell", 41)
        before = coordinator_identity(path)
        set_coordinator_failpoint(path, LOST_REPLIES[number % len(LOST_REPLIES)], "kill@1")
        assert operation(db, run) == expected, name
        assert coordinator_identity(path) != before
        assert db.kv.get(run, "n") in (100, 107, -150, 105)
        assert db.events.verify_chain(run).length == (2 if name == "append" else 1)


def _unanswered(path: Path, action: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Run `action` in a thread; its commit is published and its answer held back for long."""
    results: list[Any] = []

    def act() -> None:
        try:
            results.append(action())
        except Exception as error:
            results.append(error)

    set_coordinator_failpoint(path, "commit.before_reply", "sleep:600000@1")
    thread = threading.Thread(target=act)
    thread.start()
    return thread, results


@pytest.mark.parametrize("kind", ["increment", "put"])
def test_the_outcome_is_in_the_checkpoint(kind: str, path: Path, db: Database, run: RunId) -> None:
    """The checkpoint holds the commit and the outcome; the log behind it holds neither."""
    db.put(run, "k", 0)
    action = (lambda: db.kv.increment(run, "k")) if kind == "increment" else (lambda: db.put(run, "k", 1))
    thread, results = _unanswered(path, action)
    wait_until(lambda: db.get(run, "k") == 1, what="the commit")
    found = db.get_versioned(run, "k")
    assert found is not None
    assert db.checkpoint()["version"] == found.version
    kill_coordinator(path)
    thread.join(60)
    assert results == [1 if kind == "increment" else found.version]
    assert db.get(run, "k") == 1


def test_an_outcome_older_than_the_log(
    path: Path, db: Database, run: RunId, start: Callable[..., Worker]
) -> None:
    """A worker that slept through checkpoints still learns that it committed, and as which version.

    What an increment resulted in is in the log, which is kept for a while after a death, though not for ever: then the
    error says that it did commit.
    """
    db.put(run, "k", 0)
    for key, deaths, expected in (
        ("put", 1, int),
        ("increment", 1, int),
        ("put", 2, int),
        ("increment", 2, CommitOutcomeUnknown),
    ):
        db.delete(run, key)
        worker = start(change_once, path, run, key)
        worker.hear()
        set_coordinator_failpoint(path, "commit.before_reply", "sleep:600000@1")
        worker.say("go")
        wait_until(lambda: db.get(run, key) is not None, what="the commit")  # noqa: B023
        worker.stop()
        kill_coordinator(path)
        if deaths == 2:
            # More than any number of workers can have been waiting for.
            for _ in range(1100):
                db.put(run, "filler", 1)
            kill_coordinator(path)
        for _ in range(3):
            for n in range(40):
                db.put(run, f"filler {n}", "x" * 2000)
            db.checkpoint()
        worker.resume()
        kind, version = worker.result()
        found = db.get_versioned(run, key)
        assert found is not None
        assert kind == expected.__name__
        assert version in (found.version, None)


def change_once(peer: Peer, path: Path, run: RunId, key: str) -> tuple[str, Any]:
    """One put or increment when told to."""
    with open_database(path, timeout=60.0, wal_segment_size=16 << 10) as db:
        peer.say("ready")
        peer.hear()
        try:
            if key == "put":
                return "int", db.put(run, key, 1)
            db.kv.increment(run, key)
            return "int", None
        except CommitOutcomeUnknown as error:
            assert "committed as version" in error.message
            return type(error).__name__, None


def test_a_checkpoint_asked_for_is_made(path: Path, db: Database, run: RunId) -> None:
    """Also when its coordinator dies over it, and when an older one was just being written."""
    version = db.put(run, "k", 1)
    for point in ("checkpoint.begin", "checkpoint.before_rename"):
        before = coordinator_identity(path)
        set_coordinator_failpoint(path, point, "kill@1")
        assert db.checkpoint()["version"] >= version
        assert coordinator_identity(path) != before
        assert any(int(file.stem) >= version for file in (path / "checkpoints").glob("*.ckpt"))
        version = db.put(run, "k", 2)
    set_coordinator_failpoint(path, "checkpoint.before_rename", "sleep:300@1")
    assert processes.ask_coordinator(path, "checkpoint")["running"]
    version = db.put(run, "k", 3)
    assert db.checkpoint()["version"] >= version


# ---- stops ------------------------------------------------------------------------------------------------


def test_clean_stops_under_load(path: Path, start: Callable[..., Worker]) -> None:
    """C12: again and again, by signal and by request; no writer sees an error."""
    with scene_at(path, start) as scene:
        for number in range(6):
            scene.carry_on(5)
            identity = coordinator_identity(path)
            if number % 2:
                processes.ask_coordinator(path, "stop")
            else:
                os.kill(identity.pid, signal.SIGTERM)
            wait_until(lambda who=identity: not is_alive(who), what="the end")  # type: ignore[misc]
            scene.carry_on()
            scene.verify()


def test_stopping_while_it_starts(path: Path, start: Callable[..., Worker]) -> None:
    """SIGTERM to a coordinator that is not ready yet: it ends one way or the other, and the next one serves."""
    with scene_at(path, start) as scene:
        for point in ("recovery.after_checkpoint", "coordinator.before_ready"):
            former = coordinator_identity(path).pid
            arm_next(scene.plan.arms, [f"{point}=stop"])
            kill_coordinator(path)
            successor = wait_until(lambda: _successor(path, former), what="a successor")  # noqa: B023
            wait_until(lambda: processes.state_of(successor) == "T", what="its stop")  # noqa: B023
            os.kill(successor, signal.SIGTERM)
            os.kill(successor, signal.SIGCONT)
            scene.carry_on()
            scene.verify()


def come_and_go(peer: Peer, path: Path, run: RunId, number: int) -> int:
    """Open, commit once, close, leave for about as long as the coordinator waits before it ends; twelve times."""
    dice = random.Random(number)
    for count in range(12):
        with open_database(path, idle_timeout=0.02, timeout=60.0) as db:
            assert db.kv.increment(run, f"visits {number}") == count + 1
        time.sleep(dice.choice((0.0, 0.02, 0.25, 0.3)))
    return 12


def test_idle_stops_while_workers_come(path: Path, run: RunId, start: Callable[..., Worker]) -> None:
    """The coordinator ends for want of workers in the very moment in which one attaches."""
    team = [start(come_and_go, path, run, number) for number in range(2)]
    assert [worker.result() for worker in team] == [12, 12]
    with open_database(path, idle_timeout=0.02, timeout=60.0) as db:
        assert [db.kv.get(run, f"visits {number}") for number in range(2)] == [12, 12]
        assert db.stats()["incarnation"] > 1
    processes.stop_coordinator(path)
    assert processes.segments_of(path) == []
