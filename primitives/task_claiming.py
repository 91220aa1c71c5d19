"""Claiming tasks: which task is taken, how many workers take from one queue, and how a worker waits.

Which. The first ready task by priority, then by order of the commits that put them. Ids sort by the start versions of
those commits, so another task can only be before one of commit version v if its start version is below v. The walk ends
at the first that is not.

Many workers. All of them find the same first task, and of those that claim it at once one wins. Each loss doubles the
number of first ready tasks among which this process chooses at random, and every second claim without one makes it
smaller by one. So a lone worker keeps the exact order, and many get in each other's way about as seldom as there are
tasks to choose from.

Waiting. A change of an open task, a claim or a delayed task wakes a worker that waits, and the engine's removal of a
claim is such a change. A delayed task becomes ready without one: nobody sleeps beyond the time at which one is due.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Generator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..engine.model.errors import TransactionTimeout
from ..engine.transaction._transaction import DatabaseBase
from ..engine.transaction.watch import wait_deadline
from . import layout
from .layout import TASK_CLAIM, TASK_DEAD, TASK_DELAYED, TASK_DONE, TASK_OPEN
from .operations import CONTENDED, RunLike
from .task_records import (
    CLAIMS,
    ERROR,
    MAX_ATTEMPTS,
    ORDER,
    RELEASED,
    SUFFIX_SIZE,
    Place,
    decode_task,
    due_of,
    exhausted,
)
from .task_types import Task, checked_seconds

if TYPE_CHECKING:
    from ..engine.transaction._transaction import Space

__all__ = ["claim_outside", "ready_task"]

SPREAD_MAX = 32
SHRINKS = 0.5  # how often a claim that was not lost makes the choice smaller
LOOK_AHEAD = 64  # tasks of overlapping commits that are put in order
PROMOTED_AT_ONCE = 64
BURIED_AT_ONCE = 64

NEVER = 1 << 63  # the order of a task that this very transaction put

# Among how many tasks the handles of this process choose, by their identities, where it is more than one. A hint: it
# decides how often claims are lost, nothing else.
_spreads: dict[int, int] = {}
# A generator of our own: users may seed the module's one with the same number in every worker.
_random = random.Random()
os.register_at_fork(after_in_child=_random.seed)


# --- Which task ----------------------------------------------------------------------------------


def ready_task(tasks: Any, queue: str, lease: float | timedelta, spread: int) -> Task | None:
    """Claim one of the first `spread` ready tasks of a queue in this transaction; None if there is none."""
    space: Space = tasks.space
    prefix, seconds = layout.task_queue(queue), checked_seconds(lease, "lease")
    now: int = tasks.now_us
    taken, due = _held_and_due(space, prefix, now)
    if due:
        _promote(space, prefix, due)
    chosen = _draw(space, prefix, taken, spread) if spread > 1 else None
    chosen = chosen or _first(space, prefix, taken, now)
    if chosen is None:
        # What is read here makes `txn.wait()` wait for a task.
        for _ in space.keys(start=prefix + TASK_OPEN, end=prefix + TASK_DONE):
            pass
        return None
    key, entry, order = chosen
    suffix = key[-SUFFIX_SIZE:]
    entry[CLAIMS] += 1
    entry[ORDER] = 0 if order == NEVER else order
    space.put(key, entry)
    space.put(prefix + TASK_CLAIM + suffix, entry[CLAIMS], ttl=seconds, ephemeral=True)
    raw = suffix[2:]
    place = Place(key, TASK_OPEN, entry, entry[CLAIMS], now + int(seconds * 1e6))
    return decode_task(raw, space.get(layout.task(raw), track=False), place, now)


def _held_and_due(space: Space, prefix: bytes, now: int) -> tuple[set[bytes], list[bytes]]:
    """Rank and id of the claimed tasks, and the delayed places of the first that are due."""
    taken: set[bytes] = set()
    due: list[bytes] = []
    skip, delayed = len(prefix) + 1, TASK_DELAYED[0]
    for key in space.keys(start=prefix + TASK_CLAIM, end=prefix + TASK_DONE, track=False):
        if key[skip - 1] != delayed:
            taken.add(key[skip:])
        elif due_of(key) > now or len(due) == PROMOTED_AT_ONCE:
            break
        else:
            due.append(key)
    return taken, due


def _promote(space: Space, prefix: bytes, due: list[bytes]) -> None:
    """Make delayed tasks open."""
    for key in due:
        found = space.get_versioned(key, track=False)
        assert found is not None, "it was in the snapshot a moment ago"
        entry, suffix = found.value, key[-SUFFIX_SIZE:]
        entry[ORDER] = entry[ORDER] or found.version
        space.delete(key)
        space.delete(layout.task_due(suffix[2:]))
        space.put(prefix + TASK_OPEN + suffix, entry)


def _draw(space: Space, prefix: bytes, taken: set[bytes], spread: int) -> tuple[bytes, list[Any], int] | None:
    """The place, the entry and the order of one of the first ready tasks of one priority; None: look at the first."""
    group = prefix + TASK_OPEN
    skip, wanted = len(group), _random.randrange(spread)
    ready: list[bytes] = []
    for key in space.keys(group, track=False):
        if key[skip:] in taken:
            continue
        if ready and key[skip : skip + 2] != ready[0][skip : skip + 2]:
            break
        ready.append(key)
        if len(ready) > wanted:
            break
    if not ready:
        return None
    key = ready[wanted % len(ready)]
    found = space.get_versioned(key, track=False)
    if found is None or exhausted(found.value):
        return None
    return key, found.value, found.value[ORDER] or found.version or NEVER


def _first(space: Space, prefix: bytes, taken: set[bytes], now: int) -> tuple[bytes, list[Any], int] | None:
    """The place, the entry and the order of the first ready task. Buries those that have no attempt left."""
    group = prefix + TASK_OPEN
    skip = len(group)
    rank, best, seen = b"", NEVER, 0
    first: list[tuple[int, bytes, list[Any]]] = []
    graves: list[tuple[bytes, list[Any]]] = []
    for key, found in space.scan(group, track=False):
        suffix = key[skip:]
        if suffix in taken:
            continue
        entry = found.value
        if entry[CLAIMS] and exhausted(entry):
            graves.append((key, entry))
            if len(graves) == BURIED_AT_ONCE:
                break
            continue
        if first:
            if suffix[:2] != rank or seen == LOOK_AHEAD:
                break
            if int.from_bytes(suffix[2:10], "big") >= best:
                break
        order = entry[ORDER] or found.version or NEVER
        rank, seen = suffix[:2], seen + 1
        best = min(best, order)
        first.append((order, key, entry))
    for key, entry in graves:
        _bury(space, prefix, key, entry, now)
    if not first:
        return None
    order, key, entry = min(first)
    return key, entry, order


def _bury(space: Space, prefix: bytes, key: bytes, entry: list[Any], now: int) -> None:
    """A worker went with the last attempt: the task is dead."""
    error = entry[ERROR] or "the worker of the last attempt went away, or its lease ran out"
    space.delete(key)
    dead = [entry[CLAIMS], entry[RELEASED], entry[MAX_ATTEMPTS], now, error]
    space.put(prefix + TASK_DEAD + key[-layout.ID_SIZE :], dead)


# --- Many workers, and waiting ---------------------------------------------------------------------


class _Attempts:
    """The attempts of one claim on a database: what a transaction does, and what became of it.

    Attributes:
      lost: how many attempts of the transaction under way were lost; -1 before the first.
      due: seconds until the first delayed task is due, as of the last transaction; None: there is none.
      waits: let the transaction wait for a task, unless one is due earlier than it was.
    """

    def __init__(self, cls: Any, engine: Any, queue: str, lease: float | timedelta) -> None:
        self._cls = cls
        self._engine = id(engine)
        self._queue = queue
        self._lease = lease
        self.lost = -1
        self._due_us = 0
        self.due: float | None = None
        self.waits = False

    def run(self, txn: Any) -> Task | None:
        """One attempt."""
        self.lost += 1
        spread = _spreads.get(self._engine, 1)
        if self.lost:
            _spreads[self._engine] = spread = min(spread * 2, SPREAD_MAX)
        tasks = self._cls(txn)
        task = ready_task(tasks, self._queue, self._lease, spread)
        if task is None:
            self._wait(txn, tasks)
        elif spread > 1 and not self.lost and _random.random() < SHRINKS:
            if spread > 2:
                _spreads[self._engine] = spread - 1
            else:
                _spreads.pop(self._engine, None)
        return task

    def _wait(self, txn: Any, tasks: Any) -> None:
        due_us = _next_due(tasks.space, self._queue)
        self.due = None if due_us is None else max(0.0, (due_us - tasks.now_us) / 1e6)
        same, self._due_us = due_us == self._due_us, due_us or 0
        if self.waits and (due_us is None or same):
            self.lost = -1
            txn.wait()


def _next_due(space: Space, queue: str) -> int | None:
    for key in space.keys(layout.task_queue(queue) + TASK_DELAYED, limit=1, track=False):
        return due_of(key)
    return None


def _steps(
    attempts: _Attempts, timeout: float | None
) -> Generator[tuple[bool, float | None], Task | None, Task | None]:
    """What to do next: (wait for a task?, for how long). It is sent the task, None if the time was over."""
    deadline = wait_deadline(timeout)
    task = yield False, None
    attempts.waits = True
    while task is None:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            break
        due, attempts.lost = attempts.due, -1
        task = yield True, due if left is None else left if due is None else min(left, due)
    return task


def claim_outside(
    tasks: Any,
    run_id: RunLike,
    /,
    queue: str,
    *,
    lease: float | timedelta = 30,
    timeout: float | None = 0,
) -> Any:
    """`claim` on a database: tried again when the claim was lost, until there is a task or the time is over.

    On an asynchronous database it is a coroutine.
    """
    database: Any = tasks._handle
    attempts = _Attempts(type(tasks), database.handle, queue, lease)
    if isinstance(tasks._handle, DatabaseBase):
        if timeout == 0 and timeout is not False:
            return database.transaction(run_id, attempts.run, retry=CONTENDED)
        return _claim(database, run_id, attempts, _steps(attempts, timeout))
    return _claim_awaited(database, run_id, attempts, _steps(attempts, timeout))


def _claim(database: Any, run_id: RunLike, attempts: _Attempts, steps: Any) -> Task | None:
    waits, seconds = next(steps)
    while True:
        task = None
        try:
            if waits:
                task = database.waiting_transaction(run_id, attempts.run, CONTENDED, seconds)
            else:
                task = database.transaction(run_id, attempts.run, retry=CONTENDED)
        except TransactionTimeout:
            pass
        try:
            waits, seconds = steps.send(task)
        except StopIteration as end:
            found: Task | None = end.value
            return found


async def _claim_awaited(database: Any, run_id: RunLike, attempts: _Attempts, steps: Any) -> Task | None:
    waits, seconds = next(steps)
    while True:
        task = None
        try:
            if waits:
                task = await database.waiting_transaction(run_id, attempts.run, CONTENDED, seconds)
            else:
                task = await database.transaction(run_id, attempts.run, retry=CONTENDED)
        except TransactionTimeout:
            pass
        try:
            waits, seconds = steps.send(task)
        except StopIteration as end:
            found: Task | None = end.value
            return found
