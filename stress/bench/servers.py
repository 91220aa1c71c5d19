"""`occamdb bench server URL`: a server beside the driver by hand, beside itself, and beside a directory.

Figures of a server say little without what stands beside them, so everything is a ratio of two sides that are measured
in turns, some seconds apart. Each row is the median of its repetitions.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import occamdb
import occamdb.aio

__all__ = ["server_rows"]

PROCESSES = 8
TASKS = 50
KEYS = 100
_HAND = "occamdb_bench_by_hand"

Row = tuple[str, float, float]  # title, value of its first side, of its second side


def server_rows(url: str, directory: Path, seconds: float, repeat: int) -> list[Row]:
    """All rows; each value is operations a second, but for `get_many`, which is microseconds a call."""
    tenant = f"bench-{uuid.uuid4().hex[:8]}"
    rows: list[Row] = []
    with occamdb.open(url, tenant=tenant) as far, occamdb.open(directory / "near.db") as near:
        if url.startswith("postgres"):
            with _ByHand(url) as hand:
                sides = (lambda: _rate(_increments(far), seconds), lambda: _rate(hand.increment, seconds))
                rows.append(_row("read-modify-write, 1 process / psycopg by hand", sides, repeat))
        one = [tenant] * PROCESSES
        many = [f"{tenant}-{number}" for number in range(PROCESSES)]
        rows.append(
            _row(
                f"{PROCESSES} processes in {PROCESSES} namespaces / in one",
                (lambda: _processes(url, many, seconds), lambda: _processes(url, one, seconds)),
                repeat,
            )
        )
        for place, db in ((url, far), (str(directory / "near.db"), near)):
            where = "server" if db is far else "directory"
            tasks = (
                lambda place=place: asyncio.run(_tasks(place, tenant, TASKS, seconds)),
                lambda place=place: asyncio.run(_tasks(place, tenant, 1, seconds)),
            )
            rows.append(_row(f"{where}: {TASKS} concurrent tasks / 1", tasks, repeat))
            run, keys = occamdb.RunId.new(), [f"k{number}" for number in range(KEYS)]
            db.kv.put_many(run, dict.fromkeys(keys, 1))
            reads = (
                lambda db=db, run=run, keys=keys: 1e6 / _rate(lambda: db.kv.get_many(run, keys), seconds),
                lambda db=db, run=run: 1e6 / _rate(lambda: db.kv.get(run, "k7"), seconds),
            )
            rows.append(_row(f"{where}: get_many of {KEYS} keys / one get, us", reads, repeat))
        sides = (lambda: _rate(_increments(near), seconds), lambda: _rate(_increments(far), seconds))
        rows.append(_row("read-modify-write, 1 process: directory / server", sides, repeat))
    return rows


def _row(title: str, sides: tuple[Callable[[], float], Callable[[], float]], repeat: int) -> Row:
    """The medians of two sides, measured in turns."""
    found = [(sides[0](), sides[1]()) for _ in range(repeat)]
    return title, statistics.median(a for a, _ in found), statistics.median(b for _, b in found)


def _rate(work: Callable[[], Any], seconds: float) -> float:
    """Calls a second, after a few that warm up."""
    for _ in range(5):
        work()
    count, start = 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < seconds:
        work()
        count += 1
    return count / taken


def _increments(db: occamdb.Database) -> Callable[[], Any]:
    run = occamdb.RunId.new()

    def add(txn: occamdb.Transaction) -> None:
        txn.put("n", txn.get("n", 0) + 1)

    return lambda: db.transaction(run, add)


class _ByHand:
    """The same read-modify-write as a user of psycopg writes it."""

    def __init__(self, url: str) -> None:
        import psycopg

        self._connection = psycopg.connect(url.partition("?")[0])

    def __enter__(self) -> _ByHand:
        with self._connection.transaction():
            self._connection.execute(f"create table if not exists {_HAND} (key text primary key, n bigint)")
            self._connection.execute(f"insert into {_HAND} values ('n', 0) on conflict do nothing")
        return self

    def __exit__(self, *_: object) -> None:
        with self._connection:
            self._connection.execute(f"drop table {_HAND}")

    def increment(self) -> None:
        """SELECT … FOR UPDATE, UPDATE, COMMIT."""
        with self._connection.transaction():
            found = self._connection.execute(f"select n from {_HAND} where key = 'n' for update").fetchone()
            assert found is not None
            self._connection.execute(f"update {_HAND} set n = %s where key = 'n'", [found[0] + 1])


def _processes(url: str, tenants: list[str], seconds: float) -> float:
    """Commits a second of one process a tenant, each on a key of its own."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(len(tenants)), context.SimpleQueue()
    workers = [
        context.Process(target=_worker, args=(url, tenant, seconds, barrier, results)) for tenant in tenants
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        if worker.exitcode:
            raise RuntimeError(f"a process of the benchmark ended with {worker.exitcode}")
    return float(sum(results.get() for _ in workers))


def _worker(url: str, tenant: str, seconds: float, barrier: Any, results: Any) -> None:
    with occamdb.open(url, tenant=tenant) as db:
        work = _increments(db)
        work()
        barrier.wait(60)
        results.put(_rate(work, seconds))


async def _tasks(place: str, tenant: str, count: int, seconds: float) -> float:
    """Commits a second of so many tasks of one event loop, each on a key of its own."""
    async with occamdb.aio.open(place, tenant=tenant) as db:
        until = time.perf_counter() + seconds

        async def work() -> int:
            run, done = occamdb.RunId.new(), 0
            while time.perf_counter() < until:
                await db.transaction(run, lambda txn: txn.put("n", txn.get("n", 0) + 1))
                done += 1
            return done

        return sum(await asyncio.gather(*(work() for _ in range(count)))) / seconds
