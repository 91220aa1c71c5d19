"""Claiming tasks: which task is taken, how many workers take from one queue, and how a worker waits.

Which. The first ready task by priority, then by order of the commits that put them. Ids sort by the start versions of
those commits, so another task can only be before one of commit version v if its start version is below v. The walk ends
at the first that is not.

Many workers. All of them find the same first task, and of those that claim it at once one wins. Each loss doubles the
number of first ready tasks among which this process chooses at random, and each claim without one makes it smaller by
one. So a lone worker keeps the exact order, and many get in each other's way about as seldom as there are tasks to
choose from.

Waiting. A change of an open task, a claim or a delayed task wakes a worker that waits, and the engine's removal of a
claim is such a change. A delayed task becomes ready without one: nobody sleeps beyond the time at which one is due.
"""

from __future__ import annotations

import random
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ..engine.model.errors import ConflictError, RetriesExhausted, SnapshotExpired
from ..engine.model.public_types import TypeTag
from ..engine.transaction.wait_signal import WaitSignal
from ..engine.transaction.waiting import wait_for_change
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

SPREAD_MAX = 64
LOOK_AHEAD = 64  # tasks of overlapping commits that are put in order
PROMOTED_AT_ONCE = 64
BURIED_AT_ONCE = 64
LOSSES_WITHOUT_PAUSE = 8

NEVER = 1 << 63  # the order of a task that this very transaction put

# Among how many tasks the handles of this process choose. A hint: it decides how often claims are lost, nothing else.
_spreads: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
# A generator of our own: users may seed the module's one with the same number in every worker.
_random = random.SystemRandom()


# --- Which task ----------------------------------------------------------------------------------


def ready_task(tasks: Any, queue: str, lease: float | timedelta, spread: int) -> Task | None:
    """Claim one of the first `spread` ready tasks of a queue in this transaction; None if there is none."""
    space: Space = tasks.space
    prefix, seconds = layout.task_queue(queue), checked_seconds(lease, "lease")
    now: int = tasks.now_us
    _promote(space, prefix, now)
    chosen = _choose(space, prefix, spread, now)
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


def _promote(space: Space, prefix: bytes, now: int) -> None:
    """Make delayed tasks open that are due."""
    due: list[tuple[bytes, list[Any]]] = []
    for key, found in space.scan(prefix + TASK_DELAYED, track=False):
        if due_of(key) > now or len(due) == PROMOTED_AT_ONCE:
            break
        entry = found.value
        entry[ORDER] = entry[ORDER] or found.version
        due.append((key, entry))
    for key, entry in due:
        suffix = key[-SUFFIX_SIZE:]
        space.delete(key)
        space.delete(layout.task_due(suffix[2:]))
        space.put(prefix + TASK_OPEN + suffix, entry)


def _choose(space: Space, prefix: bytes, spread: int, now: int) -> tuple[bytes, list[Any], int] | None:
    """The place, the entry and the order of the task to claim. Buries those that have no attempt left."""
    group = prefix + TASK_OPEN
    skip = len(group)
    taken = {key[skip:] for key in space.keys(prefix + TASK_CLAIM, track=False)}
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
            if len(first) >= spread and int.from_bytes(suffix[2:10], "big") >= best:
                break
        order = entry[ORDER] or found.version or NEVER
        rank, seen = suffix[:2], seen + 1
        best = min(best, order)
        first.append((order, key, entry))
    for key, entry in graves:
        _bury(space, prefix, key, entry, now)
    if not first:
        return None
    first.sort()
    order, key, entry = first[_random.randrange(min(spread, len(first)))] if spread > 1 else first[0]
    return key, entry, order


def _bury(space: Space, prefix: bytes, key: bytes, entry: list[Any], now: int) -> None:
    """A worker went with the last attempt: the task is dead."""
    error = entry[ERROR] or "the worker of the last attempt went away, or its lease ran out"
    space.delete(key)
    dead = [entry[CLAIMS], entry[RELEASED], entry[MAX_ATTEMPTS], now, error]
    space.put(prefix + TASK_DEAD + key[-layout.ID_SIZE :], dead)


# --- Many workers, and waiting ---------------------------------------------------------------------


def claim_outside(
    tasks: Any,
    run_id: RunLike,
    /,
    queue: str,
    *,
    lease: float | timedelta = 30,
    timeout: float | None = 0,
) -> Task | None:
    """`claim` on a database: tried again when the claim was lost, until there is a task or the time is over."""
    database, cls = tasks._handle, type(tasks)
    deadline = None if timeout == 0 else wait_deadline(timeout)
    spreads, handle = _spreads, database.handle
    lost = 0
    while True:
        spread = spreads.get(handle, 1)
        # Reads are not checked: whoever changes the task that is taken writes its place, as the claim does.
        txn = database.begin(run_id, isolation="snapshot", attempts=lost + 1)
        try:
            view = cls(txn)
            task = ready_task(view, queue, lease, spread)
            version, due = txn.start_version, None if task else _next_due(view, queue)
            txn.commit()
        except (ConflictError, SnapshotExpired) as error:
            lost += 1
            spreads[handle] = min(spread * 2, SPREAD_MAX)
            _pause(lost, error)
            continue
        finally:
            txn.__exit__(ValueError, None, None)
        if task is not None:
            if spread > 1 and not lost:
                spreads[handle] = spread - 1
            return task
        if timeout == 0 or (deadline is not None and time.monotonic() >= deadline):
            return None
        _sleep(database, run_id, queue, version, deadline, due)


def _pause(lost: int, error: ConflictError | SnapshotExpired) -> None:
    if lost >= CONTENDED.max_attempts:
        if isinstance(error, ConflictError):
            raise RetriesExhausted(
                attempts=lost, conflicts=error.conflicts, conflicts_found=error.conflicts_found
            ) from error
        raise error
    if lost > LOSSES_WITHOUT_PAUSE:
        time.sleep(_random.random() * CONTENDED.max_backoff)


def _next_due(view: Any, queue: str) -> float | None:
    """Seconds until the first delayed task of a queue is due; None if there is none."""
    for key in view.space.keys(layout.task_queue(queue) + TASK_DELAYED, limit=1, track=False):
        until_due: float = (due_of(key) - view.now_us) / 1e6
        return max(0.0, until_due)
    return None


def _sleep(
    database: Any, run_id: RunLike, queue: str, version: int, deadline: float | None, due: float | None
) -> None:
    """Sleep until something changed in the queue after `version`, a task is due, or the deadline."""
    if due is not None:
        moment = time.monotonic() + due
        deadline = moment if deadline is None else min(moment, deadline)
    own = database.prefix_of(run_id, TypeTag.TASK)
    start = own + layout.task_queue(queue)
    signal = WaitSignal(None, version, (), [(start + TASK_OPEN, start + TASK_DONE)], [own])
    wait_for_change(database.handle.waits, signal, deadline)
