"""Queues of tasks beside `db.tasks`: a table in SQLite as one writes it by hand, and libraries that have one."""

from __future__ import annotations

import json
import sqlite3
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from occamdb.stress.bench.peers import peer_module

BATCH = 10
STOCK = 100  # tasks that wait in the queue
PAYLOAD = {"url": "https://example.org/page", "depth": 3}

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


@dataclass
class _LibraryTask:
    """The same with a library. Pickled to its worker."""

    path: Path
    _queue: Any = field(init=False, repr=False)

    def notes(self) -> dict[str, float]:
        """Nothing to add."""
        return {}

    def close(self) -> None:
        """Nothing: the queue goes with its process."""


@dataclass
class LiteQueueTask(_LibraryTask):
    """litequeue: SQLite with WAL and synchronous NORMAL; its messages are text."""

    def open(self) -> None:
        """Open, and put a stock."""
        self._queue = peer_module("litequeue").LiteQueue(self.path / "lite.db")
        for _ in range(STOCK):
            self._queue.put(json.dumps(PAYLOAD))

    def step(self) -> int:
        """Ten tasks."""
        queue = self._queue
        for _ in range(BATCH):
            queue.put(json.dumps(PAYLOAD))
            message = queue.pop()
            json.loads(message.data)
            queue.done(message.message_id)
        return BATCH


@dataclass
class PersistQueueTask(_LibraryTask):
    """persist-queue: its queue with acknowledgements, as it comes: SQLite with WAL, synced at each commit."""

    def open(self) -> None:
        """Open, and put a stock."""
        self._queue = peer_module("persistqueue").SQLiteAckQueue(str(self.path / "persist"))
        for _ in range(STOCK):
            self._queue.put(PAYLOAD)

    def step(self) -> int:
        """Ten tasks."""
        queue = self._queue
        for _ in range(BATCH):
            queue.put(PAYLOAD)
            queue.ack(queue.get())
        return BATCH
