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
import os
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ..model.errors import TransactionStateError
from .waiting import Interest, WaitHub, _Stale, _Waiter
from .watch import Change, Watch, wait_deadline

if TYPE_CHECKING:
    from .wait_signal import WaitSignal

__all__ = ["AsyncWatch", "await_change", "wait_in_loop"]

_LINGER_SECONDS = 1.0

Prepare = Callable[[], Awaitable[None]]  # waits until the handle's store can be had at once


class _LoopWaiter(_Waiter):
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
        self._waiter = _Waiter(Interest((), (), ()))
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
        if self._hub._leader is None:
            # A leader that left may have woken a task to take its place. That is for the thread to do.
            self._waiter.wake()

    def _main(self) -> None:
        waiter, hub = self._waiter, self._hub
        try:
            hub._enter(waiter)
            while True:
                waiter.settle()
                deadline = None
                if not self._tasks:
                    deadline = time.monotonic() + _LINGER_SECONDS
                hub._sleep(waiter, _soonest(deadline))
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
            hub._leave(waiter)


def _soonest(deadline: float | None) -> float:
    """When the thread looks around: whether there are tasks is not told to it."""
    look = time.monotonic() + _LINGER_SECONDS
    return look if deadline is None else min(look, deadline)


_pumps: weakref.WeakKeyDictionary[WaitHub, _Pump] = weakref.WeakKeyDictionary()


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
    pump = _pumps.get(hub)
    if pump is None:
        pump = _pumps[hub] = _Pump(hub)
    await prepare()
    try:
        hub._enter(waiter)
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
        hub._leave(waiter)


async def await_change(hub: WaitHub, prepare: Prepare, signal: WaitSignal, deadline: float | None) -> bool:
    """Sleep until something of a read set was changed after its snapshot; False if the deadline came first."""
    interest = Interest(signal.keys, signal.ranges, signal.prefixes)
    return await wait_in_loop(hub, prepare, interest, _Stale(hub, interest, signal.version), deadline)


class AsyncWatch(AsyncIterator[Change]):
    """Changes of one tag of a run, for `async for`. Made by `db.watch` of an asynchronous database.

    A loop over it ends when no change has come for `timeout` seconds; another loop goes on from there. It belongs to
    one task at a time.
    """

    def __init__(self, watch: Watch, hub: WaitHub, prepare: Prepare, timeout: float | None) -> None:
        self._watch = watch
        self._hub = hub
        self._prepare = prepare
        self._timeout = timeout
        self._busy = False

    async def __anext__(self) -> Change:
        """The next change; waits for it.

        Raises:
          StopAsyncIteration: none came within the watch's timeout, or it was closed.
          WatchLagged: changes were lost before they were read.
        """
        if not await self._filled():
            raise StopAsyncIteration
        return self._watch._rest.popleft()

    async def commits(self) -> AsyncIterator[list[Change]]:
        """The changes of one commit together, as a list. Ends and raises as the watch itself does."""
        while await self._filled():
            changes = list(self._watch._rest)
            self._watch._rest.clear()
            yield changes

    async def _filled(self) -> bool:
        """Whether a change lies ready; waits for one."""
        watch = self._watch
        if self._busy:
            raise TransactionStateError(
                "another task is reading this watch", hint="a watch belongs to one task: make one for each"
            )
        self._busy = True
        try:
            deadline = wait_deadline(self._timeout)
            while not watch._rest and not watch._fill(0.0):
                if watch._closed or not await wait_in_loop(
                    self._hub, self._prepare, watch._interest, watch._poll, deadline
                ):
                    return False
            return True
        finally:
            self._busy = False

    def ready(self) -> list[Change]:
        """What has been committed up to now, without waiting; [] if there is nothing new."""
        return self._watch.ready()

    @property
    def version(self) -> int:
        """Every change up to this version was given out, as `Watch.version` says."""
        return self._watch.version

    def close(self) -> None:
        """Stop watching. Closing twice is harmless."""
        self._watch.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _after_fork_in_child() -> None:
    _pumps.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
