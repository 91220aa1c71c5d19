"""The engine of an `AsyncDatabase`: commits are awaited, in whichever event loop asks for them.

1. Everything but commits is the handle's below: a `SharedHandle` or a `LocalHandle`.
2. Each event loop has links of its own (`EventLinks`), made at its first commit. They go when the loop shuts its
   asynchronous generators down, as `asyncio.run` does at its end, when the database is closed, and when the loop is
   found closed.
3. A forked child has no loops: its own make their own links.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import time
import weakref
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..model.errors import DatabaseClosedError, InvalidArgumentError, OccamError
from ..transaction._pending import PendingCommit
from ..transaction._view import StoreAttachment
from ..transaction.forwarding import ForwardingHandle
from .descriptors import no_descriptors_error
from .event_links import EventLinks
from .local_handle import LocalHandle
from .outcome import last_commit
from .shared_handle import SharedHandle
from .turn_waits import TurnWaiters

__all__ = ["ASYNC_LINKS", "AwaitedHandle", "check_async_links"]

ASYNC_LINKS = 32
_ASYNC_LINKS_MAX = 1024
_LOOK_SECONDS = 0.01

_guards_of_parents: list[Any] = []
_handles: weakref.WeakSet[AwaitedHandle] = weakref.WeakSet()


def check_async_links(count: object) -> int:
    """The number of links a loop may have.

    Raises:
      InvalidArgumentError: not a whole number from 1 to 1024.
    """
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= _ASYNC_LINKS_MAX:
        raise InvalidArgumentError(
            f"async_links = {count!r} is not a whole number from 1 to {_ASYNC_LINKS_MAX}",
            hint=f"the default is {ASYNC_LINKS}",
        )
    return count


class AwaitedHandle(ForwardingHandle[SharedHandle | LocalHandle]):
    """`EngineHandle` over another handle, with `commit` for event loops; see engine_handle.py for the methods.

    Args:
      inner: who does the rest.
      async_links: the most links of one event loop.
    """

    begins_afar = False

    def __init__(self, inner: SharedHandle | LocalHandle, async_links: int = ASYNC_LINKS) -> None:
        super().__init__(inner)
        self._async_links = check_async_links(async_links)
        self._turn_waiters = TurnWaiters(inner)
        self._of_loops: dict[asyncio.AbstractEventLoop, EventLinks] = {}
        self._guards: dict[asyncio.AbstractEventLoop, AsyncGenerator[None]] = {}
        # Links of closed loops, as long as threads of theirs find out what became of commits.
        self._abandoned: weakref.WeakSet[EventLinks] = weakref.WeakSet()
        self._shared: dict[tuple[asyncio.AbstractEventLoop, str], asyncio.Future[None]] = {}
        _handles.add(self)

    def __reduce__(self) -> Any:
        return AwaitedHandle, (self.inner, self._async_links)

    # ---- as the handle below ----------------------------------------------------------------------------------

    @property
    def path(self) -> str | None:
        """The database directory; None in memory."""
        return self.inner.path if isinstance(self.inner, SharedHandle) else None

    def of(self, base: bytes) -> AwaitedHandle:
        return self  # all namespaces have one order

    def attachment(self) -> StoreAttachment:
        return self.inner.attachment()

    def close(self) -> None:
        """Let go of the engine at once. Commits in flight have no outcome here; `aclose` waits for it."""
        for loop in list(self._of_loops):
            self._abandon(loop)
        self._turn_waiters.close()
        self.inner.close()

    # ---- in an event loop -------------------------------------------------------------------------------------

    async def commit(self, pending: PendingCommit) -> Any:
        """Carry a commit out. What its caller is given, or the error it gets."""
        if pending.done:
            return pending.result()
        inner = self.inner
        if isinstance(inner, LocalHandle):
            self._turn_waiters.try_at_once(pending)
            if pending.done:
                # Nothing is waited for, and still other tasks run in between.
                await asyncio.sleep(0)
            else:
                await self._turn_waiters.carry_out(pending)
            return pending.result()
        links = self._of_loops.get(asyncio.get_running_loop())
        if links is None or links.closed:
            try:
                links = await self._links_for(inner, asyncio.get_running_loop())
            except BaseException as error:
                pending.refuse(error if isinstance(error, Exception) else DatabaseClosedError())
                raise
        if pending.binds and not inner.pool.session_kept:
            try:
                await self._once("keep_session", inner.keep_session)
            except BaseException as error:
                pending.refuse(error if isinstance(error, Exception) else DatabaseClosedError())
                raise
        return await links.commit(pending)

    async def ended(self, pending: PendingCommit) -> None:
        """Wait until a commit that is under way has its outcome, as far as its loop still runs."""
        while isinstance(self.inner, LocalHandle) and not pending.done:
            await asyncio.sleep(_LOOK_SECONDS)  # its task was cancelled, and its thread goes on
        self._abandon_closed_loops()
        loop = None if pending.done or pending.future is None else pending.future.get_loop()
        if loop is None:
            return
        links = self._of_loops.get(loop)
        if links is not None and loop is asyncio.get_running_loop():
            await links.ended(pending)
            return
        # Another loop's commit is asked for seldom, and its loop may end at any moment and tell nobody. So look.
        while not pending.done and time.monotonic() < pending.limit:
            settles = any(links.settles(pending) for links in tuple(self._abandoned))
            if not settles and (loop.is_closed() or loop not in self._of_loops):
                return
            await asyncio.sleep(_LOOK_SECONDS)

    async def ready(self) -> None:
        """Wait until a snapshot can begin at once: in a thread, if a coordinator has to be reached for it."""
        inner = self.inner
        if isinstance(inner, LocalHandle) or inner.closed:
            return
        primary = inner.pool.primary
        if primary is not None and inner.pool.pid == os.getpid():
            primary.retire_if_orphaned()
            if primary.attachment.usable:
                return
        await self._once("attachment", inner.attachment)

    def unready(self) -> None:
        """Nothing to take back: `ready` has begun nothing."""

    async def _once(self, what: str, call: Callable[[], Any]) -> None:
        """Call in a thread, once for all tasks of this loop that want it at the same time."""
        key = asyncio.get_running_loop(), what
        shared = self._shared.get(key)
        if shared is None:
            shared = self._shared[key] = asyncio.ensure_future(in_thread(call))
            shared.add_done_callback(functools.partial(self._was_called, key))
        # A task that is cancelled leaves it to the others.
        await asyncio.shield(shared)

    def _was_called(self, key: tuple[asyncio.AbstractEventLoop, str], shared: asyncio.Future[None]) -> None:
        self._shared.pop(key, None)
        if not shared.cancelled():
            shared.exception()  # seen, even if every task that wanted it was cancelled

    async def outcome_of(self, name: tuple[int, int]) -> tuple[bool, int, int]:
        """Whether a commit that ended without an answer happened, its version and its time. Asks the coordinator."""
        inner = self.inner
        if isinstance(inner, LocalHandle):
            return False, 0, 0  # it answers at once, or it raised before it did anything
        found: tuple[bool, int, int] = await in_thread(_ask_outcome, inner, *name)
        return found

    async def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """`admin`, in a thread."""
        reply: dict[str, Any] = await in_thread(self.inner.admin, message)
        return reply

    async def aclose(self) -> None:
        """Wait for the commits in flight, then let go of the engine."""
        here = asyncio.get_running_loop()
        for loop, links in list(self._of_loops.items()):
            if loop is here:
                await self._end(loop)
            elif loop.is_closed() or not loop.is_running():
                self._abandon(loop)
            else:
                await self._end_there(loop, links)
        await self._turn_waiters.drain()
        self._turn_waiters.close()
        await in_thread(self.inner.close)

    async def _links_for(self, inner: SharedHandle, loop: asyncio.AbstractEventLoop) -> EventLinks:
        self._abandon_closed_loops()
        if inner.closed:
            raise DatabaseClosedError()
        inner.pool.check_open()
        try:
            links = EventLinks(
                loop,
                inner.pool,
                inner.admin,
                sync=inner.syncs,
                timeout=inner.timeout,
                size=self._async_links,
            )
        except OSError as error:
            shortage = no_descriptors_error(error, "make an eventfd for an event loop")
            if shortage is None:
                raise
            raise shortage from error
        self._of_loops[loop] = links
        # Its first step registers it with the loop, which closes it when it shuts down.
        guard = self._guards[loop] = self._until_the_loop_ends(loop)
        await anext(guard)
        return links

    async def _until_the_loop_ends(self, loop: asyncio.AbstractEventLoop) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            await self._end(loop)

    async def _end_there(self, loop: asyncio.AbstractEventLoop, links: EventLinks) -> None:
        """`links.end` in another thread's loop, which may end meanwhile: then it does that by itself."""
        ending = links.end()
        try:
            asyncio.run_coroutine_threadsafe(ending, loop)
        except RuntimeError:
            ending.close()
        while not links.gone and not loop.is_closed():
            await asyncio.sleep(_LOOK_SECONDS)
        self._abandon(loop)

    async def _end(self, loop: asyncio.AbstractEventLoop) -> None:
        links = self._of_loops.get(loop)
        if links is not None and not links.gone:
            await links.end()
        if self._of_loops.get(loop) is links:
            self._of_loops.pop(loop, None)
        self._guards.pop(loop, None)

    def _abandon_closed_loops(self) -> None:
        for loop in list(self._of_loops):
            if loop.is_closed():
                self._abandon(loop)

    def _abandon(self, loop: asyncio.AbstractEventLoop) -> None:
        """The loop runs no more, or nobody may wait for it."""
        links = self._of_loops.pop(loop, None)
        self._guards.pop(loop, None)
        if links is None:
            return
        self._abandoned.add(links)
        if loop.is_closed() or not loop.is_running() or loop is asyncio._get_running_loop():
            if not links.gone:
                links.abandon()
        else:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(links.abandon)

    def forget_after_fork(self) -> None:
        """In a forked child: the loops are the parent's."""
        for links in self._of_loops.values():
            links.forget_after_fork()
        self._of_loops = {}
        self._turn_waiters = TurnWaiters(self.inner)  # the threads of the other one are the parent's
        self._shared = {}
        self._abandoned.clear()
        # Kept: a generator that goes asks its loop, which is the parent's, to run its end.
        _guards_of_parents.append(self._guards)
        self._guards = {}


def _ask_outcome(handle: SharedHandle, session: int, sequence: int) -> tuple[bool, int, int]:
    last, version = last_commit(handle.pool, session, time.monotonic() + handle.timeout)
    if last != sequence:
        return False, 0, 0
    committed_at = time.time_ns()
    with contextlib.suppress(OccamError):  # the log before the last checkpoint is gone
        committed_at = int(handle.admin({"kind": "logged_commit", "version": version})["committed_at"])
    return True, version, committed_at


async def in_thread(call: Any, *args: Any) -> Any:
    """What `call(*args)` returns, called in a thread. The thread ends with it: this is for what happens seldom."""
    with _one_thread() as executor:
        return await asyncio.get_running_loop().run_in_executor(executor, functools.partial(call, *args))


@contextlib.contextmanager
def _one_thread() -> Any:
    executor = ThreadPoolExecutor(1, thread_name_prefix="occamdb")
    try:
        yield executor
    finally:
        # Not waiting: a task that was cancelled does not wait for what its thread is blocked in.
        executor.shutdown(wait=False)


def _after_fork_in_child() -> None:
    for handle in list(_handles):
        handle.forget_after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
