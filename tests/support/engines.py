"""How each engine opens databases for the semantic tests. Everything that a test must not know about engines is here.

One Engine of each kind lives for a whole session of tests (or for a module, where a test needs it for itself):

1. `database()` may be the same for many tests, which use runs of their own. With settings it is one of its own.
2. `fresh()` has nobody else's keys: an in-memory database of its own, or a namespace of its own.
3. `again()` is a second handle on the database of a handle, with a session and connections of its own.
4. A `Place` says to another process how to open a database.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import occamdb
import occamdb.aio
from occamdb import Database
from occamdb.aio import AsyncDatabase
from occamdb.engine.client.local_handle import LocalHandle
from occamdb.engine.model.public_types import IsolationName
from occamdb.engine.model.settings import Settings
from tests.support import clocks
from tests.support.aio import open_async

__all__ = ["Engine", "Memory", "Place", "Shared", "memory_database", "new_tenant", "open_shared_database"]


def new_tenant() -> str:
    """Whose namespace nobody else has."""
    return f"test-{uuid.uuid4()}"


def memory_database(isolation: IsolationName = "serializable", **settings: Any) -> Database:
    """An in-memory database with these settings."""
    settings.setdefault("max_store_size", "64MiB")
    return Database(LocalHandle(Settings.of(settings)), isolation)


def open_shared_database(
    path: str | Path, isolation: IsolationName = "serializable", **settings: Any
) -> Database:
    """A database with a coordinator process."""
    settings.setdefault("idle_timeout", 0.2)  # so that the coordinator is gone soon after the test
    return occamdb.open(path, isolation=occamdb.Isolation(isolation), **settings)


@dataclass(frozen=True)
class Place:
    """Where a database is: it goes to other processes, and each of them opens it.

    Attributes:
      where: a directory, or the address of a server.
      tenant: whose namespace it is.
      settings: with which every process opens it.
    """

    where: str
    tenant: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def open(self) -> Database:
        """Another handle on it."""
        return occamdb.open(self.where, tenant=self.tenant, **self.settings)


class Engine:
    """One kind of engine, as tests open databases on it."""

    name = ""
    local = True  # its store is in the memory of this machine
    syncs = True  # a commit can ask to survive a loss of power, where anything is written
    session_ends_within = 1.0  # seconds after its process was killed
    has_sessions = True  # a second handle, with a session of its own, may be opened and closed

    def database(
        self, directory: Path, isolation: IsolationName = "serializable", **settings: Any
    ) -> Database:
        """A database, which other tests may use too when there are neither an isolation nor settings.

        Args:
          directory: where it may keep files.
        """
        raise NotImplementedError

    def fresh(self) -> Database:
        """A database in which there is nothing yet. Call `discard` with it."""
        raise NotImplementedError

    def discard(self, database: Database) -> None:
        """The test that had a database of its own is over."""
        database.close()

    def opening(self, path: Path, **settings: Any) -> AbstractAsyncContextManager[AsyncDatabase]:
        """Opens an asynchronous database in which there is nothing yet.

        Args:
          path: the directory of a database, where the engine keeps one in files.
        """
        raise NotImplementedError

    def again(self, database: Database) -> Database:
        """Another handle on it, in this process; the same one where an engine has no second."""
        return database

    def place(self) -> Place:
        """Where there is nothing yet, as other processes find it."""
        raise NotImplementedError

    def examples(self, count: int) -> int:
        """How many examples or rounds a test does that does `count` in the memory of this machine."""
        return count

    def expiry_clock(self, database: Database) -> int:
        """What the clock shows by which keys expire, in ns since the epoch."""
        return clocks.expiry_clock(database)

    def step_clock(self, database: Database, when: int) -> None:
        """Step it forward to `when`, unless it is there. A test that waits calls this again and again."""
        clocks.step_to(database, when)

    def has_removed_expired(self, database: Database) -> bool:
        """Whether every key that has expired was removed."""
        return bool(database.stats()["pending_expiries"] == 0)

    def close(self) -> None:
        """The session is over."""


class Memory(Engine):
    """A database in this process for each test."""

    name = "memory"
    has_sessions = False

    def database(
        self, directory: Path, isolation: IsolationName = "serializable", **settings: Any
    ) -> Database:
        return memory_database(isolation, **settings)

    def fresh(self) -> Database:
        return memory_database()

    def opening(self, path: Path, **settings: Any) -> AbstractAsyncContextManager[AsyncDatabase]:
        return occamdb.aio.open_in_memory(**settings)


class Shared(Engine):
    """A directory with a coordinator that runs as long as the session, and others for tests with settings."""

    name = "shared"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.common = open_shared_database(path)

    def database(
        self, directory: Path, isolation: IsolationName = "serializable", **settings: Any
    ) -> Database:
        if isolation == "serializable" and not settings:
            return self.common
        return open_shared_database(directory / f"db-{uuid.uuid4().hex[:8]}", isolation, **settings)

    def fresh(self) -> Database:
        return self.common.namespace(tenant=new_tenant())

    def discard(self, database: Database) -> None:
        if database.handle is not self.common.handle:
            database.close()

    def opening(self, path: Path, **settings: Any) -> AbstractAsyncContextManager[AsyncDatabase]:
        return open_async(path, **settings)

    def again(self, database: Database) -> Database:
        assert database.path is not None
        return Place(database.path, database.current_namespace.tenant).open()

    def place(self) -> Place:
        return Place(str(self.path), new_tenant())

    def close(self) -> None:
        self.common.close()
