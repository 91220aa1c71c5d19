"""Helpers of the rows that only occamdb takes part in: filling, counting, starting and ending coordinators."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import occamdb
from occamdb.stress.bench.model import Scale
from occamdb.stress.bench.pool import Pool
from occamdb.stress.bench.stores import MAP_SIZE, RUN

FILL_BATCH = 1000


def open_db(path: Path, durability: str = "standard", **options: Any) -> occamdb.Database:
    """Attach to the database of a side; every process of the side uses the same options."""
    return occamdb.open(
        str(path / "occam"), durability=occamdb.Durability(durability), max_store_size=MAP_SIZE, **options
    )


def long_key(index: int) -> str:
    """A key of 40 bytes."""
    return f"memory/key/{index:029d}"


def fill(db: occamdb.Database, items: Iterable[tuple[str, Any]], run: uuid.UUID = RUN) -> None:
    """Write many items in transactions of 1,000."""
    pending: list[tuple[str, Any]] = []

    def flush() -> None:
        with db.begin(run) as txn:
            for key, value in pending:
                txn.put(key, value)
        pending.clear()

    for item in items:
        pending.append(item)
        if len(pending) == FILL_BATCH:
            flush()
    if pending:
        flush()


def store_bytes(db: occamdb.Database) -> dict[str, int]:
    """What the store uses its memory for, in bytes."""
    figures: dict[str, int] = db.stats()["store"]
    return figures


@dataclass
class OccamTask:
    """A pool task that works on an attached occamdb; subclasses do the work in `step`."""

    path: Path
    durability: str = "standard"
    worker: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    def open(self) -> None:
        """Attach."""
        self.db = open_db(self.path, self.durability, **self.options)
        self.prepare()

    def prepare(self) -> None:
        """What else is needed before the clock runs."""

    def step(self) -> int:
        """Do some operations."""
        raise NotImplementedError

    def notes(self) -> dict[str, Any]:
        """Nothing to add."""
        return {}

    def close(self) -> None:
        """Detach."""
        self.db.close()


class SoloSide:
    """A side measured in the session's own process, for what is done once and takes long."""

    def __init__(self) -> None:
        """Nothing is opened before `setup`."""
        self.path = Path()
        self._notes: dict[str, Any] = {}
        self._closers: list[Callable[[], object]] = []

    def setup(self, scratch: Path, scale: Scale) -> None:
        """Prepare; subclasses extend."""
        self.path = scratch

    def measure(self, scale: Scale) -> float:
        """Take one sample."""
        raise NotImplementedError

    def notes(self) -> dict[str, Any]:
        """What subclasses noted."""
        return self._notes

    def opened(self, thing: Any) -> Any:
        """Have `thing.close()` called at the end."""
        self._closers.append(thing.close)
        return thing

    def pool(self, tasks: list[Any]) -> Pool:
        """Worker processes that end with the side."""
        pool = Pool(tasks)
        self._closers.append(pool.close)
        return pool

    def close(self) -> None:
        """Close what was opened, newest first."""
        while self._closers:
            self._closers.pop()()
