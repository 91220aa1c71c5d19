"""Rows on event loops: 200 tasks of one process that commit at once, and how long they keep their loop busy.

LMDB takes part through `lmdb.aio`, which runs every call in a thread of an executor. It is not synced.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack

import occamdb.aio
from occamdb.engine.model.public_types import Durability
from occamdb.stress.bench.model import OCCAM, Row, Scale, Target, Unavailable
from occamdb.stress.bench.occam import open_db
from occamdb.stress.bench.pool import Task
from occamdb.stress.bench.stores import MAP_SIZE, RUN, STORES, key_name, value_of
from occamdb.stress.bench.tasks import PoolSide, store_side

TASKS = 200
SLICE = 0.02  # seconds that the loop runs between two looks at the clock of the measurement


@dataclass
class LoopTask:
    """One process with an event loop, in which `TASKS` tasks update a key of their own each, for ever."""

    path: Path
    durability: str = "standard"
    worker: int = 0
    _count: int = field(init=False, default=0)
    _longest: float = field(init=False, default=0.0)
    _longest_computed: float = field(init=False, default=0.0)
    _turned: float = field(init=False, default=0.0)
    _computed: float = field(init=False, default=0.0)

    def open(self) -> None:
        """Open, and start the tasks."""
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self.connect())
        names = [key_name(number) for number in range(TASKS)]
        self.tasks = [self.loop.create_task(self._for_ever(name)) for name in names]
        self.tasks.append(self.loop.create_task(self._watch_the_loop()))

    async def connect(self) -> None:
        """Open the database."""
        raise NotImplementedError

    async def update(self, name: str) -> None:
        """Read a value, change it, commit."""
        raise NotImplementedError

    async def disconnect(self) -> None:
        """Close it."""
        raise NotImplementedError

    async def _for_ever(self, name: str) -> None:
        while True:
            await self.update(name)
            self._count += 1

    async def _watch_the_loop(self) -> None:
        """The longest turn of the loop: what a server's other connections would have waited for."""
        while True:
            await asyncio.sleep(0)
            now, computed = time.perf_counter(), time.thread_time()
            self._longest = max(self._longest, now - self._turned)
            self._longest_computed = max(self._longest_computed, computed - self._computed)
            self._turned, self._computed = now, computed

    def step(self) -> int:
        """Let the loop run for a moment; what the tasks committed."""
        before = self._count
        self._turned, self._computed = time.perf_counter(), time.thread_time()
        self.loop.run_until_complete(asyncio.sleep(SLICE))
        return self._count - before

    def notes(self) -> dict[str, Any]:
        """The longest turn since the last call, and the most that one turn computed: others take the processor away."""
        longest, self._longest = self._longest, 0.0
        computed, self._longest_computed = self._longest_computed, 0.0
        # As lists: the maxima of several measurements are not to be added up.
        return {"longest_turn": [longest * 1000], "most_computed": [computed * 1000]}

    def close(self) -> None:
        """End the tasks, and close."""
        for task in self.tasks:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*self.tasks, return_exceptions=True))
        self.loop.run_until_complete(self.disconnect())
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()


class OccamLoopTask(LoopTask):
    """Read-modify-write through `occamdb.aio`."""

    async def connect(self) -> None:
        """Attach."""
        durability = Durability(self.durability)
        path = str(self.path / "occam")
        self.db = await occamdb.aio.open(path, durability=durability, max_store_size=MAP_SIZE)

    async def update(self, name: str) -> None:
        """A transaction with retries."""

        def change(txn: occamdb.aio.AsyncTransaction) -> None:
            value = txn.get(name)
            value["count"] += 1
            txn.put(name, value)

        await self.db.transaction(RUN, change)

    async def disconnect(self) -> None:
        """Detach."""
        await self.db.close()


class LmdbLoopTask(LoopTask):
    """Read-modify-write through `lmdb.aio`."""

    async def connect(self) -> None:
        """Open the environment, unsynced."""
        try:
            import lmdb
            import lmdb.aio
        except ImportError as error:
            raise Unavailable(str(error)) from error
        self.env = lmdb.open(str(self.path / "lmdb"), map_size=MAP_SIZE, sync=False, metasync=False)
        self.aenv = lmdb.aio.wrap(self.env)

    async def update(self, name: str) -> None:
        """A write transaction; LMDB admits one writer at a time."""
        key = name.encode()
        async with self.aenv.begin(write=True) as txn:
            value = msgpack.unpackb(await txn.get(key))
            value["count"] += 1
            await txn.put(key, msgpack.packb(value))

    async def disconnect(self) -> None:
        """Close it."""
        self.env.close()


def loop_side(
    kind: type[LoopTask],
    store: str,
    durability: str,
    metric: Callable[[int, dict[str, Any], float], float] | None = None,
) -> Callable[[], PoolSide]:
    """A side of one process whose tasks find a key each."""

    def make(scratch: Path, scale: Scale) -> Sequence[Task]:
        items = ((key_name(number), value_of(number)) for number in range(TASKS))
        if store == OCCAM:
            with open_db(scratch, durability) as db:
                db.kv.put_many(RUN, dict(items))
                return [kind(scratch, durability)]
        peer = STORES[store]()
        peer.open(scratch, "none")
        peer.fill(items)
        peer.close()
        return [kind(scratch, durability)]

    return lambda: PoolSide(make, metric=metric)


def async_rows() -> list[Row]:
    """Commits of an event loop, synced and not, and its longest turn."""
    return [
        Row(
            "async-standard",
            f"{TASKS} tasks of an event loop update a key each, standard; lmdb.aio unsynced",
            "commits/s",
            {
                OCCAM: loop_side(OccamLoopTask, OCCAM, "standard"),
                "lmdb": loop_side(LmdbLoopTask, "lmdb", "none"),
            },
            "async",
            target=Target(ratio=3),
        ),
        Row(
            "async-always",
            f"{TASKS} tasks of an event loop, always; one process without a loop",
            "commits/s",
            {
                OCCAM: loop_side(OccamLoopTask, OCCAM, "always"),
                "one at a time": store_side(OCCAM, "update", keys=TASKS, durability="always", batch=1),
            },
            "async",
            baseline="one at a time",
            target=Target(ratio=5),
        ),
        Row(
            "async-turn",
            f"the longest turn of an event loop with {TASKS} committing tasks",
            "ms",
            {OCCAM: loop_side(OccamLoopTask, OCCAM, "standard", _longest_turn)},
            "async",
            baseline=None,
            more_is_better=False,
            target=Target(absolute=5),
        ),
        Row(
            "async-computed",
            "the most that one turn of it computes",
            "ms",
            {OCCAM: loop_side(OccamLoopTask, OCCAM, "standard", _most_computed)},
            "async",
            baseline=None,
            more_is_better=False,
            target=Target(absolute=5),
        ),
    ]


def _longest_turn(count: int, notes: dict[str, Any], seconds: float) -> float:
    return float(max(notes["longest_turn"]))


def _most_computed(count: int, notes: dict[str, Any], seconds: float) -> float:
    return float(max(notes["most_computed"]))
