"""Running transactions again until they commit: `db.transaction`, `@db.transactional` and `db.attempts`.

1. Each attempt is a transaction of its own on a fresh snapshot. Only a conflict of *that* transaction, or the loss of
   its snapshot, leads to another attempt; whatever else the function raises aborts it and goes to the caller.
2. A `TransactionTimeout` is never reported as a conflict, nor a conflict as a timeout: past the deadline the timeout is
   raised, with the last conflict as its cause.
3. An unknown outcome is not retried: the commit may have happened.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable
from types import AsyncGeneratorType, CoroutineType, GeneratorType, TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, Self, TypeVar

from .errors import (
    ConflictError,
    InvalidArgumentError,
    OccamError,
    RetriesExhausted,
    SnapshotExpired,
    TransactionStateError,
    TransactionTimeout,
)
from .limits import TIMEOUT_MAX
from .public_types import TransactionStatus
from .retry import RetryPolicy
from .transaction import Transaction

if TYPE_CHECKING:
    from .database import Database

__all__ = ["Attempt", "Attempts", "refuse_lazy_function", "run_transaction", "transactional"]

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_ACTIVE = TransactionStatus.ACTIVE
_LAZY_FLAGS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


class TransactionalFunction(Protocol[P, T_co]):
    """What `@db.transactional` makes: call it with a run id, or with a transaction to join."""

    def __call__(self, run_or_txn: Any, /, *args: P.args, **kwargs: P.kwargs) -> T_co: ...


def refuse_lazy_function(fn: Callable[..., Any]) -> None:
    """Refuse functions whose body runs only after they returned: the transaction would be over by then.

    Raises:
      InvalidArgumentError: not callable, or a generator or async function.
    """
    code = getattr(fn, "__code__", None)
    if code is not None and not code.co_flags & _LAZY_FLAGS and not hasattr(fn, "__wrapped__"):
        return  # a plain function: by far the usual case
    if not callable(fn):
        raise InvalidArgumentError(
            f"a transaction function must be callable, got {type(fn).__name__}", hint="def fn(txn): ..."
        )
    inner = inspect.unwrap(fn)
    while isinstance(inner, functools.partial):
        inner = inner.func
    for kind, is_kind in (
        ("a generator function", inspect.isgeneratorfunction),
        ("an async generator function", inspect.isasyncgenfunction),
        ("an async function", inspect.iscoroutinefunction),
    ):
        if is_kind(inner):
            raise _lazy(getattr(fn, "__name__", repr(fn)), kind)


def _lazy(name: str, kind: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{name} is {kind}: its body would run after the transaction is over",
        hint="return a list, or use `with db.begin(run_id) as txn:`; run blocking transactions in a thread",
    )


def _refuse_lazy_result(result: object) -> None:
    if isinstance(result, GeneratorType | CoroutineType | AsyncGeneratorType):
        if isinstance(result, CoroutineType):
            result.close()  # else it would warn that it was never awaited
        raise _lazy("the function's result", f"a {type(result).__name__}")


def deadline_of(timeout: float | None) -> float | None:
    """A timeout in seconds as a moment of `time.monotonic`.

    Raises:
      InvalidArgumentError: not a number from 0.
    """
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout >= 0:
        raise InvalidArgumentError(
            f"timeout must be a number of seconds from 0, got {timeout!r}", hint="None: none"
        )
    return time.monotonic() + min(timeout, TIMEOUT_MAX)


def _require_policy(retry: object) -> None:
    if not isinstance(retry, RetryPolicy):
        raise InvalidArgumentError(
            f"retry must be a RetryPolicy, got {type(retry).__name__}",
            hint="occamdb.RetryPolicy(...); None for the default",
        )


class _Retrying:
    """The bookkeeping shared by `run_transaction` and `Attempts`: what was tried, what comes next."""

    __slots__ = ("_deadline", "_delays", "_isolation", "_run_id", "count", "db")

    def __init__(
        self,
        db: Database,
        run_id: Any,
        retry: RetryPolicy,
        timeout: float | None,
        isolation: str | None,
        *,
        count: int = 0,
    ) -> None:
        _require_policy(retry)
        self.db = db
        self.count = count
        self._run_id = run_id
        self._delays = retry.delays()
        self._isolation = isolation
        self._deadline = deadline_of(timeout)

    def begin(self) -> Transaction:
        """The next attempt's transaction."""
        self.count += 1
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        txn: Transaction = self.db.begin(
            self._run_id, isolation=self._isolation, timeout=left, attempts=self.count
        )
        return txn

    def pause(self, error: ConflictError | SnapshotExpired) -> None:
        """Wait before the next attempt, or raise because there is none."""
        try:
            delay = next(self._delays)
        except StopIteration:
            raise self._exhausted(error) from error
        if self._deadline is not None and time.monotonic() + delay >= self._deadline:
            raise TransactionTimeout(
                f"the deadline passed after {self.count} attempts; the last one: {error.message}",
                hint="give it a longer timeout, or write fewer shared keys per transaction",
                details={"attempts": self.count},
            ) from error
        time.sleep(delay)

    def _exhausted(self, error: ConflictError | SnapshotExpired) -> OccamError:
        if isinstance(error, SnapshotExpired):
            return error
        return RetriesExhausted(
            attempts=self.count, conflicts=error.conflicts, conflicts_found=error.conflicts_found
        )


def _calls_for_retry(txn: Transaction, error: BaseException) -> bool:
    """Whether `error`, met while `txn` was in use, is that transaction's own conflict or lost snapshot."""
    if isinstance(error, SnapshotExpired):
        # Asked before the pin is given back; after a failed commit there is none left to ask.
        return txn.expired or txn.status is TransactionStatus.ABORTED
    # A conflict of another transaction inside the function leaves this one active.
    return isinstance(error, ConflictError) and txn.status is TransactionStatus.ABORTED


def run_transaction(
    db: Database,
    run_id: Any,
    fn: Callable[[Transaction], T],
    *,
    retry: RetryPolicy,
    timeout: float | None = None,
    isolation: str | None = None,
) -> T:
    """Call `fn(txn)` and commit, again on a fresh snapshot after each conflict; what `fn` returned.

    Raises:
      RetriesExhausted: it conflicted on every attempt that `retry` allows.
      TransactionTimeout: `timeout` seconds passed first.
    """
    refuse_lazy_function(fn)
    _require_policy(retry)
    # The usual transaction commits at once and has no deadline: it needs no bookkeeping.
    retrying = None if timeout is None else _Retrying(db, run_id, retry, timeout, isolation)
    txn: Transaction = db.begin(run_id, isolation=isolation) if retrying is None else retrying.begin()
    while True:
        try:
            result = fn(txn)
            _refuse_lazy_result(result)
            if txn.status is _ACTIVE:
                txn.commit()
            return result
        except (ConflictError, SnapshotExpired) as error:
            again = _calls_for_retry(txn, error)
            txn.__exit__(type(error), error, None)
            if not again:
                raise
            reason = error
        except BaseException as error:
            txn.__exit__(type(error), error, None)
            raise
        if retrying is None:
            retrying = _Retrying(db, run_id, retry, None, isolation, count=1)
        retrying.pause(reason)
        txn = retrying.begin()


def transactional(
    db: Database,
    fn: Callable[Concatenate[Transaction, P], T],
    *,
    retry: RetryPolicy,
    timeout: float | None,
    isolation: str | None,
) -> TransactionalFunction[P, T]:
    """The function that runs `fn` in a transaction of its own, or joins the one it is given."""
    refuse_lazy_function(fn)

    @functools.wraps(fn)
    def run(run_or_txn: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        if isinstance(run_or_txn, Transaction):
            return fn(run_or_txn, *args, **kwargs)
        return run_transaction(
            db,
            run_or_txn,
            lambda txn: fn(txn, *args, **kwargs),
            retry=retry,
            timeout=timeout,
            isolation=isolation,
        )

    return run


class Attempt:
    """One pass of the loop `for attempt in db.attempts(run_id): with attempt as txn: ...`.

    A conflict at the end of the block is kept back and makes the loop go on; everything else goes to the caller.
    """

    __slots__ = ("_attempts", "_txn")

    def __init__(self, attempts: Attempts) -> None:
        self._attempts = attempts
        self._txn: Transaction | None = None

    @property
    def number(self) -> int:
        """Which attempt this is, from 1."""
        return self._attempts.count

    def __enter__(self) -> Transaction:
        if self._txn is not None:
            raise TransactionStateError("an attempt is entered once", hint="take the next one from the loop")
        self._txn = self._attempts._begin()
        return self._txn

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        txn = self._txn
        assert txn is not None
        if error is None:
            try:
                txn.__exit__(None, None, None)
            except (ConflictError, SnapshotExpired) as conflict:
                error = conflict
            else:
                self._attempts._settle(None)
                return False
            self._attempts._settle(error)
            return True
        again = _calls_for_retry(txn, error)
        txn.__exit__(kind, error, trace)
        if again and isinstance(error, ConflictError | SnapshotExpired):
            self._attempts._settle(error)
            return True
        self._attempts._settle(None)
        return False


class Attempts:
    """The iterator behind `db.attempts`: goes on until an attempt committed, or its policy gives up.

    Leave the block at its end. A `break` or `return` from inside it commits too, but if that commit conflicts there is
    no loop left to try again: the conflict is then reported through `sys.unraisablehook`, since nothing else can be.
    """

    __slots__ = ("_entered", "_pending", "_retrying", "_settled", "_started")

    def __init__(
        self, db: Database, run_id: Any, retry: RetryPolicy, timeout: float | None, isolation: str | None
    ) -> None:
        self._pending: ConflictError | SnapshotExpired | None = None
        self._settled = False
        self._started = False
        self._entered = False
        self._retrying = _Retrying(db, run_id, retry, timeout, isolation)

    @property
    def count(self) -> int:
        """How many attempts were begun."""
        return self._retrying.count

    def _begin(self) -> Transaction:
        self._entered = True
        return self._retrying.begin()

    def _settle(self, pending: ConflictError | SnapshotExpired | None) -> None:
        self._pending = pending
        self._settled = pending is None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Attempt:
        if self._settled:
            raise StopIteration
        if self._started and not self._entered:
            raise TransactionStateError(
                "the attempt was not entered", hint="write `with attempt as txn:` in the loop"
            )
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._retrying.pause(pending)
        self._started = True
        self._entered = False
        return Attempt(self)

    def __del__(self) -> None:
        pending = getattr(self, "_pending", None)
        if pending is not None:
            raise ConflictError(
                f"a commit was lost: its block was left by break or return, and it conflicted: {pending.message}",
                hint="leave a block of db.attempts at its end, or use db.transaction(run_id, fn)",
            )
