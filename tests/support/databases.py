"""Databases for tests that hold whatever engine stands behind them.

`db_factory` is parametrised over the engines there are: "memory" always, "shared" (a coordinator process) wherever the
environment variable OCCAMDB_TEST_ENGINES asks for it. Tests use a fresh run each, so one shared database serves
a whole session; a test that asks for settings of its own gets a database of its own.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from occamdb.engine.database import Database
from occamdb.engine.local import LocalHandle
from occamdb.engine.settings import Settings
from occamdb.engine.types import RunId
from occamdb.ipc import layout

__all__ = [
    "DatabaseFactory",
    "db",
    "db_factory",
    "memory_database",
    "open_shared_database",
    "revoke_snapshots",
    "run",
    "shared_database",
]

DatabaseFactory = Callable[..., Database]
ENGINES = os.environ.get("OCCAMDB_TEST_ENGINES", "memory").split(",")


def memory_database(isolation: str = "serializable", **settings: Any) -> Database:
    """An in-memory database with these settings."""
    settings.setdefault("max_store_size", "64MiB")
    return Database(LocalHandle(Settings.of(settings)), isolation)


def open_shared_database(path: os.PathLike[str], isolation: str = "serializable", **settings: Any) -> Database:
    """A database with a coordinator process."""
    import occamdb

    opened: Database = getattr(occamdb, "open")(path, isolation=isolation, **settings)
    return opened


def revoke_snapshots(db: Database) -> int:
    """Do to every open snapshot of an in-memory database what its engine does to one held too long; how many."""
    channel = db.handle._channel  # type: ignore[attr-defined]
    revoked = 0
    for slot in range(layout.SLOT_COUNT):
        position = layout.SLOTS_OFFSET + slot * layout.SLOT_SIZE
        (value,) = struct.unpack_from("<Q", channel, position)
        if value:
            struct.pack_into("<Q", channel, position + 8, value)
            revoked += 1
    return revoked


@pytest.fixture(scope="session")
def shared_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """One database with a coordinator for the whole session; each test uses runs of its own."""
    database = open_shared_database(tmp_path_factory.mktemp("shared") / "db")
    yield database
    database.close()


@pytest.fixture(params=ENGINES)
def db_factory(request: pytest.FixtureRequest) -> Iterator[DatabaseFactory]:
    """Makes databases: `db_factory()`, or with isolation and settings. Closes them at the end."""
    opened: list[Database] = []

    def make(isolation: str = "serializable", **settings: Any) -> Database:
        if request.param == "memory":
            opened.append(memory_database(isolation, **settings))
        elif isolation == "serializable" and not settings:
            shared: Database = request.getfixturevalue("shared_database")
            return shared
        else:
            path = request.getfixturevalue("tmp_path_factory").mktemp("own") / "db"
            opened.append(open_shared_database(path, isolation, **settings))
        return opened[-1]

    yield make
    for database in opened:
        database.close()


@pytest.fixture
def db(db_factory: DatabaseFactory) -> Database:
    """A database with default settings."""
    return db_factory()


@pytest.fixture
def run() -> RunId:
    """A run nobody else uses."""
    return RunId.new()
