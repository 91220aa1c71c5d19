"""W12: signals every millisecond, exceptions out of their handlers at any instant: no half commit, no double one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from occamdb import Database, RetryPolicy, RunId, Transaction, TransactionStatus
from tests.support.processes import Peer, Worker, open_database, segments_of, wait_until

PATIENT = RetryPolicy(max_attempts=100_000)
INTERVAL = 0.001


class Interrupt(BaseException):
    """What the handler raises; as KeyboardInterrupt, no `except Exception` stops it."""


@contextmanager
def alarms(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Run the block with `handler` called every millisecond."""
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, INTERVAL, INTERVAL)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def commit_under_signals(peer: Peer, path: Path, run: RunId, name: str, count: int) -> int:
    """Counted commits while handlers run that return: nothing but time may come of it."""
    calls = 0

    def handler(_number: int, _frame: FrameType | None) -> None:
        nonlocal calls
        calls += 1

    def step(txn: Transaction) -> None:
        txn.put("counter", txn.get("counter", 0) + 1)

    with alarms(handler), open_database(path) as db:
        peer.say("ready")
        peer.hear()
        for number in range(count):
            db.transaction(run, step, retry=PATIENT)
            db.put(run, name, number)
            if number % 10 == 0:
                db.put(run, f"{name}/large", bytes(600_000))
                assert len(list(db.begin(run).scan())) > 0
                assert db.stats()["ok"]
        while calls < 20:
            assert db.get(run, name) == count - 1
    return calls


def test_signals_are_nothing_but_time(
    shared: Database, shared_path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    team = [start(commit_under_signals, shared_path, run, f"worker {n}", 60) for n in range(4)]
    for worker in team:
        worker.hear()
    for worker in team:
        worker.say("go")
    assert all(worker.result() >= 20 for worker in team)
    assert shared.get(run, "counter") == 4 * 60


def commit_until_interrupted_enough(
    peer: Peer, path: Path, run: RunId, name: str, wanted: int
) -> dict[str, int]:
    """Transactions that an exception may end at any instruction: told committed, told refused, or told nothing."""
    armed = False
    told = {"committed": 0, "aborted": 0, "unknown": 0}

    def handler(_number: int, _frame: FrameType | None) -> None:
        if armed:
            raise Interrupt

    number = 0
    with open_database(path) as db, alarms(handler):
        while sum(told.values()) - told["committed"] < wanted:
            number += 1
            txn = None
            try:
                armed = True
                txn = db.begin(run)
                # Every number of one worker once, with a part of its own that is as large as several rings or tiny.
                txn.put(f"{name}/{number:06}", 1)
                txn.kv.increment("counter")
                txn.kv.increment(f"{name}/counter")
                if number % 7 == 0:
                    txn.put(f"{name}/large", bytes(600_000))
                txn.commit()
                armed = False
            except Interrupt:
                armed = False
                status = txn.status if txn is not None else TransactionStatus.ABORTED
                if status is TransactionStatus.COMMITTED:
                    told["committed"] += 1
                elif status is TransactionStatus.VALIDATING:
                    told["unknown"] += 1
                else:
                    if txn is not None and status is TransactionStatus.ACTIVE:
                        txn.abort()
                    told["aborted"] += 1
                    assert db.get(run, f"{name}/{number:06}") is None
            else:
                told["committed"] += 1
        # Whatever it was torn out of: the handle works, and holds no more channels than it needs.
        assert db.put(run, f"{name}/end", 1)
        sessions = [w for w in db.stats()["workers"] if w["pid"] == worker_pid()]
        assert len(sessions) <= 3, sessions
    return told


def worker_pid() -> int:
    import os

    return os.getpid()


def test_exceptions_out_of_handlers(
    shared: Database, shared_path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    team = {
        f"worker {n}": start(commit_until_interrupted_enough, shared_path, run, f"worker {n}", 120)
        for n in range(2)
    }
    total = 0
    for name, worker in team.items():
        told = worker.result()
        marks = sum(1 for _ in shared.list(run, f"{name}/0"))
        # Each transaction whole or absent; those told nothing may be either.
        assert shared.get(run, f"{name}/counter") == marks
        assert told["committed"] <= marks <= told["committed"] + told["unknown"], told
        total += marks
    assert shared.get(run, "counter") == total
    wait_until(
        lambda: len(segments_of(shared_path, "c")) == len(shared.stats()["workers"]),
        what="channels to be given back",
    )


def interrupt_the_main_thread(_: Peer, path: Path, run: RunId) -> int:
    """Sixty interrupts out of commits in the main thread, beside one that reads and commits undisturbed."""
    with open_database(path) as db:
        db.put(run, "k", 0)
        stop = threading.Event()
        errors: list[BaseException] = []
        done = [0]

        def other() -> None:
            try:
                with db.snapshot(run) as view:
                    while not stop.is_set():
                        assert view.get("k") == 0
                        db.put(run, "other", done[0])
                        done[0] += 1
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=other)
        thread.start()
        wait_until(lambda: done[0] > 0)

        def handler(_number: int, _frame: FrameType | None) -> None:
            raise KeyboardInterrupt

        interrupts = 0
        while interrupts < 60:
            try:
                with alarms(handler):
                    number = 0
                    while True:
                        number += 1
                        db.put(run, "k", number)
            except KeyboardInterrupt:
                interrupts += 1
        stop.set()
        thread.join(60)
        assert not errors
        assert db.get(run, "other") == done[0] - 1
        assert db.put(run, "k", "end") and db.get(run, "k") == "end"
        return interrupts


# Python can be interrupted between making a socket and storing it; then the garbage collector closes it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_keyboard_interrupt_leaves_the_other_threads_alone(
    shared_path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    """In a process of its own: an interrupt between a socket and its owner is for the interpreter to clean up."""
    assert start(interrupt_the_main_thread, shared_path, run).result() == 60
