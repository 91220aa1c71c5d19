"""`db.tasks.worker`: a queue as a loop that completes each task at the end of its body.

A `for` loop does not tell its iterator how it was left. The iterator goes with the loop, unless somebody keeps it, and
then finds that it still has a task; a `with` block around the loop tells more.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from ..engine.model.errors import InvalidTransition, LeaseLost, NotFoundError, OccamError
from ..engine.transaction.watch import wait_deadline
from . import layout
from .operations import RunLike
from .spans import error_text
from .task_types import Task, checked_seconds

__all__ = ["AsyncWorker", "Worker", "note_ended"]

# What is raised when the body ended its task itself.
_ENDED = (InvalidTransition, LeaseLost, NotFoundError)

LEFT = "the body of the worker's loop was left before its end"

# The claims that loops of this process have at hand, and whether the body ended the task itself. A transaction that was
# aborted may have said so too, so this decides only which errors at the end of the body mean nothing.
_at_hand: dict[tuple[str, int], bool] = {}


def note_ended(task: Task) -> None:
    """The holder of a claim ends it."""
    if _at_hand and (task.id, task.claim) in _at_hand:
        _at_hand[task.id, task.claim] = True


class _Loop:
    """What the loops of both kinds of database have in common: the task at hand."""

    def __init__(
        self, tasks: Any, run_id: RunLike, queue: str, lease: float | timedelta, timeout: float | None
    ) -> None:
        layout.task_queue(queue)
        checked_seconds(lease, "lease")
        wait_deadline(timeout)
        self._tasks = tasks
        self._run = run_id
        self._queue = queue
        self._options = {"lease": lease, "timeout": timeout}
        self._task: Task | None = None
        self._process = os.getpid()

    def _take(self) -> tuple[Task | None, bool]:
        """The task at hand, which is from now on at hand no longer, and whether the body ended it."""
        task, self._task = self._task, None
        if self._process != os.getpid():
            # A forked child has a copy of its parent's worker, but not its task.
            self._process, task = os.getpid(), None
        return task, task is not None and _at_hand.pop((task.id, task.claim), False)

    def _next(self, claimed: Task | None, ended: bool = False) -> bool:
        if claimed is not None:
            _at_hand[claimed.id, claimed.claim] = ended
            self._task = claimed
        return claimed is not None

    def _drop(self, error: str | None) -> Any:
        """Fail the task at hand, if there is one; None: give it back."""
        task, _ = self._take()
        if task is None:
            return None
        if error is None:
            return self._tasks.release(self._run, task)
        return self._tasks.fail(self._run, task, error)


class Worker(_Loop, Iterator[Task]):
    """The tasks of a queue, one after the other; made by `db.tasks.worker`. It belongs to one thread.

    `next` completes the task at hand, and so does a loop that comes to the end of its body. A new loop over the same
    worker fails it, since the loop before was left.
    """

    def __iter__(self) -> Self:
        with suppress(*_ENDED):
            self._drop(LEFT)
        return self

    def __next__(self) -> Task:
        """Complete the task at hand, and claim the next.

        Raises:
          StopIteration: none came within the timeout.
          LeaseLost: the task at hand was no longer this worker's.
        """
        task, ended = self._take()
        if task is not None:
            try:
                self._tasks.complete(self._run, task)
            except _ENDED:
                if not ended:
                    raise
            except BaseException:
                self._next(
                    task, ended
                )  # it may not be completed: the next call, or the end of the block, sees to it
                raise
        claimed: Task | None = self._tasks.claim(self._run, self._queue, **self._options)
        if claimed is None or not self._next(claimed):
            raise StopIteration
        return claimed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with suppress(*_ENDED):
                self._drop(_text_of(error))
        except OccamError as problem:
            if error is None:
                raise
            error.add_note(f"and the task could not be given back: {problem}")

    def __del__(self) -> None:
        if getattr(self, "_task", None) is not None:
            with suppress(OccamError):
                self._drop(LEFT)


class AsyncWorker(_Loop, AsyncIterator[Task]):
    """`Worker` for event loops: `async with db.tasks.worker(run, queue) as tasks: async for task in tasks: ...`.

    Without the `async with`, a task whose body was left stays claimed until its lease ends.
    """

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Task:
        """Complete the task at hand, and claim the next.

        Raises:
          StopAsyncIteration: none came within the timeout.
          LeaseLost: the task at hand was no longer this worker's.
        """
        task, ended = self._take()
        if task is not None:
            try:
                await self._tasks.complete(self._run, task)
            except _ENDED:
                if not ended:
                    raise
            except BaseException:
                self._next(
                    task, ended
                )  # it may not be completed: the next call, or the end of the block, sees to it
                raise
        claimed: Task | None = await self._tasks.claim(self._run, self._queue, **self._options)
        if claimed is None or not self._next(claimed):
            raise StopAsyncIteration
        return claimed

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ending = self._drop(_text_of(error))
        if ending is None:
            return
        try:
            with suppress(*_ENDED):
                await ending
        except OccamError as problem:
            if error is None:
                raise
            error.add_note(f"and the task could not be given back: {problem}")


def _text_of(error: BaseException | None) -> str | None:
    """What the task at hand failed with when a `with` block is left; None: it did not, as with Ctrl-C."""
    if error is None:
        return LEFT
    return error_text(error) if isinstance(error, Exception) else None
