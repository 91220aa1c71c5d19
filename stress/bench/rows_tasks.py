"""Rows on queues of tasks: put, claim and complete in one process, and by several workers on one queue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from occamdb.stress.bench.model import OCCAM, Row, Scale, Target
from occamdb.stress.bench.occam import OccamTask, open_db
from occamdb.stress.bench.peer_queues import (
    BATCH,
    PAYLOAD,
    STOCK,
    LiteQueueTask,
    PersistQueueTask,
    SqliteQueueTask,
)
from occamdb.stress.bench.peers import peer_module
from occamdb.stress.bench.pool import Task
from occamdb.stress.bench.stores import RUN
from occamdb.stress.bench.tasks import PoolSide

QUEUE = "work"
WORKERS = 8


@dataclass
class QueueTask(OccamTask):
    """Puts a task, claims one and completes it."""

    def prepare(self) -> None:
        """A stock, so that there is always something to claim."""
        self.db.tasks.put_many(RUN, QUEUE, [PAYLOAD] * STOCK)

    def step(self) -> int:
        """Ten tasks."""
        tasks = self.db.tasks
        for _ in range(BATCH):
            tasks.put(RUN, QUEUE, PAYLOAD)
            task = tasks.claim(RUN, QUEUE, timeout=10)
            assert task is not None
            tasks.complete(RUN, task)
        return BATCH


def _occam(workers: int) -> Callable[[], PoolSide]:
    def make(scratch: Path, scale: Scale) -> Sequence[Task]:
        open_db(scratch).close()
        return [QueueTask(scratch, worker=worker) for worker in range(workers)]

    return lambda: PoolSide(make)


def _sqlite(workers: int) -> Callable[[], PoolSide]:
    def make(scratch: Path, scale: Scale) -> Sequence[Task]:
        SqliteQueueTask(scratch).open()
        return [SqliteQueueTask(scratch, worker) for worker in range(workers)]

    return lambda: PoolSide(make)


def _library(module: str, made: type[LiteQueueTask | PersistQueueTask]) -> Callable[[], PoolSide]:
    def make(scratch: Path, scale: Scale) -> Sequence[Task]:
        peer_module(module)
        return [made(scratch)]

    return lambda: PoolSide(make)


def task_rows() -> list[Row]:
    """The rows of the queues of tasks."""
    sides: dict[int, dict[str, Any]] = {
        count: {OCCAM: _occam(count), "sqlite": _sqlite(count)} for count in (1, WORKERS)
    }
    libraries = {
        "litequeue": _library("litequeue", LiteQueueTask),
        "persist-queue": _library("persistqueue", PersistQueueTask),
    }
    return [
        Row(
            "tasks",
            "put + claim + complete of a task, 1 process, standard",
            "tasks/s",
            {**sides[1], **libraries},
            "primitives",
            baseline="sqlite",
            target=Target(ratio=3.0, absolute=15_000, of_best=True),
        ),
        Row(
            f"tasks-{WORKERS}",
            f"the same by {WORKERS} workers on one queue",
            "tasks/s",
            sides[WORKERS],
            "primitives",
            baseline="sqlite",
            target=Target(ratio=1.0, of_row="tasks"),
        ),
    ]
