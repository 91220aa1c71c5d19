"""Errors that name the cause: a transaction shared by threads, and one that loses to its own thread's commits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from occamdb import (
    ConflictError,
    Database,
    RetriesExhausted,
    RunId,
    TransactionStateError,
    TransactionStatus,
)

T = TypeVar("T")


def in_thread(call: Callable[[], T]) -> T | BaseException:
    """What a call returns or raises in a thread of its own."""
    outcome: list[T | BaseException] = []

    def body() -> None:
        try:
            outcome.append(call())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    return outcome[0]


USES: dict[str, Callable[[Any], Any]] = {
    "get": lambda txn: txn.get("k"),
    "exists": lambda txn: txn.exists("k"),
    "put": lambda txn: txn.put("k", 2),
    "delete": lambda txn: txn.delete("k"),
    "cas": lambda txn: txn.cas("k", 1, 2),
    "add": lambda txn: txn.add("n"),
    "scan": lambda txn: [*txn.scan()],
    "count": lambda txn: txn.count(),
    "delete_range": lambda txn: txn.delete_range("k"),
    "for_run": lambda txn: txn.for_run(RunId.new()),
    "validate": lambda txn: txn.validate(),
}


@pytest.mark.parametrize("use", USES)
def test_a_second_thread_is_told_that_two_use_one_transaction(db: Database, run: RunId, use: str) -> None:
    db.put(run, "k", 1)
    with db.begin(run) as txn:
        txn.get("k")
        error = in_thread(lambda: USES[use](txn))
        assert isinstance(error, TransactionStateError)
        assert "two threads" in error.message
        assert "db.transaction" in error.hint
        assert error.details["begun_in"] == threading.get_ident() != error.details["used_in"]
        txn.put("mine", 1)  # unharmed
    assert db.get(run, "mine") == 1
    assert db.get(run, "k") == 1


def test_the_rest_of_a_scan_cannot_be_read_by_another_thread(db: Database, run: RunId) -> None:
    for n in range(3):
        db.put(run, f"k{n}", n)
    with db.begin(run) as txn:
        rows = txn.scan()
        next(rows)
        assert isinstance(in_thread(lambda: next(rows)), TransactionStateError)
        assert len([*rows]) == 2


def test_threads_that_race_for_one_transaction_cannot_mix_their_writes(db: Database, run: RunId) -> None:
    txn = db.begin(run)
    errors: list[BaseException] = []
    ready = threading.Barrier(4)

    def write(name: str) -> None:
        ready.wait()
        for n in range(100):
            try:
                txn.put(f"{name}/{n}", n)
            except TransactionStateError as error:
                errors.append(error)

    threads = [threading.Thread(target=write, args=(f"t{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    txn.put("mine", 1)
    txn.commit()
    assert len(errors) == 400
    assert db.list(run) == ["mine"]


def test_any_thread_may_end_a_transaction(db: Database, run: RunId) -> None:
    txn = db.begin(run)
    txn.put("k", 1)
    in_thread(txn.commit)
    assert txn.status is TransactionStatus.COMMITTED
    assert db.get(run, "k") == 1
    txn = db.begin(run)
    in_thread(txn.abort)
    assert txn.status is TransactionStatus.ABORTED


def test_read_only_transactions_and_snapshots_are_for_all_threads(db: Database, run: RunId) -> None:
    db.put(run, "k", 1)
    with db.begin(run, read_only=True) as txn:
        assert in_thread(lambda: txn.get("k")) == 1
    with db.snapshot(run) as view:
        assert in_thread(lambda: view.get("k")) == 1


# ---- losing to oneself ------------------------------------------------------------------------------------------


NESTED: dict[str, Callable[[Database, RunId, Any], Any]] = {
    "read, then a nested put": lambda db, run, txn: (txn.get("k"), db.put(run, "k", 2), txn.put("other", 1)),
    "write, then a nested put": lambda db, run, txn: (txn.put("k", 1), db.put(run, "k", 2)),
    "scan, then a nested put": lambda db, run, txn: (
        [*txn.scan()],
        db.put(run, "k9", 2),
        txn.put("other", 1),
    ),
    "a nested transaction": lambda db, run, txn: (
        txn.get("k"),
        db.transaction(run, lambda inner: inner.put("k", 2)),
        txn.put("other", 1),
    ),
}


@pytest.mark.parametrize("nested", NESTED)
def test_a_nested_commit_of_ones_own_is_named_as_the_reason(db: Database, run: RunId, nested: str) -> None:
    db.put(run, "k", 1)
    with pytest.raises(ConflictError) as caught, db.begin(run) as txn:
        NESTED[nested](db, run, txn)
    assert "this thread committed version" in caught.value.hint
    assert caught.value.details["own_commit"] > txn.start_version


def test_it_gives_up_soon_instead_of_repeating_the_side_effects(db: Database, run: RunId) -> None:
    db.put(run, "k", 1)
    calls = []

    def fn(txn: Any) -> None:
        calls.append(txn.get("k"))
        db.increment(run, "side effects")
        db.put(run, "k", 2)
        txn.put("other", 1)

    with pytest.raises(RetriesExhausted, match="this thread committed") as caught:
        db.transaction(run, fn)
    assert len(calls) == db.get(run, "side effects") == caught.value.attempts <= 10


def test_one_such_conflict_alone_is_retried(db: Database, run: RunId) -> None:
    db.put(run, "k", 1)
    calls = []

    def fn(txn: Any) -> None:
        calls.append(txn.get("k"))
        if len(calls) == 1:
            db.put(run, "k", 2)
        txn.put("other", 1)

    db.transaction(run, fn)
    assert calls == [1, 2]


def test_a_commit_of_another_thread_is_not_called_ones_own(db: Database, run: RunId) -> None:
    db.put(run, "k", 1)
    with pytest.raises(ConflictError) as caught, db.begin(run) as txn:
        txn.put("other", txn.get("k"))
        in_thread(lambda: db.put(run, "k", 2))
    assert "own_commit" not in caught.value.details
    assert "fresh snapshot" in caught.value.hint


def test_an_earlier_commit_of_this_thread_is_no_reason(db: Database, run: RunId) -> None:
    version = db.put(run, "k", 1)
    db.put(run, "k", 2)
    with pytest.raises(ConflictError) as caught, db.begin(run) as txn:
        txn.cas("k", version, 3)
    assert "own_commit" not in caught.value.details


def test_tasks_of_an_event_loop_are_not_taken_for_one_flow(db: Database, run: RunId) -> None:
    """Twenty tasks of one thread increment one key across an await: they conflict with each other, and all succeed."""

    async def one() -> None:
        for attempt in db.attempts(run):
            with attempt as txn:
                number = txn.get("n", 0)
                await asyncio.sleep(0)
                txn.put("n", number + 1)

    async def all_of_them() -> None:
        await asyncio.gather(*(one() for _ in range(20)))

    asyncio.run(all_of_them())
    assert db.get(run, "n") == 20
