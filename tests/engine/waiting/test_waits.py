"""`txn.wait`, `db.watch` and the waits of the primitives, on both engines."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import occamdb
from occamdb import (
    Database,
    InvalidArgumentError,
    RetryPolicy,
    RunId,
    TransactionStateError,
    TransactionTimeout,
)
from occamdb.engine.transaction.wait_signal import WaitSignal
from tests.support.engines import Engine
from tests.support.processes import DEADLINE_S, wait_until


@pytest.fixture
def beside() -> Iterator[Callable[[Callable[[], Any]], threading.Thread]]:
    """Runs functions in threads; joins them at the end, and raises what they raised."""
    threads: list[threading.Thread] = []
    failures: list[BaseException] = []

    def start(function: Callable[[], Any]) -> threading.Thread:
        def run() -> None:
            try:
                function()
            except BaseException as error:
                failures.append(error)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return threads[-1]

    yield start
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    for failure in failures:
        raise failure


def waiting(db: Database, count: int = 1) -> None:
    """Wait until so many threads of this process wait, and one of them is about to sleep."""
    hub = db.handle.waits
    wait_until(
        lambda: len(hub._waiters) >= count and hub._leader is not None, what=f"{count} waiting threads"
    )


def take(txn: Any, prefix: str = "inbox/") -> Any:
    """The first message of a queue, waiting for it."""
    for key, item in txn.scan(prefix, limit=1):
        txn.delete(key)
        return item.value
    txn.wait()


# ---- txn.wait ---------------------------------------------------------------------------------------------------


def test_a_queue_is_waited_for(db: Database, run: RunId, beside: Any) -> None:
    taken: list[Any] = []
    beside(lambda: taken.extend(db.transaction(run, take, timeout=DEADLINE_S) for _ in range(3)))
    for number in range(3):
        waiting(db)
        db.put(run, f"inbox/{number}", number)
        wait_until(lambda: len(taken) == number + 1)  # noqa: B023
    assert taken == [0, 1, 2]


@pytest.mark.parametrize("what", ["absent", "present", "deleted", "range", "expired"])
def test_what_was_read_wakes(db: Database, run: RunId, beside: Any, what: str) -> None:
    if what in ("present", "deleted"):
        db.put(run, "k", 0)
    if what == "expired":
        db.put(run, "k", 0, ttl=1.0)
    attempts = []

    def look(txn: Any) -> Any:
        attempts.append(txn.start_version)
        found = list(txn.keys("k")) if what == "range" else txn.get("k")
        if len(attempts) == 1 or (what == "expired" and found is not None):
            txn.wait()
        return found

    result: list[Any] = []
    beside(lambda: result.append(db.transaction(run, look, timeout=DEADLINE_S)))
    waiting(db)
    if what == "deleted":
        db.delete(run, "k")
    elif what != "expired":
        db.put(run, "k", 1)
    wait_until(lambda: result)
    assert result == [{"absent": 1, "present": 1, "deleted": None, "range": ["k"], "expired": None}[what]]


def test_what_was_not_read_does_not_wake(db: Database, run: RunId, beside: Any) -> None:
    attempts = []

    def look(txn: Any) -> Any:
        attempts.append(txn.start_version)
        return txn.get("k") or txn.wait()

    thread = beside(lambda: db.transaction(run, look, timeout=DEADLINE_S))
    waiting(db)
    for number in range(20):
        db.put(run, "other", number)
        db.put(RunId.new(), "k", number)
    db.put(run, "k", 1)
    thread.join(DEADLINE_S)
    assert len(attempts) == 2


def test_a_read_set_that_is_stale_already_returns_at_once(db: Database, run: RunId) -> None:
    attempts = []

    def look(txn: Any) -> Any:
        attempts.append(txn.start_version)
        if txn.get("k") is None:
            db.put(run, "k", 1)
            txn.wait()
        return txn.get("k")

    assert db.transaction(run, look, timeout=DEADLINE_S) == 1
    assert len(attempts) == 2


def test_waits_compose(db: Database, run: RunId, beside: Any) -> None:
    def either(txn: Any) -> Any:
        for queue in ("a/", "b/"):
            for key, item in txn.scan(queue, limit=1):
                txn.delete(key)
                return item.value
        txn.wait()

    for queue in ("a/", "b/"):
        taken: list[Any] = []
        thread = beside(lambda: taken.append(db.transaction(run, either, timeout=DEADLINE_S)))  # noqa: B023
        waiting(db)
        db.put(run, f"{queue}1", queue)
        thread.join(DEADLINE_S)
        assert taken == [queue]


def test_the_signal_passes_except_exception_and_runs_finally(db: Database, run: RunId) -> None:
    finished = []

    def stubborn(txn: Any) -> None:
        txn.get("k")
        try:
            try:
                txn.wait()
            except Exception:
                pytest.fail("the signal was caught")
        finally:
            finished.append(txn.status)

    with pytest.raises(TransactionTimeout, match="waits for"):
        db.transaction(run, stubborn, timeout=0.05)
    assert finished == ["active"]
    assert not issubclass(WaitSignal, Exception)


def test_a_signal_that_is_swallowed_keeps_the_attempt(db: Database, run: RunId) -> None:
    def swallow(txn: Any) -> str:
        txn.get("k")
        txn.put("half", 1)
        with contextlib.suppress(BaseException):
            txn.wait()
        return "went on"

    assert db.transaction(run, swallow) == "went on"
    assert db.get(run, "half") == 1


def test_a_wait_inside_another_transaction_is_its_own(db: Database, run: RunId) -> None:
    """The inner function waits; the outer one is not run again."""
    outer_runs = []

    def outer(txn: Any) -> Any:
        outer_runs.append(1)
        db.put(run, "inner", 1)
        return db.transaction(run, lambda inner: inner.get("inner") or inner.wait(), timeout=DEADLINE_S)

    assert db.transaction(run, outer) == 1
    assert outer_runs == [1]


def test_an_outer_transaction_waits_from_within_an_inner_one(db: Database, run: RunId, beside: Any) -> None:
    runs = []

    def outer(txn: Any) -> Any:
        runs.append(1)
        if txn.get("k") is None:
            db.transaction(run, lambda _inner: txn.wait())
        return txn.get("k")

    result: list[Any] = []
    beside(lambda: result.append(db.transaction(run, outer, timeout=DEADLINE_S)))
    waiting(db)
    db.put(run, "k", 7)
    wait_until(lambda: result == [7])
    assert len(runs) == 2


def test_waits_are_no_attempts_lost(db: Database, run: RunId, beside: Any) -> None:
    """With a policy of one attempt, any number of waits is allowed."""
    seen: list[int] = []

    def third(txn: Any) -> int:
        number: int = txn.get("n", 0)
        if number < 3:
            seen.append(number)
            txn.wait()
        return number

    result: list[int] = []
    policy = RetryPolicy(max_attempts=1)
    beside(lambda: result.append(db.transaction(run, third, retry=policy, timeout=DEADLINE_S)))
    for number in range(1, 4):
        wait_until(lambda: len(seen) == number)  # noqa: B023
        db.put(run, "n", number)
    wait_until(lambda: result == [3])


@pytest.mark.parametrize("form", ["transactional", "attempts"])
def test_the_other_forms_that_retry(db: Database, run: RunId, beside: Any, form: str) -> None:
    def by_attempts() -> Any:
        for attempt in db.attempts(run, timeout=DEADLINE_S):
            with attempt as txn:
                found = take(txn)
        return found

    @db.transactional(timeout=DEADLINE_S)
    def by_decorator(txn: Any) -> Any:
        return take(txn)

    result: list[Any] = []
    beside(lambda: result.append(by_attempts() if form == "attempts" else by_decorator(run)))
    waiting(db)
    db.put(run, "inbox/1", "hello")
    wait_until(lambda: result == ["hello"])


def test_attempts_time_out(db: Database, run: RunId) -> None:
    with pytest.raises(TransactionTimeout):
        for attempt in db.attempts(run, timeout=0.05):
            with attempt as txn:
                take(txn)


def test_where_a_transaction_cannot_wait(db: Database, run: RunId) -> None:
    with db.begin(run) as txn:
        txn.get("k")
        with pytest.raises(TransactionStateError, match=r"db\.begin") as caught:
            txn.wait()
        assert "db.transaction" in str(caught.value.hint)
    for isolation, reads in (("serializable", False), ("snapshot", True)):

        def nothing(txn: Any, reads: bool = reads) -> None:
            if reads:
                txn.get("k")
            txn.wait()

        with pytest.raises(TransactionStateError, match="read nothing"):
            db.transaction(run, nothing, isolation=isolation)  # type: ignore[arg-type]


def test_a_blocked_wait_uses_no_cpu(db: Database, run: RunId) -> None:
    before = time.process_time()
    with pytest.raises(TransactionTimeout):
        db.transaction(run, take, timeout=3.0)
    # A server is asked now and then whether there is something new, in case that it does not tell.
    afar = "://" in (db.path or "")
    assert time.process_time() - before < (0.5 if afar else 0.05)


# ---- db.watch ---------------------------------------------------------------------------------------------------


def test_a_watch_waits_for_changes(db: Database, run: RunId, beside: Any) -> None:
    with db.watch(run, "a/", timeout=DEADLINE_S) as watch:
        seen: list[Any] = []

        def read() -> None:
            for change in watch:
                seen.append((change.key, change.kind, change.value))
                if change.key == "a/end":
                    return

        beside(read)
        waiting(db)
        db.put(run, "a/1", [1])
        db.put(run, "b/1", 0)
        db.increment(run, "a/n", 2)
        db.delete(run, "a/1")
        db.put(run, "a/lease", "x", ttl=0.05)
        wait_until(lambda: ("a/lease", "expire", None) in seen)
        version = db.put(run, "a/end", 1)
        wait_until(lambda: seen[-1:] == [("a/end", "put", 1)])
        assert watch.version >= version
        assert seen[:3] == [("a/1", "put", [1]), ("a/n", "put", 2), ("a/1", "delete", None)]


def test_commits_are_given_together_and_since_goes_on(db: Database, run: RunId) -> None:
    start = db.put(run, "before", 0)
    for number in range(3):
        with db.begin(run) as txn:
            txn.put("x", number)
            txn.put("y", number)
    with db.watch(run, since=start, timeout=0) as watch:
        commits = watch.commits()
        first = next(commits)
        assert [(c.key, c.value) for c in first] == [("x", 0), ("y", 0)]
        assert first[0].version == first[1].version == watch.version
        half = next(watch)
        assert (half.key, half.value) == ("x", 1)
        # The commit was not given out as a whole: the next watch gives it again.
        with db.watch(run, since=watch.version, timeout=0) as again:
            assert [(c.key, c.value) for c in again] == [("x", 1), ("y", 1), ("x", 2), ("y", 2)]
        assert [(c.key, c.value) for c in watch] == [("y", 1), ("x", 2), ("y", 2)]
        assert first[0].committed_at == db.get_versioned(run, "x").timestamp or first[0].committed_at  # type: ignore[union-attr]


def test_another_part_of_the_run_is_watched_by_its_tag(db: Database, run: RunId) -> None:
    with db.watch(run, tag=occamdb.TypeTag.STATE, timeout=0) as watch:
        db.put(run, "task", 0)
        db.cells.set(run, "task", "busy")
        assert [(c.key, c.value) for c in watch] == [("task", "busy")]


def test_a_closed_watch_ends(db: Database, run: RunId) -> None:
    watch = db.watch(run)
    db.put(run, "k", 1)
    watch.close()
    watch.close()
    assert list(watch) == []


def test_two_threads_cannot_read_one_watch(db: Database, run: RunId, beside: Any) -> None:
    watch = db.watch(run, timeout=DEADLINE_S)
    seen: list[Any] = []
    beside(lambda: seen.append(next(watch)))
    waiting(db)
    with pytest.raises(TransactionStateError, match="another thread"):
        next(watch)
    db.put(run, "k", 1)
    wait_until(lambda: seen)
    watch.close()


@pytest.mark.parametrize(
    "arguments",
    [
        {"since": -1},
        {"since": True},
        {"since": 1.5},
        {"since": 2**62},
        {"prefix": 5},
        {"tag": "kv"},
        {"tag": 0},
        {"timeout": -1},
        {"timeout": "soon"},
    ],
    ids=str,
)
def test_wrong_arguments_of_watch(db: Database, run: RunId, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        db.watch(run, **arguments)
    assert caught.value.hint


# ---- the primitives ---------------------------------------------------------------------------------------------


def test_a_watch_that_was_refused_takes_back_no_registration(db: Database, run: RunId) -> None:
    with db.watch(run):
        before = {prefix: entry[0] for prefix, entry in db.handle.waits._held.items()}
        assert before
        for _ in range(2):
            with pytest.raises(InvalidArgumentError, match="future"):
                db.watch(run, since=1 << 40)
        gc.collect()
        assert {prefix: entry[0] for prefix, entry in db.handle.waits._held.items()} == before


@pytest.mark.parametrize("version", [-1, 1.5, "1", True, None])
@pytest.mark.parametrize("there", [True, False])
def test_a_version_to_wait_for_is_checked_whether_the_key_is_there(
    db: Database, run: RunId, version: Any, there: bool
) -> None:
    if there:
        db.put(run, "k", 1)
    with pytest.raises(InvalidArgumentError, match="after_version"):
        db.kv.wait(run, "k", after_version=version, timeout=0.01)


def test_a_watch_is_neither_copied_nor_pickled(db: Database, run: RunId) -> None:
    with db.watch(run) as watch:
        for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="since"):
                attempt(watch)


def test_the_waits_of_the_primitives(db: Database, beside: Any) -> None:
    run = db.runs.create_run("waited for").run_id
    version = db.kv.put(run, "k", 1)
    state = db.cells.set(run, "c", "idle")
    cases: list[tuple[Callable[[], Any], Callable[[], Any]]] = [
        (
            lambda: db.kv.wait(run, "k", after_version=version, timeout=DEADLINE_S).value,
            lambda: db.kv.put(run, "k", 2),
        ),
        (
            lambda: db.cells.wait(run, "c", after_version=state, timeout=DEADLINE_S).value,
            lambda: db.cells.set(run, "c", "busy"),
        ),
        (
            lambda: db.cells.wait(run, "c", until=lambda s: s.value == "done", timeout=DEADLINE_S).value,
            lambda: db.cells.set(run, "c", "done"),
        ),
        (
            lambda: db.runs.wait(run, status={"completed", "failed"}, timeout=DEADLINE_S).status,
            lambda: db.runs.complete_run(run),
        ),
        (
            lambda: next(db.events.follow(run, event_type="b", timeout=DEADLINE_S)).sequence,
            lambda: db.events.append_many(run, [("a", {}), ("b", {})]),
        ),
    ]
    results: list[Any] = []
    for wait, change in cases:
        thread = beside(lambda: results.append(wait()))  # noqa: B023
        waiting(db)
        change()
        thread.join(DEADLINE_S)
    assert results == [2, "busy", "done", "completed", 1]
    with pytest.raises(TransactionTimeout):
        db.kv.wait(run, "absent", timeout=0)


def test_a_wait_of_a_primitive_inside_a_transaction_is_the_transactions(db: Database, run: RunId) -> None:
    db.kv.put(run, "k", 1)
    assert db.transaction(run, lambda txn: txn.kv.wait("k").value) == 1
    with pytest.raises(InvalidArgumentError, match="timeout"):
        db.transaction(run, lambda txn: txn.kv.wait("absent", timeout=1))
    with db.begin(run) as txn, pytest.raises(TransactionStateError):
        txn.kv.wait("absent")


def test_a_log_is_followed_over_a_new_beginning(db: Database) -> None:
    run = db.runs.create_run("followed").run_id
    follow = db.events.follow(run, after=0, timeout=0)
    db.events.append_many(run, [("a", {}), ("b", {}), ("c", {})])
    assert [event.event_type for event in follow] == ["b", "c"]
    follow = db.events.follow(run, timeout=DEADLINE_S)
    assert [next(follow).event_type for _ in range(3)] == ["a", "b", "c"]
    db.runs.delete_run(run)
    db.events.append_many(run, [(kind, {}) for kind in "defg"])
    assert [next(follow).event_type for _ in range(4)] == ["d", "e", "f", "g"]


def test_a_wait_that_is_interrupted_as_it_begins_leaves_others_registered(
    db: Database, run: RunId, beside: Any, monkeypatch: Any
) -> None:
    """Were the other one's registration taken back, it would sleep on until its deadline."""
    hub = db.handle.waits
    result: list[Any] = []
    beside(lambda: result.append(db.kv.wait(run, "k", timeout=DEADLINE_S).value))
    waiting(db)
    before = {prefix: entry[0] for prefix, entry in hub._held.items()}

    class Interrupted(BaseException):
        pass

    def interrupted(prefixes: Any) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(hub, "_hold", interrupted)
        with pytest.raises(Interrupted):
            db.kv.wait(run, "k", timeout=DEADLINE_S)
    assert {prefix: entry[0] for prefix, entry in hub._held.items()} == before
    db.put(run, "k", 1)
    wait_until(lambda: result == [1])


def test_a_waiter_sleeps_through_the_commits_of_other_runs(
    engine: Engine, db: Database, run: RunId, beside: Any
) -> None:
    """However many there are: it does not look again. In local memory its process does not even hear of them."""
    looks = []

    def look(txn: Any) -> Any:
        looks.append(1)
        return txn.get("k") or txn.wait()

    result: list[Any] = []
    with db.watch(run, timeout=DEADLINE_S) as watch:
        beside(lambda: result.append(db.transaction(run, look, timeout=DEADLINE_S)))
        beside(lambda: result.append(next(watch).value))
        waiting(db, 2)
        feed = db.handle.waits._feed
        assert feed is not None
        before = feed.version
        other = RunId.new()
        for number in range(300):
            db.put(other, "k", number)
        assert feed.version == before or not engine.local
        db.put(run, "k", 5)
        wait_until(lambda: result == [5, 5])
        assert len(looks) == 2
