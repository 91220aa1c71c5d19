"""Stored tasks: the record of one, its place in its queue, and the walks over a queue.

A task is at one place: open, delayed, done or dead. An open one is claimed as long as its claim is there, and the
engine takes that away when the lease ends or the claimer's session does. So nobody has to notice that a worker died.

Functions on the tasks' part of a run. An entry is what a place holds:

    open, delayed    [claims, released, max_attempts, error, order]
    done             [claims, released, max_attempts, finished, result]
    dead             [claims, released, max_attempts, finished, error]

`claims` counts every claim and never goes back, so it names the claim; the attempts are those that were not released.
`order` is the version of the commit that put the task; 0 in the entry of that commit itself, whose version it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from ..engine.model.errors import CorruptionError, OccamError
from ..engine.transaction._transaction import Space
from . import layout
from .layout import TASK_CLAIM, TASK_DEAD, TASK_DELAYED, TASK_DONE, TASK_OPEN
from .task_types import Task, TaskState

__all__ = ["Place", "decode_task", "due_of", "find_place", "queue_names", "walk_queue"]

# A record: what was put.
QUEUE, PRIORITY, KEY, CREATED, PAYLOAD = range(5)
# An entry.
CLAIMS, RELEASED, MAX_ATTEMPTS, ERROR, ORDER = range(5)
FINISHED, OUTCOME = 3, 4

SUFFIX_SIZE = 2 + layout.ID_SIZE  # rank and id


class Place(NamedTuple):
    """Where a task is.

    Attributes:
      key: of the place.
      kind: the byte that says which kind it is.
      entry: what it holds.
      claim: the number of the claim that is there; 0: none.
      lease_us: when that ends.
      due_us: when a delayed task is due.
    """

    key: bytes
    kind: bytes
    entry: list[Any]
    claim: int = 0
    lease_us: int = 0
    due_us: int = 0

    def state(self, now_us: int) -> TaskState:
        """The state of the task at a time."""
        if self.kind == TASK_OPEN:
            if self.claim:
                return TaskState.CLAIMED
            return TaskState.DEAD if exhausted(self.entry) else TaskState.READY
        if self.kind == TASK_DELAYED:
            return TaskState.DELAYED if self.due_us > now_us else TaskState.READY
        return TaskState.DONE if self.kind == TASK_DONE else TaskState.DEAD


def exhausted(entry: list[Any]) -> bool:
    """Whether an open task has no attempt left, so that it is dead as soon as it is not claimed."""
    left: int = entry[MAX_ATTEMPTS] - entry[CLAIMS] + entry[RELEASED]
    return left <= 0


def due_of(key: bytes) -> int:
    """When the task at a delayed place is due."""
    return int.from_bytes(key[-SUFFIX_SIZE - 8 : -SUFFIX_SIZE], "big") - (1 << 63)


def suffix_of(record: list[Any], raw: bytes) -> bytes:
    """Rank and id of a task."""
    return layout.task_rank(record[PRIORITY]) + raw


def find_place(space: Space, prefix: bytes, suffix: bytes) -> Place | None:
    """Where the task of a queue's prefix, and of a rank and id, is; None: nowhere."""
    key = prefix + TASK_OPEN + suffix
    entry = space.get(key)
    if entry is not None:
        found = space.get_versioned(prefix + TASK_CLAIM + suffix)
        if found is None:
            return Place(key, TASK_OPEN, entry)
        return Place(key, TASK_OPEN, entry, found.value, found.expires_at_ns // 1000)
    raw = suffix[2:]
    due = space.get(layout.task_due(raw))
    if due is not None:
        key = prefix + TASK_DELAYED + layout.time_key(due) + suffix
        entry = space.get(key)
        if entry is not None:
            return Place(key, TASK_DELAYED, entry, due_us=due)
    for kind in (TASK_DONE, TASK_DEAD):
        key = prefix + kind + raw
        entry = space.get(key)
        if entry is not None:
            return Place(key, kind, entry)
    return None


def decode_task(raw: bytes, record: Any, place: Place, now_us: int) -> Task:
    """The task of a record and a place.

    Raises:
      CorruptionError: they are not those of a task.
    """
    try:
        queue, priority, key, created, payload = record
        kind, entry = place.kind, place.entry
        claims, released, most, third, fourth = entry
        finished = kind in (TASK_DONE, TASK_DEAD)
        return Task(
            raw.hex(),
            queue,
            payload,
            place.state(now_us),
            priority,
            key,
            claims - released,
            most,
            place.claim,
            created,
            place.due_us,
            third if finished else 0,
            place.lease_us,
            fourth if kind == TASK_DONE else None,
            (fourth if kind == TASK_DEAD else None) if finished else third,
        )
    except (TypeError, ValueError) as problem:
        raise CorruptionError(f"task {raw.hex()} is unreadable: {problem}") from problem


def walk_queue(space: Space, prefix: bytes, kind: bytes, after: bytes = b"") -> Iterator[Place]:
    """The places of one kind in a queue, those behind the suffix `after`; open ones with their claims."""
    group = prefix + kind
    claims: dict[bytes, Any] = {}
    if kind == TASK_OPEN:
        skip = len(group)
        claims = {key[skip:]: found for key, found in space.scan(prefix + TASK_CLAIM)}
    start = group + after + b"\0" if after else None
    for key, found in space.scan(group, start=start):
        claim = claims.get(key[len(group) :]) if claims else None
        if claim is not None:
            yield Place(key, kind, found.value, claim.value, claim.expires_at_ns // 1000)
        elif kind == TASK_DELAYED:
            yield Place(key, kind, found.value, due_us=due_of(key))
        else:
            yield Place(key, kind, found.value)


def queue_names(space: Space) -> Iterator[str]:
    """Every queue that has tasks: one step of the walk each."""
    start = layout.TASK_PLACE
    while True:
        key = next(space.keys(layout.TASK_PLACE, start=start, limit=1), None)
        if key is None:
            return
        try:
            queue, _, _ = layout.task_place(key)
            prefix = layout.task_queue(queue)
        except (OccamError, ValueError) as problem:
            raise CorruptionError(f"{key.hex()} is not the key of a task: {problem}") from problem
        yield queue
        start = prefix + b"\xff"
