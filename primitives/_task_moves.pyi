"""Types of what happens to every task; see _task_moves.pyx."""

from datetime import timedelta
from typing import Any

from ..engine.transaction._transaction import Space
from .task_types import Task

_Seconds = float | timedelta
_Held = tuple[bytes, bytes, list[Any]]

def put_task(
    space: Space,
    queue: str,
    payload: Any,
    key: str | None,
    priority: int,
    delay: _Seconds,
    max_attempts: int,
) -> Task | bytes:
    """Put a task; gives it, or the id of the one that was put with the same key."""

def set_out(space: Space, prefix: bytes, suffix: bytes, entry: list[Any], wait: float) -> int:
    """Make a task ready, or delayed if there are seconds to wait; gives when it is due, 0 if it is ready."""

def claim_task(space: Space, queue: str, lease: _Seconds, spread: int) -> Task | None:
    """Claim one of the first `spread` ready tasks of a queue; None if there is none."""

def held_task(space: Space, task: Task) -> _Held | None:
    """Of a task that the caller holds: the queue's prefix, rank and id, and the open entry. None: it does not."""

def give_up(space: Space, task: Task) -> _Held | None:
    """Delete the claim of a task that the caller holds; gives what `held_task` does."""

def complete_task(space: Space, task: Task, result: Any) -> bool:
    """Make a task done that the caller holds; False: it does not hold it."""

def extend_claim(space: Space, task: Task, seconds: float) -> Task | None:
    """Let the lease of a task that the caller holds end `seconds` from now; the Task, or None: it does not hold it."""
