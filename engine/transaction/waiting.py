"""Sleeping until something changes: what the threads of one handle wait for, and who of them watches the bell.

One thread of the handle's waiting threads *leads*: it sleeps on the bell of the channel, follows the ring of changes,
and wakes the others whose keys or ranges were changed. The others sleep on locks of their own. When the leader has
what it waited for it hands over to another one. So a change costs one wake-up by the coordinator, and wakes the
threads that it concerns.

1. `ready` decides. It is asked after the thread is registered, and again after every wake-up; a wake-up by itself
   means nothing, and one too many is harmless.
2. No wake-up is lost. What was committed before `ready` was asked, it sees. For what is committed later the leader
   finds a change in the ring, since the hub's feed begins no later than the registration; if that feed has been
   lapped, or the store was replaced by a restart, everybody is woken. A thread that waits alone needs no such feed:
   every ring of the bell wakes it. When a second one joins, the feed begins and the first one is asked again.
3. A leader proves by `_beat` that it lives. A thread whose leader was interrupted in the middle of handing over takes
   the lead itself after a while.
4. Everything of the hub is guarded by `_lock`, which is held for a few lines and never while anything blocks.
5. What a dead process held, and what has expired, is taken away by the coordinator. If that was killed too, and all
   other processes wait, none would commit and start another one. So the leader does, after a while.
6. A forked child begins with an empty hub: its parent's waiting threads are not there.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from ..disk import failpoints
from ..model.errors import CoordinatorUnavailable, CorruptionError, WatchLagged
from .feeds import Bell, Feed, bell_of, feed_of, hub_feed
from .pace import Pace
from .wait_signal import WaitSignal

if TYPE_CHECKING:
    from ._view import SnapshotSource

__all__ = ["Interest", "StaleCheck", "WaitHub", "Waiter", "wait_for_change"]

_LOOK_SECONDS = 0.25  # how often the leader looks whether the store was replaced
_REVIVE_LOOKS = 4  # so often it finds the coordinator gone before it starts another one
_REVIVE_SECONDS = 5.0  # how long it tries
_FOLLOW_SECONDS = 5.0  # how often a thread looks whether its leader lives
_LEADER_LOST = 2.0

_hubs: weakref.WeakSet[WaitHub] = weakref.WeakSet()


class Interest:
    """What a thread waits for.

    Args:
      keys: stored keys.
      ranges: [start, end) of stored keys.
      prefixes: every namespace, run id and tag that these are of, as stored keys begin with them.
    """

    __slots__ = ("keys", "prefixes", "ranges")

    def __init__(
        self, keys: Iterable[bytes], ranges: Iterable[tuple[bytes, bytes]], prefixes: Iterable[bytes]
    ) -> None:
        self.keys = frozenset(keys)
        self.ranges = tuple(ranges)
        self.prefixes = frozenset(prefixes)

    def concerns(self, key: bytes, end: bytes | None) -> bool:
        """Whether the change of a key, or the delete of the range [key, end), is one of what is waited for."""
        if end is None:
            return key in self.keys or any(low <= key < high for low, high in self.ranges)
        return any(low < end and key < high for low, high in self.ranges) or any(
            key <= name < end for name in self.keys
        )


class Waiter:
    """A thread that waits; a task waits as one whose `wake` is another."""

    __slots__ = ("alarm", "interest", "woken")

    def __init__(self, interest: Interest) -> None:
        self.interest = interest
        self.woken = False
        self.alarm = threading.Lock()
        self.alarm.acquire()

    def wake(self) -> None:
        """Let it ask `ready` again."""
        self.woken = True
        with contextlib.suppress(RuntimeError):  # it is awake already
            self.alarm.release()

    def settle(self) -> None:
        """Before `ready` is asked: what comes from here on wakes."""
        self.woken = False
        self.alarm.acquire(blocking=False)


class Attached(Protocol):
    """What a WaitHub needs of its handle."""

    def attachment(self) -> SnapshotSource:
        """The store to begin snapshots on."""

    @property
    def orphaned(self) -> bool:
        """Whether the coordinator was killed, and this handle may start another one."""

    def revive(self, limit: float) -> None:
        """Attach to the next coordinator, and start it if need be, or give up at `limit`."""


class WaitHub:
    """The waiting threads of one handle.

    Args:
      handle: whose store they follow.

    Attributes:
      pump: the thread that waits for the tasks of event loops, see loop_waits.py; None: none has waited yet.
    """

    pump: Any

    def __init__(self, handle: Attached) -> None:
        self._handle: Attached = weakref.proxy(handle)
        self.reset()
        _hubs.add(self)

    def reset(self) -> None:
        """Begin with nobody waiting: in a forked child."""
        # Reentrant: a signal handler may wait for something itself.
        self._lock = threading.RLock()
        self._waiters: set[Waiter] = set()
        self._by_key: dict[bytes, set[Waiter]] = {}
        self._ranged: set[Waiter] = set()
        self._held: dict[bytes, list[int]] = {}  # prefix: [how many need it, its slot]
        self._bell: Bell | None = None
        self._feed: Feed | None = None
        self._leader: Waiter | None = None
        self._beat = 0.0
        self._dispatched = -1  # the bell's word before the last dispatch
        self._pace = Pace()
        self.pump = None

    # ---- what threads call ------------------------------------------------------------------------------

    def wait(self, interest: Interest, ready: Callable[[], bool], deadline: float | None) -> bool:
        """Sleep until `ready()`; False if `deadline` (of `time.monotonic`) came first.

        `ready` is asked at once, and again whenever something of the interest has changed. What it raises goes to the
        caller.
        """
        waiter = Waiter(interest)
        try:
            self.enter(waiter)
            while True:
                waiter.settle()
                if ready():
                    return True
                left = _LOOK_SECONDS if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    return False
                self.sleep(waiter, deadline)
        finally:
            self.leave(waiter)

    @property
    def led(self) -> bool:
        """Whether a thread watches the bell."""
        return self._leader is not None

    def wake_all(self) -> None:
        """Let everybody ask `ready` again."""
        with self._lock:
            self._wake_all()

    @contextlib.contextmanager
    def registered(self, prefixes: Iterable[bytes]) -> Iterator[None]:
        """Keep (run, tag)s registered for several waits, so that each of them need not tell the coordinator."""
        names = frozenset(prefixes)
        held = self.hold(names)
        try:
            yield
        finally:
            self.release(names, held)

    def hold(self, prefixes: Iterable[bytes]) -> object:
        """Register (run, tag)s until `release`, which takes what this returns."""
        with self._lock:
            self._hold(prefixes)
            return self._held

    def release(self, prefixes: Iterable[bytes], held: object) -> None:
        """Take back what `hold` registered. What it registered before a fork is not the child's to take back."""
        with self._lock:
            if held is self._held:
                self._release(prefixes)

    # ---- registering --------------------------------------------------------------------------------------

    def _hold(self, prefixes: Iterable[bytes]) -> None:
        for prefix in prefixes:
            entry = self._held.get(prefix)
            if entry is not None:
                entry[0] += 1
            else:
                self._held[prefix] = [1, -1 if self._bell is None else self._bell.add(prefix)]

    def _release(self, prefixes: Iterable[bytes]) -> None:
        for prefix in prefixes:
            entry = self._held.get(prefix)
            if entry is None:
                continue  # registered before a fork
            entry[0] -= 1
            if entry[0] == 0:
                del self._held[prefix]
                if self._bell is not None and entry[1] >= 0:
                    self._bell.remove(entry[1])

    def enter(self, waiter: Waiter) -> None:
        """Register a waiter. May block while a coordinator starts."""
        interest = waiter.interest
        attachment = self.attachment()
        with self._lock:
            if attachment is not None:
                self._follow(attachment, shared=bool(self._waiters))
            # First: `_leave` takes the registration back once the waiter is among the others. If a signal handler
            # raises between the two, a registration too many stays, and never one too few for another thread.
            self._hold(interest.prefixes)
            self._waiters.add(waiter)
            for key in interest.keys:
                self._by_key.setdefault(key, set()).add(waiter)
            if interest.ranges:
                self._ranged.add(waiter)

    def leave(self, waiter: Waiter) -> None:
        """Take a waiter back; another one leads if it did."""
        with self._lock:
            if waiter in self._waiters:
                self._waiters.discard(waiter)
                self._ranged.discard(waiter)
                for key in waiter.interest.keys:
                    others = self._by_key.get(key)
                    if others is not None:
                        others.discard(waiter)
                        if not others:
                            del self._by_key[key]
                self._release(waiter.interest.prefixes)
            if not self._waiters:
                self._feed = None  # else it would be lapped while nobody looks
            if self._leader is waiter:
                self._leader = None
            if self._leader is None:
                self._promote()

    def _promote(self) -> None:
        """Wake one thread: it finds that nobody leads, and does."""
        for waiter in tuple(self._waiters):
            waiter.wake()
            return

    # ---- following the store --------------------------------------------------------------------------------

    def attachment(self) -> SnapshotSource | None:
        """The store to follow; None while there is none. May block while a coordinator starts."""
        try:
            return self._handle.attachment()
        except CoordinatorUnavailable:
            return None

    def _follow(self, attachment: SnapshotSource, *, shared: bool) -> None:
        """Follow this store: register with it what is waited for, and let everybody look at it if it is another one.

        Args:
          shared: several threads wait, so changes have to be told apart. A single one reads the ring by itself.
        """
        bell = self._bell
        if bell is None or bell.attachment is not attachment:
            self._bell = bell = bell_of(attachment)
            self._feed = None
            self._dispatched = -1
            for prefix, entry in tuple(self._held.items()):
                entry[1] = bell.add(prefix)
            self._wake_all()
        if self._feed is None and shared:
            self._feed = hub_feed(bell)
            # This feed begins after their registration: what lies before it they look for themselves.
            self._wake_all()

    def _dispatch(self) -> None:
        """Wake those whose keys were changed since the last call."""
        feed = self._feed
        if len(self._waiters) == 1:
            # The leader itself. Its `ready` reads the ring anyway: once is enough.
            self._feed = feed = None
        if feed is None:
            self._wake_all()
            return
        try:
            # Not to the end, which others may move on all the time.
            until = feed.attachment.committed_version
            while feed.version < until:
                for key, end in feed.poll_keys():
                    self._wake_for(key, end)
        except (WatchLagged, CorruptionError):
            # Each of them finds out for itself what that means for it.
            feed.skip_to(feed.attachment.committed_version)
            self._wake_all()
        except BaseException:
            # A signal handler raised: what was polled is not dispatched.
            self._wake_all()
            raise

    def _wake_all(self) -> None:
        for waiter in tuple(self._waiters):
            waiter.wake()

    def _wake_for(self, key: bytes, end: bytes | None) -> None:
        """Wake those who wait for this key, or for a key in the deleted range [key, end)."""
        if end is None:
            for waiter in tuple(self._by_key.get(key, ())):
                waiter.wake()
        for waiter in tuple(self._ranged if end is None else self._waiters):
            if not waiter.woken and waiter.interest.concerns(key, end):
                waiter.wake()

    # ---- sleeping ---------------------------------------------------------------------------------------------

    def sleep(self, waiter: Waiter, deadline: float | None) -> None:
        """Sleep until woken, to become the leader, until the deadline or for a while."""
        with self._lock:
            now = time.monotonic()
            if self._leader is not None and self._leader is not waiter and now - self._beat < _LEADER_LOST:
                leads = False
            else:
                self._leader, self._beat, leads = waiter, now, True
        if leads:
            self._lead(waiter, deadline)
            return
        while True:
            left = _FOLLOW_SECONDS if deadline is None else min(deadline - time.monotonic(), _FOLLOW_SECONDS)
            if left <= 0 or waiter.alarm.acquire(timeout=left):
                return
            if self._leader is None or time.monotonic() - self._beat > _LEADER_LOST:
                return

    def _lead(self, waiter: Waiter, deadline: float | None) -> None:
        """Watch the bell for all, until this thread has something to look at."""
        orphaned = 0
        while not waiter.woken:
            with self._lock:
                if self._leader is not waiter:
                    return
                self._beat = time.monotonic()
                bell = self._bell
                seen = 0 if bell is None else bell.arm()
                # While the word is unchanged, nothing was announced that concerns this process.
                if seen != self._dispatched:
                    self._dispatched = seen
                    self._dispatch()
            if waiter.woken:
                return
            pause = _LOOK_SECONDS
            if deadline is not None:
                pause = min(pause, deadline - time.monotonic())
                if pause <= 0:
                    return
            if failpoints.armed():
                failpoints.hit("worker.before_sleep")
            if bell is None:
                time.sleep(min(pause, 0.02))
            elif self._pace.streaming:
                self._pace.nap(pause)
                self._pace.napped(bell.raised_since(seen))
                continue
            elif bell.sleep(seen, pause):
                self._pace.woken(time.monotonic())
                continue
            orphaned = orphaned + 1 if self._handle.orphaned else 0
            if orphaned >= _REVIVE_LOOKS:
                orphaned = 0
                now = time.monotonic()
                self._handle.revive(
                    now + (_REVIVE_SECONDS if deadline is None else min(_REVIVE_SECONDS, deadline - now))
                )
            attachment = self.attachment()
            if attachment is None:
                continue
            with self._lock:
                self._follow(attachment, shared=len(self._waiters) > 1)


def wait_for_change(hub: WaitHub, signal: WaitSignal, deadline: float | None) -> bool:
    """Sleep until something of a read set was changed after its snapshot; False if the deadline came first."""
    interest = Interest(signal.keys, signal.ranges, signal.prefixes)
    return hub.wait(interest, StaleCheck(hub, interest, signal.version), deadline)


class StaleCheck:
    """Whether something of an interest was changed after a version. When nobody can tell, it says yes."""

    def __init__(self, hub: WaitHub, interest: Interest, version: int) -> None:
        self._hub = hub
        self._interest = interest
        self._version = version
        self._feed: Feed | None = None

    def __call__(self) -> bool:
        try:
            while True:
                feed = self._feed
                if feed is not None and self._found(feed):
                    return True
                attachment = self._hub.attachment()
                if feed is not None and attachment in (None, feed.attachment):
                    return False
                if feed is not None:
                    self._version = feed.version
                if attachment is None:
                    return False
                self._feed = feed_of(attachment, self._version, b"", bare=True)
        except WatchLagged:
            return True

    def _found(self, feed: Feed) -> bool:
        until = feed.attachment.committed_version
        while feed.version < until:
            if any(self._interest.concerns(key, end) for key, end in feed.poll_keys()):
                return True
        return False


def _after_fork_in_child() -> None:
    for hub in list(_hubs):
        hub.reset()


os.register_at_fork(after_in_child=_after_fork_in_child)
