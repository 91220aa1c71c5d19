"""Waiting in event loops: tasks that sleep until something changes, beside the threads of `waiting.py`.

A task cannot watch the bell of a channel, so one thread of the process does that for all tasks of a handle, whatever
their number and their loops. It takes part in the hub like any waiting thread, and leads when nobody else does.

1. The argument of `waiting.py` holds: a task is registered before `ready` is asked, and again asked after each wake-up.
   Until the thread leads, nothing is lost, because the feed that it will read began no later than the registration.
2. A wake-up reaches a task through its loop (`call_soon_threadsafe`).
3. The thread ends a while after the last task left. If it ends by an error (the database was closed), every task is
   woken and finds out for itself.
4. A forked child has no such thread, and makes its own when a task of it waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ..model.errors import TransactionStateError, WatchLagged
from .waiting import Interest, StaleCheck, Waiter, WaitHub
from .watch import Change, ChangeReader, ready_changes, wait_deadline

if TYPE_CHECKING:
    from .wait_signal import WaitSignal

__all__ = ["AsyncWatch", "await_change", "wait_in_loop"]

_LINGER_SECONDS = 1.0

Prepare = Callable[[], Awaitable[None]]  # waits until the handle's store can be had at once


class _LoopWaiter(Waiter):
    """A task that waits."""

    __slots__ = ("future", "loop")

    def __init__(self, interest: Interest, loop: asyncio.AbstractEventLoop) -> None:
        self.interest = interest
        self.woken = False
        self.loop = loop
        self.future: asyncio.Future[None] = loop.create_future()

    def wake(self) -> None:
        self.woken = True
        with contextlib.suppress(RuntimeError):  # its loop is closed
            self.loop.call_soon_threadsafe(self._ring)

    def _ring(self) -> None:
        if not self.future.done():
            self.future.set_result(None)

    def settle(self) -> None:
        self.woken = False
        self.future = self.loop.create_future()


class _Pump:
    """The thread that watches the bell for the tasks of one hub."""

    def __init__(self, hub: WaitHub) -> None:
        self._hub = hub
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._waiter = Waiter(Interest((), (), ()))
        self._tasks: set[_LoopWaiter] = set()

    def enter(self, waiter: _LoopWaiter) -> None:
        with self._lock:
            self._tasks.add(waiter)

    def leave(self, waiter: _LoopWaiter) -> None:
        with self._lock:
            self._tasks.discard(waiter)

    def run(self) -> None:
        """See to it that the thread runs."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._main, name="occamdb-waits", daemon=True)
                self._thread.start()
        if not self._hub.led:
            # A leader that left may have woken a task to take its place. That is for the thread to do.
            self._waiter.wake()

    def _main(self) -> None:
        waiter, hub = self._waiter, self._hub
        try:
            hub.enter(waiter)
            while True:
                waiter.settle()
                deadline = None
                if not self._tasks:
                    deadline = time.monotonic() + _LINGER_SECONDS
                hub.sleep(waiter, _soonest(deadline))
                with self._lock:
                    if not self._tasks and (deadline is not None and time.monotonic() >= deadline):
                        self._thread = None
                        return
        except BaseException:
            # Each task finds out by its own `ready` what that was.
            with self._lock:
                self._thread = None
            for task in tuple(self._tasks):
                task.wake()
        finally:
            hub.leave(waiter)


def _soonest(deadline: float | None) -> float:
    """When the thread looks around: whether there are tasks is not told to it."""
    look = time.monotonic() + _LINGER_SECONDS
    return look if deadline is None else min(look, deadline)


async def wait_in_loop(
    hub: WaitHub,
    prepare: Prepare,
    interest: Interest,
    ready: Callable[[], bool],
    deadline: float | None,
) -> bool:
    """Sleep until `ready()`; False if `deadline` (of `time.monotonic`) came first. As `WaitHub.wait`, for a task."""
    loop = asyncio.get_running_loop()
    waiter = _LoopWaiter(interest, loop)
    pump: _Pump | None = hub.pump
    if pump is None:
        pump = hub.pump = _Pump(hub)
    await prepare()
    try:
        hub.enter(waiter)
        pump.enter(waiter)
        while True:
            waiter.settle()
            await prepare()
            if ready():
                return True
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            pump.run()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await waiter.future
    finally:
        pump.leave(waiter)
        hub.leave(waiter)


async def await_change(hub: WaitHub, prepare: Prepare, signal: WaitSignal, deadline: float | None) -> bool:
    """Sleep until something of a read set was changed after its snapshot; False if the deadline came first."""
    interest = Interest(signal.keys, signal.ranges, signal.prefixes)
    return await wait_in_loop(hub, prepare, interest, StaleCheck(hub, interest, signal.version), deadline)


class _LogNeeded(Exception):
    """The ring has lost changes that the log may have."""

    def __init__(self, lag: WatchLagged) -> None:
        super().__init__()
        self.lag = lag


class AsyncWatch(AsyncIterator[Change]):
    """Changes of one tag of a run, for `async for`. Made by `db.watch` of an asynchronous database.

    A loop over it ends when no change has come for `timeout` seconds; another loop goes on from there. It belongs to
    one task at a time.
    """

    def __init__(self, reader: ChangeReader, hub: WaitHub, prepare: Prepare, timeout: float | None) -> None:
        self._reader = reader
        self._hub = hub
        self._prepare = prepare
        self._timeout = timeout
        self._busy = False
        self._logs: asyncio.Future[None] | None = None  # a thread that reads the log for it

    async def __anext__(self) -> Change:
        """The next change; waits for it.

        Raises:
          StopAsyncIteration: none came within the watch's timeout, or it was closed.
          WatchLagged: changes were lost before they were read.
        """
        if not await self._filled():
            raise StopAsyncIteration
        return self._reader.changes.popleft()

    async def commits(self) -> AsyncIterator[list[Change]]:
        """The changes of one commit together, as a list. Ends and raises as the watch itself does."""
        while await self._filled():
            yield self._reader.take_commit()

    async def _filled(self) -> bool:
        """Whether a change lies ready; waits for one."""
        reader = self._reader
        self._begin_reading()
        try:
            if reader.changes:
                return True
            deadline = wait_deadline(self._timeout)
            while not reader.closed:
                await self._log_read()
                await self._prepare()
                try:
                    ready = self._poll() or await wait_in_loop(
                        self._hub, self._prepare, reader.interest, self._poll, deadline
                    )
                except _LogNeeded as needed:
                    # Reading it takes long. The thread goes on if this task is cancelled; the next one waits for it.
                    self._logs = asyncio.ensure_future(asyncio.to_thread(reader.read_log, needed.lag))
                    continue
                if not ready:
                    return False
                if not reader.closed:
                    reader.decode()
                    return True
            return False
        finally:
            self._busy = False

    def _poll(self) -> bool:
        """Whether there is a reason to wait no longer."""
        try:
            return self._reader.closed or self._reader.poll(log=False)
        except WatchLagged as lag:
            raise _LogNeeded(lag) from lag

    async def _log_read(self) -> None:
        """Wait until no thread reads the log."""
        logs = self._logs
        if logs is None:
            return
        try:
            if not logs.cancelled():  # by the end of its loop, which has waited for the thread
                await asyncio.shield(logs)
        finally:
            if logs.done():
                self._logs = None

    def _begin_reading(self) -> None:
        if self._busy:
            raise TransactionStateError(
                "another task is reading this watch", hint="a watch belongs to one task: make one for each"
            )
        self._busy = True

    def ready(self) -> list[Change]:
        """What has been committed up to now, without waiting; [] if there is nothing new."""
        self._begin_reading()
        try:
            if self._logs is not None and not self._logs.done():
                return []  # not read yet
            return ready_changes(self._reader)
        finally:
            self._busy = False

    @property
    def version(self) -> int:
        """Every change up to this version was given out, as `Watch.version` says."""
        return self._reader.version

    def close(self) -> None:
        """Stop watching. A task that waits for a change of it ends its loop. Closing twice is harmless."""
        self._reader.close()
        self._hub.wake_all()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
