"""The links of one event loop: commits in flight, commits that wait for a link, replies collected as they come.

1. Everything here runs in the loop's thread and waits for nothing, but for `attach` and `settle`, which run in threads
   of the executor and touch nothing of the loop's.
2. A link carries one commit at a time. A commit without a link waits its turn, first come, first served; links are
   attached one by one, up to `size`, while commits wait. A link that brought a turn is kept for its transaction.
3. The coordinator writes the eventfd behind every reply and whenever it made room for the rest of a request. The end of
   a link's connection is readable too. So nothing polls.
4. A commit ends once: by its reply, by what the next coordinator says of it, or by a time limit. What its task does
   meanwhile, cancelled or not, changes nothing but whether somebody waits for it. Only a commit that still waits for a
   link is taken back when its task is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import threading
import time
import weakref
from collections import OrderedDict
from typing import Any

from ...ipc.errors import ChannelBroken, OccamError
from ..model.errors import (
    CommitOutcomeUnknown,
    DatabaseClosedError,
    TransactionTimeout,
)
from ..transaction._answer import Answer
from ..transaction._pending import PendingCommit
from .carrier import Carrier, say_goodbye
from .link import Link
from .loop_threads import LoopThreads, NoThread
from .lost_commit import (
    ContinuedLinks,
    LostCommit,
    error_for_its_deadline,
    no_thread_error,
    too_late,
    unknown_in_closed_loop,
)
from .outcome import Ask, answer_of, grants_turn, is_stopping
from .pool import LinkPool
from .turn_waits import KeptLinks

__all__ = ["EventLinks"]

_ATTACHING_MAX = 4  # at once
_THREADS_MAX = 8  # of one loop; they attach, and ask what became of commits
_TICK_MIN = 0.001
_SHORTAGE_SECONDS = 1.0  # how long a loop makes do with fewer links after one could not be attached


class EventLinks:
    """Commits for the tasks of `loop`.

    Args:
      loop: the running one.
      pool: attaches links, and counts them.
      ask: puts a question to the coordinator; blocks.
      sync: every commit asks for a sync.
      timeout: seconds that a commit without a deadline may take.
      size: the most links at once.

    Attributes:
      closed: no further commits are taken.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        pool: LinkPool,
        ask: Ask,
        *,
        sync: bool,
        timeout: float,
        size: int,
    ) -> None:
        self.loop = loop
        self._pool = pool
        self._ask = ask
        self._sync = sync
        self._timeout = timeout
        self._size = size
        self._idle: list[Carrier] = []
        self._kept = KeptLinks(loop, self._next)
        self._busy: dict[Carrier, None] = {}
        # In order; a dict, since any of them may leave, and thousands at once.
        self._waiting: OrderedDict[PendingCommit, None] = OrderedDict()
        self._settling: set[PendingCommit] = set()
        self._attaching = 0
        self._room = size  # links there may be, until `_room_until`
        self._room_until = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._drained: asyncio.Future[None] | None = None
        self.closed = False
        self.gone = False  # and everything is let go of
        self._attach_lock = threading.Lock()
        self._threads = LoopThreads(loop, _THREADS_MAX)
        self._event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._release = weakref.finalize(self, _close_fd, self._event_fd, os.getpid())
        loop.add_reader(self._event_fd, self._collect)

    # ---- a commit -------------------------------------------------------------------------------------------

    async def commit(self, pending: PendingCommit) -> Any:
        """Carry a commit out; what its caller is given."""
        if self.closed or self._pool.closed:
            self._end(pending, error=DatabaseClosedError())
            return pending.result()
        deadline = pending.deadline
        pending.limit = time.monotonic() + self._timeout if deadline is None else deadline
        future = pending.future = self.loop.create_future()
        self._start(pending)
        if not future.done():
            try:
                await future
            except asyncio.CancelledError:
                self._take_back(pending)
                raise
        return pending.result()

    def _start(self, pending: PendingCommit) -> None:
        """Send a commit, as soon as a link is free."""
        kept = self._kept.take(pending.turn) if self._kept else None
        if kept is not None:
            self._send(kept, pending)
        elif self._idle and not self._waiting:
            self._send(self._idle.pop(), pending)
        else:
            self._waiting[pending] = None
            self._watch_clock(pending.limit)
            self._grow()

    def _take_back(self, pending: PendingCommit) -> None:
        """Its task was cancelled: a commit that was not sent is over."""
        if not pending.done and pending in self._waiting:
            del self._waiting[pending]
            self._end(pending, error=TransactionTimeout("cancelled before the commit was sent"))

    async def ended(self, pending: PendingCommit) -> None:
        """Wait until a commit that is under way has its outcome."""
        while not pending.done:
            watcher = self.loop.create_future()
            if pending.watchers is None:
                pending.watchers = []
            pending.watchers.append(watcher)
            await watcher

    def _end(self, pending: PendingCommit, answer: Answer | None = None, *, error: Any = None) -> None:
        """Give a commit its outcome, and wake who waits for it."""
        if answer is not None:
            pending.accept(answer)
            if not pending.done and not self.closed and not self.loop.is_closed():
                self._start(pending)
                return
            if not pending.done:
                pending.refuse(DatabaseClosedError())
        else:
            pending.refuse(error)
        if self.loop.is_closed():
            return  # nobody can wait in it
        future = pending.future
        if future is not None and not future.done():
            future.set_result(None)
        for watcher in pending.watchers or ():
            if not watcher.done():
                watcher.set_result(None)
        if self._drained is not None and not self._drained.done() and not self.in_flight:
            self._drained.set_result(None)

    @property
    def in_flight(self) -> int:
        """How many commits have no outcome yet."""
        return len(self._busy) + len(self._waiting) + len(self._settling)

    # ---- sending and collecting ---------------------------------------------------------------------------------

    def _send(self, carrier: Carrier, pending: PendingCommit) -> None:
        link = carrier.link
        # Used up before anything is sent, as in `SharedHandle.submit`.
        link.sequence = sequence = link.sequence + 1
        carrier.synced = pending.seal(link.session, sequence, self._sync)
        carrier.pending = pending
        self._busy[carrier] = None
        self._watch_clock(pending.limit)
        try:
            carrier.channel.start(pending.request)
        except ChannelBroken:
            # Impossible counters, or closed by another thread.
            self._lose(carrier, sent=not carrier.channel.closed)
        except BaseException as error:
            del self._busy[carrier]
            carrier.pending = None
            pending.unname()
            self._drop(carrier)
            self._end(pending, error=error)

    def _collect(self) -> None:
        """The eventfd is readable: take every reply that is there."""
        # First the eventfd, then the rings: see ipc/_event_channel.pyx.
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._event_fd)
        for carrier in tuple(self._busy):
            self._look_at(carrier)

    def _look_at(self, carrier: Carrier) -> bool:
        """Take the reply, or publish more of the request. Whether the carrier is done with its commit."""
        try:
            if carrier.channel.partial:
                carrier.channel.proceed()
                return False
            reply = carrier.channel.poll()
        except ChannelBroken:
            # The damage may be in the reply: then the coordinator knows what became of the request.
            self._lose(carrier, sent=not carrier.channel.closed)
            return True
        if reply is None:
            return False
        pending = carrier.pending
        assert pending is not None
        if is_stopping(reply):
            self._lose(carrier, sent=False)
            return True
        del self._busy[carrier]
        carrier.pending = None
        answer = answer_of(carrier.link, carrier.link.sequence, reply, carrier.synced)
        if grants_turn(reply) and carrier.link.reusable and not self.closed:
            self._kept.keep(pending.turn, carrier)
        else:
            self._next(carrier)
        self._end(pending, answer)
        return True

    def _next(self, carrier: Carrier) -> None:
        """Let a free link carry the next commit that waits."""
        if self.closed or not carrier.link.reusable:
            self._drop(carrier)
            return
        while self._waiting:
            pending, _ = self._waiting.popitem(last=False)
            if pending.limit > time.monotonic():
                self._send(carrier, pending)
                return
            self._end(pending, error=too_late())
        self._idle.append(carrier)

    # ---- links that come and go -----------------------------------------------------------------------------------

    @property
    def link_count(self) -> int:
        """How many links there are."""
        return len(self._idle) + len(self._busy) + len(self._kept)

    def _grow(self) -> None:
        """Attach one more link if commits wait and there may be more."""
        if self._room < self._size and time.monotonic() >= self._room_until:
            self._room = self._size
        wanted = min(len(self._waiting), self._room - self.link_count - len(self._settling), _ATTACHING_MAX)
        while self._attaching < wanted and not self.closed:
            self._attaching += 1
            limit = next(itertools.islice(self._waiting, self._attaching - 1, None)).limit
            done = functools.partial(self._attached, limit)
            self._threads.call(done, self.attach, limit, 0)

    def _attached(self, limit: float, link: Link | None, error: BaseException | None) -> None:
        self._attaching -= 1
        if self.closed:
            self._close_event_fd()
        if link is not None:
            self._add(link)
        elif isinstance(error, NoThread):
            self._fail_waiting(no_thread_error(error), limit)
        elif error is not None:
            self._fail_waiting(error, limit)
        if not self.closed:
            self._grow()

    def _add(self, link: Link) -> None:
        if self.closed or self._pool.closed:
            link.drop()
            return
        carrier = Carrier(link)
        # Readable means closed: nobody writes to this socket but in answer to a call.
        self.loop.add_reader(carrier.fd, self._gone, carrier)
        self._next(carrier)

    def _add_from_thread(self, link: Link) -> None:
        try:
            self.loop.call_soon_threadsafe(self._add, link)
        except RuntimeError:  # the loop is closed
            self._pool.forget(link)

    def _fail_waiting(self, error: BaseException, limit: float) -> None:
        """No link could be attached until `limit`, or before that none can be."""
        now = time.monotonic()
        if now < limit:
            # It will not help to try again at once: no channels, no descriptors, a closed database.
            if self.link_count or self._attaching or self._settling:
                self._room = max(1, self.link_count)
                self._room_until = now + _SHORTAGE_SECONDS
            else:
                now = float("inf")
        for pending in [pending for pending in self._waiting if pending.limit <= now]:
            del self._waiting[pending]
            self._end(pending, error=error_for_its_deadline(pending, error))

    def _gone(self, carrier: Carrier) -> None:
        """The connection of a link has ended."""
        # It carries nothing more, whatever is found below.
        carrier.link.left = True
        if carrier.pending is None:
            self._kept.remove(carrier)
            if carrier in self._idle:
                self._idle.remove(carrier)
            self._drop(carrier)
        elif carrier.channel.broken or not self._look_at(carrier):
            # The reply did not come before the end.
            self._lose(carrier, sent=None)

    def _lose(self, carrier: Carrier, *, sent: bool | None) -> None:
        """The link can no longer be used, and its commit has no answer: find out in a thread what became of it."""
        self._busy.pop(carrier, None)
        self._unwatch(carrier)
        pending, carrier.pending = carrier.pending, None
        if pending is None:
            return
        self._settling.add(pending)

        def done(answer: Answer | None, error: BaseException | None) -> None:
            self._settling.discard(pending)
            if answer is not None:
                self._end(pending, answer)
            elif isinstance(error, NoThread):
                self._end(pending, error=lost.nobody_asked(error))
            else:
                self._end(pending, error=error)
            if not self.closed and not self.loop.is_closed():
                self._grow()

        lost = LostCommit(carrier.link, pending, synced=carrier.synced, sent=sent)
        # Although its loop is closed meanwhile: the commit may be sent again, and ends only then.
        links = ContinuedLinks(self._pool, self.attach, self._add_from_thread)
        self._threads.call(done, lost.settle, links, self._ask, always=True)

    def _drop(self, carrier: Carrier) -> None:
        """Let go of a link. Another one takes its place if commits wait for one."""
        self._unwatch(carrier)
        self._pool.forget(carrier.link)
        self._grow()

    def _unwatch(self, carrier: Carrier) -> None:
        if carrier.fd >= 0 and not self.loop.is_closed():
            self.loop.remove_reader(carrier.fd)
        carrier.fd = -1

    # ---- time -------------------------------------------------------------------------------------------------

    def _watch_clock(self, limit: float) -> None:
        """See to it that `_check_clock` runs at `limit`."""
        if self._timer is not None:
            if self._timer_at <= limit:
                return
            self._timer.cancel()
        self._timer_at = limit
        delay = max(_TICK_MIN, limit - time.monotonic())
        self._timer = self.loop.call_later(delay, self._check_clock)

    def _check_clock(self) -> None:
        self._timer = None
        now = time.monotonic()
        for pending in [pending for pending in self._waiting if pending.limit <= now]:
            # While a link is being attached for it, that attempt says why it failed.
            if self.link_count or not self._attaching:
                del self._waiting[pending]
                self._end(pending, error=too_late())
        for carrier in tuple(self._busy):
            carried = carrier.pending
            if carried is not None and carried.limit <= now and not self._look_at(carrier):
                self._give_up(carrier, carried)
        limits = [carrier.pending.limit for carrier in self._busy if carrier.pending is not None]
        limits += [pending.limit for pending in self._waiting if pending.limit > now]
        if limits:
            self._watch_clock(min(limits))

    def _give_up(self, carrier: Carrier, pending: PendingCommit) -> None:
        """No answer in time. The link is lost with it: the answer may still come."""
        partial = carrier.channel.partial
        self._busy.pop(carrier, None)
        carrier.pending = None
        name = pending.name
        self._drop(carrier)
        if partial:
            pending.unname()
            error: OccamError = TransactionTimeout(
                "the coordinator took no request in time; nothing was committed"
            )
        else:
            error = CommitOutcomeUnknown(
                f"no answer from the coordinator within {self._timeout:g} s; the commit may still happen",
                txn_id=name,
            )
        self._end(pending, error=error)

    # ---- threads and the end ------------------------------------------------------------------------------------

    def attach(self, limit: float, session: int) -> Link:
        """A link for this loop; called in a thread.

        One thread at a time: where no coordinator runs, the first one starts it, and the others find it.
        """
        held = self._attach_lock.acquire(timeout=max(0.0, limit - time.monotonic()))
        try:
            return self._pool.attach(limit, session=session, event_fd=self._event_fd)
        finally:
            if held:
                self._attach_lock.release()

    async def end(self) -> None:
        """Take no further commits, wait for those in flight, and let go of the links."""
        self.closed = True
        while self._waiting:
            self._end(self._waiting.popitem(last=False)[0], error=DatabaseClosedError())
        if self.in_flight:
            # Several may wait for the end, and one that is cancelled must not end it for the others.
            if self._drained is None or self._drained.done():
                self._drained = self.loop.create_future()
            await asyncio.shield(self._drained)
        carriers = [*self._idle, *self._kept.clear()]
        for carrier in carriers:
            self._unwatch(carrier)
        self._idle.clear()
        if carriers and not self._pool.closed:
            await self.loop.run_in_executor(self._threads.executor, say_goodbye, self._pool, carriers)
        self.abandon()

    def abandon(self) -> None:
        """Let go of everything at once, when the loop runs no more. What is in flight has no outcome here."""
        self.closed = True
        if not self.loop.is_closed():
            self.loop.remove_reader(self._event_fd)
            if self._timer is not None:
                self._timer.cancel()
        while self._waiting:
            self._end(self._waiting.popitem(last=False)[0], error=DatabaseClosedError())
        for carrier in [*self._busy, *self._idle, *self._kept.clear()]:
            carried, carrier.pending = carrier.pending, None
            self._unwatch(carrier)
            self._pool.forget(carrier.link)
            if carried is not None:
                self._end(carried, error=unknown_in_closed_loop(carried))
        self._busy.clear()
        self._idle.clear()
        self._threads.executor.shutdown(wait=False)
        self.gone = True
        self._close_event_fd()

    def _close_event_fd(self) -> None:
        # A thread may be about to send it to a coordinator: then it goes with that thread's reference to us.
        if not self._attaching and not self._settling:
            self._release()

    def settles(self, pending: PendingCommit) -> bool:
        """Whether a thread is finding out what became of a commit."""
        return pending in self._settling

    def forget_after_fork(self) -> None:
        """In a forked child: its copy of the eventfd goes. The loop is the parent's, and is not touched."""
        self.closed = True
        self._idle.clear()
        self._busy.clear()
        self._kept.forget_after_fork()
        self._release.detach()
        with contextlib.suppress(OSError):
            os.close(self._event_fd)


def _close_fd(fd: int, pid: int) -> None:
    if pid == os.getpid():
        os.close(fd)
