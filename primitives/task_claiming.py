"""Claiming tasks: how many workers take from one queue, and how a worker waits. `_task_moves.pyx` says which task.

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
from ._task_moves import claim_task
from .layout import TASK_DELAYED
from .operations import CONTENDED, RunLike
from .task_records import due_of
from .task_types import Task

if TYPE_CHECKING:
    from ..engine.transaction._transaction import Space

__all__ = ["claim_outside"]

SPREAD_MAX = 32
SHRINKS = 0.5  # how often a claim that was not lost makes the choice smaller

# Among how many tasks the handles of this process choose, by their identities, where it is more than one. A hint: it
# decides how often claims are lost, nothing else.
_spreads: dict[int, int] = {}
# A generator of our own: users may seed the module's one with the same number in every worker.
_random = random.Random()
os.register_at_fork(after_in_child=_random.seed)


class _Attempts:
    """The attempts of one claim on a database: what a transaction does, and what became of it.

    Attributes:
      lost: how many attempts of the transaction under way were lost; -1 before the first.
      due: seconds until the first delayed task is due, as of the last transaction; None: there is none.
      waits: let the transaction wait for a task, unless one is due earlier than it was.
    """

    __slots__ = ("_cls", "_due_us", "_engine", "_lease", "_queue", "due", "lost", "waits")

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
        space = txn.space(self._cls.tag, raw=True)
        task = claim_task(space, self._queue, self._lease, spread)
        if task is None:
            self._wait(txn, space)
        elif spread > 1 and not self.lost and _random.random() < SHRINKS:
            if spread > 2:
                _spreads[self._engine] = spread - 1
            else:
                _spreads.pop(self._engine, None)
        return task

    def _wait(self, txn: Any, space: Space) -> None:
        due_us = _next_due(space, self._queue)
        self.due = None if due_us is None else max(0.0, (due_us - txn.read_time // 1000) / 1e6)
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
