"""A database as users hold it: transactions with retries, one-operation transactions, snapshots,
administration.

1. It owns nothing but its handle and the namespace it is bound to: `db.namespace(...)` gives another face of
   the same engine, and closing one closes all.
2. Safe from several threads. A fork is harmless: the child attaches anew at its first call.
3. It pickles as a way to attach, if its handle does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Concatenate,
    Generic,
    Literal,
    ParamSpec,
    Self,
    TypeVar,
    overload,
)
from uuid import UUID

from ..model.errors import DatabaseClosedError
from ..model.key_types import UserKey
from ..model.keys import Namespace
from ..model.public_types import BackupSummary, HasRunId, IsolationName, RunId, TypeTag, VersionedValue
from ..model.retry_policy import RetryPolicy
from ..model.values import Codec
from ._transaction import DatabaseBase, TransactionBase
from .attempts import Attempt, TransactionalFunction, attempts, run_transaction, transactional
from .engine_handle import EngineHandle
from .extensions import Extensible
from .guard import RunRule
from .snapshot import SharedSnapshotView
from .transaction import Transaction
from .watch import ChangeReader, Watch, wait_deadline

__all__ = ["Database"]

P = ParamSpec("P")
T = TypeVar("T")
X = TypeVar("X", bound=Transaction)
Run = RunId | UUID | str | HasRunId

KV = int(TypeTag.KV)
_DEFAULT_RETRY = RetryPolicy()


class Database(Extensible, DatabaseBase, Generic[X]):
    """Begins transactions of the class `transaction_class` on one engine, in one namespace.

    `occamdb.Database` is the one that users hold; its transactions have the primitives.

    Args:
      handle: the engine.
      isolation: of a transaction that does not name one: "serializable" or "snapshot".
      namespace: the tenant, app and agent to which the runs belong; None: the default ones.
      codec: how values are stored; None: without hooks for types of the user's own.
      run_rule: which runs may be written to; None: all. It has to pickle.
    """

    __slots__ = ("__weakref__", "_isolation")
    transaction_class: ClassVar[type[TransactionBase]] = Transaction
    inner_names = Extensible.inner_names | {
        "attachment", "codec", "first_key", "handle", "namespace_", "prefix_of", "run_rule",
        "space", "transaction_class", "waiting_transaction",
    }  # fmt: skip

    def __init__(
        self,
        handle: EngineHandle,
        isolation: IsolationName = "serializable",
        namespace: Namespace | None = None,
        codec: Codec | None = None,
        run_rule: RunRule | None = None,
    ) -> None:
        super().__init__(handle, isolation, namespace, codec, run_rule)
        self._isolation: Literal["serializable", "snapshot"] = (
            "snapshot" if isolation == "snapshot" else "serializable"
        )

    # --- Transactions ------------------------------------------------------------------------------

    if TYPE_CHECKING:

        def begin(
            self,
            run_id: Run,
            *,
            isolation: IsolationName | None = None,
            read_only: bool = False,
            timeout: float | None = None,
            attempts: int = 1,
            may_wait: bool = False,
            turn: int = 0,
            patient: bool = False,
            late: bool = False,
        ) -> X: ...

    def transaction(
        self,
        run_id: Run,
        fn: Callable[[X], T],
        *,
        retry: RetryPolicy = _DEFAULT_RETRY,
        timeout: float | None = None,
        isolation: IsolationName | None = None,
    ) -> T:
        """Call `fn(txn)` and commit; on a conflict again, on a fresh snapshot. Returns what `fn` returned.

        `fn` may be called several times, so its other effects must bear repetition. It may use this database
        for transactions of their own.

        Args:
          run_id: the run that `txn` shows.
          fn: not a generator or async function.
          retry: how often, after which pauses.
          timeout: seconds for all attempts together; None: no limit.
          isolation: None: as the database was opened.

        Raises:
          RetriesExhausted: every attempt conflicted.
          TransactionTimeout: `timeout` passed first; nothing was committed.
        """
        return run_transaction(self.begin, run_id, fn, retry=retry, timeout=timeout, isolation=isolation)

    def waiting_transaction(
        self,
        run_id: Run,
        fn: Callable[[X], T],
        retry: RetryPolicy,
        wait_timeout: float | None,
        isolation: IsolationName | None = None,
    ) -> T:
        """`transaction` with a deadline for `txn.wait` alone: for primitives."""
        return run_transaction(
            self.begin, run_id, fn, retry=retry, isolation=isolation, wait_timeout=wait_timeout
        )

    @overload
    def transactional(self, fn: Callable[Concatenate[X, P], T], /) -> TransactionalFunction[P, T]: ...

    @overload
    def transactional(
        self,
        /,
        *,
        retry: RetryPolicy = _DEFAULT_RETRY,
        timeout: float | None = None,
        isolation: IsolationName | None = None,
    ) -> Callable[[Callable[Concatenate[X, P], T]], TransactionalFunction[P, T]]: ...

    def transactional(
        self,
        fn: Any = None,
        /,
        *,
        retry: RetryPolicy = _DEFAULT_RETRY,
        timeout: float | None = None,
        isolation: IsolationName | None = None,
    ) -> Any:
        """Decorator for `f(txn, ...)`: `f(run_id, ...)` then runs as by `transaction`, and `f(txn, ...)`
        joins.

        Raises:
          InvalidArgumentError: `f` is a generator or async function.
        """

        def decorate(function: Callable[..., Any]) -> Any:
            return transactional(self.begin, function, retry=retry, timeout=timeout, isolation=isolation)

        return decorate if fn is None else decorate(fn)

    def attempts(
        self,
        run_id: Run,
        *,
        retry: RetryPolicy = _DEFAULT_RETRY,
        timeout: float | None = None,
        isolation: IsolationName | None = None,
    ) -> Iterator[Attempt[X]]:
        """Retries for code that cannot be put into a function.

            for attempt in db.attempts(run_id):
                with attempt as txn:
                    ...

        Leave the block at its end. A `break` or `return` in it commits too, but a commit that then conflicts
        cannot be tried again: the loop ends with a ConflictError, which Python can only print
        (`sys.unraisablehook`).
        """
        return attempts(self.begin, run_id, retry=retry, timeout=timeout, isolation=isolation)

    # --- One operation each, on the run's key-value space --------------------------------------------

    def get(self, run_id: Run, key: UserKey, default: Any = None) -> Any:
        """The newest committed value of a key, `default` when absent."""
        return self.space(run_id, KV).get(key, default)

    def get_versioned(self, run_id: Run, key: UserKey) -> VersionedValue | None:
        """The newest committed value with version and times, None when absent."""
        return self.space(run_id, KV).get_versioned(key)

    def put(
        self,
        run_id: Run,
        key: UserKey,
        value: Any,
        *,
        ttl: float | timedelta | None = None,
        ephemeral: bool = False,
    ) -> int:
        """Set a key; returns the version of the commit. It begins and commits in one step, so it cannot
        conflict.

        Args:
          ttl: seconds, or a timedelta, until the key is absent again; None: never.
          ephemeral: the key goes when this open database does, by `close` or by the death of its process.
        """
        return self.space(run_id, KV).put(key, value, ttl=ttl, ephemeral=ephemeral)

    def delete(self, run_id: Run, key: UserKey) -> bool:
        """Remove a key; returns whether it was there."""
        return self.space(run_id, KV).delete(key)

    def cas(
        self,
        run_id: Run,
        key: UserKey,
        expected_version: int,
        value: Any,
        *,
        ttl: float | timedelta | None = None,
        ephemeral: bool = False,
    ) -> int:
        """Set a key if its version is the expected one (0: absent); returns the new version.

        Raises:
          CASConflict: it has another version.
        """
        return self.space(run_id, KV).cas(key, expected_version, value, ttl=ttl, ephemeral=ephemeral)

    def exists(self, run_id: Run, key: UserKey) -> bool:
        """Whether the key is there."""
        return self.space(run_id, KV).exists(key)

    def increment(
        self,
        run_id: Run,
        key: UserKey,
        by: int = 1,
        *,
        at_most: int | None = None,
        at_least: int | None = None,
    ) -> int:
        """Add to an integer, where an absent key counts as 0; returns the new value. Increments cannot
        conflict.

        Args:
          at_most, at_least: the bounds of the new value.

        Raises:
          NotAnIntegerError: the key holds something else; nothing was changed.
          IntegerOverflowError: the sum does not fit 64 bits; nothing was changed.
          BoundReached: the sum would pass a bound; nothing was changed.
        """
        return self.space(run_id, KV).add(key, by, at_most=at_most, at_least=at_least)

    def scan(
        self,
        run_id: Run,
        prefix: UserKey = "",
        *,
        start: UserKey | None = None,
        end: UserKey | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Iterator[tuple[str, VersionedValue]]:
        """(key, VersionedValue) of the keys with a prefix, in key order, on one snapshot, read while
        iterated.

        Args:
          start: no key before this one.
          end: no key from this one on.
          limit: the most rows.
          reverse: from the last key to the first.
        """
        return self.space(run_id, KV).scan(prefix, start=start, end=end, limit=limit, reverse=reverse)

    @overload
    def list(
        self, run_id: Run, prefix: UserKey = "", *, limit: int | None = None, raw: Literal[False] = False
    ) -> list[str]: ...
    @overload
    def list(
        self, run_id: Run, prefix: UserKey = "", *, limit: int | None = None, raw: Literal[True]
    ) -> list[bytes]: ...
    def list(
        self, run_id: Run, prefix: UserKey = "", *, limit: int | None = None, raw: bool = False
    ) -> list[str] | list[bytes]:
        """The keys with a prefix, in byte order; `raw`: as bytes."""
        return [*self.space(run_id, KV).keys(prefix, limit=limit, raw=raw)]

    def snapshot(self, run_id: Run) -> SharedSnapshotView:
        """A read-only view of a run. It works while the coordinator is down. Close it when done."""
        return SharedSnapshotView(self.begin(run_id, read_only=True))

    def watch(
        self,
        run_id: Run,
        prefix: UserKey = "",
        *,
        since: int | None = None,
        tag: int = KV,
        timeout: float | None = None,
    ) -> Watch:
        """Follow the changes of a run: each of them exactly once, in the order of the commits.

            with db.watch(run) as watch:
                for change in watch:
                    print(change.key, change.kind, change.value)

        Args:
          prefix: what the keys begin with.
          since: begin with the changes after this version; None: with those to come.
          tag: the part of the run; `TypeTag.STATE`, for instance, for its cells.
          timeout: seconds to wait for the next change, after which the loop ends; None: for ever.

        Raises:
          InvalidArgumentError: an argument is wrong, or `since` lies in the future.
          WatchLagged: while iterating: changes after `since` are no longer kept.
        """
        tag_prefix = self.prefix_of(run_id, tag)
        wait_deadline(timeout)
        return Watch(ChangeReader(self.handle, self.codec, tag_prefix, prefix, since), timeout)

    # --- Namespaces ------------------------------------------------------------------------------------

    @property
    def current_namespace(self) -> Namespace:
        """The tenant, app and agent to which the runs belong."""
        namespace: Namespace = self.namespace_
        return namespace

    def namespace(self, tenant: str | None = None, app: str | None = None, agent: str | None = None) -> Self:
        """The same database for another tenant, app or agent. A part that is left out stays as it is here."""
        here = self.current_namespace
        chosen = Namespace(
            here.tenant if tenant is None else tenant,
            here.app if app is None else app,
            here.agent if agent is None else agent,
        )
        return type(self)(self.handle, self._isolation, chosen, self.codec, self.run_rule)

    # --- Administration ------------------------------------------------------------------------------------

    @property
    def path(self) -> str | None:
        """The directory of the database, or the URL of its server without secrets; None for one in memory."""
        place: str | None = getattr(self.handle, "location", None) or getattr(self.handle, "path", None)
        return place

    @property
    def isolation(self) -> Literal["serializable", "snapshot"]:
        """The isolation of a transaction that does not name one."""
        return self._isolation

    @property
    def durability(self) -> str:
        """What an acknowledged commit survives: "none", "standard" or "always"."""
        return self.handle.durability

    @property
    def session(self) -> int:
        """The id of this open database in this process: `VersionedValue.session` of the ephemeral keys that it wrote.

        A forked child has another one, and so has a process whose session ended while it was stopped.
        """
        return self.handle.session

    def checkpoint(self) -> dict[str, Any]:
        """Write a checkpoint now and remove the log before it. Commits go on meanwhile."""
        return self.handle.admin({"kind": "checkpoint"})

    def backup(
        self, destination: str | PathLike[str], *, progress: Callable[[int], None] | None = None
    ) -> BackupSummary:
        """Copy the whole database, as it is now, into a new directory, while commits go on.

            db.backup("agents-copy.db")

        The copy holds every namespace, at one version, and is a database of its own, which `open` opens. This is what
        `occamdb backup` does. Blocks until the copy is on disk.

        Args:
          destination: a directory that does not exist yet, or is empty.
          progress: called now and then with the number of rows written. An exception that it raises ends the copy.

        Raises:
          AlreadyExistsError: there is something at the destination.
          SnapshotExpired: it took longer than `snapshot_max_age`, the store filled up, or a new coordinator took over
            as it began; nothing is left of the copy.
          OSError: it could not be written; nothing is left of the copy.
        """
        with self.begin(RunId.new(), read_only=True) as txn:
            return self.handle.copy_to(txn, Path(destination), progress)

    def stats(self) -> dict[str, Any]:
        """Figures of the engine since the coordinator started, from all processes.

        They are commits, aborts by kind, retries, hot keys, sizes, latencies and workers.
        `conflicts_found_early` counts the conflicts that workers found without asking the coordinator.
        """
        return self.handle.admin({"kind": "stats"})

    def close(self) -> None:
        """Close the engine, and with it every namespace of this database. Closing twice is harmless."""
        self.handle.close()

    def __enter__(self) -> Self:
        if getattr(self.handle, "closed", False):
            raise DatabaseClosedError()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        here = self.current_namespace
        return type(self), (self.handle, self._isolation, here, self.codec, self.run_rule)

    def __repr__(self) -> str:
        where = "in memory" if self.path is None else repr(self.path)
        here = self.current_namespace
        named = f" namespace={here.tenant}/{here.app}/{here.agent}" if here != Namespace() else ""
        if getattr(self.handle, "closed", False):
            return f"<Database {where} closed{named}>"
        rule = "" if self.run_rule is None else f" {self.run_rule!r}"
        return f"<Database {where} durability={str(self.durability)!r} isolation={self._isolation!r}{named}{rule}>"
