"""Transactions whose commit is awaited: the transaction itself, beginning one, and running one again until it commits.

Everything but the commit is the plain transaction's: reads look into local memory and writes are kept in it, so
neither is awaited.

1. A commit that was started ends, whether somebody waits for it or not. `outcome` tells how.
2. A snapshot is begun only when that needs no waiting: a coordinator that has to be reached first is awaited.
3. What is retried, and when, is as in `attempts.py`, whose bookkeeping this uses.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from types import AsyncGeneratorType, GeneratorType, TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, cast

from ..model.errors import (
    CommitOutcomeUnknown,
    ConflictError,
    InvalidArgumentError,
    SnapshotExpired,
    TransactionStateError,
)
from ..model.public_types import CommitReceipt, IsolationName, TransactionStatus
from ..model.retry_policy import RetryPolicy
from ._pending import engine_of, learn_outcome, pending_of, stage_commit
from ._transaction import TransactionBase
from .attempts import Retrying, calls_for_retry, left_while_waiting, lost_at_the_end, require_policy
from .extensions import Extensible
from .loop_waits import await_change
from .wait_signal import WaitSignal

__all__ = ["AsyncAttempt", "AsyncAttempts", "AsyncTransaction", "Beginning", "Opener", "Reading"]

T = TypeVar("T")
X = TypeVar("X", bound="AsyncTransaction")

Opener = Callable[
    ..., Awaitable[X]
]  # a database's way to begin a transaction: awaited, with the keywords of `begin`

_ACTIVE = TransactionStatus.ACTIVE


class AsyncTransaction(Extensible, TransactionBase):
    """One unit of work on one snapshot, as `occamdb.aio` gives it: a `Transaction` whose commit is awaited.

        async with db.begin(run_id) as txn:
            txn.put("plan", [*txn.get("plan", []), "think"])

    Reads and writes are plain calls. A transaction belongs to one task at a time.
    """

    __slots__ = ()
    inner_names = Extensible.inner_names | {
        "delete_range", "delete_run_range", "pending_size", "raw", "space", "store_incarnation", "tag",
    }  # fmt: skip

    async def commit(self, *, durable: bool = False) -> CommitReceipt:  # type: ignore[override]
        """Validate against everything committed since the snapshot and apply all writes, or none.

        A task that is cancelled here leaves a commit that was sent to its end: ask `outcome`.

        Args:
          durable: return only when the commit is on disk.

        Raises:
          ConflictError: another transaction committed first.
          TransactionStateError: it was committed or aborted already.
          CommitOutcomeUnknown: the coordinator went away and did not come back in time.
        """
        pending = stage_commit(self, durable)
        receipt: CommitReceipt = await pending.handle.commit(pending)
        return receipt

    async def outcome(self) -> CommitReceipt | None:
        """What became of the commit: its receipt, or None when nothing was or will be committed.

        Waits for a commit that is under way, and asks the coordinator about one that ended without an answer, so what
        it says is final.

        Raises:
          TransactionStateError: no commit was begun, and the transaction is still active.
          CommitOutcomeUnknown: no coordinator can be asked.
        """
        pending = pending_of(self)
        if pending is not None:
            await pending.handle.ended(pending)
        status = self.status
        if status is TransactionStatus.COMMITTED:
            return self.receipt
        if status is TransactionStatus.ABORTED:
            return None
        if status is _ACTIVE:
            raise TransactionStateError("no commit was begun", hint="await txn.commit(), or txn.abort()")
        name = self.txn_id
        if name is None:
            raise CommitOutcomeUnknown("the commit was interrupted before it had a name")
        learn_outcome(self, *await engine_of(self).outcome_of(name))
        return self.receipt if self.status is TransactionStatus.COMMITTED else None

    def __enter__(self) -> Any:
        if not self.read_only:
            _needs_async("with")
        return super().__enter__()

    def __exit__(self, exc_type: object, exc: object, traceback: object) -> None:
        if exc_type is None and self.status is _ACTIVE:
            TransactionBase.commit(self)  # it has read only: nothing is sent
        else:
            super().__exit__(exc_type, exc, traceback)

    async def __aenter__(self) -> Any:
        return super().__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            super().__exit__(kind, error, trace)
        elif self.status is _ACTIVE:
            await self.commit()


def _needs_async(word: str) -> NoReturn:
    raise InvalidArgumentError(
        f"`{word}` cannot wait for a commit of an asynchronous database",
        hint=f"write `async {word} ...`, or use occamdb.open for a program without an event loop",
    )


class Beginning(Generic[X]):
    """What `db.begin(run_id)` gives: `async with` it, or await it for a transaction that you commit yourself."""

    __slots__ = ("_open", "_txn")

    def __init__(self, begin: Callable[[], Awaitable[X]]) -> None:
        self._open = begin
        self._txn: X | None = None

    def __await__(self) -> Generator[Any, Any, X]:
        return self._open().__await__()

    async def __aenter__(self) -> X:
        if self._txn is not None:
            raise TransactionStateError("a transaction is entered once", hint="call db.begin again")
        self._txn = txn = await self._open()
        return txn

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._txn is not None:
            await self._txn.__aexit__(kind, error, trace)

    if not TYPE_CHECKING:

        def __enter__(self) -> NoReturn:
            _needs_async("with")

        def __exit__(self, *_: object) -> None:
            """Never reached; Python looks for it first."""

        def __getattr__(self, name: str) -> NoReturn:
            raise AttributeError(
                f"a transaction that is not begun has no {name!r}: "
                "write `async with db.begin(run_id) as txn`, or `txn = await db.begin(run_id)`"
            )


class Reading(Beginning[X]):
    """A read-only transaction: it waits for nothing, so a plain `with` will do as well."""

    __slots__ = ("_now",)

    def __init__(self, begin: Callable[[], Awaitable[X]], now: Callable[[], X]) -> None:
        super().__init__(begin)
        self._now = now

    def __enter__(self) -> X:
        if self._txn is not None:
            raise TransactionStateError("a transaction is entered once", hint="call db.begin again")
        self._txn = txn = self._now()
        return txn

    def __exit__(self, exc_type: object, exc: object, traceback: object) -> None:
        assert self._txn is not None
        self._txn.__exit__(exc_type, exc, traceback)


# ---- again until it commits -------------------------------------------------------------------------------------


def refuse_generator_function(fn: Callable[..., Any]) -> None:
    """Refuse functions whose body nobody would run: generators of either kind.

    Raises:
      InvalidArgumentError: not callable, or a generator function.
    """
    if not callable(fn):
        raise InvalidArgumentError(
            f"a transaction function must be callable, got {type(fn).__name__}", hint="def fn(txn): ..."
        )
    inner = inspect.unwrap(fn)
    while isinstance(inner, functools.partial):
        inner = inner.func
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise _generator(getattr(fn, "__name__", repr(fn)))


def _generator(what: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{what} is a generator: its body would run after the transaction is over", hint="return a list"
    )


async def run_awaited(
    begin: Opener[X],
    run_id: Any,
    fn: Callable[[X], Any],
    *,
    retry: RetryPolicy,
    timeout: float | None,
    isolation: IsolationName | None,
    wait_timeout: float | None = None,
) -> Any:
    """Call `fn(txn)`, plain or async, and commit; again on a fresh snapshot after each conflict."""
    refuse_generator_function(fn)
    require_policy(retry)
    retrying = None
    if timeout is not None or wait_timeout is not None or retry.turn_after == 1:
        retrying = Retrying(cast(Any, begin), run_id, retry, timeout, isolation, wait_timeout=wait_timeout)
    if retrying is None:
        first = begin(run_id, isolation=isolation, may_wait=True, patient=retry.turn_after is not None)
    else:
        first = retrying.begin()
    txn = await first
    reason: ConflictError | SnapshotExpired | WaitSignal
    while True:
        try:
            result = fn(txn)
            if isinstance(result, Awaitable):
                result = await result
            elif isinstance(result, GeneratorType | AsyncGeneratorType):
                raise _generator("the function's result")
            if txn.status is _ACTIVE:
                await txn.commit()
            return result
        except (ConflictError, SnapshotExpired) as error:
            again = calls_for_retry(txn, error)
            TransactionBase.__exit__(txn, type(error), error, None)
            if not again:
                raise
            reason = error
        except WaitSignal as signal:
            TransactionBase.__exit__(txn, type(signal), signal, None)
            if not txn.waits_by(signal):
                raise
            reason = signal
        except BaseException as error:
            TransactionBase.__exit__(txn, type(error), error, None)
            raise
        if retrying is None:
            retrying = Retrying(cast(Any, begin), run_id, retry, None, isolation, count=1)
        await _pause(retrying, txn, reason)
        txn = await retrying.begin()


async def _pause(
    retrying: Retrying[Any], txn: AsyncTransaction, reason: ConflictError | SnapshotExpired | WaitSignal
) -> None:
    """Wait for the time of the next attempt: a while, or until something that `txn` has read was changed."""
    if not isinstance(reason, WaitSignal):
        delay = retrying.delay(reason)
        # With a turn it goes on at once: others wait for it. A turn that is not used ends by itself: giving it up would
        # block the loop for a round trip.
        await asyncio.sleep(0 if retrying.takes_turn(txn) else delay)
    elif not await await_change(txn.waits, engine_of(txn).ready, reason, retrying.wait_deadline):
        raise retrying.waited_too_long() from None


class AsyncAttempt(Generic[X]):
    """One pass of the loop `async for attempt in db.attempts(run_id): async with attempt as txn: ...`.

    Attributes:
      number: which attempt this is, from 1.
      conflict: why it has to be made again; None before its end, and when it need not be.
      waits: the signal of its `txn.wait()`, None when it does not wait.
    """

    __slots__ = ("_begin", "_txn", "conflict", "number", "waits")

    def __init__(self, begin: Callable[[], Awaitable[X]], number: int) -> None:
        self._begin = begin
        self._txn: X | None = None
        self.number = number
        self.conflict: ConflictError | SnapshotExpired | None = None
        self.waits: WaitSignal | None = None

    @property
    def entered(self) -> bool:
        """Whether its block was begun."""
        return self._txn is not None

    async def __aenter__(self) -> X:
        if self._txn is not None:
            raise TransactionStateError("an attempt is entered once", hint="take the next one from the loop")
        self._txn = await self._begin()
        return self._txn

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        txn = self._txn
        assert txn is not None
        if isinstance(error, WaitSignal) and txn.waits_by(error):
            await txn.__aexit__(kind, error, trace)
            self.waits = error
            return True
        try:
            again = error is not None and calls_for_retry(txn, error)
            await txn.__aexit__(kind, error, trace)
        except (ConflictError, SnapshotExpired) as conflict:
            self.conflict = conflict
            return True
        if again and isinstance(error, ConflictError | SnapshotExpired):
            self.conflict = error
            return True
        return False

    if not TYPE_CHECKING:

        def __enter__(self) -> NoReturn:
            _needs_async("with")

        def __exit__(self, *_: object) -> None:
            """Never reached; Python looks for it first."""


class AsyncAttempts(Generic[X]):
    """What `db.attempts(run_id)` gives: iterate it with `async for`."""

    __slots__ = ("_retrying",)

    def __init__(
        self,
        begin: Opener[X],
        run_id: Any,
        *,
        retry: RetryPolicy,
        timeout: float | None,
        isolation: IsolationName | None,
    ) -> None:
        self._retrying: Retrying[Any] = Retrying(cast(Any, begin), run_id, retry, timeout, isolation)

    async def __aiter__(self) -> AsyncGenerator[AsyncAttempt[X]]:
        retrying = self._retrying
        while True:
            attempt: AsyncAttempt[X] = AsyncAttempt(retrying.begin, retrying.count + 1)
            try:
                yield attempt
            except GeneratorExit:
                # The loop was left by break or return, and nobody will run the block again.
                if attempt.conflict is not None:
                    raise lost_at_the_end(attempt.conflict) from attempt.conflict
                if attempt.waits is not None:
                    raise left_while_waiting() from None
                raise
            if not attempt.entered:
                raise TransactionStateError(
                    "the attempt was not entered", hint="write `async with attempt as txn:` in the loop"
                )
            reason = attempt.waits or attempt.conflict
            if reason is None:
                return
            assert attempt._txn is not None
            await _pause(retrying, attempt._txn, reason)

    if not TYPE_CHECKING:

        def __iter__(self) -> NoReturn:
            _needs_async("for")
