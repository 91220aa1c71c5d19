"""Which handles are open: the sessions that ephemeral keys are bound to, and their ends.

A *handle* is an open `Database` in one process. It chooses the id of its session itself, at random, and names it on
each of its connections. This table lives in the coordinator's main thread.

1. A handle is open while it has a connection: a channel that has not been freed, or one that only holds the session.
2. Once its last connection is gone, the session ends when the handle said goodbye, when its process is dead, or when
   it has not come back within `grace` seconds. A session found by recovery begins as one whose last connection has just
   gone. A process that is merely stopped keeps its connections, and so its session.
3. A session that has ended never opens again, and its keys are removed only after its last channel was freed: nobody
   can bind a key to it while or after they go.
4. A connection can name only a session of its own process (pid and start time), or one that nobody in sight owns.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

from ...ipc.process import ProcessIdentity, is_alive
from ..model.errors import InvalidArgumentError

__all__ = ["Sessions"]

_PAST_KEPT = 65536


class _Handle:
    """One open handle, or one whose connections are gone and which may come back."""

    __slots__ = ("connections", "identity", "lost_at", "over", "pidfd")

    def __init__(self, identity: ProcessIdentity | None, lost_at: float) -> None:
        self.identity = identity
        self.connections = 0
        self.lost_at = lost_at
        self.over = False  # it said goodbye
        self.pidfd = -1


class Sessions:
    """The table of handles.

    Args:
      end: has the keys of a session removed; False: not now, ask again.
      grace: seconds that a handle without a connection may take to come back.
      recovered: sessions with keys, whose handles were open when the last coordinator ended.
    """

    def __init__(self, end: Callable[[int], bool], grace: float, recovered: Iterable[int]) -> None:
        self._end = end
        self._grace = grace
        now = time.monotonic()
        self._handles = {session: _Handle(None, now) for session in recovered}
        self._lost = set(self._handles)
        self._past: OrderedDict[int, None] = OrderedDict()
        self._selector: selectors.BaseSelector | None = None

    def register(self, selector: selectors.BaseSelector) -> None:
        """Where the deaths of processes are waited for, from now on."""
        self._selector = selector

    def join(self, session: int, identity: ProcessIdentity | None) -> bool:
        """One more connection of a handle. False: the session is over, the handle needs a new one.

        Raises:
          InvalidArgumentError: the session is another process's, or no session id at all.
        """
        if not 0 < session < 1 << 64:
            raise InvalidArgumentError(f"session {session} of a handle is not in 1..2**64 - 1")
        if session in self._past:
            return False
        handle = self._handles.get(session)
        if handle is None:
            handle = self._handles[session] = _Handle(identity, 0.0)
        elif handle.over:
            return False
        elif handle.identity is None:
            handle.identity = identity
        elif handle.identity != identity:
            raise InvalidArgumentError(
                f"session {session} belongs to process {handle.identity.pid}",
                hint="each open database has a session of its own",
            )
        handle.connections += 1
        self._found(session, handle)
        return True

    def leave(self, session: int) -> None:
        """A connection of a handle is gone, and its channel was freed."""
        handle = self._handles.get(session)
        if handle is None:
            return
        handle.connections -= 1
        if handle.connections == 0:
            handle.lost_at = time.monotonic()
            self._lost.add(session)
            if not handle.over:
                self._watch_process(session, handle)

    def goodbye(self, session: int) -> None:
        """The handle was closed: its session is over as soon as its channels are freed."""
        handle = self._handles.get(session)
        if handle is not None:
            handle.over = True

    def settle(self) -> None:
        """End the sessions that are over."""
        now = time.monotonic()
        for session in list(self._lost):
            handle = self._handles[session]
            if self._is_over(handle, now):
                self._unwatch(handle)
                if self._end(session):
                    self._lost.discard(session)
                    del self._handles[session]
                    self._past[session] = None
                    while len(self._past) > _PAST_KEPT:
                        self._past.popitem(last=False)

    def _is_over(self, handle: _Handle, now: float) -> bool:
        if handle.over or now - handle.lost_at >= self._grace:
            return True
        return handle.identity is not None and not is_alive(handle.identity)

    @property
    def waiting(self) -> bool:
        """Whether a handle is expected back, or its keys are yet to be removed."""
        return bool(self._lost)

    def figures(self) -> list[dict[str, Any]]:
        """The open handles and those that may come back, for `stats`."""
        return [
            {
                "session": session,
                "pid": handle.identity.pid if handle.identity else None,
                "connections": handle.connections,
            }
            for session, handle in self._handles.items()
        ]

    def close(self) -> None:
        """Let go of descriptors."""
        for handle in self._handles.values():
            self._unwatch(handle)

    # ---- processes ---------------------------------------------------------------------------------------------

    def _watch_process(self, session: int, handle: _Handle) -> None:
        """Learn of the death of its process at once. Its sockets close a moment before it counts as dead."""
        if handle.identity is None or self._selector is None:
            return
        # Without one (no descriptors left, gone already) `settle` looks at every turn, a few times a second.
        with contextlib.suppress(OSError):
            handle.pidfd = os.pidfd_open(handle.identity.pid)
            self._selector.register(handle.pidfd, selectors.EVENT_READ, ("process of session", session))

    def _unwatch(self, handle: _Handle) -> None:
        pidfd, handle.pidfd = handle.pidfd, -1
        if pidfd >= 0:
            if self._selector is not None:
                with contextlib.suppress(KeyError, ValueError):
                    self._selector.unregister(pidfd)
            os.close(pidfd)

    def _found(self, session: int, handle: _Handle) -> None:
        self._lost.discard(session)
        self._unwatch(handle)
