"""Running transactions again until they commit: `db.transaction`, `@db.transactional` and `db.attempts`.

1. Each attempt is a transaction of its own on a fresh snapshot. Only a conflict of *that* transaction, or the
   loss of its snapshot, leads to another attempt. Any other exception aborts the transaction and goes to the
   caller.
2. A timeout is not reported as a conflict. After the deadline `TransactionTimeout` is raised, with the last
   conflict as its cause.
3. An unknown outcome is not retried: the commit may have happened.
4. From attempt `turn_after` on, each one asks for a turn if it loses. The next attempt then begins without a pause. A
   turn that will not be used is given up, so that nobody waits for it.
"""

from __future__ import annotations

import functools
import inspect
import random
import time
from collections.abc import Callable, Generator
from types import AsyncGeneratorType, CoroutineType, GeneratorType, TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, cast

from ..model.errors import (
    ConflictError,
    InvalidArgumentError,
    OccamError,
    RetriesExhausted,
    SnapshotExpired,
    TransactionStateError,
    TransactionTimeout,
)
from ..model.limits import TIMEOUT_MAX
from ..model.public_types import IsolationName, TransactionStatus
from ..model.retry_policy import RetryPolicy
from ._transaction import TransactionBase, drop_turn, end_turn, turn_of
from .transaction import Transaction
from .wait_signal import WaitSignal
from .waiting import wait_for_change

__all__ = [
    "Attempt",
    "Retrying",
    "attempts",
    "calls_for_retry",
    "left_while_waiting",
    "lost_at_the_end",
    "refuse_lazy_function",
    "require_policy",
    "run_transaction",
    "transactional",
]

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
X = TypeVar("X", bound=TransactionBase)

# In the functions below, `begin` is the method of the database.

# A function that commits by itself what its transaction read loses to itself at each attempt. That often in a row it
# is no accident, and further attempts would only repeat its side effects. A caller's own policy or timeout is kept to.
OWN_CONFLICTS_MAX = 10
_PATIENT = RetryPolicy()
# With less time left than this, in seconds, no turn is asked for: a deadline that passes while a request waits for its
# turn would leave the outcome unknown.
TURN_TIME_MIN = 1.0

_ACTIVE = TransactionStatus.ACTIVE
_LAZY_FLAGS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


class TransactionalFunction(Protocol[P, T_co]):
    """A function decorated with `@db.transactional`: call it with a run id, or with a transaction to join."""

    def __call__(self, run_or_txn: Any, /, *args: P.args, **kwargs: P.kwargs) -> T_co: ...


def refuse_lazy_function(fn: Callable[..., Any]) -> None:
    """Refuse a function whose body runs only after it has returned, when the transaction is over.

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
        hint="await before and after the transaction, and give it a plain function; "
        "async functions are for occamdb.aio"
        if "async" in kind or "coroutine" in kind
        else "return a list, or use `with db.begin(run_id) as txn:`",
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
            f"timeout must be a number of seconds from 0, got {timeout!r}", hint="timeout=None sets no limit"
        )
    return time.monotonic() + min(timeout, TIMEOUT_MAX)


def require_policy(retry: object) -> None:
    if not isinstance(retry, RetryPolicy):
        raise InvalidArgumentError(
            f"retry must be a RetryPolicy, got {type(retry).__name__}",
            hint="occamdb.RetryPolicy(...); None for the default",
        )


class Retrying(Generic[X]):
    """The bookkeeping that `run_transaction` and `attempts` share: attempts made, pauses left, the
    deadline."""

    __slots__ = (
        "_begin",
        "_deadline",
        "_delays",
        "_isolation",
        "_loses_at_most",
        "_lost_to_itself",
        "_run_id",
        "_turn",
        "_turns",
        "_wait_deadline",
        "count",
    )

    def __init__(
        self,
        begin: Callable[..., X],
        run_id: Any,
        retry: RetryPolicy,
        timeout: float | None,
        isolation: IsolationName | None,
        *,
        count: int = 0,
        wait_timeout: float | None = None,
    ) -> None:
        require_policy(retry)
        self._begin = begin
        self.count = count
        self._run_id = run_id
        self._delays = retry.delays()
        self._isolation = isolation
        self._deadline = deadline_of(timeout)
        self._lost_to_itself = 0
        self._loses_at_most = OWN_CONFLICTS_MAX if retry == _PATIENT and timeout is None else None
        # The attempts that ask for a turn. A turn is of no use if no attempt would follow.
        last = retry.max_attempts
        self._turns = (
            range(0)
            if retry.turn_after is None or retry.turn_after >= last
            else range(retry.turn_after, last + 1)
        )
        self._turn = 0
        self._wait_deadline = self._deadline if wait_timeout is None else deadline_of(wait_timeout)

    def begin(self) -> X:
        """The next attempt's transaction."""
        self.count += 1
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        patient = len(self._turns) > 0 and self._turn == 0 and (left is None or left >= TURN_TIME_MIN)
        if patient and self.count in self._turns:
            self._turn = random.getrandbits(64) | 1
        return self._begin(
            self._run_id,
            isolation=self._isolation,
            timeout=left,
            attempts=self.count,
            may_wait=True,
            turn=self._turn,
            patient=patient,
            late=True,
        )

    def wait(self, txn: X, signal: WaitSignal) -> None:
        """Sleep until something that the transaction, which is over, has read was changed. Not an attempt lost.

        Raises:
          TransactionTimeout: nothing was changed in time.
        """
        end_turn(txn)
        if not wait_for_change(txn.waits, signal, self._wait_deadline):
            raise self.waited_too_long() from None

    def waited_too_long(self) -> TransactionTimeout:
        """The error of a wait that has reached its deadline."""
        return TransactionTimeout(
            "nothing that the transaction waits for was changed within its timeout",
            hint="give it a longer timeout, or None to wait for ever",
            details={"attempts": self.count},
        )

    @property
    def wait_deadline(self) -> float | None:
        """The end of the waits, on the clock of `time.monotonic`; None: they may last for ever."""
        return self._wait_deadline

    def pause(self, txn: X, error: ConflictError | SnapshotExpired) -> None:
        """Wait before the next attempt; raise if there is none left."""
        try:
            delay = self.delay(error)
        except BaseException:
            drop_turn(txn)
            raise
        if self.takes_turn(txn):
            return
        end_turn(txn)
        time.sleep(delay)

    def takes_turn(self, txn: X) -> bool:
        """Whether the next attempt has a turn, which this one was granted when it lost."""
        number = turn_of(txn)
        self._turn = number or self._turn
        return number != 0

    def delay(self, error: ConflictError | SnapshotExpired) -> float:
        """How long to wait before the next attempt, unless it has a turn; raises if there is none left."""
        self._lost_to_itself = self._lost_to_itself + 1 if "own_commit" in error.details else 0
        if self._lost_to_itself == self._loses_at_most:
            raise self._exhausted(error) from error
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
        return delay

    def _exhausted(self, error: ConflictError | SnapshotExpired) -> OccamError:
        if isinstance(error, SnapshotExpired):
            return error
        exhausted = RetriesExhausted(
            attempts=self.count, conflicts=error.conflicts, conflicts_found=error.conflicts_found
        )
        if "own_commit" in error.details:
            exhausted.hint = error.hint
        return exhausted


def calls_for_retry(txn: TransactionBase, error: BaseException) -> bool:
    """Whether `error`, raised while `txn` was in use, is a conflict or a lost snapshot of that very
    transaction."""
    if isinstance(error, SnapshotExpired):
        # Call this before the pin is released: `expired` is a property of the pin. A failed commit has
        # released it.
        return txn.expired or txn.status is TransactionStatus.ABORTED
    # A conflict of another transaction inside the function leaves this one active.
    return isinstance(error, ConflictError) and txn.status is TransactionStatus.ABORTED


def run_transaction(
    begin: Callable[..., X],
    run_id: Any,
    fn: Callable[[X], T],
    *,
    retry: RetryPolicy,
    timeout: float | None = None,
    isolation: IsolationName | None = None,
    wait_timeout: float | None = None,
) -> T:
    """Call `fn(txn)` and commit; after a conflict try again on a fresh snapshot. Returns what `fn` returned.

    Args:
      wait_timeout: a deadline for `txn.wait` alone; with 0 what is there is taken, and nothing waited for.

    Raises:
      RetriesExhausted: it conflicted on every attempt that `retry` allows.
      TransactionTimeout: `timeout` seconds passed first.
    """
    refuse_lazy_function(fn)
    require_policy(retry)
    # The usual transaction commits at once and has no deadline: it needs no bookkeeping.
    retrying = None
    if timeout is not None or wait_timeout is not None or retry.turn_after == 1:
        retrying = Retrying(begin, run_id, retry, timeout, isolation, wait_timeout=wait_timeout)
    if retrying is None:
        patient = retry.turn_after is not None
        txn = begin(run_id, isolation=isolation, may_wait=True, patient=patient, late=True)
    else:
        txn = retrying.begin()
    reason: ConflictError | SnapshotExpired | WaitSignal
    while True:
        try:
            result = fn(txn)
            _refuse_lazy_result(result)
            if txn.status is _ACTIVE:
                txn.commit()
            if retrying is not None:
                end_turn(txn)
            return result
        except (ConflictError, SnapshotExpired) as error:
            again = calls_for_retry(txn, error)
            txn.__exit__(type(error), error, None)
            if not again:
                end_turn(txn)
                raise
            reason = error
        except WaitSignal as signal:
            again = txn.waits_by(signal)
            txn.__exit__(type(signal), signal, None)
            if not again:
                end_turn(txn)
                raise
            reason = signal
        except BaseException as error:
            txn.__exit__(type(error), error, None)
            end_turn(txn)
            raise
        if retrying is None:
            retrying = Retrying(begin, run_id, retry, None, isolation, count=1)
        if isinstance(reason, WaitSignal):
            retrying.wait(txn, reason)
        else:
            retrying.pause(txn, reason)
        txn = retrying.begin()


def transactional(
    begin: Callable[..., X],
    fn: Callable[Concatenate[X, P], T],
    *,
    retry: RetryPolicy,
    timeout: float | None,
    isolation: IsolationName | None,
) -> TransactionalFunction[P, T]:
    """A function that runs `fn` in a transaction of its own, or in the one that it is given."""
    refuse_lazy_function(fn)

    @functools.wraps(fn)
    def run(run_or_txn: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        if isinstance(run_or_txn, Transaction):
            return fn(cast(X, run_or_txn), *args, **kwargs)
        return run_transaction(
            begin,
            run_or_txn,
            lambda txn: fn(txn, *args, **kwargs),
            retry=retry,
            timeout=timeout,
            isolation=isolation,
        )

    return run


class Attempt(Generic[X]):
    """One pass of the loop `for attempt in db.attempts(run_id): with attempt as txn: ...`.

    A conflict at the end of the block is kept in `conflict`, and the loop continues. Any other exception goes
    to the caller.

    Attributes:
      number: which attempt this is, from 1.
      conflict: why another attempt is needed; None before the end of the block, and when none is needed.
      waits: its WaitSignal, if another attempt is needed when something has changed.
    """

    __slots__ = ("_begin", "_txn", "conflict", "number", "waits")

    def __init__(self, begin: Callable[[], X], number: int) -> None:
        self._begin = begin
        self._txn: X | None = None
        self.number = number
        self.conflict: ConflictError | SnapshotExpired | None = None
        self.waits: WaitSignal | None = None

    @property
    def entered(self) -> bool:
        """Whether its block was entered."""
        return self._txn is not None

    def __repr__(self) -> str:
        return f"<Attempt {self.number} {'not entered' if self._txn is None else self._txn!r}>"

    @property
    def transaction(self) -> X:
        """The transaction of its block, which was entered."""
        assert self._txn is not None
        return self._txn

    def __enter__(self) -> X:
        if self._txn is not None:
            raise TransactionStateError("an attempt is entered once", hint="take the next one from the loop")
        self._txn = self._begin()
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
                self.conflict = conflict
                return True
            return False
        if isinstance(error, WaitSignal) and txn.waits_by(error):
            txn.__exit__(kind, error, trace)
            self.waits = error
            return True
        again = calls_for_retry(txn, error)
        txn.__exit__(kind, error, trace)
        if again and isinstance(error, ConflictError | SnapshotExpired):
            self.conflict = error
            return True
        return False


def attempts(
    begin: Callable[..., X],
    run_id: Any,
    *,
    retry: RetryPolicy,
    timeout: float | None,
    isolation: IsolationName | None,
) -> Generator[Attempt[X]]:
    """The loop behind `db.attempts`: it ends when an attempt has committed or the policy allows no more."""
    # Wrong arguments are refused at the call, not at the first pass of the loop.
    return _attempts(Retrying(begin, run_id, retry, timeout, isolation))


def _attempts(retrying: Retrying[X]) -> Generator[Attempt[X]]:
    while True:
        attempt = Attempt(retrying.begin, retrying.count + 1)
        try:
            yield attempt
        except GeneratorExit:
            # The loop was left by break or return, so the block is not run again.
            if attempt.entered:
                end_turn(attempt.transaction)
                drop_turn(attempt.transaction)
            if attempt.conflict is not None:
                raise lost_at_the_end(attempt.conflict) from attempt.conflict
            if attempt.waits is not None:
                raise left_while_waiting() from None
            raise
        if not attempt.entered:
            raise TransactionStateError(
                "the attempt was not entered", hint="write `with attempt as txn:` in the loop"
            )
        if attempt.waits is not None:
            retrying.wait(attempt.transaction, attempt.waits)
        elif attempt.conflict is not None:
            retrying.pause(attempt.transaction, attempt.conflict)
        else:
            end_turn(attempt.transaction)
            return


def lost_at_the_end(conflict: ConflictError | SnapshotExpired) -> ConflictError:
    return ConflictError(
        f"a commit was lost: its block was left by break or return, and it conflicted: {conflict.message}",
        hint="leave a block of db.attempts at its end, or use db.transaction(run_id, fn)",
    )


def left_while_waiting() -> TransactionStateError:
    return TransactionStateError(
        "nothing was committed: the block waits for a change, and its loop was left by break or return",
        hint="leave the loop inside the block, or use db.transaction(run_id, fn)",
    )
