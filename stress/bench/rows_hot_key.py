"""Rows on one key that every worker reads and writes: how fast, how it scales, and how fairly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from occamdb.stress.bench.model import OCCAM, Row, Scale, Target, own_row
from occamdb.stress.bench.occam import OccamTask, fill, open_db
from occamdb.stress.bench.pool import Task
from occamdb.stress.bench.stores import RUN, STORES, key_name, value_of
from occamdb.stress.bench.tasks import PoolSide, StoreTask

if TYPE_CHECKING:
    from occamdb import Transaction

FEW, MANY = 4, 16


@dataclass
class HotKeyTask(OccamTask):
    """Read-modify-write of one key with the database's own retries."""

    def prepare(self) -> None:
        """Nothing done so far."""
        self.key = key_name(0)
        self.done = 0

    def step(self) -> int:
        """Ten transactions."""
        for _ in range(10):
            self.db.transaction(RUN, self.add_one)
        self.done += 10
        return 10

    def add_one(self, txn: Transaction) -> None:
        """The body."""
        value = txn.get(self.key)
        value["count"] += 1
        txn.put(self.key, value)

    def notes(self) -> dict[str, Any]:
        """What this worker did since the last call."""
        done, self.done = self.done, 0
        return {"samples": [done]}


def _unfairness(count: int, notes: dict[str, Any], seconds: float) -> float:
    """How much longer the slowest worker takes for the same work than the fastest."""
    done: list[int] = notes["samples"]
    return max(done) / max(1, min(done))


def _side(
    processes: int, metric: Callable[[int, dict[str, Any], float], float] | None = None
) -> Callable[[], PoolSide]:
    def make(scratch: Path, scale: Scale) -> Sequence[Task]:
        db = open_db(scratch)
        fill(db, [(key_name(0), value_of(0))])
        db.close()
        return [HotKeyTask(scratch, worker=worker) for worker in range(processes)]

    return lambda: PoolSide(make, metric=metric)


def _lmdb_side(processes: int) -> Callable[[], PoolSide]:
    def make(scratch: Path, scale: Scale) -> Sequence[Task]:
        store = STORES["lmdb"]()
        store.open(scratch, "standard")
        store.fill([(key_name(0), value_of(0))])
        store.close()
        return [
            StoreTask("lmdb", scratch, "update", "standard", range(1), worker) for worker in range(processes)
        ]

    return lambda: PoolSide(make)


def hot_key_rows() -> list[Row]:
    """Rates of few and many workers, and the unfairness among them."""
    rates = [
        Row(
            f"hot-key-{processes}",
            f"read-modify-write of one key, {processes} processes, in db.transaction",
            "commits/s",
            {OCCAM: _side(processes), "lmdb": _lmdb_side(processes)},
            "contention",
            target=target,
        )
        for processes, target in (
            (FEW, Target(ratio=0.8)),
            (MANY, Target(ratio=0.8, of_row=f"hot-key-{FEW}")),
        )
    ]
    fairness = [
        own_row(
            f"hot-key-fairness-{processes}",
            f"one key, {processes} processes: the slowest worker's time, as a multiple of the fastest's",
            "x",
            {OCCAM: _side(processes, _unfairness)},
            "contention",
            target=Target(absolute=1.5),
        )
        for processes in (FEW, MANY)
    ]
    return rates + fairness
