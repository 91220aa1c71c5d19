"""Rows on conflicts, latencies and growth: contention, the agents pipeline, begin, snapshots, validation."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from occamdb.engine.model.errors import ConflictError
from occamdb.stress.bench.model import OCCAM, Row, Scale, Target, own_row
from occamdb.stress.bench.occam import OccamTask, SoloSide, fill, open_db
from occamdb.stress.bench.pool import Task
from occamdb.stress.bench.stores import RUN, key_name, key_prefix, value_of
from occamdb.stress.bench.tasks import PoolSide, store_side
from occamdb.stress.tally import Tally
from occamdb.stress.worker import Context, Place, Settings
from occamdb.stress.workloads import get_workload

if TYPE_CHECKING:
    from occamdb import Transaction

CONTENDED_KEYS = (1, 4, 16, 64, 256, 1024, 4096)
LATENCIES = 2000


@dataclass
class ContendedTask(OccamTask):
    """Read-modify-write on keys all workers share, without retries: what conflicts is counted and dropped."""

    keys: int = 1

    def prepare(self) -> None:
        """Seeded choices."""
        self.dice = random.Random(self.worker)
        self.conflicts = 0

    def step(self) -> int:
        """Ten attempts; returns those that committed."""
        done = 0
        for _ in range(10):
            key = key_name(self.dice.randrange(self.keys))
            try:
                with self.db.begin(RUN) as txn:
                    value = txn.get(key)
                    value["count"] += 1
                    txn.put(key, value)
                done += 1
            except ConflictError:
                self.conflicts += 1
        return done

    def notes(self) -> dict[str, Any]:
        """Conflicts since the last call."""
        conflicts, self.conflicts = self.conflicts, 0
        return {"conflicts": conflicts}


def _conflict_share(count: int, notes: dict[str, Any], seconds: float) -> float:
    conflicts = int(notes["conflicts"])
    return 100 * conflicts / max(1, count + conflicts)


def _contended_side(keys: int, processes: int) -> Callable[[], PoolSide]:
    def make(scratch: Path, scale: Scale) -> Sequence[Task]:
        db = open_db(scratch)
        fill(db, ((key_name(index), value_of(index)) for index in range(keys)))
        db.close()
        return [ContendedTask(scratch, worker=worker, keys=keys) for worker in range(processes)]

    return lambda: PoolSide(make, metric=_conflict_share)


@dataclass
class AgentsTask(OccamTask):
    """One worker of the `agents` workload, as `occamdb stress run agents` runs it."""

    def prepare(self) -> None:
        """A context with a tally beside the database."""
        workload = get_workload("agents")
        settings = Settings(str(self.path / "occam"), keys=workload.keys)
        place = Place(self.path, self.worker)
        self.context = Context(self.db, settings, place, Tally(place.tally, workload.counters), None)
        self.workload = workload
        self.before = self.context.tally.read()

    def step(self) -> int:
        """One step of the pipeline."""
        before = self.context.tally.get("ok")
        self.workload.step(self.context)
        return self.context.tally.get("ok") - before

    def notes(self) -> dict[str, Any]:
        """Conflicts since the last call."""
        now, before = self.context.tally.read(), self.before
        self.before = now
        return {"conflicts": now["conflict"] - before["conflict"], "committed": now["ok"] - before["ok"]}


def _agents_side(processes: int) -> Callable[[], PoolSide]:
    def make(scratch: Path, scale: Scale) -> Sequence[Task]:
        workload = get_workload("agents")
        db = open_db(scratch)
        workload.prepare(db, Settings(str(scratch / "occam"), keys=workload.keys))
        db.close()
        return [AgentsTask(scratch, worker=worker) for worker in range(processes)]

    return lambda: PoolSide(make, metric=_conflict_share)


class _Latency(SoloSide):
    """Base: the median time of something done many times on 100,000 keys, in the unit `factor` gives."""

    factor = 1e3

    def setup(self, scratch: Path, scale: Scale) -> None:
        """Fill."""
        super().setup(scratch, scale)
        self.db = self.opened(open_db(scratch))
        self.count = scale.count(100_000, 1000)
        fill(self.db, ((key_name(index), value_of(index)) for index in range(self.count)))
        self.dice = random.Random(1)

    def once(self) -> float:
        """Seconds of one."""
        raise NotImplementedError

    def measure(self, scale: Scale) -> float:
        """The median; the 99th percentile goes to the notes."""
        times = sorted(self.once() for _ in range(scale.count(LATENCIES, 200)))
        self._notes["p99"] = times[len(times) * 99 // 100] * self.factor
        return times[len(times) // 2] * self.factor


class SnapshotLatency(_Latency):
    """Making and closing a snapshot."""

    def once(self) -> float:
        """One snapshot."""
        began = time.perf_counter()
        self.db.snapshot(RUN).close()
        return time.perf_counter() - began


class _TypicalLatency(_Latency):
    """Something about a transaction with 20 reads, a scan of 10 rows and 5 writes."""

    def typical(self) -> Transaction:
        """Such a transaction, open."""
        dice, count = self.dice, self.count
        txn: Transaction = self.db.begin(RUN)
        for _ in range(20):
            txn.get(key_name(dice.randrange(count)))
        for _ in txn.scan(key_prefix(dice.randrange(count // 1000)) + "00"):
            pass
        for _ in range(5):
            number = dice.randrange(count)
            txn.put(key_name(number), value_of(number))
        return txn


class CommitLatency(_TypicalLatency):
    """The whole `commit()`; validation is in it."""

    def once(self) -> float:
        """One commit."""
        txn = self.typical()
        began = time.perf_counter()
        txn.commit()
        return time.perf_counter() - began


class ValidateLatency(_TypicalLatency):
    """`validate()`, which checks everything without committing."""

    def once(self) -> float:
        """One validation."""
        with self.typical() as txn:
            began = time.perf_counter()
            txn.validate()
            took = time.perf_counter() - began
            txn.abort()
        return took


def _microseconds(count: int, notes: dict[str, Any], seconds: float) -> float:
    return seconds * 1e6 / max(1, count)


def _begin_side(store_name: str, keys: int) -> Callable[[], PoolSide]:
    make = store_side(store_name, "begin", keys=keys, batch=100)

    def side() -> PoolSide:
        made = make()
        made.metric = _microseconds
        return made

    return side


def _begin_row(name: str, keys: int, target: Target) -> Row:
    return Row(
        name,
        f"begin (and abort) at {keys:,} keys",
        "us",
        {store: _begin_side(store, keys) for store in (OCCAM, "lmdb")},
        "growth",
        more_is_better=False,
        target=target,
    )


def contention_rows() -> list[Row]:
    """Conflict rate by contention, and of the agents pipeline."""
    rows = [
        own_row(
            f"conflicts-{keys}",
            f"attempts that conflict, 4 processes on {keys:,} shared key{'s' if keys > 1 else ''}",
            "%",
            {OCCAM: _contended_side(keys, 4)},
            "contention",
        )
        for keys in CONTENDED_KEYS
    ]
    rows.append(
        own_row(
            "conflicts-agents",
            "attempts that conflict in the agents pipeline, 4 processes",
            "%",
            {OCCAM: _agents_side(4)},
            "contention",
            target=Target(absolute=5.0),
        )
    )
    return rows


def growth_rows() -> list[Row]:
    """Begin at growing size, and latencies."""
    latencies = (
        ("snapshot", "a snapshot at 100,000 keys, made and closed", SnapshotLatency, 10.0),
        ("validation", "validate() of 20 reads, a scan of 10 and 5 writes", ValidateLatency, 1.0),
        ("commit-latency", "commit() of 20 reads, a scan of 10 and 5 writes", CommitLatency, 1.0),
    )
    return [
        _begin_row("begin-1k", 1_000, Target(absolute=10.0)),
        _begin_row("begin-100k", 100_000, Target(ratio=0.8, of_row="begin-1k")),
        _begin_row("begin-1m", 1_000_000, Target(ratio=0.8, of_row="begin-1k")),
        *(
            own_row(
                name,
                title,
                "ms",
                {OCCAM: side},
                "growth",
                target=Target(absolute=limit),
            )
            for name, title, side, limit in latencies
        ),
    ]
