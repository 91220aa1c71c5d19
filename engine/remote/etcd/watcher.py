"""Waiting for a namespace to change: a watch on its head, which wakes, and a look now and then, which is right.

1. One thread for each namespace follows the head's key while somebody waits. What it hears is a hint.
2. A watch may fall silent without an error when a member is cut off. So a waiter looks itself every LOOK seconds, and
   the stream begins anew after SILENCE.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any, Final

from ...model.errors import OccamError
from .gateway import Stream, Unanswered
from .records import Head
from .space import Space
from .tending import Tending
from .wire import read_page, text

__all__ = ["LOOK", "Watcher"]

LOOK: Final = 1.0
SILENCE: Final = 15.0
_IDLE: Final = 10.0
_PAUSE: Final = 0.2


class Watcher:
    """The waiters of one namespace."""

    def __init__(self, space: Space, tending: Tending) -> None:
        self._space = space
        self._tending = tending
        self._changed = threading.Condition()
        self._version = 0
        self._waiters = 0
        self._last_waiter = 0.0
        self._thread: threading.Thread | None = None
        self._stream: Stream | None = None
        self._closed = False

    def wait(self, since: int, timeout: float) -> bool:
        """Sleep until there is a version after `since`; see `Backend.wait`."""
        deadline = time.monotonic() + timeout
        with self._changed:
            self._waiters += 1
            self._start()
        try:
            while True:
                if self._version > since:
                    return True
                with contextlib.suppress(OccamError):  # no member answers: go on waiting
                    self.heard(self._tending.look(deadline=time.monotonic() + LOOK).head.version)
                look_again = time.monotonic() + self._pause()
                with self._changed:
                    while self._version <= since and not self._closed:
                        left = min(deadline, look_again) - time.monotonic()
                        if left <= 0:
                            break
                        self._changed.wait(left)
                    if self._version > since or self._closed or time.monotonic() >= deadline:
                        return self._version > since
        finally:
            with self._changed:
                self._waiters -= 1
                self._last_waiter = time.monotonic()

    def _pause(self) -> float:
        """How long to sleep before the next look: until the next key expires, or LOOK."""
        known = self._space.known()
        now = self._space.client.clock.now()
        due = known[0].next_due if known is not None else 0
        return min(LOOK, max(0.001, (due - now) / 1e9)) if due else LOOK

    def heard(self, version: int) -> None:
        """There is this version."""
        with self._changed:
            if version > self._version:
                self._version = version
                self._changed.notify_all()

    # ---- the thread ---------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._run, name="occamdb-etcd-watch", daemon=True)
            self._thread.start()

    def _idle(self) -> bool:
        """Whether nobody has waited for a while; the thread then ends."""
        with self._changed:
            idle = self._closed or (not self._waiters and time.monotonic() - self._last_waiter > _IDLE)
            if idle:
                self._thread = None
            return idle

    def _run(self) -> None:
        body = {"create_request": {"key": text(self._space.keys.head)}}
        while not self._idle():
            try:
                stream = self._space.client.gateway.stream("/v3/watch", body, SILENCE)
            except (Unanswered, OccamError):
                time.sleep(_PAUSE)
                continue
            with self._changed:
                self._stream = stream
                if self._closed:
                    stream.close()
            self._follow(stream)
            with self._changed:
                self._stream = None
            stream.release()

    def _follow(self, stream: Stream) -> None:
        with contextlib.suppress(Unanswered, OccamError):
            while True:
                answer = stream.read()
                if answer.get("canceled"):
                    return
                events: Any = answer.get("events") or []
                rows = read_page({"kvs": [event.get("kv", {}) for event in events]}).rows
                for row in rows:
                    self.heard(Head.decode(row.value).version)
                with self._changed:
                    if not self._waiters and time.monotonic() - self._last_waiter > _IDLE:
                        return

    def close(self) -> None:
        """Wake the waiters and end the thread."""
        with self._changed:
            self._closed = True
            thread, stream = self._thread, self._stream
            if stream is not None:
                stream.close()
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join(2.0)
