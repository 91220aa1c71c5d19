"""Tasks in one process, on both engines: states, order, leases, keys, delays, pages, wrong calls."""

import time
from collections.abc import Callable
from datetime import timedelta
from enum import StrEnum
from functools import partial
from typing import Any

import pytest

from occamdb import (
    InvalidArgumentError,
    InvalidTransition,
    LeaseLost,
    NotFoundError,
    OccamError,
    RunId,
    StoreFullError,
    Task,
    TaskState,
    ValueEncodingError,
)


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.005)


def state(db: Any, run: RunId, task: Task) -> TaskState:
    return db.tasks.get(run, task).state  # type: ignore[no-any-return]


def is_ready(db: Any, run: RunId, task: Task) -> bool:
    return state(db, run, task) is TaskState.READY


def test_the_life_of_a_task_in_both_forms(do: Any, db: Any, run: RunId) -> None:
    put = do.tasks.put("q", {"page": 1}, priority=3, key="one")
    assert (put.state, put.payload, put.priority, put.key, put.attempts) == (
        "ready",
        {"page": 1},
        3,
        "one",
        0,
    )
    claimed = do.tasks.claim("q")
    assert (claimed.id, claimed.state, claimed.attempts) == (put.id, "claimed", 1)
    assert claimed.lease_until > claimed.created_at
    assert do.tasks.claim("q") is None
    assert do.tasks.extend(claimed, 90).lease_us > claimed.lease_us + 30_000_000
    do.tasks.release(claimed)
    again = do.tasks.claim("q", lease=timedelta(seconds=5))
    assert (again.attempts, again.claim) == (1, 2)
    assert do.tasks.fail(again, ValueError("broken")) is TaskState.READY
    assert do.tasks.get(put).error == "ValueError: broken"
    do.tasks.complete(do.tasks.claim("q"), ["done"])
    done = do.tasks.get(put.id)
    assert (done.state, done.result, done.attempts, done.error) == ("done", ["done"], 2, None)
    assert done.finished_at >= done.created_at
    stats = do.tasks.stats("q")
    assert (stats.ready, stats.delayed, stats.claimed, stats.done, stats.dead, stats.open) == (
        0,
        0,
        0,
        1,
        0,
        0,
    )
    assert do.tasks.requeue(put).attempts == 0
    assert do.tasks.claim("q").id == put.id


def test_priority_comes_before_the_order_of_puts(db: Any, run: RunId) -> None:
    for number, priority in enumerate((0, 5, -3, 5, 0, 32767, -32768)):
        db.tasks.put(run, "q", number, priority=priority)
    db.tasks.put_many(run, "q", [7, 8], priority=5)
    assert [db.tasks.claim(run, "q").payload for _ in range(9)] == [5, 1, 3, 7, 8, 0, 4, 2, 6]


def test_overlapping_puts_are_in_the_order_of_their_commits(db: Any, run: RunId) -> None:
    late = db.begin(run)
    late.tasks.put("q", "began first")
    with db.begin(run) as early:
        early.tasks.put("q", "committed first")
    late.commit()
    db.tasks.put(run, "q", "last")
    first = db.tasks.claim(run, "q")
    assert first.payload == "committed first"
    db.tasks.release(run, first)  # which writes its place anew, and keeps its order
    assert [db.tasks.claim(run, "q").payload for _ in range(3)] == ["committed first", "began first", "last"]


def test_a_key_makes_a_put_idempotent(db: Any, run: RunId) -> None:
    first = db.tasks.put(run, "q", 1, key="k")
    assert db.tasks.put(run, "q", 2, key="k") == first
    assert db.tasks.put(run, "other", 2, key="k").id != first.id
    db.tasks.complete(run, db.tasks.claim(run, "q"))
    assert db.tasks.put(run, "q", 3, key="k").state is TaskState.DONE
    assert db.tasks.purge(run, "q") == 1
    assert db.tasks.put(run, "q", 3, key="k").payload == 3


def test_a_delayed_task_becomes_ready_and_wakes_who_waits(db: Any, run: RunId) -> None:
    db.tasks.put(run, "q", "later", delay=0.15)
    assert db.tasks.claim(run, "q") is None
    assert db.tasks.stats(run, "q").delayed == 1
    claimed = db.tasks.claim(run, "q", timeout=30)
    assert claimed.payload == "later" and claimed.due_us == 0
    assert db.tasks.fail(run, claimed, "again", delay=0.05) is TaskState.DELAYED
    assert db.tasks.get(run, claimed).due_at is not None
    until(lambda: state(db, run, claimed) is TaskState.READY)
    assert db.tasks.stats(run, "q").ready == 1
    assert [task.id for task in db.tasks.list(run, "q", state="ready")] == [claimed.id]
    assert db.tasks.claim(run, "q").id == claimed.id


def test_a_lease_that_ends_makes_the_task_ready_and_its_holder_late(db: Any, run: RunId) -> None:
    task = db.tasks.put(run, "q")
    slow = db.tasks.claim(run, "q", lease=0.1)
    other = db.tasks.claim(run, "q", timeout=30)
    assert other.id == task.id and other.attempts == 2
    for call in (db.tasks.complete, db.tasks.release, db.tasks.extend, lambda *a: db.tasks.fail(*a, "e")):
        with pytest.raises(LeaseLost) as lost:
            call(run, slow)
        assert lost.value.hint and lost.value.details["claim"] == 1 and lost.value.details["claims"] == 2
    db.tasks.complete(run, other, "by the other")
    with pytest.raises(LeaseLost):
        db.tasks.complete(run, slow)
    assert db.tasks.get(run, task).result == "by the other"


def test_a_lease_that_ended_is_lost_also_while_nobody_else_has_the_task(db: Any, run: RunId) -> None:
    db.tasks.put(run, "q")
    slow = db.tasks.claim(run, "q", lease=0.05)
    until(lambda: state(db, run, slow) is TaskState.READY)
    with pytest.raises(LeaseLost):
        db.tasks.complete(run, slow)


def test_after_max_attempts_a_task_is_dead(db: Any, run: RunId) -> None:
    db.tasks.put(run, "q", max_attempts=2)
    assert db.tasks.fail(run, db.tasks.claim(run, "q"), "first") is TaskState.READY
    assert db.tasks.fail(run, db.tasks.claim(run, "q"), "second") is TaskState.DEAD
    db.tasks.put(run, "q", "hopeless")
    assert db.tasks.fail(run, db.tasks.claim(run, "q"), "no", retry=False) is TaskState.DEAD
    poison = db.tasks.put(run, "q", "poison", max_attempts=1)
    db.tasks.claim(run, "q", lease=0.05)
    until(lambda: state(db, run, poison) is TaskState.DEAD)
    assert db.tasks.stats(run, "q").dead == 3
    assert db.tasks.claim(run, "q") is None
    assert [task.error for task in db.tasks.list(run, "q", state="dead")][:2] == ["second", "no"]
    assert "went away" in db.tasks.get(run, poison).error
    assert db.tasks.requeue(run, poison).state is TaskState.READY
    assert db.tasks.claim(run, "q").id == poison.id


def test_effects_and_completion_are_one_commit(db: Any, run: RunId) -> None:
    db.tasks.put(run, "q")
    task = db.tasks.claim(run, "q", lease=0.05)

    def work(txn: Any) -> None:
        txn.kv.put("effect", txn.kv.get("effect", 0) + 1)
        txn.tasks.complete(task)

    until(lambda: state(db, run, task) is TaskState.READY)
    with pytest.raises(LeaseLost):
        db.transaction(run, work)
    assert db.kv.get(run, "effect") is None
    task = db.tasks.claim(run, "q")
    db.transaction(run, work)
    with pytest.raises(InvalidTransition):
        db.transaction(run, work)
    assert db.kv.get(run, "effect") == 1


def test_of_a_completion_and_the_end_of_the_claim_one_wins(db: Any, run: RunId) -> None:
    db.tasks.put(run, "q")
    task = db.tasks.claim(run, "q")
    slow = db.begin(run, isolation="snapshot")
    slow.tasks.complete(task)
    db.tasks.release(run, task)
    other = db.tasks.claim(run, "q")
    with pytest.raises(OccamError):
        slow.commit()
    db.tasks.complete(run, other)


def test_claiming_in_a_transaction_does_not_conflict_with_puts(db: Any, run: RunId) -> None:
    db.tasks.put(run, "q", 1)
    with db.begin(run) as txn:
        task = txn.tasks.claim("q")
        db.tasks.put(run, "q", 2)
        txn.kv.put("at", task.payload)
    assert db.tasks.stats(run, "q").claimed == 1
    with pytest.raises(InvalidArgumentError, match="does not wait"), db.begin(run) as txn:
        txn.tasks.claim("q", timeout=1)


def test_a_transaction_can_wait_for_a_task(db: Any, run: RunId) -> None:
    passes = 0

    def body(txn: Any) -> Any:
        nonlocal passes
        passes += 1
        task = txn.tasks.claim("q")
        if task is None:
            db.tasks.put(run, "q", "came")
            txn.wait()
        return task

    assert db.transaction(run, body, timeout=60).payload == "came"
    assert passes == 2


def test_pages_of_a_listing_meet_every_task_once(db: Any, run: RunId) -> None:
    db.transaction(run, lambda txn: txn.tasks.put_many("q", range(25)))
    db.tasks.put_many(run, "q", range(25, 30), delay=60)
    for _ in range(4):
        db.tasks.complete(run, db.tasks.claim(run, "q"))
    for _ in range(3):
        db.tasks.fail(run, db.tasks.claim(run, "q"), "e", retry=False)
    db.tasks.claim(run, "q")
    forms: tuple[Callable[[Task], Any], ...] = (lambda task: task, lambda task: task.id)
    for form in forms:
        for wanted, count in (
            (None, 30), ("ready", 17), ("delayed", 5), ("claimed", 1), ("done", 4), ("dead", 3),
        ):  # fmt: skip
            pages, last = [], None
            while page := db.tasks.list(run, "q", state=wanted, after=last, limit=4):
                pages += page
                last = form(page[-1])
            assert len({task.id for task in pages}) == len(pages) == count, wanted
            assert pages == db.tasks.list(run, "q", state=wanted, limit=None)
            assert wanted is None or {task.state for task in pages} == {wanted}
    assert db.tasks.list(run, "q", limit=0) == [] == db.tasks.list(run, "none")


def test_purging(db: Any, run: RunId) -> None:
    db.tasks.put_many(run, "q", range(10))
    db.tasks.put(run, "q", "later", delay=60)
    for _ in range(4):
        db.tasks.complete(run, db.tasks.claim(run, "q"))
    assert [
        db.tasks.purge(run, "q", limit=3),
        db.tasks.purge(run, "q", limit=3),
        db.tasks.purge(run, "q"),
    ] == [3, 1, 0]
    assert db.tasks.purge(run, "q", state="ready") == 6
    assert db.tasks.purge(run, "q", state="delayed") == 1
    assert db.tasks.queues(run) == ()
    assert list(db.space(run, 0x10, raw=True).keys()) == []


def test_queues_and_runs_are_apart_and_go_with_the_run(db: Any, run: RunId) -> None:
    for queue in ("b", "a", "long name " * 30, "ä"):
        db.tasks.put(run, queue, queue)
    assert db.tasks.queues(run) == tuple(sorted(["b", "a", "long name " * 30, "ä"]))
    assert db.tasks.claim(run, "ä").payload == "ä"
    other = RunId.new()
    assert db.tasks.queues(other) == () and db.tasks.claim(other, "a") is None
    db.runs.delete_run(run)
    assert db.tasks.queues(run) == ()


def test_snapshots_show_tasks_and_refuse_changes(db: Any, run: RunId) -> None:
    task = db.tasks.put(run, "q")
    with db.snapshot(run) as view:
        db.tasks.claim(run, "q")
        assert view.tasks.get(task).state is TaskState.READY
        assert view.tasks.stats("q").ready == 1 and view.tasks.list("q") == [task]
        with pytest.raises(OccamError):
            view.tasks.put("q")


# --- The worker's loop -------------------------------------------------------------------------------


def test_a_worker_completes_each_task_at_the_end_of_the_body(db: Any, run: RunId) -> None:
    db.tasks.put_many(run, "q", range(5))
    assert [task.payload for task in db.tasks.worker(run, "q", timeout=0)] == list(range(5))
    assert db.tasks.stats(run, "q").done == 5


def test_a_worker_fails_the_task_whose_body_raises(db: Any, run: RunId) -> None:
    task = db.tasks.put(run, "q", max_attempts=2)
    with pytest.raises(ZeroDivisionError):
        for _ in db.tasks.worker(run, "q", timeout=0):
            raise ZeroDivisionError
    assert "left" in db.tasks.get(run, task).error and state(db, run, task) is TaskState.READY
    with pytest.raises(ZeroDivisionError), db.tasks.worker(run, "q", timeout=0) as worker:
        for _ in worker:
            raise ZeroDivisionError("by nothing")
    assert (db.tasks.get(run, task).error, state(db, run, task)) == ("ZeroDivisionError: by nothing", "dead")


def test_a_worker_that_is_kept_does_not_complete_what_raised(db: Any, run: RunId) -> None:
    task = db.tasks.put(run, "q")
    worker = db.tasks.worker(run, "q", timeout=0)
    with pytest.raises(ValueError):
        for _ in worker:
            raise ValueError
    assert [again.attempts for again in worker] == [2]
    assert state(db, run, task) is TaskState.DONE


def test_ctrl_c_gives_the_task_back(db: Any, run: RunId) -> None:
    task = db.tasks.put(run, "q")
    with pytest.raises(KeyboardInterrupt), db.tasks.worker(run, "q", timeout=0) as worker:
        for _ in worker:
            raise KeyboardInterrupt
    assert (state(db, run, task), db.tasks.get(run, task).attempts) == ("ready", 0)


def test_a_body_may_end_its_task_itself(db: Any, run: RunId) -> None:
    db.tasks.put_many(run, "q", ["complete", "fail", "release", "nothing"], max_attempts=1)
    met = []
    for task in db.tasks.worker(run, "q", timeout=0):
        met.append(task.payload)
        if task.payload == "complete":
            db.transaction(run, lambda txn, task=task: txn.tasks.complete(task, "own"))
        elif task.payload == "fail":
            db.tasks.fail(run, task, "own")
        elif task.payload == "release" and len(met) < 4:
            db.tasks.release(run, task)
    assert met == ["complete", "fail", "release", "release", "nothing"]
    ends = {task.payload: (task.state, task.result or task.error) for task in db.tasks.list(run, "q")}
    assert ends == {
        "complete": ("done", "own"), "fail": ("dead", "own"), "release": ("done", None), "nothing": ("done", None),
    }  # fmt: skip


def test_a_worker_whose_lease_ran_out_hears_of_it(db: Any, run: RunId) -> None:
    db.tasks.put(run, "q")
    with pytest.raises(LeaseLost):
        for task in db.tasks.worker(run, "q", lease=0.05, timeout=0):
            until(partial(is_ready, db, run, task))


# --- Wrong calls -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda t, run, task: t.put(run, "q", priority=40_000), InvalidArgumentError),
        (lambda t, run, task: t.put(run, "q", priority=-32_769), InvalidArgumentError),
        (lambda t, run, task: t.put(run, "q", priority=1.5), InvalidArgumentError),
        (lambda t, run, task: t.put(run, "q", priority=True), InvalidArgumentError),
        (lambda t, run, task: t.put(run, "q", delay=-1), InvalidArgumentError),
        (lambda t, run, task: t.put(run, "q", delay=float("nan")), InvalidArgumentError),
        (lambda t, run, task: t.put(run, "q", max_attempts=0), InvalidArgumentError),
        (lambda t, run, task: t.put(run, "q", key=5), InvalidArgumentError),
        (lambda t, run, task: t.put(run, "", 1), InvalidArgumentError),
        (lambda t, run, task: t.put(run, 5, 1), InvalidArgumentError),
        (lambda t, run, task: t.put(run, "q", object()), ValueEncodingError),
        (lambda t, run, task: t.put(run, "q", {"a": [1, {2}]}), ValueEncodingError),
        (lambda t, run, task: t.put_many(run, "q", "text"), InvalidArgumentError),
        (lambda t, run, task: t.claim(run, "q", lease=-5), InvalidArgumentError),
        (lambda t, run, task: t.claim(run, "q", lease=0), InvalidArgumentError),
        (lambda t, run, task: t.claim(run, "q", timeout=-1), InvalidArgumentError),
        (lambda t, run, task: t.claim(run, "q", timeout="long"), InvalidArgumentError),
        (lambda t, run, task: t.extend(run, task, -1), InvalidArgumentError),
        (lambda t, run, task: t.complete(run, task.id), InvalidArgumentError),
        (lambda t, run, task: t.complete(run, t.get(run, task.id).id), InvalidArgumentError),
        (lambda t, run, task: t.complete(run, task, object()), ValueEncodingError),
        (lambda t, run, task: t.fail(run, task, 5), InvalidArgumentError),
        (lambda t, run, task: t.complete(RunId.new(), task), NotFoundError),
        (lambda t, run, task: t.requeue(run, "0" * 32), NotFoundError),
        (lambda t, run, task: t.requeue(run, task), InvalidTransition),
        (lambda t, run, task: t.requeue(run, "no id"), InvalidArgumentError),
        (lambda t, run, task: t.get(run, 5), InvalidArgumentError),
        (lambda t, run, task: t.list(run, "q", state="odd"), InvalidArgumentError),
        (lambda t, run, task: t.list(run, "q", limit=-1), InvalidArgumentError),
        (lambda t, run, task: t.list(run, "q", after="0" * 32), NotFoundError),
        (lambda t, run, task: t.list(run, "q", state="done", after=task), InvalidArgumentError),
        (lambda t, run, task: t.purge(run, "q", state="claimed"), InvalidArgumentError),
        (lambda t, run, task: t.worker(run, "q", lease=0), InvalidArgumentError),
        (lambda t, run, task: t.worker(run, "q", timeout=-1), InvalidArgumentError),
    ],
)  # fmt: skip
def test_wrong_calls_are_refused_with_a_hint(db: Any, run: RunId, call: Any, error: type[OccamError]) -> None:
    db.tasks.put(run, "q", "payload")
    task = db.tasks.claim(run, "q")
    with pytest.raises(error) as caught:
        call(db.tasks, run, task)
    assert caught.value.hint
    assert db.tasks.stats(run, "q").claimed == 1
    db.tasks.complete(run, task)


def test_completing_twice_and_an_unreadable_payload_say_what_is_wrong(db: Any, run: RunId) -> None:
    db.tasks.put(run, "q")
    task = db.tasks.claim(run, "q")
    db.tasks.complete(run, task)
    with pytest.raises(InvalidTransition, match="done already") as twice:
        db.tasks.complete(run, task)
    assert "requeue" in twice.value.hint
    with pytest.raises(ValueEncodingError) as caught:
        db.tasks.put(run, "q", {"a": [object()]})
    assert caught.value.path == 'payload["a"][0]'


def test_a_result_that_is_refused_leaves_the_task_claimed(db: Any, run: RunId) -> None:
    db.tasks.put(run, "q")
    task = db.tasks.claim(run, "q")
    with db.begin(run) as txn:
        with pytest.raises(ValueEncodingError, match="result"):
            txn.tasks.complete(task, object())
        txn.put("went", "on")
    assert db.tasks.stats(run, "q").claimed == 1
    db.tasks.complete(run, task)


class FailsToComplete:
    """The tasks of a database, of which `complete` raises each of these errors first."""

    def __init__(self, tasks: Any, *errors: BaseException) -> None:
        self.tasks = tasks
        self.errors = list(errors)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tasks, name)

    def complete(self, *arguments: Any) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.tasks.complete(*arguments)


def test_a_completion_that_failed_leaves_the_task_at_hand(db: Any, run: RunId) -> None:
    """The next call of the loop completes it, and the end of a block does not leave it claimed."""
    db.tasks.put_many(run, "q", [1, 2])
    with db.tasks.worker(run, "q", lease=600, timeout=0) as tasks:
        tasks._tasks = FailsToComplete(db.tasks, StoreFullError("full"))
        first = next(tasks)
        with pytest.raises(StoreFullError):
            next(tasks)
        assert state(db, run, first) is TaskState.CLAIMED
        second = next(tasks)
        assert state(db, run, first) is TaskState.DONE
        assert next(tasks, None) is None
    db.tasks.requeue(run, second)
    with pytest.raises(KeyboardInterrupt), db.tasks.worker(run, "q", lease=600, timeout=0) as tasks:
        tasks._tasks = FailsToComplete(db.tasks, KeyboardInterrupt())
        assert next(tasks).id == second.id
        next(tasks)
    assert state(db, run, second) is TaskState.READY and db.tasks.get(run, second).attempts == 0


def test_wrong_arguments_of_tasks(db: Any, run: RunId) -> None:
    """None of these wrote anything; each says what to do."""
    db.tasks.put(run, "q")
    claimed = db.tasks.claim(run, "q")
    tasks = db.tasks
    for call in (
        partial(tasks.put_many, run, "", []),
        partial(tasks.put_many, run, "q", [], priority="high"),
        partial(tasks.put_many, run, "q", [], delay=-1),
        partial(tasks.fail, run, claimed, "error", 5),
        partial(tasks.fail, run, claimed, "error", "no"),
        partial(tasks.complete, run, claimed._replace(priority=2.5)),
        partial(tasks.complete, run, claimed._replace(priority=10**9)),
        partial(tasks.complete, run, claimed._replace(priority="high")),
        partial(tasks.complete, run, claimed._replace(queue=None)),
        partial(tasks.release, run, claimed._replace(id=5)),
        partial(tasks.extend, run, claimed._replace(priority=None)),
        partial(tasks.list, run, "q", after=claimed._replace(priority=None)),
        partial(tasks.put, run, "q", delay=timedelta.max),
    ):
        with pytest.raises(InvalidArgumentError) as refused:
            call()
        assert refused.value.hint
    with pytest.raises(InvalidArgumentError, match="at most 1,000,000,000"):
        tasks.put(run, "q", delay=1e10)
    assert tasks.stats(run, "q").open == 1
    tasks.complete(run, claimed)


class Queue(StrEnum):
    """Queues of a program; a member is a text."""

    PAGES = "pages"


def test_queues_and_keys_of_an_enumeration(db: Any, run: RunId) -> None:
    task = db.tasks.put(run, Queue.PAGES, 1, key=Queue.PAGES)
    assert type(task.queue) is str and type(task.key) is str
    assert db.tasks.put(run, "pages", 2, key="pages") == task
    claimed = db.tasks.claim(run, Queue.PAGES)
    assert claimed.id == task.id and db.tasks.queues(run) == ("pages",)
    db.tasks.complete(run, claimed)
