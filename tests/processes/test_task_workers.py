"""Workers on one queue that are killed, stopped, or many: no task is lost, none is done twice, and few claims are."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from occamdb import LeaseLost, RunId, Task, TaskState
from tests.support.processes import (
    DEADLINE_S,
    Peer,
    kill_coordinator,
    open_database,
    stop_coordinator,
    wait_until,
    workers,
)

KILLS = 30
CLAIMERS = 16
CLAIMS_EACH = 40
KILLED_HOLDERS = 5
TAKEN_OVER_WITHIN_S = 1.0  # a few milliseconds, where the machine is not busy
HUNG_LEASE_S = 1.0


def hold(peer: Peer, path: Path, run: RunId, lease: float) -> str:
    """Claim a task and keep it; when told so, complete it."""
    with open_database(path) as db:
        task = db.tasks.claim(run, "q", lease=lease, timeout=DEADLINE_S)
        assert task is not None
        peer.say(task.id)
        peer.hear()
        try:
            db.transaction(run, lambda txn: (txn.tasks.complete(task), txn.kv.put("by", "the hung one")))
        except LeaseLost:
            return "lease lost"
        return "completed"


def take_over(peer: Peer, path: Path, run: RunId) -> tuple[str, int, float]:
    """Wait for the task that another worker has; which it is, its attempts, and when it came."""
    with open_database(path) as db:
        assert db.tasks.claim(run, "q") is None
        peer.say("waits")
        task = db.tasks.claim(run, "q", lease=3600.0, timeout=DEADLINE_S)
        came = time.monotonic()
        assert task is not None
        db.tasks.complete(run, task)
        return task.id, task.attempts, came


def test_the_task_of_a_killed_worker_is_claimed_by_another_within_a_second(
    tmp_path: Path, run: RunId
) -> None:
    with open_database(tmp_path) as db, workers() as start:
        for _ in range(KILLED_HOLDERS):
            db.tasks.put(run, "q")
            holder = start(hold, tmp_path, run, 3600.0)
            task = holder.hear()
            other = start(take_over, tmp_path, run)
            other.hear()
            killed = time.monotonic()
            holder.kill()
            # The lease would have lasted an hour.
            taken, attempts, came = other.result()
            assert (taken, attempts) == (task, 2)
            print(f"taken over after {(came - killed) * 1e3:.1f} ms")
            assert came - killed < TAKEN_OVER_WITHIN_S
        stop_coordinator(tmp_path)


def test_the_task_of_a_hung_worker_is_ready_after_its_lease(tmp_path: Path, run: RunId) -> None:
    with open_database(tmp_path) as db, workers() as start:
        db.tasks.put(run, "q")
        began = time.monotonic()
        worker = start(hold, tmp_path, run, HUNG_LEASE_S)
        task = worker.hear()
        claimed_by = time.monotonic()
        worker.stop()
        claimed = db.tasks.claim(run, "q", timeout=DEADLINE_S)
        taken = time.monotonic()
        assert claimed is not None and claimed.id == task
        # Not before the lease has ended, and soon after it.
        assert taken - began >= HUNG_LEASE_S - 0.05
        assert taken - claimed_by < HUNG_LEASE_S + TAKEN_OVER_WITHIN_S
        db.transaction(run, lambda txn: (txn.tasks.complete(claimed), txn.kv.put("by", "the other")))
        worker.resume()
        worker.say("complete it")
        assert worker.result() == "lease lost"
        assert db.kv.get(run, "by") == "the other"
        stop_coordinator(tmp_path)


def claim_and_close(peer: Peer, path: Path, run: RunId) -> None:
    """Claim, close the database, and live on."""
    with open_database(path) as db:
        assert db.tasks.claim(run, "q") is not None
    peer.say("closed")
    peer.hear()


def test_closing_the_database_gives_claims_back(tmp_path: Path, run: RunId) -> None:
    with open_database(tmp_path) as db, workers() as start:
        db.tasks.put(run, "q")
        worker = start(claim_and_close, tmp_path, run)
        worker.hear()
        assert db.tasks.claim(run, "q", timeout=DEADLINE_S) is not None
        worker.say("end")
        worker.result()
        stop_coordinator(tmp_path)


def test_a_claim_outlives_its_coordinator(tmp_path: Path, run: RunId) -> None:
    with open_database(tmp_path) as db:
        db.tasks.put(run, "q")
        task = db.tasks.claim(run, "q", lease=600)
        assert task is not None
        kill_coordinator(tmp_path)
        assert db.tasks.claim(run, "q") is None
        db.tasks.complete(run, task)
        assert state(db, run, task) is TaskState.DONE
        stop_coordinator(tmp_path)


def has_come_to(db: Any, version: int) -> bool:
    return bool(db.stats()["version"] >= version)


def state(db: Any, run: RunId, task: Task) -> TaskState:
    found = db.tasks.get(run, task)
    assert found is not None
    return TaskState(found.state)


def work(peer: Peer, path: Path, run: RunId) -> None:
    """Do tasks until none is left: each counts itself in the transaction that completes it."""
    with open_database(path) as db:
        peer.say("ready")
        for task in db.tasks.worker(run, "q", lease=600, timeout=2.0):

            def effects(txn: Any, task: Any = task) -> None:
                txn.kv.put(f"done/{task.payload}", txn.kv.get(f"done/{task.payload}", 0) + 1)
                txn.kv.increment("sum", task.payload)
                txn.tasks.complete(task)

            db.transaction(run, effects)


def test_effects_are_once_though_workers_are_killed(tmp_path: Path, run: RunId) -> None:
    dice = random.Random(7)
    with open_database(tmp_path) as db, workers() as start:
        tasks, kills = 0, 0
        db.tasks.put_many(run, "q", range(200), max_attempts=1000)
        tasks = 200
        running = [start(work, tmp_path, run) for _ in range(3)]
        for worker in running:
            worker.hear()
        while kills < KILLS:
            victim = dice.randrange(len(running))
            # At any point of its work: after a number of further commits.
            goal = db.stats()["version"] + dice.randrange(1, 40)
            if db.tasks.stats(run, "q").open < 100:
                db.tasks.put_many(run, "q", range(tasks, tasks + 200), max_attempts=1000)
                tasks += 200
            wait_until(partial(has_come_to, db, goal))
            running[victim].kill()
            kills += 1
            running[victim] = start(work, tmp_path, run)
            running[victim].hear()
        wait_until(lambda: db.tasks.stats(run, "q").open == 0)
        for worker in running:
            worker.result()
        done = dict(db.kv.list_with_values(run, "done/"))
        assert done == {f"done/{number}": 1 for number in range(tasks)}
        assert db.kv.get(run, "sum") == sum(range(tasks))
        stats = db.tasks.stats(run, "q")
        assert (stats.done, stats.dead) == (tasks, 0)
        stop_coordinator(tmp_path)


def claim_many(peer: Peer, path: Path, run: RunId) -> int:
    """Claim and complete, all at once with the others."""
    with open_database(path) as db:
        peer.say("ready")
        peer.hear()
        for _ in range(CLAIMS_EACH):
            task = db.tasks.claim(run, "q", timeout=DEADLINE_S)
            assert task is not None
            db.tasks.complete(run, task)
        return CLAIMS_EACH


def lost_claims(db: Any) -> int:
    stats = db.stats()
    lost: int = sum(stats["conflicts"].values()) + stats["conflicts_found_early"]
    return lost


@pytest.mark.parametrize("stock", ["full", "trickling"])
def test_sixteen_workers_do_not_fight_over_the_first_task(tmp_path: Path, run: RunId, stock: str) -> None:
    claims = CLAIMERS * CLAIMS_EACH
    with open_database(tmp_path) as db, workers() as start:
        if stock == "full":
            db.tasks.put_many(run, "q", range(claims))
        running = [start(claim_many, tmp_path, run) for _ in range(CLAIMERS)]
        for worker in running:
            worker.hear()
        before = lost_claims(db)
        for worker in running:
            worker.say("go")
        if stock == "trickling":
            for number in range(claims):
                db.tasks.put(run, "q", number)
        assert sum(worker.result() for worker in running) == claims
        assert db.tasks.stats(run, "q").done == claims
        lost = (lost_claims(db) - before) / claims
        print(f"{stock}: {lost:.3f} lost claims a claim")
        assert lost <= 2
        stop_coordinator(tmp_path)


def test_a_forked_child_does_not_end_its_parents_claim(tmp_path: Path, run: RunId) -> None:
    with open_database(tmp_path) as db:
        db.tasks.put(run, "q")
        worker = db.tasks.worker(run, "q", timeout=0)
        task = next(worker)
        child = os.fork()
        if child == 0:
            try:
                del worker
                os._exit(0)
            finally:
                os.kill(os.getpid(), signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == 0
        assert state(db, run, task) is TaskState.CLAIMED
        assert next(worker, None) is None
        assert state(db, run, task) is TaskState.DONE
        stop_coordinator(tmp_path)


def test_a_forked_child_that_leaves_the_block_does_not_give_back_its_parents_task(
    tmp_path: Path, run: RunId
) -> None:
    path = tmp_path / "db"
    with open_database(path) as db:
        db.tasks.put(run, "q")
        with db.tasks.worker(run, "q", timeout=0) as tasks:
            for task in tasks:
                child = os.fork()
                if child == 0:
                    # As `sys.exit` in the block, without pytest's own handlers above it.
                    with suppress(SystemExit):
                        tasks.__exit__(SystemExit, SystemExit(), None)
                    os._exit(0 if next(tasks, None) is None else 1)
                assert os.waitpid(child, 0)[1] == 0
                found = db.tasks.get(run, task)
                assert found is not None and found.state is TaskState.CLAIMED
        stats = db.tasks.stats(run, "q")
        assert (stats.done, stats.open, stats.dead) == (1, 0, 0)
    stop_coordinator(path)
