"""Steps: functions that run once a run and name, and whose results are kept.

1. The record of a step says what became of it. It is written in one commit with the end of the claim, by the one that
   has the claim.
2. A caller that runs a plain function claims the step first, with a session-bound key. The claim of a process that
   ended is deleted, so another caller runs the function again. A plain function therefore runs at least once, and its
   result is recorded once.
3. A function of a transaction runs in the transaction that writes the record. Its effects and its record are one
   commit, so they happen once.
4. Failures are counted in the record, over all callers and processes.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, overload

from ..engine.model.errors import (
    InvalidArgumentError,
)
from ..engine.model.public_types import RunId, TypeTag
from ..engine.model.retry_policy import RetryPolicy
from . import layout
from .extension import DatabaseBase, H_co, Primitive, from_microseconds, operation, reader
from .step_call import (
    DONE,
    FAILED,
    StepCall,
    function_name,
    put_record,
    read_record,
    takes_transaction,
    wait_for_claim,
)
from .wrong_calls import WrongCallError

if TYPE_CHECKING:
    from ..engine.transaction.async_database import AsyncDatabase
    from .extension import RunLike, TransactionBase

__all__ = ["Step", "Steps"]

R = TypeVar("R")
StepState = Literal["running", "done", "failed"]

_STATES: tuple[StepState, ...] = ("running", "done", "failed")


@dataclass(frozen=True, slots=True)
class Step:
    """What is known of a step.

    Attributes:
      name: of the step.
      state: "running": it was begun and has no outcome yet, also if its process has died since; "done"; or "failed".
      function: of which function it is a step.
      attempts: how often it was begun.
      result: what it returned, if it is done.
      error: what the last attempt raised, as text, if it has failed.
      began: when the last attempt began.
      ended: when it ended; None: it has no outcome yet.
    """

    name: str
    state: StepState
    function: str
    attempts: int
    result: Any
    error: str | None
    began: datetime
    ended: datetime | None


# Inside Steps the name `list` is an operation.
_Steps: TypeAlias = list[Step]


class Steps(Primitive[H_co]):
    """The steps of a run: `page = db.steps.run(run_id, "fetch", fetch, url)`."""

    __slots__ = ()
    name = "steps"
    tag = TypeTag.STEP

    if TYPE_CHECKING:

        @overload
        def run(
            self: Steps[DatabaseBase],
            run_id: RunLike,
            name: str,
            fn: Callable[..., R],
            /,
            *args: Any,
            retry: RetryPolicy | None = None,
            **kwargs: Any,
        ) -> R: ...
        @overload
        def run(
            self: Steps[AsyncDatabase[Any]],
            run_id: RunLike,
            name: str,
            fn: Callable[..., Coroutine[Any, Any, R]],
            /,
            *args: Any,
            retry: RetryPolicy | None = None,
            **kwargs: Any,
        ) -> Coroutine[Any, Any, R]: ...
        @overload
        def run(
            self: Steps[AsyncDatabase[Any]],
            run_id: RunLike,
            name: str,
            fn: Callable[..., R],
            /,
            *args: Any,
            retry: RetryPolicy | None = None,
            **kwargs: Any,
        ) -> Coroutine[Any, Any, R]: ...
        @overload
        def run(
            self: Steps[TransactionBase], name: str, fn: Callable[..., R], /, *args: Any, **kwargs: Any
        ) -> R: ...
        def run(self: Any, /, *args: Any, **kwargs: Any) -> Any: ...
    else:

        def run(self, /, *args: Any, retry: RetryPolicy | None = None, **kwargs: Any) -> Any:
            """Call a function once a run and name; return its result, which is recorded, from then on.

                page = db.steps.run(run_id, "fetch", fetch, url, retry=RetryPolicy(max_attempts=3))
                db.steps.run(run_id, "pay", pay, 100)        # def pay(txn, amount): effects and record are one commit

            The result has to be a value that can be stored. If its process dies while a plain function runs, the
            function is run again: at least once. A function whose first parameter is called `txn` runs in the
            transaction that records it: exactly once. `txn.steps.run("pay", fn, 100)` does so for any function, in
            the transaction at hand.

            Callers of a step that is running wait for its end.

            Args:
              run_id: the run; outside only.
              name: of the step: text of 1 to 1024 bytes in UTF-8.
              fn: the function; one name belongs to one function.
              args, kwargs: for the function. They are not recorded: once the step is done, other arguments give the
                same result.
              retry: how often it is tried in all, over all callers and processes, and the pauses between; the end
                of the process counts as a failure. None: this call tries once, and a later call tries again. Outside
                only.

            Raises:
              StepFailed: it has failed as often as `retry` allows. The call that made the last attempt raises what the
                function raised.
              LeaseLost: the process was taken for dead while the function ran.
              InvalidArgumentError: the name belongs to another function.
            """
            if self.inside:
                if retry is not None:
                    raise InvalidArgumentError(
                        "inside a transaction a step has no retry of its own",
                        hint="give it to the transaction: db.transaction(run_id, fn, retry=...)",
                    )
                name, fn, rest = _named(args, ("name", "fn"), "txn.steps.run(name, fn, *args)")
                return self._inside(name, fn, rest, kwargs)
            run_id, name, fn, rest = _named(
                args, ("run_id", "name", "fn"), "db.steps.run(run_id, name, fn, *args)"
            )
            return StepCall(self._handle, RunId.of(run_id), name, fn, rest, kwargs, retry).carry_out()

    def _inside(
        self, name: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        txn: Any = self._handle
        record = read_record(self.space, name, function_name(fn))
        if record is not None and record[0] == DONE:
            return record[3]
        wait_for_claim(txn, self.space, name)
        result = fn(txn, *args, **kwargs) if takes_transaction(fn) else fn(*args, **kwargs)
        attempts = 1 if record is None else record[2] + 1
        put_record(self.space, name, [DONE, function_name(fn), attempts, result, self.now_us, self.now_us])
        return result

    @reader
    def get(self, name: str) -> Step | None:
        """What is known of a step; None: it was never begun.

        Example:
          step = db.steps.get(run_id, "fetch")
        """
        record = self.space.get(layout.step(name))
        return None if record is None else _step(name, record)

    @reader
    def list(self) -> _Steps:
        """The steps of the run, by name.

        Example:
          done = [step.name for step in db.steps.list(run_id) if step.state == "done"]
        """
        skip = len(layout.STEP)
        rows: Any = self.space.scan(layout.STEP)
        return [_step(key[skip:].decode(), row.value) for key, row in rows]

    @reader
    def is_done(self, name: str) -> bool:
        """Whether a step has a result.

        Example:
          if db.steps.is_done(run_id, "fetch"): ...
        """
        record = self.space.get(layout.step(name))
        return record is not None and record[0] == DONE

    @operation
    def forget(self, name: str) -> bool:
        """Remove the record of a step, so that it runs again; returns whether there was one.

        A call that runs the step at that moment goes on, but its outcome is not recorded: it raises LeaseLost.

        Example:
          was_there = db.steps.forget(run_id, "fetch")
        """
        self.space.delete(layout.step_claim(name))
        return self.space.delete(layout.step(name))


def _named(args: tuple[Any, ...], names: tuple[str, ...], form: str) -> tuple[Any, ...]:
    """The first arguments, and the rest as one tuple.

    Raises:
      WrongCallError: there are too few.
    """
    if len(args) < len(names):
        missing = names[len(args)]
        raise WrongCallError(f"{form}: missing a required argument: {missing!r}", hint=form)
    return (*args[: len(names)], args[len(names) :])


def _step(name: str, record: list[Any]) -> Step:
    state, function, attempts, outcome, began, ended = record
    return Step(
        name,
        _STATES[state],
        function,
        attempts,
        outcome if state == DONE else None,
        outcome if state == FAILED else None,
        from_microseconds(began),
        from_microseconds(ended) if ended else None,
    )
