"""Claiming tasks: how many workers take from one queue, and how a worker waits. `_task_moves.pyx` says which task.

Many workers. All of them find the same first task, and of those that claim it at once one wins. Each loss doubles the
number of first ready tasks among which this process chooses at random, and every second claim without one makes it
smaller by one. So a lone worker keeps the exact order, and many get in each other's way about as seldom as there are
tasks to choose from.

Waiting. A change of an open task, a claim or a delayed task wakes a worker that waits, and the engine's removal of a
claim is such a change. A delayed task becomes ready without one: nobody sleeps beyond the time at which one is due.

Interrupts. A caller that is interrupted or cancelled while its claim is committed gets no task. If the commit took
place, or may take place, the claim is given back; otherwise the task would be nobody's until the lease ends.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Generator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..engine.model.errors import TransactionTimeout
from ..engine.model.public_types import RunId, TransactionStatus
from ..engine.transaction._transaction import DatabaseBase
from ..engine.transaction.watch import wait_deadline
from . import layout
from ._task_moves import claim_task
from .layout import TASK_CLAIM, TASK_DELAYED, TASK_OPEN
from .operations import CONTENDED, RunLike
from .task_records import CLAIMS, ORDER, RELEASED, due_of, find_place
from .task_types import Task
from .work import await_clean_up, clean_up

if TYPE_CHECKING:
    from ..engine.model._records import VersionedValue
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
      txn: the transaction of the last attempt.
      task: what that one claims, if it commits.
    """

    __slots__ = ("_cls", "_due_us", "_engine", "_lease", "_queue", "due", "lost", "task", "txn", "waits")

    def __init__(self, cls: Any, engine: Any, queue: str, lease: float | timedelta) -> None:
        self._cls = cls
        self._engine = engine
        self._queue = queue
        self._lease = lease
        self.lost = -1
        self._due_us = 0
        self.due: float | None = None
        self.waits = False
        self.txn: Any = None
        self.task: Task | None = None

    def run(self, txn: Any) -> Task | None:
        """One attempt."""
        self.lost += 1
        self.txn, self.task = txn, None
        engine = id(self._engine)
        spread = _spreads.get(engine, 1)
        if self.lost:
            _spreads[engine] = spread = min(spread * 2, SPREAD_MAX)
        space = txn.space(self._cls.tag, raw=True)
        self.task = task = claim_task(space, self._queue, self._lease, spread)
        if task is None:
            self._wait(txn, space)
        elif spread > 1 and not self.lost and _random.random() < SHRINKS:
            if spread > 2:
                _spreads[engine] = spread - 1
            else:
                _spreads.pop(engine, None)
        return task

    def _wait(self, txn: Any, space: Space) -> None:
        due_us = _next_due(space, self._queue)
        self.due = None if due_us is None else max(0.0, (due_us - txn.read_time // 1000) / 1e6)
        same, self._due_us = due_us == self._due_us, due_us or 0
        if self.waits and (due_us is None or same):
            self.lost = -1
            txn.wait()

    @property
    def in_doubt(self) -> bool:
        """Whether a claim was committed, or may yet be."""
        return self.task is not None and self.txn.status is not TransactionStatus.ABORTED

    def give_back(self, txn: Any) -> None:
        """Undo the claim that was in doubt, in another transaction."""
        assert self.task is not None
        space: Space = txn.space(self._cls.tag, raw=True)
        if self.txn.status is TransactionStatus.COMMITTED:
            version = self.txn.receipt.version
            _undo(space, self.task, lambda claim: claim.version == version)
        elif self.txn.status is not TransactionStatus.ABORTED:
            session = self._engine.session
            _undo(space, self.task, lambda claim: claim.session == session)


def _undo(space: Space, task: Task, is_ours: Callable[[VersionedValue], bool]) -> None:
    """Release a task if the claim on it is ours. If there is none, make sure that ours does not come later.

    A commit of it that is still under way writes the task's place too, so it conflicts with what is written here. By
    the session alone a claim of another thread may be taken for ours, if both were after the same task at that moment.
    That thread then meets LeaseLost, as if its lease had run out.
    """
    prefix, suffix = layout.task_queue(task.queue), layout.task_rank(task.priority) + bytes.fromhex(task.id)
    place = find_place(space, prefix, suffix)
    found = None if place is None else space.get_versioned(place.key)
    if place is None or found is None or place.kind not in (TASK_OPEN, TASK_DELAYED):
        return
    entry = found.value
    entry[ORDER] = entry[ORDER] or found.version
    claim = space.get_versioned(prefix + TASK_CLAIM + suffix)
    if claim is None and entry[CLAIMS] == task.claim - 1:
        space.put(place.key, entry)
    elif claim is not None and claim.value == task.claim and is_ours(claim):
        entry[RELEASED] += 1
        space.put(place.key, entry)
        space.delete(prefix + TASK_CLAIM + suffix)


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
        try:
            if timeout == 0 and timeout is not False:
                return database.transaction(run_id, attempts.run, retry=CONTENDED)
            return _claim(database, run_id, attempts, _steps(attempts, timeout))
        except BaseException:
            if attempts.in_doubt:
                clean_up(database, RunId.of(run_id), attempts.give_back)
            raise
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
        except BaseException:
            if attempts.in_doubt:
                await await_clean_up(database, RunId.of(run_id), attempts.give_back, attempts.txn)
            raise
        try:
            waits, seconds = steps.send(task)
        except StopIteration as end:
            found: Task | None = end.value
            return found
