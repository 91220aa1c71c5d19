"""Retries: `db.transaction`, `@db.transactional`, `db.attempts`, their errors and deadlines."""

import functools
import gc
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from occamdb import Database, Transaction, TransactionStatus
from occamdb.engine.model.errors import (
    CASConflict,
    ConflictError,
    InvalidArgumentError,
    ReadConflict,
    RetriesExhausted,
    TransactionStateError,
    TransactionTimeout,
)
from occamdb.engine.model.public_types import RunId
from occamdb.engine.model.retry_policy import RetryPolicy

FAST = RetryPolicy(max_attempts=5, initial_backoff=0.0)


def disturb(db: Database, run: RunId, txn: Transaction, times: int) -> int:
    """Make `txn` conflict as long as fewer than `times` attempts were made; which attempt this is."""
    attempt: int = txn.get("attempts", 0, track=False)
    txn.get("k")
    if attempt < times:
        with db.begin(run) as other:
            other.put("k", attempt)
            other.put("attempts", attempt + 1)
    return attempt + 1


# --- db.transaction ------------------------------------------------------------------------------------


def test_transaction_returns_what_the_function_returned(db: Database, run: RunId) -> None:
    def work(txn: Transaction) -> dict[str, int]:
        txn.put("k", 1)
        return {"answer": 42}

    assert db.transaction(run, work) == {"answer": 42}
    assert db.get(run, "k") == 1


def test_transaction_is_called_again_on_a_fresh_snapshot(db: Database, run: RunId) -> None:
    seen: list[Transaction] = []

    def work(txn: Transaction) -> int:
        seen.append(txn)
        txn.put("result", len(seen))
        return disturb(db, run, txn, 3)

    assert db.transaction(run, work) == 4
    assert len(seen) == 4
    assert [txn.status for txn in seen] == [TransactionStatus.ABORTED] * 3 + [TransactionStatus.COMMITTED]
    assert sorted({txn.start_version for txn in seen}) == [txn.start_version for txn in seen]
    assert seen[-1].receipt.attempts == 4
    assert db.get(run, "result") == 4


def test_exhausted_retries_carry_attempts_and_last_conflicts(db: Database, run: RunId) -> None:
    calls = []

    def work(txn: Transaction) -> None:
        calls.append(txn)
        disturb(db, run, txn, 99)
        txn.put("result", 1)

    with pytest.raises(RetriesExhausted) as caught:
        db.transaction(run, work, retry=FAST)
    assert len(calls) == caught.value.attempts == 5
    (conflict,) = caught.value.conflicts
    assert isinstance(conflict, ReadConflict) and conflict.key == "k"
    assert isinstance(caught.value.__cause__, ConflictError)
    assert db.get(run, "result") is None


def test_no_retry_policy_means_one_attempt(db: Database, run: RunId) -> None:
    def work(txn: Transaction) -> None:
        disturb(db, run, txn, 99)
        txn.put("result", 1)

    with pytest.raises(RetriesExhausted) as caught:
        db.transaction(run, work, retry=RetryPolicy(max_attempts=1))
    assert caught.value.attempts == 1


def test_the_functions_own_exception_aborts_and_propagates(db: Database, run: RunId) -> None:
    seen: list[Transaction] = []

    def work(txn: Transaction) -> None:
        seen.append(txn)
        txn.put("k", 1)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        db.transaction(run, work)
    assert [txn.status for txn in seen] == [TransactionStatus.ABORTED]
    assert db.get(run, "k") is None


def test_keyboard_interrupt_aborts_and_propagates(db: Database, run: RunId) -> None:
    def work(txn: Transaction) -> None:
        txn.put("k", 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        db.transaction(run, work)
    assert db.get(run, "k") is None


def test_conflicts_of_other_transactions_inside_propagate(db: Database, run: RunId) -> None:
    calls = []

    def work(txn: Transaction) -> None:
        calls.append(txn)
        txn.put("k", 1)
        db.cas(run, "cell", 7, "no")

    with pytest.raises(CASConflict):
        db.transaction(run, work)
    assert len(calls) == 1
    assert db.get(run, "k") is None


def test_nested_use_of_the_same_database_is_allowed(db: Database, run: RunId) -> None:
    def work(txn: Transaction) -> int:
        db.put(run, "inner", 1)
        total: int = db.transaction(run, lambda inner: inner.get("inner") + 1)
        txn.put("outer", total)
        return total

    assert db.transaction(run, work) == 2
    assert (db.get(run, "inner"), db.get(run, "outer")) == (1, 2)


@pytest.mark.parametrize("ending", ["commit", "abort"])
def test_function_may_end_its_transaction_itself(db: Database, run: RunId, ending: str) -> None:
    def work(txn: Transaction) -> str:
        txn.put("k", 1)
        getattr(txn, ending)()
        return ending

    assert db.transaction(run, work) == ending
    assert db.get(run, "k") == (1 if ending == "commit" else None)


def test_conflict_of_a_commit_inside_the_function_is_retried(db: Database, run: RunId) -> None:
    calls = []

    def work(txn: Transaction) -> None:
        calls.append(txn)
        disturb(db, run, txn, 2)
        txn.put("result", 1)
        txn.commit()

    db.transaction(run, work)
    assert len(calls) == 3


def test_past_its_timeout_a_transaction_times_out(db: Database, run: RunId) -> None:
    calls = []

    def work(txn: Transaction) -> None:
        calls.append(txn)
        disturb(db, run, txn, 10**9)
        txn.put("result", 1)

    policy = RetryPolicy(max_attempts=1_000_000, initial_backoff=0.005, max_backoff=0.005)
    with pytest.raises(TransactionTimeout) as caught:
        db.transaction(run, work, retry=policy, timeout=0.05)
    assert calls
    assert not isinstance(caught.value, ConflictError)
    assert db.get(run, "result") is None


def test_a_slow_function_times_out_and_commits_nothing(db: Database, run: RunId) -> None:
    wait = threading.Event()

    def work(txn: Transaction) -> None:
        txn.put("k", 1)
        wait.wait(0.02)

    with pytest.raises(TransactionTimeout):
        db.transaction(run, work, timeout=0.001)
    assert db.get(run, "k") is None


def test_snapshot_isolation_reaches_the_transaction(db: Database, run: RunId) -> None:
    def work(txn: Transaction) -> str:
        txn.get("k")
        db.put(run, "k", 1)
        txn.put("other", 1)
        return txn.isolation

    assert db.transaction(run, work, isolation="snapshot", retry=RetryPolicy(max_attempts=1)) == "snapshot"


def test_contended_counters_lose_nothing(db: Database, run: RunId) -> None:
    def work(txn: Transaction) -> None:
        txn.put("n", txn.get("n", 0) + 1)

    def many() -> None:
        for _ in range(150):
            db.transaction(run, work)

    threads = [threading.Thread(target=many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert db.get(run, "n") == 600


# --- What is refused ----------------------------------------------------------------------------------


def generator(txn: Transaction) -> Iterator[int]:
    yield 1


async def coroutine(txn: Transaction) -> int:
    return 1


async def async_generator(txn: Transaction) -> Any:
    yield 1


@pytest.mark.parametrize("fn", [generator, coroutine, async_generator, functools.partial(generator), 7, None])
def test_lazy_functions_are_refused(db: Database, run: RunId, fn: Any) -> None:
    for use in (lambda: db.transaction(run, fn), lambda: db.transactional()(fn)):
        with pytest.raises(InvalidArgumentError):
            use()


def test_lazy_results_are_refused(db: Database, run: RunId) -> None:
    for fn in (generator, coroutine, async_generator):
        with pytest.raises(InvalidArgumentError):
            db.transaction(run, lambda txn, fn=fn: (txn.put("k", 1), fn(txn))[1])  # type: ignore[misc]
    assert db.get(run, "k") is None


def test_bad_retry_and_timeout_are_refused(db: Database, run: RunId) -> None:
    for retry in (3, None, "often"):
        with pytest.raises(InvalidArgumentError):
            db.transaction(run, lambda txn: None, retry=retry)  # type: ignore[arg-type]
    for timeout in (-1, "1", True, float("nan")):
        with pytest.raises(InvalidArgumentError):
            db.transaction(run, lambda txn: None, timeout=timeout)  # type: ignore[arg-type]


# --- @db.transactional ----------------------------------------------------------------------------------


def test_transactional_runs_alone_or_joins(db: Database, run: RunId) -> None:
    @db.transactional
    def store(txn: Transaction, key: str, value: int = 1) -> Transaction:
        """Doc."""
        txn.put(key, value)
        return txn

    assert store.__name__ == "store" and store.__doc__ == "Doc."  # type: ignore[attr-defined]
    alone = store(run, "a", value=2)
    assert alone.status is TransactionStatus.COMMITTED
    with db.begin(run) as txn:
        assert store(txn, "b") is txn
        assert txn.status is TransactionStatus.ACTIVE
    assert {key: db.get(run, key) for key in db.list(run)} == {"a": 2, "b": 1}


def test_transactional_takes_the_same_options(db: Database, run: RunId) -> None:
    calls = []

    @db.transactional(retry=FAST, isolation="serializable", timeout=10)
    def work(txn: Transaction) -> None:
        calls.append(1)
        disturb(db, run, txn, 99)
        txn.put("x", 1)

    with pytest.raises(RetriesExhausted):
        work(run)
    assert len(calls) == 5


def test_joined_function_leaves_retrying_to_the_outer_transaction(db: Database, run: RunId) -> None:
    @db.transactional
    def inner(txn: Transaction) -> int:
        txn.put("inner", 1)
        return disturb(db, run, txn, 2)

    @db.transactional
    def outer(txn: Transaction) -> int:
        return inner(txn)

    assert outer(run) == 3


# --- db.attempts ------------------------------------------------------------------------------------------


def test_attempts_go_on_until_one_commits(db: Database, run: RunId) -> None:
    numbers = []
    for attempt in db.attempts(run):
        with attempt as txn:
            numbers.append(attempt.number)
            disturb(db, run, txn, 2)
            txn.put("result", attempt.number)
    assert numbers == [1, 2, 3]
    assert db.get(run, "result") == 3
    assert txn.receipt.attempts == 3


def test_attempts_end_with_retries_exhausted(db: Database, run: RunId) -> None:
    with pytest.raises(RetriesExhausted) as caught:
        for attempt in db.attempts(run, retry=FAST):
            with attempt as txn:
                disturb(db, run, txn, 99)
                txn.put("result", 1)
    assert caught.value.attempts == 5 and caught.value.conflicts


def test_attempts_let_other_exceptions_through(db: Database, run: RunId) -> None:
    with pytest.raises(ZeroDivisionError):
        for attempt in db.attempts(run):
            with attempt as txn:
                txn.put("k", 1)
                raise ZeroDivisionError
    assert db.get(run, "k") is None


def test_attempts_commit_on_break_and_return(db: Database, run: RunId) -> None:
    def work() -> int:
        for attempt in db.attempts(run):
            with attempt as txn:
                txn.put("returned", 1)
                return 7
        raise AssertionError

    assert work() == 7
    for attempt in db.attempts(run):
        with attempt as txn:
            txn.put("broken", 1)
            break
    assert db.list(run) == ["broken", "returned"]


def test_a_wait_lost_by_break_is_reported(db: Database, run: RunId, monkeypatch: Any) -> None:
    reports: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", reports.append)
    for attempt in db.attempts(run):
        with attempt as txn:
            txn.put("result", 1)
            assert txn.get("absent") is None
            txn.wait()
        break
    del attempt, txn
    gc.collect()
    (report,) = reports
    assert isinstance(report.exc_value, TransactionStateError)
    assert "break or return" in str(report.exc_value)
    assert "result" not in db.list(run)


def test_a_conflict_lost_by_break_is_reported(db: Database, run: RunId, monkeypatch: Any) -> None:
    reports: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", reports.append)
    for attempt in db.attempts(run):
        with attempt as txn:
            disturb(db, run, txn, 99)
            txn.put("result", 1)
            break
    del attempt, txn
    gc.collect()
    (report,) = reports
    assert isinstance(report.exc_value, ConflictError)
    assert "break or return" in str(report.exc_value)


def test_attempts_must_be_entered_and_entered_once(db: Database, run: RunId) -> None:
    with pytest.raises(TransactionStateError, match="not entered"):
        for _ in db.attempts(run):
            pass
    attempt = next(iter(db.attempts(run)))
    with attempt as txn:
        txn.put("k", 1)
    with pytest.raises(TransactionStateError, match="once"), attempt:
        pass


def test_attempts_time_out(db: Database, run: RunId) -> None:
    policy = RetryPolicy(max_attempts=1_000_000, initial_backoff=0.005, max_backoff=0.005)
    with pytest.raises(TransactionTimeout):
        for attempt in db.attempts(run, retry=policy, timeout=0.05):
            with attempt as txn:
                disturb(db, run, txn, 10**9)
                txn.put("result", 1)
    assert db.get(run, "result") is None
