"""Keeping the session of a handle that has ephemeral keys, also while its process makes no call.

A link is attached when a call needs one. A process that holds a lock and computes for minutes makes no call, and would
not notice that the coordinator was restarted; its session would be over after `session_grace`. So the first commit that
binds keys opens one more connection, which carries no channel, and starts a thread that sleeps until it ends.

1. The thread alone closes the connection; `close` hangs it up, which wakes the thread. In a forked child there is no
   thread, and `abandon` closes the child's copy of the descriptor.
2. It never starts a coordinator: as long as there is none, no session ends. It looks for one a few times a second.
3. The thread waits on the socket alone, and neither holds the pool nor takes its lock while it does: a database that is
   no longer referenced goes as it would without the thread, and takes the thread with it.
"""

from __future__ import annotations

import contextlib
import select
import threading
import time
import weakref
from typing import Protocol

from ...ipc.control import ControlClient
from ...ipc.errors import ControlError, OccamError
from ...ipc.process import own_identity
from ..model.control_messages import raise_refusal
from ..model.errors import CoordinatorUnavailable, DatabaseClosedError
from .launcher import Launcher

__all__ = ["SessionKeeper"]

_PAUSE_MIN, _PAUSE_MAX = 0.01, 0.25  # between two looks for a coordinator
_CALL_SECONDS = 5.0
_JOIN_SECONDS = 1.0


class KeptPool(Protocol):
    """What a SessionKeeper needs of the pool of links."""

    owner: int
    database_id: bytes

    def renew_owner(self, ended: int) -> None:
        """The session `ended` is over: go on with a new one."""


class SessionKeeper:
    """The connection that stands for one handle while none of its links does.

    Args:
      pool: whose session is kept.
      launcher: reaches the coordinator.
    """

    def __init__(self, pool: KeptPool, launcher: Launcher) -> None:
        self._launcher = launcher
        self._client: ControlClient | None = None
        self._closing = threading.Event()
        self._pool = weakref.ref(pool, self._forgotten)
        self._thread: threading.Thread | None = None

    def start(self, limit: float) -> None:
        """Open the connection and start the thread.

        Args:
          limit: when to give up, on the clock of `time.monotonic`.

        Raises:
          CoordinatorUnavailable: no coordinator could be told in time.
        """
        pause = _PAUSE_MIN
        while (client := self._hold()) is None:
            if time.monotonic() >= limit:
                raise CoordinatorUnavailable(
                    "no coordinator could be told to keep the session of an ephemeral key; nothing was committed",
                    hint="try again, or give a larger timeout",
                )
            time.sleep(pause)
            pause = min(_PAUSE_MAX, 1.5 * pause)
        self._client = client
        self._thread = threading.Thread(target=self._run, name="occamdb session", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread. The session is over by the goodbye of the links."""
        self._wake_to_end()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_JOIN_SECONDS)

    def _forgotten(self, _reference: object) -> None:
        """The database was never closed, and nobody can use it any longer. May run anywhere: blocks on nothing."""
        self._wake_to_end()

    def _wake_to_end(self) -> None:
        self._closing.set()
        client = self._client
        if client is not None:
            client.hang_up()

    def abandon(self) -> None:
        """In a forked child: close its copy of the connection, which belongs to the parent's session."""
        if self._client is not None:
            with contextlib.suppress(Exception):
                self._client.close()

    # ---- the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._client is not None:
            _wait_for_end(self._client)
            self._client.close()
            self._client = self._come_back()

    def _come_back(self) -> ControlClient | None:
        """A connection to the next coordinator; None when the database was closed meanwhile."""
        pause = _PAUSE_MIN
        while not self._closing.is_set():
            try:
                client = self._hold()
            except DatabaseClosedError:
                return None
            except OccamError:
                client = None  # it refused, or descriptors ran out: try again
            if client is not None:
                if not self._closing.is_set():
                    return client
                client.close()
            self._closing.wait(pause)
            pause = min(_PAUSE_MAX, 1.5 * pause)
        return None

    def _hold(self) -> ControlClient | None:
        """A connection that holds the session; None if no coordinator listens, or it went away."""
        pool = self._pool()
        if pool is None:
            raise DatabaseClosedError()
        client = self._launcher.connect(time.monotonic() + _CALL_SECONDS)
        if client is None:
            return None
        try:
            while True:
                owner = pool.owner
                message = {"op": "hold", "owner": owner, "process": own_identity().to_dict()}
                reply = client.call(message, _CALL_SECONDS)
                raise_refusal(reply)
                if pool.database_id not in (b"", reply["database_id"]):
                    raise DatabaseClosedError("another database is in the place of the one that was opened")
                if not reply["over"]:
                    return client
                pool.renew_owner(owner)
        except ControlError:
            client.close()
            return None
        except BaseException:
            client.close()
            raise


def _wait_for_end(client: ControlClient) -> None:
    """Sleep until the coordinator is gone or the connection was hung up."""
    poller = select.poll()
    poller.register(client.fileno(), select.POLLRDHUP)
    poller.poll()
