"""The fixtures of the semantic tests: `engine`, and the databases that tests open on it.

`engine` is parametrised by engine_selection.py. Tests use a fresh run each, so one database serves a whole session; a
test that asks for settings of its own gets a database of its own.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from occamdb import Database
from occamdb.engine.model.public_types import IsolationName
from occamdb.ipc import layout
from tests.support.engine_selection import SERVERS
from tests.support.engines import Engine, Place, memory_database, open_shared_database
from tests.support.server_engines import make_engine

__all__ = [
    "DatabaseFactory",
    "db",
    "db_factory",
    "engine",
    "memory_database",
    "open_shared_database",
    "own_engine",
    "place",
    "placed",
    "revoke_snapshots",
]

DatabaseFactory = Callable[..., Database]


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


def _url(request: pytest.FixtureRequest) -> str:
    """Of the server that the engine is, which servers.py starts; empty for others."""
    name = str(request.param)
    return str(request.getfixturevalue(name).url()) if name in SERVERS else ""


@pytest.fixture(scope="session")
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The engine under test. What it started runs before any test that uses it is guarded."""
    with make_engine(request.param, tmp_path_factory.mktemp(request.param), _url(request)) as made:
        yield made


@pytest.fixture(scope="module")
def own_engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """`engine` for one module alone. A module that steps its clock, say, overrides `engine` with this."""
    with make_engine(request.param, tmp_path_factory.mktemp(request.param), _url(request), own=True) as made:
        yield made


@pytest.fixture
def db_factory(engine: Engine, tmp_path: Path) -> Iterator[DatabaseFactory]:
    """Makes databases: `db_factory()`, or with isolation and settings. Closes them at the end."""
    opened: list[Database] = []

    def make(isolation: IsolationName = "serializable", **settings: Any) -> Database:
        opened.append(engine.database(tmp_path, isolation, **settings))
        return opened[-1]

    yield make
    for database in opened:
        engine.discard(database)


@pytest.fixture
def db(db_factory: DatabaseFactory) -> Database:
    """A database with default settings."""
    return db_factory()


@pytest.fixture
def place(engine: Engine) -> Place:
    """Where a database is in which there is nothing yet, for other processes."""
    return engine.place()


@pytest.fixture
def placed(place: Place) -> Iterator[Database]:
    """This process's handle on the database at `place`."""
    with place.open() as database:
        yield database
