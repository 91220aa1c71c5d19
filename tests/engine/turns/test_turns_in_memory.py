"""Turns among the threads of one process, and what the retry policy says about them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from occamdb import Database, RetryPolicy, RunId, Transaction
from occamdb.engine.model.errors import (
    ConflictError,
    InvalidArgumentError,
    RetriesExhausted,
    TransactionTimeout,
)

from ...support.databases import memory_database

DEADLINE_S = 30.0
BOUND_S = 5.0


def losing(
    db: Database, run: RunId, times: int, then: Callable[[], object] | None = None
) -> Callable[[Transaction], int]:
    """A function that is beaten so many times, and calls `then` in the attempt behind that. Returns its attempts."""
    attempts = 0

    def read_and_write(txn: Transaction) -> int:
        nonlocal attempts
        attempts += 1
        value = txn.get("key", 0)
        if attempts <= times:
            in_a_thread(lambda: db.put(run, "key", attempts)).join(DEADLINE_S)
        elif then is not None:
            then()
        txn.put("key", value)
        return attempts

    return read_and_write


def in_a_thread(action: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=action)
    thread.start()
    return thread


def turns_of(db: Database) -> Any:
    return db.stats()["turns"]


def test_a_write_waits_for_the_holder_of_a_turn() -> None:
    with memory_database() as db:
        run = RunId.new()
        writers: list[threading.Thread] = []
        beaten = losing(db, run, 3, lambda: writers.append(in_a_thread(lambda: db.put(run, "key", "late"))))
        assert db.transaction(run, beaten) == 4
        writers[0].join(DEADLINE_S)
        assert db.get(run, "key") == "late"
        assert turns_of(db)["granted"] == 1


def test_a_write_in_the_same_thread_waits_for_no_longer_than_a_turn() -> None:
    """A function that beats itself: the turn is over, and it loses as it always did."""
    with memory_database() as db:
        run = RunId.new()

        def beat_itself(txn: Transaction) -> None:
            txn.get("key")
            db.put(run, "key", 1)
            txn.put("key", 2)

        with pytest.raises(RetriesExhausted) as raised:
            db.transaction(run, beat_itself)
        assert "txn.put and not db.put" in raised.value.hint
        assert turns_of(db)["expired"] >= 1


def test_a_deadline_passes_while_waiting_for_a_turn() -> None:
    with memory_database() as db:
        run = RunId.new()
        errors: list[BaseException] = []

        def hasty() -> None:
            with pytest.raises(TransactionTimeout), db.begin(run, timeout=0.001) as txn:
                txn.put("key", "never")
            errors.append(TransactionTimeout("as it should be"))

        def wait_for_hasty() -> None:
            in_a_thread(hasty).join(DEADLINE_S)

        assert db.transaction(run, losing(db, run, 3, wait_for_hasty)) >= 4
        assert errors
        assert db.get(run, "key") != "never"


@pytest.mark.parametrize("turn_after", [1, 2, 5])
def test_turn_after_says_when(turn_after: int) -> None:
    with memory_database() as db:
        run = RunId.new()
        db.transaction(run, losing(db, run, turn_after - 1), retry=RetryPolicy(turn_after=turn_after))
        assert turns_of(db)["granted"] == 0
        db.transaction(run, losing(db, run, turn_after), retry=RetryPolicy(turn_after=turn_after))
        assert turns_of(db)["granted"] == 1


@pytest.mark.parametrize(
    "retry", [RetryPolicy(turn_after=None), RetryPolicy(max_attempts=3), RetryPolicy(turn_after=10)]
)
def test_no_turn_is_asked_for_where_none_is_wanted_or_of_use(retry: RetryPolicy) -> None:
    with memory_database() as db:
        run = RunId.new()
        try:
            db.transaction(run, losing(db, run, 6), retry=retry)
        except RetriesExhausted as error:
            assert error.attempts == 3
        assert turns_of(db)["granted"] == 0


def test_the_last_attempt_uses_the_turn_of_the_one_before() -> None:
    with memory_database() as db:
        run = RunId.new()
        assert db.transaction(run, losing(db, run, 3), retry=RetryPolicy(max_attempts=4)) == 4
        assert turns_of(db) == {"granted": 1, "waited": 0, "expired": 0}


def test_attempts_in_a_loop_have_turns_too() -> None:
    with memory_database() as db:
        run = RunId.new()
        beaten = losing(db, run, 3)
        for attempt in db.attempts(run):
            with attempt as txn:
                beaten(txn)
        assert attempt.number == 4
        assert turns_of(db)["granted"] == 1


def test_a_turn_is_given_up_when_the_function_only_reads_or_raises() -> None:
    with memory_database() as db:

        def only_reads(txn: Transaction) -> None:
            if beaten(txn) > 3:
                raise LookupError

        for _ in range(2):
            run = RunId.new()  # a turn on the same key would wait for the rest after the one before
            beaten = losing(db, run, 3)
            with pytest.raises(LookupError):
                db.transaction(run, only_reads)
            db.put(run, "key", "at once")
        assert turns_of(db) == {"granted": 2, "waited": 0, "expired": 0}


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "3"])
def test_a_wrong_turn_after_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="turn_after"):
        RetryPolicy(turn_after=wrong)


def test_a_conflict_without_a_retry_asks_for_nothing() -> None:
    with memory_database() as db:
        run = RunId.new()
        with pytest.raises(ConflictError), db.begin(run) as txn:
            txn.get("key")
            db.put(run, "key", 1)
            txn.put("key", 2)
        assert turns_of(db)["granted"] == 0


def test_a_long_transaction_among_threads_that_never_pause() -> None:
    with memory_database() as db:
        run = RunId.new()
        over = threading.Event()

        def write() -> None:
            while not over.is_set():
                db.put(run, "key", 1)

        team = [in_a_thread(write) for _ in range(4)]
        try:
            most = 0
            for _ in range(10):
                attempts = 0

                def slow(txn: Transaction) -> None:
                    nonlocal attempts
                    attempts += 1
                    value = txn.get("key")
                    threading.Event().wait(0.002)
                    txn.put("sum", value)

                db.transaction(run, slow)
                most = max(most, attempts)
            assert most <= 4 + turns_of(db)["expired"]
        finally:
            over.set()
            for thread in team:
                thread.join(DEADLINE_S)
