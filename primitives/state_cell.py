"""StateCell: named values that change by compare-and-swap.

1. A cell's version is the engine's version of its key: it only grows, even when the cell is deleted and
   created again.
2. `cas` and `init` are checked by the expected version alone and add nothing to a transaction's read set.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar, overload

from ..engine.model.errors import AlreadyExistsError, CASConflict, InvalidArgumentError, NotFoundError
from ..engine.model.public_types import TypeTag, VersionedValue
from ..engine.model.retry_policy import RetryPolicy
from ..engine.transaction.attempts import refuse_lazy_function
from .extension import (
    DatabaseBase,
    H_co,
    Operation,
    Primitive,
    RunLike,
    TransactionBase,
    answered,
    blind,
    checked_version,
    single,
    waiting,
)
from .operations import WITH_POLICY

if TYPE_CHECKING:
    from ..engine.transaction.async_database import AsyncDatabase

__all__ = ["State", "StateCell"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class State:
    """What a cell holds.

    Attributes:
      value: a fresh copy.
      version: what `cas` expects: the commit version of the last committed write, below a transaction's own writes;
        0 when there is none.
      updated_at: when it was written.
    """

    value: Any
    version: int
    updated_at: datetime


class StateCell(Primitive[H_co]):
    """Named state: `db.cells.transition(run_id, "task", fn)`, or `txn.cells.transition("task", fn)`."""

    __slots__ = ()
    name = "cells"
    tag = TypeTag.STATE
    raw = False

    @single
    def read(self, name: str) -> State | None:
        """The state of a cell; None when there is none.

        Example:
          state = db.cells.read(run_id, "task")
        """
        return _state(self.space.get_versioned(name))

    @waiting
    def wait(
        self,
        name: str,
        *,
        after_version: int = 0,
        until: Callable[[State], bool] | None = None,
        timeout: float | None = None,
    ) -> State:
        """Wait until a cell is there with a version above `after_version` and `until` is true of it; return its state.

        Example:
          done = db.cells.wait(run_id, "task", until=lambda state: state.value == "done", timeout=30)

        Args:
          name: of the cell.
          after_version: the version that was seen last; 0: any.
          until: asked again after each change, with the State.
          timeout: outside only; seconds to wait, None: for ever.

        Raises:
          TransactionTimeout: it did not come to that in time.
        """
        if until is not None:
            if not callable(until):
                raise InvalidArgumentError(
                    f"until is not a function but {type(until).__name__}", hint="until=lambda state: ..."
                )
            refuse_lazy_function(until)
        state = _state(self.space.get_versioned(name))
        seen = checked_version(after_version)
        if state is None or state.version <= seen or (until is not None and not until(state)):
            self._wait(timeout)
        return state

    @blind
    def init(
        self, name: str, value: Any, *, ttl: float | timedelta | None = None, ephemeral: bool = False
    ) -> None:
        """Create a cell, with a time to live if given.

        With `ephemeral` the cell goes when this open database does, by `close` or by the death of its process.

        Outside: returns its version. Inside: None; the commit decides whether it was first.

        Example:
          db.cells.init(run_id, "task", "idle")

        Raises:
          AlreadyExistsError: the cell is there.
        """
        # Untracked: the cas is the check. Outside there is nothing to look at before the cas itself.
        if self.inside and self.space.exists(name, track=False):
            raise _already_exists(name)
        try:
            return self.space.cas(name, 0, value, ttl=ttl, ephemeral=ephemeral)
        except CASConflict:
            raise _already_exists(name) from None

    @blind
    def cas(self, name: str, expected_version: int, value: Any) -> None:
        """Set a cell if it still has the expected version (0: create it).

        Outside: returns the new version. Inside: None, as the version is the commit's; the commit decides.

        Example:
          db.cells.cas(run_id, "task", state.version, "busy")

        Raises:
          CASConflict: the cell has another version.
        """
        return self.space.cas(name, expected_version, value)

    @blind
    def set(
        self, name: str, value: Any, *, ttl: float | timedelta | None = None, ephemeral: bool = False
    ) -> None:
        """Set a cell whatever it holds, creating it if need be. Outside: returns the new version.

        Example:
          db.cells.set(run_id, "task", "idle", ttl=60)

        Args:
          name: of the cell.
          value: anything that can be stored.
          ttl: seconds, or a timedelta, until the cell is absent. A later write without one takes the expiry away.
          ephemeral: the cell goes when this open database does. A later write without it keeps the cell.
        """
        return self.space.put(name, value, ttl=ttl, ephemeral=ephemeral)

    @answered
    def delete(self, name: str) -> bool:
        """Remove a cell; returns whether it was there. A later one of that name has a higher version.

        Example:
          was_there = db.cells.delete(run_id, "task")
        """
        return self.space.delete(name)

    @single
    def exists(self, name: str) -> bool:
        """Whether there is such a cell.

        Example:
          if db.cells.exists(run_id, "task"): ...
        """
        return self.space.exists(name)

    @single
    def list(self, prefix: str = "", *, start: str | None = None, limit: int | None = None) -> Sequence[str]:
        """The names of the cells, in byte order.

        Example:
          names = db.cells.list(run_id, "task/")

        Args:
          prefix: what the names begin with; everything when empty.
          start: the first name that may come.
          limit: at most so many.
        """
        return [*self.space.keys(prefix, start=start, limit=limit)]

    @single
    def list_with_values(
        self, prefix: str = "", *, start: str | None = None, limit: int | None = None
    ) -> Sequence[tuple[str, State]]:
        """Like `list`, each name with the cell's state, from one snapshot.

        Example:
          states = dict(db.cells.list_with_values(run_id, "task/"))
        """
        rows = self.space.scan(prefix, start=start, limit=limit)
        return [(name, State(found.value, found.version, found.timestamp)) for name, found in rows]

    if TYPE_CHECKING:

        @overload
        def transition(
            self: StateCell[AsyncDatabase[Any]],
            run_id: RunLike,
            name: str,
            fn: Callable[[State], tuple[Any, T]],
            *,
            retry: RetryPolicy | None = None,
        ) -> Coroutine[Any, Any, T]: ...
        @overload
        def transition(
            self: StateCell[DatabaseBase],
            run_id: RunLike,
            name: str,
            fn: Callable[[State], tuple[Any, T]],
            *,
            retry: RetryPolicy | None = None,
        ) -> T: ...
        @overload
        def transition(
            self: StateCell[TransactionBase], name: str, fn: Callable[[State], tuple[Any, T]]
        ) -> T: ...
        def transition(self, *args: Any, **kwargs: Any) -> Any: ...

    else:

        def transition(self, name: str, fn: Callable[[State], tuple[Any, T]]) -> T:
            """Change a cell by a function of its state: `fn(state) -> (new value, result)`; returns the result.

            Outside it is retried until it commits, within `retry`; `fn` may be called several times and must have no
            effect but what it returns.

                taken = db.cells.transition(run_id, "queue", lambda state: (state.value[1:], state.value[0]))

            Args:
              name: of the cell.
              fn: gets the State.
              retry: outside only; how often to try, after which pauses. None: thousands of attempts.

            Raises:
              NotFoundError: there is no such cell.
              RetriesExhausted: it met other writers on every attempt.
              InvalidArgumentError: `fn` is not a function, or did not return a tuple of two.
            """
            return self._transition(name, fn)

        transition = Operation(transition, WITH_POLICY)

    def _transition(self, name: str, fn: Callable[[State], tuple[Any, T]]) -> T:
        if not callable(fn):
            raise InvalidArgumentError(
                f"fn is not a function but {type(fn).__name__}",
                hint="transition(name, fn), where fn(state) returns (new value, result)",
            )
        refuse_lazy_function(fn)
        state = _state(self.space.get_versioned(name))
        if state is None:
            raise NotFoundError(
                f"there is no cell {name!r}", hint="create it with init or set", details={"name": name}
            )
        answer: Any = fn(state)
        # A text or a dict of two would unpack too, and half of it would become the state.
        if type(answer) is not tuple or len(answer) != 2:
            raise InvalidArgumentError(
                f"a transition's function returns a tuple (new value, result), got {_shape(answer)}",
                hint="return new_value, None where there is no result",
            )
        result: T
        value, result = answer
        self.space.put(name, value)
        return result


def _shape(answer: object) -> str:
    return f"a tuple of {len(answer)}" if type(answer) is tuple else type(answer).__name__


def _already_exists(name: str) -> AlreadyExistsError:
    return AlreadyExistsError(
        f"cell {name!r} already exists",
        hint="read it, or change it with set, cas or transition",
        details={"name": name},
    )


def _state(found: VersionedValue | None) -> State | None:
    return None if found is None else State(found.value, found.version, found.timestamp)
