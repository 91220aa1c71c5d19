"""One call of a step: running its function once, recording what became of it, waiting for others. See README.md."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..engine.model.errors import (
    ConflictError,
    ForkedHandleError,
    InvalidArgumentError,
    LeaseLost,
    SnapshotExpired,
    StepFailed,
    TransactionStateError,
    TransactionTooLarge,
    ValueTooLarge,
)
from ..engine.model.public_types import RunId, TypeTag
from ..engine.model.retry_policy import RetryPolicy
from ..engine.transaction.attempts import refuse_lazy_function
from . import holding, layout
from .extension import DatabaseBase, Space
from .trace_types import explain
from .work import Call, CleanUp, Pause, Transact, Work, carry_out

if TYPE_CHECKING:
    from ..engine.transaction._transaction import TransactionBase

__all__ = [
    "DONE",
    "FAILED",
    "RUNNING",
    "StepCall",
    "function_name",
    "put_record",
    "read_record",
    "takes_transaction",
    "wait_for_claim",
]

RUNNING, DONE, FAILED = 0, 1, 2
_ERROR_MAX = 2000
# Why a result is refused. Any other error of its commit is not the function's, which must not be run again for it.
_UNSTORABLE = (InvalidArgumentError, ValueTooLarge, TransactionTooLarge)


# --- Functions -----------------------------------------------------------------------------------


def function_name(fn: Callable[..., Any], *, awaited: bool = False) -> str:
    """What a function is called in records: its module and its qualified name. It is the same in every process.

    Args:
      awaited: it may be an async function.

    Raises:
      InvalidArgumentError: it is not callable, or its body runs only after it has returned.
    """
    if not (awaited and inspect.iscoroutinefunction(fn)):
        refuse_lazy_function(fn)
    while isinstance(fn, functools.partial):
        fn = fn.func
    named: Any = fn if hasattr(fn, "__qualname__") else type(fn)
    module = named.__module__ or ""
    if module == "__main__":
        # Run as a script it is the same function as when it is imported.
        main = sys.modules.get("__main__")
        spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
        module = spec.name if spec is not None else Path(file).stem if file else "__main__"
    return f"{module}.{named.__qualname__}"


def takes_transaction(fn: Callable[..., Any]) -> bool:
    """Whether the function's first parameter is the transaction: it is called `txn`."""
    try:
        return next(iter(inspect.signature(fn).parameters), "") == "txn"
    except (TypeError, ValueError):
        return False  # a builtin without a signature


# --- Records -------------------------------------------------------------------------------------


def read_record(space: Space, name: str, function: str) -> list[Any] | None:
    """The record of a step; None: there is none.

    Raises:
      InvalidArgumentError: it belongs to another function.
    """
    record: list[Any] | None = space.get_checked(layout.step(name))
    if record is not None and record[1] != function:
        raise InvalidArgumentError(
            f"step {name!r} belongs to {record[1]}, and {function} was given",
            hint="give each function a step name of its own; db.steps.forget(run_id, name) frees a name",
            details={"name": name, "recorded": record[1], "given": function},
        )
    return record


def put_record(space: Space, name: str, record: list[Any]) -> None:
    """Write the record of a step.

    Raises:
      ValueEncodingError: the result cannot be stored.
    """
    try:
        space.put(layout.step(name), record)
    except InvalidArgumentError:
        explain({"result": record[3]}, space.codec)
        raise


def wait_for_claim(txn: TransactionBase, space: Space, name: str) -> None:
    """Let a transaction that is about to run a step wait until nobody else runs it.

    A claim that comes after this was read writes the record, which the transaction writes too.

    Raises:
      TransactionStateError: the step is run by the caller itself.
    """
    claim = space.get_checked(layout.step_claim(name))
    if claim is None:
        return
    if holding.holds(claim):
        raise called_by_itself(name)
    txn.wait()


def called_by_itself(name: str) -> TransactionStateError:
    """The error of a step that would wait for its own end."""
    return TransactionStateError(
        f"step {name!r} was called by itself, and would wait for itself",
        hint="give the inner step another name",
        details={"name": name},
    )


class StepCall:
    """One `db.steps.run`."""

    def __init__(
        self,
        db: Any,
        run_id: RunId,
        name: str,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        retry: RetryPolicy | None,
    ) -> None:
        if retry is not None and not isinstance(retry, RetryPolicy):
            raise InvalidArgumentError(
                f"retry must be a RetryPolicy, got {type(retry).__name__}", hint="occamdb.RetryPolicy(...)"
            )
        self.db = db
        self.run_id = run_id
        self.name = name
        self.fn = fn
        self.args = args
        self.kwargs = kwargs
        self.retry = retry
        # A plain function may be async where commits are awaited.
        self.function = function_name(fn, awaited=not isinstance(db, DatabaseBase))
        self.record_key = layout.step(name)
        self.claim_key = layout.step_claim(name)
        self.nonce = b""
        self.wrote = False  # an attempt to commit the claim was made
        self.began = 0

    def carry_out(self) -> Any:
        """The result, recorded before or now."""
        return carry_out(self.db, self.run_id, self._work())

    def _work(self) -> Work[Any]:
        found = self.db.space(self.run_id, TypeTag.STEP, raw=True).get(self.record_key)
        if found is not None and found[0] == DONE and found[1] == self.function:
            return found[3]
        in_transaction = takes_transaction(self.fn)
        if in_transaction:
            refuse_lazy_function(self.fn)
        pauses = iter(self.retry.delays()) if self.retry is not None else iter(())
        while True:
            try:
                return (yield from self._in_transaction() if in_transaction else self._plain())
            except _Failed as failed:
                error, attempts = failed.error, failed.attempts
            pause = next(pauses, None)
            if self.retry is None or pause is None or attempts >= self.retry.max_attempts:
                raise error
            yield Pause(pause)

    def _transact(self, fn: Callable[[TransactionBase, Space], Any]) -> Transact:
        return Transact(lambda txn: fn(txn, txn.space(TypeTag.STEP, raw=True)))

    # ---- functions of a transaction -------------------------------------------------------------------------

    def _in_transaction(self) -> Work[Any]:
        raised: list[Exception] = []

        def attempt(txn: TransactionBase, space: Space) -> Any:
            raised.clear()
            record = self._read(space)
            if record is not None and record[0] == DONE:
                return record[3]
            wait_for_claim(txn, space, self.name)
            now = txn.read_time // 1000
            try:
                result = self.fn(txn, *self.args, **self.kwargs)
            except (ConflictError, SnapshotExpired):
                raise
            except Exception as error:
                raised.append(error)
                raise
            attempts = 1 if record is None else record[2] + 1
            put_record(space, self.name, [DONE, self.function, attempts, result, now, now])
            return result

        try:
            return (yield self._transact(attempt))
        except Exception as error:
            if not raised or raised[0] is not error:
                raise
            failure = error
        attempts = yield self._transact(lambda txn, space: self._note_failure(txn, space, failure))
        raise _Failed(failure, attempts) from failure

    def _note_failure(self, txn: TransactionBase, space: Space, error: Exception) -> int:
        """Count the failure of a transaction that was aborted; returns how many there were."""
        record = self._read(space)
        attempts: int = 1 if record is None else record[2] + 1
        if record is None or record[0] != DONE:
            now = txn.read_time // 1000
            space.put(self.record_key, [FAILED, self.function, attempts, _text(error), now, now])
        return attempts

    # ---- plain functions ------------------------------------------------------------------------------------

    def _plain(self) -> Work[Any]:
        key = (
            "step",
            id(self.db.handle),
            self.db.current_namespace,
            self.run_id,
            self.name,
            holding.whoever_calls(),
        )
        if holding.held(key) is not None:
            raise called_by_itself(self.name)
        self.nonce = os.urandom(8)
        self.wrote = False
        process = os.getpid()
        try:
            record = yield self._transact(self._claim)
            if record[0] == DONE:
                return record[3]
            holding.remember(key, self.nonce)
            return (yield from self._call(record[2]))
        except (_Failed, LeaseLost):
            raise  # the claim is gone
        except BaseException:
            # An interrupt, or a commit whose outcome is not known: let others run it. In a child that the function has
            # forked the claim is the parent's.
            if self.wrote and process == os.getpid():
                yield CleanUp(self._transact(self._unclaim).fn)
            raise
        finally:
            holding.forget(self.nonce)

    def _call(self, attempts: int) -> Work[Any]:
        process = os.getpid()
        result: Any = None
        failure: Exception | None = None
        try:
            result = yield Call(self.fn, self.args, self.kwargs)
        except Exception as error:
            failure = error
        if process != os.getpid():
            raise ForkedHandleError(
                f"step {self.name!r} is run by the parent process, and a forked child came to the end of its function",
                hint="end the child inside the function, by os._exit",
            )
        if failure is None:
            try:
                yield self._transact(lambda txn, space: self._end(txn, space, DONE, attempts, result))
                return result
            except _UNSTORABLE as error:
                failure = error
        text = _text(failure)
        yield self._transact(lambda txn, space: self._end(txn, space, FAILED, attempts, text))
        raise _Failed(failure, attempts) from failure

    def _claim(self, txn: TransactionBase, space: Space) -> list[Any]:
        """Claim the step and note that an attempt begins, or return the record of its result.

        Waits for another caller that runs it.
        """
        record = self._read(space)
        if record is not None and record[0] == DONE:
            return record
        if space.exists(self.claim_key):
            txn.wait()
        attempts = 1 if record is None else record[2] + 1
        if record is not None and self.retry is not None and record[2] >= self.retry.max_attempts:
            # It did not fail, else `_read` would have said so.
            raise StepFailed(
                name=self.name,
                attempts=record[2],
                error="an interrupt, or the end of its process, and no outcome",
            )
        self.began = txn.read_time // 1000
        begun = [RUNNING, self.function, attempts, None, self.began, 0]
        self.wrote = True
        space.put(self.claim_key, self.nonce, ephemeral=True)
        space.put(self.record_key, begun)
        return begun

    def _end(self, txn: TransactionBase, space: Space, state: int, attempts: int, outcome: Any) -> None:
        if space.get(self.claim_key) != self.nonce:
            raise LeaseLost(
                f"step {self.name!r} was claimed by another caller or forgotten while its function ran, or its run "
                "was deleted",
                name=self.name,
                hint="its outcome was not recorded; what it did outside the database may be done again",
                details={"step": self.name},
            )
        ended = txn.read_time // 1000
        put_record(space, self.name, [state, self.function, attempts, outcome, self.began, ended])
        space.delete(self.claim_key)

    def _unclaim(self, txn: TransactionBase, space: Space) -> None:
        """Let others run the step, if this call has the claim, or may get it: its commit may still be under way.

        A commit of this call that is under way has read the record, so it conflicts with this write of it.
        """
        record = space.get(self.record_key)
        claim = space.get(self.claim_key)
        if claim not in (None, self.nonce) or (record is not None and record[0] == DONE):
            return
        if record is None:
            record = [RUNNING, self.function, 0, None, self.began, 0]
        record[2] = max(record[2], 1)
        space.put(self.record_key, record)
        if claim is not None:
            space.delete(self.claim_key)

    def _read(self, space: Space) -> list[Any] | None:
        record = read_record(space, self.name, self.function)
        exhausted = self.retry is not None and record is not None and record[2] >= self.retry.max_attempts
        if exhausted and record is not None and record[0] == FAILED:
            raise StepFailed(name=self.name, attempts=record[2], error=record[3])
        return record


class _Failed(Exception):
    """The function raised `error` at attempt `attempts`; it was recorded."""

    def __init__(self, error: Exception, attempts: int) -> None:
        self.error = error
        self.attempts = attempts


def _text(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}"[:_ERROR_MAX]
    return text.encode(errors="replace").decode()
