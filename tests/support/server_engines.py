"""Engines for tests on servers: on a dict in this process, on PostgreSQL and on etcd. See engines.py.

A server has one clock, and all of its databases see a step of it. Only an engine that a test module has for itself can
step it: it replaces what its backends take for the server's clock, by the real one and a distance.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

import occamdb
import occamdb.aio
from occamdb import Database
from occamdb.aio import AsyncDatabase
from occamdb.engine.model.keys import Namespace, prefix_range
from occamdb.engine.model.public_types import IsolationName
from occamdb.engine.model.settings import Settings
from occamdb.engine.remote.handle import RemoteHandle
from occamdb.primitives.run_rule import ActiveRuns
from tests.support.dict_backend import DictBackend, DictServer
from tests.support.engines import Engine, Memory, Place, Shared, new_tenant

__all__ = ["make_engine"]

SESSION_GRACE = 4.0  # seconds: the processes of a test end, or are killed, long before it
# Settings of a store in the memory of this machine, which a server has no use for.
OF_LOCAL_STORES = {"max_store_size", "watch_history", "idle_timeout", "ring_size"}


class Served(Engine):
    """A server. Each database that is asked for is a namespace of its own on it."""

    local = False

    def __init__(self) -> None:
        self._common: Database | None = None

    def connect(self, tenant: str, isolation: IsolationName = "serializable", **settings: Any) -> Database:
        """A handle with a session and connections of its own."""
        raise NotImplementedError

    @property
    def common(self) -> Database:
        """The handle whose session and connections most tests share."""
        if self._common is None:
            self._common = self.connect("default")
        return self._common

    def database(
        self, directory: Path, isolation: IsolationName = "serializable", **settings: Any
    ) -> Database:
        kept = {name: value for name, value in settings.items() if name not in OF_LOCAL_STORES}
        if isolation == "serializable" and not kept:
            return self.fresh()
        return self.connect(new_tenant(), isolation, **kept)

    def fresh(self) -> Database:
        return self.common.namespace(tenant=new_tenant())

    def discard(self, database: Database) -> None:
        # Namespaces of the common handle close with it.
        if database.session != self.common.session:
            database.close()

    def opening(self, path: Path, **settings: Any) -> AbstractAsyncContextManager[AsyncDatabase]:
        return self._opening(**settings)

    @contextlib.asynccontextmanager
    async def _opening(self, **settings: Any) -> AsyncIterator[AsyncDatabase]:
        database = occamdb.aio.wrap(self.connect(new_tenant(), **settings))
        try:
            yield database
        finally:
            await database.close()

    def again(self, database: Database) -> Database:
        return self.connect(database.current_namespace.tenant)

    def has_removed_expired(self, database: Database) -> bool:
        handle: Any = database.handle
        start, end = prefix_range(database.current_namespace.base)
        rows, _ = handle.backend.scan(start, end, handle.backend.newest(), 1000)
        now = self.expiry_clock(database)
        return not any(0 < row.expires_at <= now for row in rows)

    def close(self) -> None:
        if self._common is not None:
            self._common.close()


class OnDict(Served):
    name = "dict"

    def __init__(self) -> None:
        super().__init__()
        self._server = DictServer()

    def connect(self, tenant: str, isolation: IsolationName = "serializable", **settings: Any) -> Database:
        rule = ActiveRuns() if settings.pop("strict_runs", False) else None
        limits = Settings.of(settings).limits

        def opener(base: bytes) -> Any:
            return DictBackend(self._server, base, limits)

        namespace = Namespace(tenant)
        return Database(RemoteHandle(opener, namespace.base), isolation, namespace, run_rule=rule)

    def expiry_clock(self, database: Database) -> int:
        return self._server.clock()

    def step_clock(self, database: Database, when: int) -> None:
        self._server.step_clock(when)


class AtUrl(Served):
    """A server that runs elsewhere, and is opened as a user opens it."""

    session_ends_within = SESSION_GRACE + 10.0

    def __init__(self, name: str, url: str) -> None:
        super().__init__()
        self.name = name
        self.url = url
        self.syncs = name != "postgres"  # servers.py starts it without

    def connect(self, tenant: str, isolation: IsolationName = "serializable", **settings: Any) -> Database:
        return occamdb.open(self.url, tenant=tenant, isolation=isolation, **settings)

    def place(self) -> Place:
        return Place(self.url, new_tenant(), {"session_grace": SESSION_GRACE, "timeout": 60.0})

    def examples(self, count: int) -> int:
        return (count + 3) // 4

    def expiry_clock(self, database: Database) -> int:
        handle: Any = database.handle
        return int(handle.backend.begin().clock)

    def step_clock(self, database: Database, when: int) -> None:
        behind = when - self.expiry_clock(database)
        if behind > 0:
            self._advance(behind)

    def _advance(self, ns: int) -> None:
        raise AssertionError("a module that steps the clock needs `own_engine`")


class Stepped(AtUrl):
    """A server whose clock a test steps. Its sessions end by `close` alone, however busy this machine is."""

    def connect(self, tenant: str, isolation: IsolationName = "serializable", **settings: Any) -> Database:
        return super().connect(tenant, isolation, session_grace=600.0, **settings)


class SteppedPostgres(Stepped):
    """A schema of its own, whose functions add a number in a table to the server's clock."""

    def __init__(self, url: str) -> None:
        import psycopg

        from occamdb.engine.remote.postgres import migrations

        schema = new_tenant()
        super().__init__("postgres", f"{url}?schema={schema}")
        self._sessions = f'"{schema}".session'
        self._table = f'"{schema}-clock".ahead'
        self._admin = psycopg.connect(url, autocommit=True)
        self._admin.execute(f'create schema "{schema}-clock"')
        self._admin.execute(f"create table {self._table} (ns bigint)")
        self._admin.execute(f"insert into {self._table} values (0)")
        self._patch = pytest.MonkeyPatch()
        clock = f"({migrations._CLOCK} + (select ns from {self._table}))"
        self._patch.setattr(migrations, "_CLOCK", clock)

    def _advance(self, ns: int) -> None:
        # Sessions live on: the time that is skipped has no heartbeats in it.
        self._admin.execute(
            f"update {self._sessions} set alive_until = alive_until + {ns};"
            f"update {self._table} set ns = ns + {ns}"
        )

    def close(self) -> None:
        super().close()
        self._patch.undo()
        self._admin.close()


class SteppedEtcd(Stepped):
    """What this process takes for the clock of etcd is ahead of it."""

    def __init__(self, url: str) -> None:
        from occamdb.engine.remote.etcd.clock import ServerClock

        super().__init__("etcd", url)
        self._ahead = 0
        self._lock = threading.Lock()
        self._patch = pytest.MonkeyPatch()
        now = ServerClock.now
        self._patch.setattr(ServerClock, "now", lambda clock: now(clock) + self._ahead)

    def _advance(self, ns: int) -> None:
        with self._lock:
            self._ahead += ns

    def close(self) -> None:
        super().close()
        self._patch.undo()


@contextlib.contextmanager
def make_engine(name: str, directory: Path, url: str = "", *, own: bool = False) -> Iterator[Engine]:
    """An engine of this kind, until the block ends.

    Args:
      directory: where it may keep files.
      url: of a server that runs.
      own: nobody else uses it: its clock may be stepped.
    """
    engine: Engine
    if name == "memory":
        engine = Memory()
    elif name == "shared":
        engine = Shared(directory / "db")
    elif name == "dict":
        engine = OnDict()
    elif own:
        engine = SteppedPostgres(url) if name == "postgres" else SteppedEtcd(url)
    else:
        engine = AtUrl(name, url)
    try:
        yield engine
    finally:
        engine.close()
