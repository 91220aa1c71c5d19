"""Tasks as users see them, their states, and the checks of what they are put with."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from ..engine.model.errors import InvalidArgumentError
from ..engine.model.limits import TIMEOUT_MAX
from .extension import from_microseconds

__all__ = ["QueueStats", "Task", "TaskState", "checked_seconds", "raw_task_id"]

PRIORITY_MIN, PRIORITY_MAX = -32768, 32767
ATTEMPTS_MAX = 1 << 31


class TaskState(StrEnum):
    """Where a task is in its life."""

    READY = "ready"
    DELAYED = "delayed"
    CLAIMED = "claimed"
    DONE = "done"
    DEAD = "dead"

    @classmethod
    def of(cls, state: TaskState | str) -> TaskState:
        """A state by itself or by its name in any case.

        Raises:
          InvalidArgumentError: there is no such state.
        """
        try:
            return cls(state.lower())
        except (ValueError, AttributeError):
            raise InvalidArgumentError(
                f"{state!r} is not a state of a task", hint=f"one of {', '.join(cls)}"
            ) from None


class Task(NamedTuple):
    """A task as it was when it was read.

    Attributes:
      id: text that names it in its run; ids sort in the order in which tasks were put.
      queue: which queue it is in.
      payload: what it was put with.
      state: ready, delayed, claimed, done or dead.
      priority: the higher is claimed first.
      key: what makes its `put` idempotent; None: nothing.
      attempts: how often it was claimed and not given back by `release`.
      max_attempts: after so many it is dead.
      claim: the number of the claim, by which `complete` and the others know that it is still the caller's.
      result: what `complete` recorded.
      error: the last one that `fail` recorded.
      created_us, due_us, finished_us, lease_us: the times below in microseconds since 1970; 0: none.
    """

    id: str
    queue: str
    payload: Any
    state: TaskState
    priority: int
    key: str | None
    attempts: int
    max_attempts: int
    claim: int
    created_us: int
    due_us: int = 0
    finished_us: int = 0
    lease_us: int = 0
    result: Any = None
    error: str | None = None

    @property
    def created_at(self) -> datetime:
        """When it was put."""
        return from_microseconds(self.created_us)

    @property
    def due_at(self) -> datetime | None:
        """When a delayed task becomes ready."""
        return from_microseconds(self.due_us) if self.due_us else None

    @property
    def finished_at(self) -> datetime | None:
        """When it was completed, or found dead."""
        return from_microseconds(self.finished_us) if self.finished_us else None

    @property
    def lease_until(self) -> datetime | None:
        """When the lease of a claimed task ends."""
        return from_microseconds(self.lease_us) if self.lease_us else None


@dataclass(frozen=True, slots=True)
class QueueStats:
    """How many tasks of a queue are in each state."""

    ready: int
    delayed: int
    claimed: int
    done: int
    dead: int

    @property
    def open(self) -> int:
        """Those that are still to be done: ready, delayed or claimed."""
        return self.ready + self.delayed + self.claimed


def raw_task_id(task: Task | str) -> bytes:
    """The bytes of a task's id.

    Raises:
      InvalidArgumentError: it is neither a task nor the id of one.
    """
    text = task.id if isinstance(task, Task) else task
    try:
        raw = bytes.fromhex(text)
    except (TypeError, ValueError):
        raw = b""
    if len(raw) != 16:
        raise InvalidArgumentError(
            f"{task!r:.80} is not a task or the id of one", hint="task.id, 32 hex digits"
        )
    return raw


def claimed_task(task: object) -> Task:
    """A task that its holder passes back.

    Raises:
      InvalidArgumentError: it is not a task, or was not claimed.
    """
    if isinstance(task, Task) and task.claim and task.state is TaskState.CLAIMED:
        return task
    shown = f"a task that is {task.state}" if isinstance(task, Task) else repr(task)[:80]
    raise InvalidArgumentError(
        f"this needs a claimed task, got {shown}",
        hint="pass the Task that claim returned, not its id and not one that get or list returned",
    )


def checked_seconds(seconds: object, what: str, *, zero: bool = False) -> float:
    """A span of time, as seconds or as a timedelta.

    Raises:
      InvalidArgumentError: it is not one, or too short, or too long.
    """
    if isinstance(seconds, timedelta):
        seconds = seconds.total_seconds()
    if (
        isinstance(seconds, bool)
        or not isinstance(seconds, int | float)
        or not (0 < seconds <= TIMEOUT_MAX or (zero and seconds == 0))
    ):
        least = "from 0" if zero else "above 0"
        raise InvalidArgumentError(
            f"{what} must be a number of seconds {least}, at most {TIMEOUT_MAX:,.0f}, got {seconds!r}",
            hint=f"{what}=30, or a timedelta",
        )
    return seconds


def checked_number(number: object, what: str, least: int, most: int) -> int:
    """A whole number in a range.

    Raises:
      InvalidArgumentError: it is not one, or outside the range.
    """
    if type(number) is not int or not least <= number <= most:
        raise InvalidArgumentError(
            f"{what} must be a whole number from {least:,} to {most:,}, got {number!r}",
            hint=f"leave {what} out for the default",
            details={"given": repr(number)[:80], "least": least, "most": most},
        )
    return number
