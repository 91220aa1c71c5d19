"""`occamdb.Database` and `occamdb.Transaction`: the engine's, with the primitives on them. `open` makes them.

A further primitive registers itself (`extension.register`) and then hangs on the same objects. Those that come with
the package are named here, where type checkers and editors see them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from ..engine.client import opening
from ..engine.model.limits import Limits
from ..engine.model.public_types import Durability, IsolationName
from ..engine.model.values import Codec
from ..engine.transaction.database import Database as EngineDatabase
from ..engine.transaction.snapshot import SharedSnapshotView
from ..engine.transaction.transaction import Transaction as EngineTransaction
from .event_log import EventLog
from .extension import RunLike, enlist
from .kv import KVStore
from .leases import Leases
from .run_index import RunIndex
from .run_rule import ActiveRuns
from .state_cell import StateCell
from .steps import Steps
from .tasks import Tasks
from .trace_store import TraceStore

__all__ = ["Database", "SettingsKeywords", "Snapshot", "Transaction", "open", "open_in_memory"]

DurabilityName = Durability | Literal["none", "standard", "always"]

for _primitive in (KVStore, EventLog, StateCell, TraceStore, RunIndex, Tasks, Leases, Steps):
    enlist(_primitive)

Default = Callable[[Any], tuple[str, Any] | None]
Restore = Callable[[str, Any], Any]


class Transaction(EngineTransaction):
    __doc__ = EngineTransaction.__doc__
    __slots__ = ()

    @property
    def kv(self) -> KVStore[Transaction]:
        """The run's keys and values, in this transaction."""
        return KVStore(self)

    @property
    def events(self) -> EventLog[Transaction]:
        """The run's event log, in this transaction."""
        return EventLog(self)

    @property
    def cells(self) -> StateCell[Transaction]:
        """The run's state cells, in this transaction."""
        return StateCell(self)

    @property
    def traces(self) -> TraceStore[Transaction]:
        """The run's traces, in this transaction."""
        return TraceStore(self)

    @property
    def runs(self) -> RunIndex[Transaction]:
        """The runs of the namespace, in this transaction."""
        return RunIndex(self)

    @property
    def tasks(self) -> Tasks[Transaction]:
        """The run's queues of tasks, in this transaction."""
        return Tasks(self)

    @property
    def leases(self) -> Leases[Transaction]:
        """The run's leases, in this transaction."""
        return Leases(self)

    @property
    def steps(self) -> Steps[Transaction]:
        """The run's steps, in this transaction."""
        return Steps(self)


class Snapshot(SharedSnapshotView):
    """A read-only view of a run at one version, as `db.snapshot(run_id)` gives it: its keys, and every primitive.

        with db.snapshot(run_id) as view:
            print(view.get("plan"), len(view.events))

    Writes raise ReadOnlyError. It needs no coordinator. Close it when done: what it shows cannot be reclaimed before.
    """

    __slots__ = ()

    if TYPE_CHECKING:

        def transaction(self) -> Transaction: ...

    @property
    def kv(self) -> KVStore[Transaction]:
        """The run's keys and values, in this snapshot."""
        return KVStore(self.transaction())

    @property
    def events(self) -> EventLog[Transaction]:
        """The run's event log, in this snapshot."""
        return EventLog(self.transaction())

    @property
    def cells(self) -> StateCell[Transaction]:
        """The run's state cells, in this snapshot."""
        return StateCell(self.transaction())

    @property
    def traces(self) -> TraceStore[Transaction]:
        """The run's traces, in this snapshot."""
        return TraceStore(self.transaction())

    @property
    def runs(self) -> RunIndex[Transaction]:
        """The runs of the namespace, in this snapshot."""
        return RunIndex(self.transaction())

    @property
    def tasks(self) -> Tasks[Transaction]:
        """The run's queues of tasks, in this snapshot."""
        return Tasks(self.transaction())

    @property
    def leases(self) -> Leases[Transaction]:
        """The run's leases, in this snapshot."""
        return Leases(self.transaction())

    @property
    def steps(self) -> Steps[Transaction]:
        """The run's steps, in this snapshot."""
        return Steps(self.transaction())


class Database(EngineDatabase[Transaction]):
    """A database as `occamdb.open` and `occamdb.open_in_memory` give it.

    It begins transactions (`begin`, `transaction`, `attempts`), and its primitives (`kv`, `events`, `cells`, `traces`,
    `runs`, `tasks`) make a transaction of each call. It is safe to use from several threads, goes through a fork, and
    pickles as a way to attach, so that it can be passed to worker processes.
    """

    __slots__ = ()
    transaction_class = Transaction

    @property
    def kv(self) -> KVStore[Database]:
        """Keys and values: `db.kv.put(run_id, "key", value)`."""
        return KVStore(self)

    @property
    def events(self) -> EventLog[Database]:
        """Event logs, one a run: `db.events.append(run_id, "started", {...})`."""
        return EventLog(self)

    @property
    def cells(self) -> StateCell[Database]:
        """Named state: `db.cells.transition(run_id, "task", fn)`."""
        return StateCell(self)

    @property
    def traces(self) -> TraceStore[Database]:
        """Traces of what agents did: `db.traces.record(run_id, ToolCall(...))`."""
        return TraceStore(self)

    @property
    def runs(self) -> RunIndex[Database]:
        """The index of runs: `db.runs.create_run("agent 7")`."""
        return RunIndex(self)

    @property
    def tasks(self) -> Tasks[Database]:
        """Queues of tasks that processes share: `db.tasks.put(run_id, "pages", payload)`."""
        return Tasks(self)

    @property
    def leases(self) -> Leases[Database]:
        """Leases: one holder at a time: `with db.leases.hold(run_id, "leader") as lease: ...`."""
        return Leases(self)

    @property
    def steps(self) -> Steps[Database]:
        """Steps that run once a run: `db.steps.run(run_id, "fetch", fn, url)`."""
        return Steps(self)

    def snapshot(self, run_id: RunLike) -> Snapshot:
        """A read-only view of a run; needs no coordinator, and works while it is down. Close it when done."""
        return Snapshot(self.begin(run_id, read_only=True))


class SettingsKeywords(TypedDict, total=False):
    """The settings that `open` takes by name; `occamdb.Settings` says what each means.

    Sizes are bytes or text such as "64MiB", times are seconds. None means "not given".
    """

    max_store_size: int | str | None
    ring_size: int | str | None
    wal_segment_size: int | str | None
    checkpoint_bytes: int | str | None
    checkpoint_interval: float | None
    sync_interval: float | None
    snapshot_max_age: float | None
    idle_timeout: float | None
    session_grace: float | None
    channel_count_max: int | None
    watch_history: int | str | None
    request_memory_max: int | str | None
    limits: Limits | dict[str, int | str] | None
    key_size_max: int | str | None
    value_size_max: int | str | None
    transaction_size_max: int | str | None


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
    **settings: Unpack[SettingsKeywords],
) -> Database:
    """Open the database in the directory `path`; starts a coordinator if none runs for it, else attaches to its own.

    Any number of processes may open the same directory. The result may be used from several threads, goes through
    fork, and pickles as a way to attach.

        db = occamdb.open("agents.db")
        accounts = occamdb.open("accounts.db", durability="always", max_store_size="1GiB")

    Args:
      path: the database directory; made when missing.
      durability: what an acknowledged commit survives: "none" the death of workers, "standard" kill -9 of every
        process, "always" power loss.
      isolation: of transactions that do not say: "serializable" or "snapshot".
      start: "auto" starts a coordinator when there is none, now and after it died; "never" waits for somebody else's.
      timeout: seconds to wait for a coordinator, and for its answer to a commit.
      tenant, app, agent: the namespace whose runs this database shows.
      default: called with a value of a type that cannot be stored; returns a name and a storable value that stand for
        it, or None for a type it does not know. `occamdb.value_hooks(MyClass)` makes both hooks.
      restore: called with such a name and value when it is read; returns the value. Both must pickle where the database
        is passed to other processes.
      strict_runs: refuse commits that write to a run which is not active in the index of runs, such as one that was
        completed, or a mistyped id (`RunNotActive`). It holds for this handle and its copies in other processes.
      settings: by name, over `settings.toml` in the directory: see `occamdb.Settings`.

    Raises:
      CoordinatorUnavailable: none could be started or reached in time.
      SettingsMismatchError: the running coordinator has other settings than those given here.
      CorruptionError, IncompatibleFormatError: what is on disk cannot be opened; nothing was changed.
      StoreFullError: there is not enough shared memory.
      InvalidArgumentError, SettingsError: an argument is wrong.
    """
    return opening.open_database(
        Database,
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
) -> Database:
    """A database in this process alone: no files, no coordinator, the same semantics.

        db = occamdb.open_in_memory()

    Args:
      isolation, tenant, app, agent, default, restore, strict_runs: as for `open`.
      settings: the sizes and limits among `occamdb.Settings`.

    Raises:
      StoreFullError: `max_store_size` cannot be mapped.
      InvalidArgumentError, SettingsError: an argument is wrong.
    """
    return opening.open_in_memory(
        Database,
        isolation=isolation,
        tenant=tenant,
        app=app,
        agent=agent,
        codec=Codec(default, restore),
        run_rule=ActiveRuns() if strict_runs else None,
        **settings,
    )
