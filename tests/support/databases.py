"""Databases for tests that must pass on every engine.

`db_factory` is parametrised over the engines there are: "memory", and "shared" with a coordinator process
(OCCAMDB_TEST_ENGINES=memory leaves the latter out). Tests use a fresh run each, so one shared database serves a whole
session; a test that asks for settings of its own gets a database of its own.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from occamdb import Database
from occamdb.engine.client.local_handle import LocalHandle
from occamdb.engine.model.settings import Settings
from occamdb.ipc import layout

__all__ = [
    "DatabaseFactory",
    "db",
    "db_factory",
    "engine",
    "memory_database",
    "open_shared_database",
    "revoke_snapshots",
]

DatabaseFactory = Callable[..., Database]
ENGINES = os.environ.get("OCCAMDB_TEST_ENGINES", "memory,shared").split(",")


def memory_database(isolation: str = "serializable", **settings: Any) -> Database:
    """An in-memory database with these settings."""
    settings.setdefault("max_store_size", "64MiB")
    return Database(LocalHandle(Settings.of(settings)), isolation)


def open_shared_database(
    path: os.PathLike[str], isolation: str = "serializable", **settings: Any
) -> Database:
    """A database with a coordinator process."""
    import occamdb

    settings.setdefault("idle_timeout", 0.2)  # so that the coordinator is gone soon after the test
    return occamdb.open(path, isolation=occamdb.Isolation(isolation), **settings)


def revoke_snapshots(db: Database) -> int:
    """Revoke every open snapshot of an in-memory database, as if held too long; returns how many."""
    channel = db.handle._channel  # type: ignore[attr-defined]
    revoked = 0
    for slot in range(layout.SLOT_COUNT):
        position = layout.SLOTS_OFFSET + slot * layout.SLOT_SIZE
        (value,) = struct.unpack_from("<Q", channel, position)
        if value:
            struct.pack_into("<Q", channel, position + 8, value)
            revoked += 1
    return revoked


@pytest.fixture(scope="session", params=ENGINES)
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database | None]:
    """The shared database of the session, or None for "memory". Started before any test that uses it is guarded."""
    if request.param == "memory":
        yield None
    else:
        database = open_shared_database(tmp_path_factory.mktemp("shared") / "db")
        yield database
        database.close()


@pytest.fixture
def db_factory(engine: Database | None, tmp_path: Path) -> Iterator[DatabaseFactory]:
    """Makes databases: `db_factory()`, or with isolation and settings. Closes them at the end."""
    opened: list[Database] = []

    def make(isolation: str = "serializable", **settings: Any) -> Database:
        if engine is None:
            opened.append(memory_database(isolation, **settings))
        elif isolation == "serializable" and not settings:
            return engine
        else:
            opened.append(open_shared_database(tmp_path / f"db{len(opened)}", isolation, **settings))
        return opened[-1]

    yield make
    for database in opened:
        database.close()


@pytest.fixture
def db(db_factory: DatabaseFactory) -> Database:
    """A database with default settings."""
    return db_factory()
