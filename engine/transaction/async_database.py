"""A database as programs with an event loop hold it: the names of `Database`, with commits that are awaited.

1. Reads are plain calls: they look into local memory. So is beginning a read-only transaction.
2. What commits is a coroutine: nothing is sent before it is awaited.
3. It may be used in several event loops, one after the other or each in a thread of its own. It goes through a fork,
   and pickles as a way to attach, if its handle does.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from datetime import timedelta
from types import TracebackType
from typing import (
    Any,
    ClassVar,
    Concatenate,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    Self,
    TypeVar,
    cast,
    overload,
)
from uuid import UUID

from ..model.keys import Namespace
from ..model.public_types import HasRunId, IsolationName, RunId, TypeTag, VersionedValue
from ..model.retry_policy import RetryPolicy
from ..model.values import Codec
from ._pending import DeferredCommit
from ._transaction import DatabaseBase, ImplicitSpace
from .async_transaction import (
    AsyncAttempts,
    AsyncTransaction,
    Beginning,
    Reading,
    refuse_generator_function,
    run_awaited,
)
from .engine_handle import EngineHandle
from .extensions import Extensible
from .guard import RunRule
from .loop_waits import AsyncWatch
from .snapshot import SharedSnapshotView
from .watch import ChangeReader, wait_deadline

__all__ = ["AsyncDatabase", "AsyncEngineHandle", "AwaitedBase", "AwaitedFunction"]

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
X = TypeVar("X", bound=AsyncTransaction)
X_contra = TypeVar("X_contra", bound=AsyncTransaction, contravariant=True)
Run = RunId | UUID | str | HasRunId
UserKey = str | bytes

KV = int(TypeTag.KV)
_DEFAULT_RETRY = RetryPolicy()


class AsyncEngineHandle(EngineHandle, Protocol):
    """An engine whose commits are awaited.

    Attributes:
      begins_afar: to begin a snapshot means to ask a server, so `ready` is awaited before each one.
    """

    begins_afar: bool

    async def commit(self, pending: Any) -> Any:
        """Carry a `PendingCommit` out; what its caller is given, or the error it gets."""

    async def ready(self) -> None:
        """Wait until `attachment` returns at once."""

    def unready(self) -> None:
        """Nothing begins behind `ready` after all."""

    async def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """`admin`, in a thread."""

    async def aclose(self) -> None:
        """Wait for the commits in flight, then `close`."""


class AwaitedFunction(Protocol[X_contra, P, T_co]):
    """What `@db.transactional` makes: await it with a run id, or call it with a transaction to join."""

    @overload
    def __call__(self, txn: X_contra, /, *args: P.args, **kwargs: P.kwargs) -> Any: ...
    @overload
    def __call__(self, run_id: Run, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T_co]: ...


class AwaitedBase(DatabaseBase):
    """The compiled database below an `AsyncDatabase`: its spaces leave their commits to their caller."""

    awaits_commits = True
    transaction_class = AsyncTransaction


class AsyncDatabase(Extensible, Generic[X]):
    """Begins transactions of one class on one engine, in one namespace; `occamdb.aio` has the one that users hold.

    Args:
      handle: the engine.
      isolation: of transactions that do not say: "serializable" or "snapshot".
      namespace: tenant, app and agent whose runs these are; None: the default ones.
      codec: how values are stored; None: without hooks for types of the user's own.
      run_rule: which runs may be written to; None: all. It has to pickle.
    """

    __slots__ = ("__weakref__", "_base", "_handle", "_isolation")
    base_class: ClassVar[type[AwaitedBase]] = AwaitedBase
    inner_names = Extensible.inner_names | {
        "base_class", "carried_out", "codec", "handle", "space", "waiting_transaction",
    }  # fmt: skip

    def __init__(
        self,
        handle: AsyncEngineHandle,
        isolation: IsolationName = "serializable",
        namespace: Namespace | None = None,
        codec: Codec | None = None,
        run_rule: RunRule | None = None,
    ) -> None:
        self._base = self.base_class(handle, isolation, namespace, codec, run_rule)
        self._handle = cast("AsyncEngineHandle", self._base.handle)  # of the namespace
        self._isolation: Literal["serializable", "snapshot"] = (
            "serializable" if isolation == "serializable" else "snapshot"
        )

    # --- Transactions ------------------------------------------------------------------------------

    @overload
    def begin(
        self,
        run_id: Run,
        *,
        read_only: Literal[True],
        isolation: IsolationName | None = None,
        timeout: float | None = None,
    ) -> Reading[X]: ...
    @overload
    def begin(
        self,
        run_id: Run,
        *,
        isolation: IsolationName | None = None,
        read_only: bool = False,
        timeout: float | None = None,
    ) -> Beginning[X]: ...
    def begin(
        self,
        run_id: Run,
        *,
        isolation: IsolationName | None = None,
        read_only: bool = False,
        timeout: float | None = None,
        late: bool = False,
    ) -> Beginning[X]:
        """A transaction on a fresh snapshot: `async with` it, or await it. It never retries by itself.

        As a context manager it commits on a clean exit and aborts on an exception.

            async with db.begin(run_id) as txn:
                txn.put("plan", "think")

        Args:
          isolation: "serializable" or "snapshot"; None: as the database was opened.
          read_only: refuse writes, and track no reads. A plain `with` will do for such a transaction.
          timeout: seconds after which every call raises TransactionTimeout; None: none.
          late: of a read-only one that is entered with a plain `with`: on a server it begins with its first read.
        """
        given: dict[str, Any] = {"isolation": isolation, "timeout": timeout}
        if read_only:
            now = functools.partial(self._base.begin, run_id, read_only=True, late=late, **given)
            return Reading(functools.partial(self._open, run_id, read_only=True, **given), now)
        return Beginning(functools.partial(self._open, run_id, **given))

    async def _open(self, run_id: Run, **keywords: Any) -> X:
        if self._handle.begins_afar or not self._base.attached:
            await self._handle.ready()
        try:
            txn: X = self._base.begin(run_id, **keywords)
        except BaseException:
            self._handle.unready()
            raise
        return txn

    @overload
    def transaction(
        self,
        run_id: Run,
        fn: Callable[[X], Awaitable[T]],
        *,
        retry: RetryPolicy = ...,
        timeout: float | None = ...,
        isolation: IsolationName | None = ...,
    ) -> Coroutine[Any, Any, T]: ...
    @overload
    def transaction(
        self,
        run_id: Run,
        fn: Callable[[X], T],
        *,
        retry: RetryPolicy = ...,
        timeout: float | None = ...,
        isolation: IsolationName | None = ...,
    ) -> Coroutine[Any, Any, T]: ...
    def transaction(
        self,
        run_id: Run,
        fn: Callable[[X], Any],
        *,
        retry: RetryPolicy = _DEFAULT_RETRY,
        timeout: float | None = None,
        isolation: IsolationName | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """Call `fn(txn)` and commit; on a conflict again, on a fresh snapshot. Gives what `fn` returned.

        Args:
          run_id: the run that `txn` shows.
          fn: a plain or an async function. It may be called several times, and what it does besides using `txn` should
            bear that.
          retry: how often, after which pauses.
          timeout: seconds for all attempts together; None: none.
          isolation: None: as the database was opened.

        Raises:
          RetriesExhausted: every attempt conflicted.
          TransactionTimeout: `timeout` passed first; nothing was committed.
        """
        return run_awaited(self._open, run_id, fn, retry=retry, timeout=timeout, isolation=isolation)

    def waiting_transaction(
        self,
        run_id: Run,
        fn: Callable[[X], T],
        retry: RetryPolicy,
        wait_timeout: float | None,
        isolation: IsolationName | None = None,
    ) -> Coroutine[Any, Any, T]:
        """`transaction` with a deadline for `txn.wait` alone: for primitives."""
        return run_awaited(
            self._open, run_id, fn, retry=retry, timeout=None, isolation=isolation, wait_timeout=wait_timeout
        )

    @overload
    def transactional(self, fn: Callable[Concatenate[X, P], Awaitable[T]], /) -> AwaitedFunction[X, P, T]: ...
    @overload
    def transactional(self, fn: Callable[Concatenate[X, P], T], /) -> AwaitedFunction[X, P, T]: ...
    @overload
    def transactional(
        self,
        /,
        *,
        retry: RetryPolicy = ...,
        timeout: float | None = ...,
        isolation: IsolationName | None = ...,
    ) -> Callable[[Callable[Concatenate[X, P], Any]], AwaitedFunction[X, P, Any]]: ...
    def transactional(
        self,
        fn: Any = None,
        /,
        *,
        retry: RetryPolicy = _DEFAULT_RETRY,
        timeout: float | None = None,
        isolation: IsolationName | None = None,
    ) -> Any:
        """Decorator for `f(txn, ...)`, plain or async: `await f(run_id, ...)` then runs it as `transaction` does.

        Called with a transaction, `f(txn, ...)` joins it: it is then called as written.
        """

        def decorate(function: Callable[..., Any]) -> Any:
            refuse_generator_function(function)

            @functools.wraps(function)
            def run(run_or_txn: Any, /, *args: Any, **kwargs: Any) -> Any:
                if isinstance(run_or_txn, AsyncTransaction):
                    return function(run_or_txn, *args, **kwargs)
                return self.transaction(
                    run_or_txn,
                    lambda txn: function(txn, *args, **kwargs),
                    retry=retry,
                    timeout=timeout,
                    isolation=isolation,
                )

            return run

        return decorate if fn is None else decorate(fn)

    def attempts(
        self,
        run_id: Run,
        *,
        retry: RetryPolicy = _DEFAULT_RETRY,
        timeout: float | None = None,
        isolation: IsolationName | None = None,
    ) -> AsyncAttempts[X]:
        """The same retries for code that cannot be a function.

            async for attempt in db.attempts(run_id):
                async with attempt as txn:
                    ...

        Leave the block at its end, for the reason given at `Database.attempts`.
        """
        return AsyncAttempts(self._open, run_id, retry=retry, timeout=timeout, isolation=isolation)

    # --- One operation each, on the run's key-value space --------------------------------------------

    def space(self, run_id: Run, tag: int, *, raw: bool = False) -> ImplicitSpace:
        """One tag of a run, each call a transaction of its own: for primitives. Its writes raise DeferredCommit."""
        return self._base.space(run_id, tag, raw=raw)

    def carried_out(self, deferred: DeferredCommit) -> Coroutine[Any, Any, Any]:
        """The commit that an operation left to be awaited."""
        return self._handle.commit(deferred.pending)

    def _write(self, write: Callable[..., Any], *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        try:
            write(*args, **kwargs)
        except DeferredCommit as deferred:
            return self.carried_out(deferred)
        raise AssertionError("a write that commits nothing")

    def get(self, run_id: Run, key: UserKey, default: Any = None) -> Any:
        """The newest committed value of a key, `default` when absent."""
        return self._base.space(run_id, KV).get(key, default)

    def get_versioned(self, run_id: Run, key: UserKey) -> VersionedValue | None:
        """The newest committed value with version and times, None when absent."""
        return self._base.space(run_id, KV).get_versioned(key)

    def put(
        self,
        run_id: Run,
        key: UserKey,
        value: Any,
        *,
        ttl: float | timedelta | None = None,
        ephemeral: bool = False,
    ) -> Coroutine[Any, Any, int]:
        """Set a key; gives the commit's version. It cannot conflict.

        Args:
          ttl, ephemeral: as for `Database.put`.
        """
        return self._write(self._base.space(run_id, KV).put, key, value, ttl=ttl, ephemeral=ephemeral)

    def delete(self, run_id: Run, key: UserKey) -> Coroutine[Any, Any, bool]:
        """Remove a key; gives whether it was there."""
        return self._write(self._base.space(run_id, KV).delete, key)

    def cas(
        self,
        run_id: Run,
        key: UserKey,
        expected_version: int,
        value: Any,
        *,
        ttl: float | timedelta | None = None,
        ephemeral: bool = False,
    ) -> Coroutine[Any, Any, int]:
        """Set a key if its version is the expected one (0: absent); gives the new version.

        Raises:
          CASConflict: it has another version.
        """
        cas = self._base.space(run_id, KV).cas
        return self._write(cas, key, expected_version, value, ttl=ttl, ephemeral=ephemeral)

    def exists(self, run_id: Run, key: UserKey) -> bool:
        """Whether the key is there."""
        return self._base.space(run_id, KV).exists(key)

    def increment(self, run_id: Run, key: UserKey, by: int = 1) -> Coroutine[Any, Any, int]:
        """Add to an integer, where an absent key counts as 0; gives the new value. Increments cannot conflict.

        Raises:
          NotAnIntegerError: the key holds something else; nothing was changed.
          IntegerOverflowError: the sum does not fit 64 bits; nothing was changed.
        """
        return self._write(self._base.space(run_id, KV).add, key, by)

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
        """(key, VersionedValue) of the keys with a prefix, in key order, on one snapshot; as `Database.scan`."""
        space = self._base.space(run_id, KV)
        return space.scan(prefix, start=start, end=end, limit=limit, reverse=reverse)

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
        return [*self._base.space(run_id, KV).keys(prefix, limit=limit, raw=raw)]

    def watch(
        self,
        run_id: Run,
        prefix: UserKey = "",
        *,
        since: int | None = None,
        tag: int = KV,
        timeout: float | None = None,
    ) -> AsyncWatch:
        """Follow the changes of a run: each of them exactly once, in the order of the commits.

            async with db.watch(run) as watch:
                async for change in watch:
                    print(change.key, change.kind, change.value)

        Arguments and errors are those of `Database.watch`.
        """
        tag_prefix = self._base.prefix_of(run_id, tag)
        wait_deadline(timeout)
        reader = ChangeReader(self._handle, self.codec, tag_prefix, prefix, since)
        return AsyncWatch(reader, self._handle.waits, self._handle.ready, timeout)

    def snapshot(self, run_id: Run) -> SharedSnapshotView:
        """A read-only view of a run; needs no coordinator, and goes on working while it is down. Close it when done."""
        return SharedSnapshotView(self._base.begin(run_id, read_only=True))

    # --- Namespaces and administration -----------------------------------------------------------------

    @property
    def handle(self) -> AsyncEngineHandle:
        """The engine."""
        return self._handle

    @property
    def codec(self) -> Codec:
        """How values are stored."""
        return self._base.codec

    @property
    def current_namespace(self) -> Namespace:
        """Tenant, app and agent whose runs these are."""
        return self._base.namespace_

    def namespace(self, tenant: str | None = None, app: str | None = None, agent: str | None = None) -> Self:
        """The same database for another tenant, app or agent; what is left out stays as it is here."""
        here = self.current_namespace
        chosen = Namespace(
            here.tenant if tenant is None else tenant,
            here.app if app is None else app,
            here.agent if agent is None else agent,
        )
        return type(self)(self._handle, self._isolation, chosen, self.codec, self._base.run_rule)

    @property
    def path(self) -> str | None:
        """The directory of the database; None for one in memory."""
        path: str | None = getattr(self._handle, "path", None)
        return path

    @property
    def isolation(self) -> str:
        """The isolation of transactions that do not say."""
        return self._isolation

    @property
    def durability(self) -> str:
        """What an acknowledged commit survives: "none", "standard" or "always"."""
        return self._handle.durability

    def checkpoint(self) -> Coroutine[Any, Any, dict[str, Any]]:
        """Write a checkpoint and remove the log before it. Commits go on meanwhile."""
        return self._handle.ask({"kind": "checkpoint"})

    def stats(self) -> Coroutine[Any, Any, dict[str, Any]]:
        """Figures of the engine since the coordinator started, from all processes; as `Database.stats`."""
        return self._handle.ask({"kind": "stats"})

    def close(self) -> Coroutine[Any, Any, None]:
        """Wait for the commits in flight and let go of the engine. Closing twice is harmless."""
        return self._handle.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        here = self.current_namespace
        return type(self), (self._handle, self._isolation, here, self.codec, self._base.run_rule)

    def __repr__(self) -> str:
        where = "in memory" if self.path is None else repr(self.path)
        here = self.current_namespace
        named = f" namespace={here.tenant}/{here.app}/{here.agent}" if here != Namespace() else ""
        if getattr(self._handle, "closed", False):
            return f"<AsyncDatabase {where} closed{named}>"
        return f"<AsyncDatabase {where} durability={str(self.durability)!r} isolation={self._isolation!r}{named}>"
