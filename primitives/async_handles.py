"""`occamdb.aio`: the engine's asynchronous database, with the primitives on it. `open` makes it, in a thread."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import Callable, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, NoReturn, TypeVar, Unpack

from ..engine.client import opening
from ..engine.client.awaited_handle import ASYNC_LINKS, AwaitedHandle, check_async_links, in_thread
from ..engine.client.local_handle import LocalHandle
from ..engine.client.shared_handle import SharedHandle
from ..engine.model.public_types import IsolationName
from ..engine.model.values import Codec
from ..engine.transaction.async_database import AsyncDatabase as EngineAsyncDatabase
from ..engine.transaction.async_database import AwaitedBase
from ..engine.transaction.async_transaction import AsyncTransaction as EngineAsyncTransaction
from ..engine.transaction.database import Database as EngineDatabase
from .event_log import EventLog
from .extension import RunLike
from .handles import Database, Default, DurabilityName, Restore, SettingsKeywords, Snapshot
from .kv import KVStore
from .leases import Leases
from .run_index import RunIndex
from .run_rule import ActiveRuns
from .state_cell import StateCell
from .steps import Steps
from .tasks import Tasks
from .trace_store import TraceStore

__all__ = ["AsyncDatabase", "AsyncTransaction", "Opening", "open", "open_in_memory", "unwrap", "wrap"]

D = TypeVar("D", bound="AsyncDatabase")


class AsyncTransaction(EngineAsyncTransaction):
    __doc__ = EngineAsyncTransaction.__doc__
    __slots__ = ()

    @property
    def kv(self) -> KVStore[AsyncTransaction]:
        """The run's keys and values, in this transaction."""
        return KVStore(self)

    @property
    def events(self) -> EventLog[AsyncTransaction]:
        """The run's event log, in this transaction."""
        return EventLog(self)

    @property
    def cells(self) -> StateCell[AsyncTransaction]:
        """The run's state cells, in this transaction."""
        return StateCell(self)

    @property
    def traces(self) -> TraceStore[AsyncTransaction]:
        """The run's traces, in this transaction."""
        return TraceStore(self)

    @property
    def runs(self) -> RunIndex[AsyncTransaction]:
        """The runs of the namespace, in this transaction."""
        return RunIndex(self)

    @property
    def tasks(self) -> Tasks[AsyncTransaction]:
        """The run's queues of tasks, in this transaction."""
        return Tasks(self)

    @property
    def leases(self) -> Leases[AsyncTransaction]:
        """The run's leases, in this transaction."""
        return Leases(self)

    @property
    def steps(self) -> Steps[AsyncTransaction]:
        """The run's steps, in this transaction."""
        return Steps(self)


class _Base(AwaitedBase):
    transaction_class = AsyncTransaction


class AsyncDatabase(EngineAsyncDatabase[AsyncTransaction]):
    """A database for programs with an event loop, as `occamdb.aio.open` and `open_in_memory` give it.

    It has the names of `occamdb.Database`. Reads are plain calls. What commits is awaited: many tasks commit at once,
    and their commits share batches and syncs.

        async with occamdb.aio.open("agents.db") as db:
            await db.kv.put(run_id, "plan", ["think"])
            print(db.kv.get(run_id, "plan"))
    """

    __slots__ = ()
    base_class = _Base

    @property
    def kv(self) -> KVStore[AsyncDatabase]:
        """Keys and values: `await db.kv.put(run_id, "key", value)`."""
        return KVStore(self)

    @property
    def events(self) -> EventLog[AsyncDatabase]:
        """Event logs, one a run: `await db.events.append(run_id, "started", {...})`."""
        return EventLog(self)

    @property
    def cells(self) -> StateCell[AsyncDatabase]:
        """Named state: `await db.cells.transition(run_id, "task", fn)`."""
        return StateCell(self)

    @property
    def traces(self) -> TraceStore[AsyncDatabase]:
        """Traces of what agents did: `await db.traces.record(run_id, ToolCall(...))`."""
        return TraceStore(self)

    @property
    def runs(self) -> RunIndex[AsyncDatabase]:
        """The index of runs: `await db.runs.create_run("agent 7")`."""
        return RunIndex(self)

    @property
    def tasks(self) -> Tasks[AsyncDatabase]:
        """Queues of tasks that processes share: `await db.tasks.put(run_id, "pages", payload)`."""
        return Tasks(self)

    @property
    def leases(self) -> Leases[AsyncDatabase]:
        """Leases: one holder at a time: `async with db.leases.hold(run_id, "leader") as lease: ...`."""
        return Leases(self)

    @property
    def steps(self) -> Steps[AsyncDatabase]:
        """Steps that run once a run: `await db.steps.run(run_id, "fetch", fn, url)`."""
        return Steps(self)

    def snapshot(self, run_id: RunLike) -> Snapshot:
        """A read-only view of a run; needs no coordinator, and goes on working while it is down. Close it when done."""
        return Snapshot(self._base.begin(run_id, read_only=True))


class Opening(Generic[D]):
    """What `open` gives: await it for the database, or `async with` it, which closes the database at the end."""

    __slots__ = ("_db", "_open")

    def __init__(self, opener: Callable[[], D]) -> None:
        self._open = opener
        self._db: D | None = None

    async def _opened(self) -> D:
        # Starting a coordinator, or waiting until it has recovered, blocks.
        opener = _Opener(self._open)
        try:
            db: D = await in_thread(opener.open)
        except asyncio.CancelledError:
            opener.cancel()
            raise
        return db

    def __await__(self) -> Generator[Any, Any, D]:
        return self._opened().__await__()

    async def __aenter__(self) -> D:
        self._db = db = await self._opened()
        return db

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._db is not None:
            await self._db.close()

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            raise AttributeError(
                f"a database that is not open yet has no {name!r}: write `db = await occamdb.aio.open(path)`, "
                "or `async with occamdb.aio.open(path) as db`"
            )


class _Opener(Generic[D]):
    """Opens a database in a thread, and closes it again if the task that wants it was cancelled meanwhile.

    It does so although the task's loop may have ended by then.
    """

    def __init__(self, open_: Callable[[], D]) -> None:
        self._open = open_
        self._lock = threading.Lock()
        self._cancelled = False
        self._db: D | None = None

    def open(self) -> D:
        """Called in a thread."""
        db = self._open()
        with self._lock:
            self._db = db
            unwanted = self._cancelled
        if unwanted:
            db.handle.close()
        return db

    def cancel(self) -> None:
        """Nobody gets the database."""
        with self._lock:
            self._cancelled = True
            db = self._db
        if db is not None:
            # It says goodbye to the coordinator, which may take a while.
            threading.Thread(target=db.handle.close, name="occamdb-close").start()


def _wrapped(database: EngineDatabase[Any], async_links: int) -> AsyncDatabase:
    handle: Any = database.handle
    wrapped: Any
    if isinstance(handle, LocalHandle | SharedHandle):
        wrapped = AwaitedHandle(handle, async_links)
    else:
        # Here: a program without a server does not import it.
        from ..engine.remote.awaited import AwaitedRemote

        wrapped = AwaitedRemote(handle)
    return AsyncDatabase(
        wrapped, database.isolation, database.current_namespace, database.codec, database.run_rule
    )


def wrap(db: Database, *, async_links: int = ASYNC_LINKS) -> AsyncDatabase:
    """An open database for event loops as well: the same engine, and the same session.

        db = occamdb.open("agents.db")
        await occamdb.aio.wrap(db).put(run_id, "key", "value")

    Closing either closes both. Closing the asynchronous one waits for its commits first.

    Args:
      db: what `occamdb.open` or `open_in_memory` gave.
      async_links: as `open`.

    Raises:
      TypeError: `db` is not a database.
    """
    if not isinstance(db, Database):
        raise TypeError(f"expected a Database, as occamdb.open gives it, got {type(db).__name__}")
    return _wrapped(db, async_links)


def unwrap(db: AsyncDatabase) -> Database:
    """An open asynchronous database for threads that may block: the same engine, and the same session.

        db = await occamdb.aio.open("agents.db")
        await asyncio.to_thread(occamdb.aio.unwrap(db).transaction, run_id, function)

    Closing either closes both. Its commits block the thread that makes them: do not call it from a task.

    Args:
      db: what `open`, `open_in_memory` or `wrap` gave.

    Raises:
      TypeError: `db` is not an asynchronous database.
    """
    if not isinstance(db, AsyncDatabase):
        raise TypeError(f"expected an AsyncDatabase, as occamdb.aio.open gives it, got {type(db).__name__}")
    handle: Any = db.handle
    base = db._base
    return Database(handle.inner, db._isolation, db.current_namespace, base.codec, base.run_rule)


def open(
    path: str | os.PathLike[str],
    *,
    durability: DurabilityName = "standard",
    isolation: IsolationName = "serializable",
    start: Literal["auto", "never"] = "auto",
    timeout: float = 10.0,
    tenant: str = "default",
    app: str = "default",
    agent: str = "default",
    default: Default | None = None,
    restore: Restore | None = None,
    strict_runs: bool = False,
    async_links: int = ASYNC_LINKS,
    **settings: Unpack[SettingsKeywords],
) -> Opening[AsyncDatabase]:
    """Open the database in the directory `path` for a program with an event loop.

        db = await occamdb.aio.open("agents.db")
        async with occamdb.aio.open("agents.db", durability="always") as db: ...

    Args:
      async_links: the most commits that each event loop has under way at once. Further ones wait for their turn.
      path, durability, isolation, start, timeout, tenant, app, agent, default, restore, strict_runs, settings: as
        `occamdb.open`.

    Raises, when it is awaited:
      What `occamdb.open` raises.
    """
    check_async_links(async_links)

    def opener() -> AsyncDatabase:
        database = opening.open_database(
            EngineDatabase,
            path,
            durability=durability,
            isolation=isolation,
            start=start,
            timeout=timeout,
            tenant=tenant,
            app=app,
            agent=agent,
            codec=Codec(default, restore),
            run_rule=ActiveRuns() if strict_runs else None,
            **settings,
        )
        return _wrapped(database, async_links)

    return Opening(opener)


def open_in_memory(
    *,
    isolation: IsolationName = "serializable",
    tenant: str = "default",
    app: str = "default",
    agent: str = "default",
    default: Default | None = None,
    restore: Restore | None = None,
    strict_runs: bool = False,
    **settings: Unpack[SettingsKeywords],
) -> Opening[AsyncDatabase]:
    """A database in this process alone: no files, no coordinator, the same semantics.

        async with occamdb.aio.open_in_memory() as db: ...

    Its commits wait for nothing, and each lets other tasks have their turn. Arguments are those of
    `occamdb.open_in_memory`.
    """
    opener = functools.partial(
        opening.open_in_memory,
        EngineDatabase,
        isolation=isolation,
        tenant=tenant,
        app=app,
        agent=agent,
        codec=Codec(default, restore),
        run_rule=ActiveRuns() if strict_runs else None,
        **settings,
    )
    return Opening(lambda: _wrapped(opener(), ASYNC_LINKS))
