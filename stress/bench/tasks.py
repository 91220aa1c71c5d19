"""The work of one measuring process, over any store, and the side that runs several of them."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from occamdb.stress.bench.model import Scale
from occamdb.stress.bench.pool import BusyCores, Pool, Task
from occamdb.stress.bench.stores import STORES, Store, key_name, key_prefix, value_of

READS_PER_TRANSACTION = 10
DRAWS = 2000  # key choices drawn before the clock runs, then cycled


@dataclass
class StoreTask:
    """Repeats one operation on one store. Pickled to its worker."""

    store_name: str
    path: Path
    operation: str  # reads, update, put, scan or begin
    durability: str
    keys: Sequence[int]  # the key indices this worker may touch
    seed: int = 0
    batch: int = 10
    _store: Store = field(init=False, repr=False)
    _draws: list[Any] = field(init=False, repr=False)
    _next: int = field(init=False, default=0)

    def open(self) -> None:
        """Open the store and draw the keys."""
        self._store = STORES[self.store_name]()
        self._store.open(self.path, self.durability)
        dice, encode = random.Random(self.seed), self._store.encode
        if self.operation == "reads":
            self._draws = [
                [encode(key_name(dice.choice(self.keys))) for _ in range(READS_PER_TRANSACTION)]
                for _ in range(DRAWS)
            ]
        elif self.operation == "scan":
            groups = max(1, len(self.keys) // 1000)
            self._draws = [encode(key_prefix(dice.randrange(groups))) for _ in range(DRAWS)]
        else:
            self._draws = [encode(key_name(dice.choice(self.keys))) for _ in range(DRAWS)]

    def step(self) -> int:
        """Do `batch` operations; a transaction of 10 reads counts as 10, a scan as one."""
        start = self._next
        self._next = (start + self.batch) % (DRAWS - self.batch)
        draws = self._draws[start : start + self.batch]
        store = self._store
        if self.operation == "reads":
            for keys in draws:
                store.read_many(keys)
            return self.batch * READS_PER_TRANSACTION
        if self.operation == "put":
            value = value_of(start)
            for key in draws:
                store.put(key, value)
        elif self.operation == "begin":
            for _ in draws:
                store.begin()
        else:
            action = store.update if self.operation == "update" else store.scan
            for key in draws:
                action(key)
        return len(draws)

    def notes(self) -> dict[str, float]:
        """Nothing to add."""
        return {}

    def close(self) -> None:
        """Close the store."""
        self._store.close()


@dataclass
class PoolSide:
    """A side whose samples are rates of a pool of tasks.

    `make` prepares the database in the scratch directory and returns the tasks; `metric` turns one
    measurement into the sample (operations a second unless told otherwise).
    """

    make: Callable[[Path, Scale], Sequence[Task]]
    busy: int = 0
    metric: Callable[[int, dict[str, Any], float], float] | None = None
    _pool: Pool | None = field(init=False, default=None)
    _noise: BusyCores | None = field(init=False, default=None)
    _notes: dict[str, Any] = field(init=False, default_factory=dict)

    def setup(self, scratch: Path, scale: Scale) -> None:
        """Prepare, start the workers and warm up."""
        self._pool = Pool(self.make(scratch, scale))
        self._pool.run(scale.warm_up)

    def measure(self, scale: Scale) -> float:
        """One window of work by all workers."""
        assert self._pool is not None
        if self.busy:
            self._noise = BusyCores(self.busy)
            time.sleep(0.05)  # let the scheduler spread them before the clock runs
        try:
            count, notes = self._pool.run(scale.seconds)
        finally:
            self._stop_noise()
        for name, value in notes.items():
            if isinstance(value, int | float):
                self._notes[name] = self._notes.get(name, 0) + value
        return self.metric(count, notes, scale.seconds) if self.metric else count / scale.seconds

    def notes(self) -> dict[str, Any]:
        """Counters summed over workers and repetitions."""
        return self._notes

    def close(self) -> None:
        """End the workers."""
        self._stop_noise()
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _stop_noise(self) -> None:
        if self._noise is not None:
            self._noise.close()
            self._noise = None


def store_side(
    store_name: str,
    operation: str,
    *,
    keys: int = 100_000,
    processes: int = 1,
    durability: str = "none",
    private: int = 0,
    busy: bool = False,
    batch: int = 10,
) -> Callable[[], PoolSide]:
    """A side that fills a store with `keys` keys and repeats one operation in several processes.

    Args:
      store_name: a name of `stores.STORES`.
      operation: see `StoreTask`.
      keys: how many keys the database holds (scaled by the session).
      processes: how many workers.
      durability: `none`, `standard` or `always`.
      private: with a number, worker i touches only its own `private` keys; otherwise all touch all.
      busy: run a busy loop on each core beside the workers.
      batch: operations between two looks at the clock.
    """

    def make(scratch: Path, scale: Scale) -> Sequence[Task]:
        count = max(scale.count(keys, 1000), private * processes)
        store = STORES[store_name]()
        # LMDB and SQLite would sync each batch of the fill.
        relaxed = durability == "always" and store_name in ("lmdb", "sqlite")
        store.open(scratch, "none" if relaxed else durability)
        try:
            store.fill((key_name(index), value_of(index)) for index in range(count))
            return [
                StoreTask(
                    store_name,
                    scratch,
                    operation,
                    durability,
                    range(worker * private, (worker + 1) * private) if private else range(count),
                    seed=worker,
                    batch=batch,
                )
                for worker in range(processes)
            ]
        finally:
            store.close()

    return lambda: PoolSide(make, busy=os.cpu_count() or 1 if busy else 0)
