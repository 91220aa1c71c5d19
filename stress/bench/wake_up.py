"""How soon a waiter in another process wakes: occamdb, a queue of `multiprocessing`, and Redis in two ways.

The sender notes the time, sends it, and waits until the waiter sleeps again; the waiter notes when it has it. Both
read CLOCK_MONOTONIC, which they share. What the sender's call takes before the waiter can wake is in the figure.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import occamdb
from occamdb.engine.model.errors import TransactionTimeout
from occamdb.stress.bench.model import OCCAM, Scale
from occamdb.stress.bench.occam import SoloSide, open_db
from occamdb.stress.bench.peers import peer_module
from occamdb.stress.bench.redis_store import RedisStore
from occamdb.stress.bench.stores import RUN

ROUNDS = 1000
SETTLE_SECONDS = 0.001  # after which the waiter sleeps again
ANSWER_TIMEOUT = 120.0
BLOCKED_SECONDS = 10.0
WATCH = "occamdb watch"
BLPOP, PUBSUB, QUEUE = "redis-blpop", "redis-pubsub", "mp.Queue"
WAYS = (OCCAM, WATCH, QUEUE, BLPOP, PUBSUB)

_context = multiprocessing.get_context("forkserver")


def _redis(scratch: Path) -> Any:
    """A client of the server of this directory, which is started if none runs."""
    store = RedisStore()
    store.open(scratch, "none")
    store.close()
    return peer_module("redis").Redis(unix_socket_path=str(scratch / "redis.sock"))


def _arrivals(way: str, scratch: Path, queue: Any) -> Iterator[int]:
    """What was sent, as it comes; the first is a 0 that says: ready."""
    if way in (OCCAM, WATCH):
        with open_db(scratch) as db:
            yield from (_kv_waits(db) if way == OCCAM else _watched(db))
    elif way == QUEUE:
        yield 0
        while True:
            yield queue.get()
    elif way == BLPOP:
        client = _redis(scratch)
        yield 0
        while True:
            yield int(client.blpop(["k"])[1])
    else:
        channel = _redis(scratch).pubsub(ignore_subscribe_messages=True)
        channel.subscribe("k")
        channel.get_message(timeout=5.0)
        yield 0
        for message in channel.listen():
            yield int(message["data"])


def _kv_waits(db: occamdb.Database) -> Iterator[int]:
    version = db.put(RUN, "k", 0)
    yield 0
    while True:
        found = db.kv.wait(RUN, "k", after_version=version)
        version = found.version
        yield found.value


def _watched(db: occamdb.Database) -> Iterator[int]:
    with db.watch(RUN, "k") as watch:
        yield 0
        for change in watch:
            yield change.value


@contextlib.contextmanager
def _sender(way: str, scratch: Path, queue: Any) -> Iterator[Callable[[int], object]]:
    if way in (OCCAM, WATCH):
        with open_db(scratch) as db:
            yield lambda stamp: db.put(RUN, "k", stamp)
    elif way == QUEUE:
        yield queue.put
    else:
        client = _redis(scratch)
        yield (
            (lambda stamp: client.rpush("k", stamp))
            if way == BLPOP
            else (lambda stamp: client.publish("k", stamp))
        )
        client.close()


def _wait_and_tell(connection: Connection, way: str, scratch: Path, queue: Any) -> None:
    """The waiter's process: it tells for each number that came how long it was under way, in ns."""
    try:
        clock = time.monotonic_ns
        arrivals = _arrivals(way, scratch, queue)
        connection.send(next(arrivals))
        for sent in arrivals:
            took = clock() - sent
            connection.send(took)
    except (BrokenPipeError, EOFError, KeyboardInterrupt):
        return
    except BaseException:
        connection.send(traceback.format_exc())


class WakeUpSide(SoloSide):
    """One way to wake a waiter.

    Args:
      way: one of WAYS.
    """

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def setup(self, scratch: Path, scale: Scale) -> None:
        """Start the waiter."""
        super().setup(scratch, scale)
        queue = _context.Queue() if self.way == QUEUE else None
        stack = self.opened(contextlib.ExitStack())
        self.send = stack.enter_context(_sender(self.way, scratch, queue))
        self.waiter = waiting_process(stack, _wait_and_tell, self.way, scratch, queue)
        answer_of(self.waiter)
        self._rounds(scale.count(ROUNDS // 4, 20))

    def measure(self, scale: Scale) -> float:
        """The median in us; the 99th percentile goes to the notes."""
        times = sorted(self._rounds(scale.count(ROUNDS, 50)))
        self._notes["p99"] = times[len(times) * 99 // 100] / 1e3
        return times[len(times) // 2] / 1e3

    def _rounds(self, count: int) -> list[int]:
        times = []
        for _ in range(count):
            time.sleep(SETTLE_SECONDS)
            self.send(time.monotonic_ns())
            times.append(answer_of(self.waiter))
        return times


def waiting_process(stack: contextlib.ExitStack, target: Callable[..., None], *args: Any) -> Connection:
    """Start a process that is killed when the stack is closed; its first argument is the other end of the pipe."""
    mine, theirs = _context.Pipe()
    process = _context.Process(target=target, args=(theirs, *args), daemon=True)
    process.start()
    theirs.close()

    def end() -> None:
        mine.close()
        process.kill()
        process.join()

    stack.callback(end)
    return mine


def answer_of(connection: Connection) -> int:
    """The next number that the waiter tells.

    Raises:
      RuntimeError: it failed, or says nothing.
    """
    if not connection.poll(ANSWER_TIMEOUT):
        raise RuntimeError(f"the waiter did not wake within {ANSWER_TIMEOUT:.0f} s")
    answer = connection.recv()
    if isinstance(answer, str):
        raise RuntimeError(answer)
    return int(answer)


def _blocked(connection: Connection, scratch: Path, seconds: float) -> None:
    """Wait in vain; tell the processor time of the whole process meanwhile, in ns."""

    def wait(txn: occamdb.Transaction) -> None:
        txn.get("never")
        txn.wait()

    try:
        with open_db(scratch) as db:
            with contextlib.suppress(TransactionTimeout):
                db.transaction(RUN, wait, timeout=0.1)
            began = time.process_time_ns()
            with contextlib.suppress(TransactionTimeout):
                db.transaction(RUN, wait, timeout=seconds)
            connection.send(time.process_time_ns() - began)
    except BaseException:
        connection.send(traceback.format_exc())


class BlockedSide(SoloSide):
    """A transaction that waits for 10 s, or for a part of it, extrapolated."""

    def measure(self, scale: Scale) -> float:
        """Its process's time in ms."""
        seconds = BLOCKED_SECONDS * scale.size
        with contextlib.ExitStack() as stack:
            waiter = waiting_process(stack, _blocked, self.path, seconds)
            return answer_of(waiter) / 1e6 * BLOCKED_SECONDS / seconds
