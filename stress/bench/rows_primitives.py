"""Rows on the primitives: single operations, a transaction over four of them, a hot counter, trace queries."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from occamdb.primitives.run_types import RunStatus
from occamdb.primitives.trace_types import Custom, Thought, ToolCall
from occamdb.stress.bench.model import OCCAM, Row, Scale, Target, own_row
from occamdb.stress.bench.occam import OccamTask, SoloSide, open_db
from occamdb.stress.bench.pool import Task
from occamdb.stress.bench.stores import RUN, key_name, value_of
from occamdb.stress.bench.tasks import PoolSide, store_side

BATCH = 10
KEYS = 1000
TRACES = 100_000
TREE = 10_000
LEAST = {"cross": 5_000, "lease": 20_000}  # operations a second; 10,000 of the others


@dataclass
class PrimitiveTask(OccamTask):
    """Repeats one operation of one primitive, by the name of a method below."""

    operation: str = ""
    _count: int = field(init=False, default=0)

    def prepare(self) -> None:
        """What the operations find."""
        db: Any = self.db
        self.run = uuid.UUID(int=RUN.int + 1 + self.worker)
        self.dice = random.Random(self.worker)
        self.action: Callable[[int], None] = getattr(self, "_" + self.operation)
        db.kv.put_many(self.run, {key_name(index): value_of(index) for index in range(KEYS)})
        db.cells.set(self.run, "cell", 0)
        db.kv.put(self.run, "counter", 0)
        self.version: int = db.cells.read(self.run, "cell").version
        self.trace: str = db.traces.record(self.run, Thought("root"))
        self.indexed = [db.runs.create_run("bench").run_id for _ in range(20)]

    def step(self) -> int:
        """Ten operations."""
        action = self.action
        for count in range(self._count, self._count + BATCH):
            action(count)
        self._count += BATCH
        return BATCH

    def _kv_put(self, count: int) -> None:
        self.db.kv.put(self.run, key_name(count % KEYS), value_of(count))

    def _kv_get(self, count: int) -> None:
        self.db.kv.get(self.run, key_name(count % KEYS))

    def _kv_increment(self, count: int) -> None:
        self.db.kv.increment(self.run, "counter")

    def _kv_cas(self, count: int) -> None:
        self.version = self.db.kv.cas(self.run, "cas", self.version if count else 0, count)

    def _event_append(self, count: int) -> None:
        self.db.events.append(self.run, "step", {"number": count, "what": "a step of an agent"})

    def _cell_read(self, count: int) -> None:
        self.db.cells.read(self.run, "cell")

    def _cell_set(self, count: int) -> None:
        self.db.cells.set(self.run, "cell", count)

    def _cell_cas(self, count: int) -> None:
        self.version = self.db.cells.cas(self.run, "cell", self.version, count)

    def _cell_transition(self, count: int) -> None:
        self.db.cells.transition(self.run, "cell", lambda state: (state.value + 1, None))

    def _trace_record(self, count: int) -> None:
        self.db.traces.record(self.run, ToolCall("search", {"query": count}, count, 1.5))

    def _trace_child(self, count: int) -> None:
        self.db.traces.record_child(self.run, self.trace, Thought("a thought", 0.5), tags=["bench"])

    def _trace_get(self, count: int) -> None:
        self.db.traces.get(self.run, self.trace)

    def _run_create(self, count: int) -> None:
        self.db.runs.create_run("bench")

    def _run_status(self, count: int) -> None:
        status = RunStatus.PAUSED if count // 20 % 2 == 0 else RunStatus.ACTIVE
        self.db.runs.update_status(self.indexed[count % 20], status)

    def _run_get(self, count: int) -> None:
        self.db.runs.get_run(self.indexed[count % 20])

    def _lease(self, count: int) -> None:
        self.db.leases.release(self.run, self.db.leases.acquire(self.run, "lease"))

    def _step_recorded(self, count: int) -> None:
        self.db.steps.run(self.run, "step", len, "abc")

    def _kv_budget(self, count: int) -> None:
        self.db.kv.increment(self.run, "counter", at_most=1 << 60)

    def _cross(self, count: int) -> None:
        with self.db.begin(self.run) as txn:
            txn.kv.put(key_name(count % KEYS), value_of(count))
            txn.events.append("step", {"number": count})
            txn.cells.set("cell", count)
            txn.traces.record(Thought("a thought", 0.5))


OPERATIONS: dict[str, tuple[str, str]] = {
    # operation: (title, what LMDB does beside it)
    "kv_put": ("KVStore.put", "put"),
    "kv_get": ("KVStore.get", "reads"),
    "kv_cas": ("KVStore.cas", "update"),
    "kv_increment": ("KVStore.increment", "update"),
    "kv_budget": ("KVStore.increment with a bound", "update"),
    "event_append": ("EventLog.append", "update"),
    "cell_read": ("StateCell.read", "reads"),
    "cell_set": ("StateCell.set", "put"),
    "cell_cas": ("StateCell.cas", "update"),
    "cell_transition": ("StateCell.transition", "update"),
    "trace_record": ("TraceStore.record", "put"),
    "trace_child": ("TraceStore.record_child with a tag", "update"),
    "trace_get": ("TraceStore.get", "reads"),
    "run_create": ("RunIndex.create_run", "put"),
    "run_status": ("RunIndex.update_status", "update"),
    "run_get": ("RunIndex.get_run", "reads"),
    "lease": ("Leases.acquire and release", "update"),
    "step_recorded": ("Steps.run of a step that is done", "reads"),
    "cross": ("one transaction over KV, events, a cell and a trace", "update"),
}


def _primitive_side(operation: str) -> Callable[[], PoolSide]:
    def make(scratch: Path, scale: Scale) -> Sequence[Task]:
        return [PrimitiveTask(scratch, operation=operation)]

    return lambda: PoolSide(make)


class HotCounter(SoloSide):
    """Eight processes increment one counter; the sum is compared at the end of every sample."""

    processes = 8

    def setup(self, scratch: Path, scale: Scale) -> None:
        """Start them."""
        super().setup(scratch, scale)
        self.db: Any = self.opened(open_db(scratch))
        self.workers = self.pool([_Increment(scratch, worker=worker) for worker in range(self.processes)])
        self.workers.run(scale.warm_up)

    def measure(self, scale: Scale) -> float:
        """Increments a second."""
        before = self.db.kv.get(RUN, "hot", 0)
        count, notes = self.workers.run(scale.seconds)
        after = self.db.kv.get(RUN, "hot", 0)
        if after - before != notes["increments"]:
            raise RuntimeError(f"the counter rose by {after - before} after {notes['increments']} increments")
        return count / scale.seconds


@dataclass
class _Increment(OccamTask):
    batch: int = 50

    def prepare(self) -> None:
        """Start at zero increments."""
        self.done = 0

    def step(self) -> int:
        """Fifty increments."""
        increment = self.db.kv.increment
        for _ in range(self.batch):
            increment(RUN, "hot")
        self.done += self.batch
        return self.batch

    def notes(self) -> dict[str, Any]:
        """The increments since the last call, including those outside the window."""
        done, self.done = self.done, 0
        return {"increments": done}


class TraceQueries(SoloSide):
    """A run of 100,000 traces, queried for 100 of them."""

    def __init__(self, query: str):
        """`query` is `type`, `tag` or `time`."""
        super().__init__()
        self._query = query

    def setup(self, scratch: Path, scale: Scale) -> None:
        """Record the traces; one in a thousand is rare in type and in tag."""
        super().setup(scratch, scale)
        self.db: Any = self.opened(open_db(scratch, "none"))
        count = scale.count(TRACES)
        rare = count // 100
        for start in range(0, count, 200):
            with self.db.begin(RUN) as txn:
                for number in range(start, start + 200):
                    chosen = number % rare == 0
                    trace = Custom("rare", number) if chosen else Thought(f"thought {number}")
                    txn.traces.record(trace, tags=["rare"] if chosen else [])
        self._middle = self.db.traces.query_by_tag(RUN, "rare")[50].timestamp
        self._notes["traces"] = count

    def measure(self, scale: Scale) -> float:
        """Milliseconds for one query, the median of twenty."""
        times = []
        for _ in range(20):
            began = time.perf_counter()
            found = self._ask()
            times.append(time.perf_counter() - began)
            if len(found) < 90:
                raise RuntimeError(f"{len(found)} traces found where 100 were expected")
        return sorted(times)[len(times) // 2] * 1e3

    def _ask(self) -> list[Any]:
        traces = self.db.traces
        if self._query == "type":
            found = traces.query_by_type(RUN, "rare")
        elif self._query == "tag":
            found = traces.query_by_tag(RUN, "rare")
        else:
            found = traces.query_by_time(RUN, self._middle, limit=100)
        return list(found)


class TraceTree(SoloSide):
    """`get_tree` of 10,000 nodes."""

    def setup(self, scratch: Path, scale: Scale) -> None:
        """A tree with random parents."""
        super().setup(scratch, scale)
        self.db: Any = self.opened(open_db(scratch, "none"))
        self.count, dice = scale.count(TREE, 1000), random.Random(1)
        ids = [self.db.traces.record(RUN, Thought("root"))]
        while len(ids) < self.count:
            with self.db.begin(RUN) as txn:
                for _ in range(min(200, self.count - len(ids))):
                    ids.append(txn.traces.record_child(dice.choice(ids), Thought("node")))
        self.root = ids[0]
        self._notes["nodes"] = self.count

    def measure(self, scale: Scale) -> float:
        """Milliseconds."""
        began = time.perf_counter()
        tree = self.db.traces.get_tree(RUN, self.root)
        took = (time.perf_counter() - began) * 1e3
        if tree.size != self.count:
            raise RuntimeError(f"the tree holds {tree.size} of {self.count} nodes")
        return took


def primitive_rows() -> list[Row]:
    """The rows of the primitives."""
    rows = []
    for operation, (title, beside) in OPERATIONS.items():
        # Beside each stands LMDB's rate of the nearest plain operation: a yardstick, not the same work.
        sides = {
            OCCAM: _primitive_side(operation),
            "lmdb": store_side("lmdb", beside, keys=KEYS, durability="standard"),
        }
        least = LEAST.get(operation, 10_000)
        name = operation.replace("_", "-")
        target = Target(absolute=least)
        rows.append(Row(name, f"{title}, 1 process, standard", "ops/s", sides, "primitives", target=target))
    rows.append(
        Row(
            "hot-counter",
            "8 processes increment one counter, exact sum",
            "increments/s",
            {
                OCCAM: HotCounter,
                "lmdb": store_side("lmdb", "update", keys=1000, processes=8, durability="standard"),
            },
            "primitives",
            target=Target(absolute=100_000),
        )
    )
    for query in ("type", "tag", "time"):
        rows.append(
            own_row(
                f"trace-by-{query}",
                f"query_by_{query} on 100,000 traces returning 100",
                "ms",
                {OCCAM: _query_side(query)},
                "primitives",
                target=Target(absolute=2.0),
            )
        )
    rows.append(
        own_row(
            "trace-tree",
            "get_tree of 10,000 nodes",
            "ms",
            {OCCAM: TraceTree},
            "primitives",
            target=Target(absolute=100),
        )
    )
    return rows


def _query_side(query: str) -> Callable[[], TraceQueries]:
    return lambda: TraceQueries(query)
