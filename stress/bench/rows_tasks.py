"""Rows on queues of tasks: put, claim and complete in one process, and by several workers on one queue."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from occamdb.stress.bench.model import OCCAM, Row, Scale, Target
from occamdb.stress.bench.occam import OccamTask, open_db
from occamdb.stress.bench.pool import Task
from occamdb.stress.bench.stores import RUN
from occamdb.stress.bench.tasks import PoolSide

QUEUE = "work"
BATCH = 10
STOCK = 100  # tasks that wait in the queue
WORKERS = 8
PAYLOAD = {"url": "https://example.org/page", "depth": 3}


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


SCHEMA = """
CREATE TABLE IF NOT EXISTS task (
    id INTEGER PRIMARY KEY, state INTEGER, priority INTEGER, payload TEXT, attempts INTEGER, until REAL, result TEXT
);
CREATE INDEX IF NOT EXISTS ready ON task (state, priority DESC, id);
"""


@dataclass
class SqliteQueueTask:
    """The same with a table in SQLite: WAL, synchronous NORMAL, each step a transaction of BEGIN IMMEDIATE."""

    path: Path
    worker: int = 0
    _db: sqlite3.Connection = field(init=False, repr=False)

    def open(self) -> None:
        """Connect, and put a stock."""
        self._db = sqlite3.connect(self.path / "queue.db", timeout=60, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(SCHEMA)
        for _ in range(STOCK):
            self._put()

    def _put(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute(
            "INSERT INTO task (state, priority, payload, attempts) VALUES (0, 0, ?, 0)",
            (json.dumps(PAYLOAD),),
        )
        self._db.execute("COMMIT")

    def step(self) -> int:
        """Ten tasks."""
        execute = self._db.execute
        for _ in range(BATCH):
            self._put()
            execute("BEGIN IMMEDIATE")
            number, payload = execute(
                "SELECT id, payload FROM task WHERE state = 0 ORDER BY priority DESC, id LIMIT 1"
            ).fetchone()
            json.loads(payload)
            execute(
                "UPDATE task SET state = 1, attempts = attempts + 1, until = ? WHERE id = ?",
                (time.time() + 30, number),
            )
            execute("COMMIT")
            execute("BEGIN IMMEDIATE")
            execute("UPDATE task SET state = 2 WHERE id = ? AND state = 1", (number,))
            execute("COMMIT")
        return BATCH

    def notes(self) -> dict[str, float]:
        """Nothing to add."""
        return {}

    def close(self) -> None:
        """Disconnect."""
        self._db.close()


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


def task_rows() -> list[Row]:
    """The rows of the queues of tasks."""
    sides: dict[int, dict[str, Any]] = {
        count: {OCCAM: _occam(count), "sqlite": _sqlite(count)} for count in (1, WORKERS)
    }
    return [
        Row(
            "tasks",
            "put + claim + complete of a task, 1 process, standard",
            "tasks/s",
            sides[1],
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
