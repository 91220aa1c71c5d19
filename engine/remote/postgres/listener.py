"""Sleeping until a namespace has a newer version: notifications wake, and the versions decide.

1. A notification is sent only while somebody listens: a waiter sets a time in the head row, under the lock that every
   commit takes. So a commit either sees that time and notifies, or came before, and the waiter, which looks at the
   version after that, finds it.
2. Nothing depends on a notification. A waiter looks at the version again after LOOK_SECONDS, or after a much shorter
   pause where notifications do not arrive (a pooler in transaction mode swallows LISTEN).
3. Whether they arrive is found out: the listener sends itself one.
4. A value that expires is a change, too. The waiter that finds one due has it removed.
"""

from __future__ import annotations

import contextlib
import threading
import time

import psycopg
from psycopg import sql
from psycopg.types.numeric import Int4, Int8

from ...model.errors import OccamError
from .pool import Connection, shut
from .served import Served

__all__ = ["Listener"]

LOOK_SECONDS = 2.0
POLL_SECONDS = 0.005
POLL_SECONDS_MAX = 0.1
ASKED_SECONDS = 30.0  # how long a namespace notifies after a waiter asked for it
_PROOF_SECONDS = 2.0
_AGAIN_SECONDS = 1.0


class Listener:
    """The waits of one process on one server."""

    def __init__(self, server: Served) -> None:
        self._server = server
        self._changed = threading.Condition()
        self._versions: dict[int, int] = {}  # newest notified, by namespace
        self._asked: dict[int, float] = {}  # until when it notifies, monotonic
        self._thread: threading.Thread | None = None
        self.connection: Connection | None = None
        self._stopped = False
        self.hears = False  # notifications arrive

    def wait(self, number: int, since: int, timeout: float) -> bool:
        """Sleep until namespace `number` has a version after `since`; whether it has."""
        until = time.monotonic() + timeout
        pause = POLL_SECONDS
        while True:
            if timeout > POLL_SECONDS:
                self._ask(number)
            version, due_in = self._look(number)
            if version > since:
                return True
            left = until - time.monotonic()
            if left <= 0 or self._stopped:
                return False
            pause = LOOK_SECONDS if self.hears else min(POLL_SECONDS_MAX, 2 * pause)
            with self._changed:
                if self._versions.get(number, 0) <= since and not self._stopped:
                    self._changed.wait(max(0.0, min(left, pause, due_in)))

    def _look(self, number: int) -> tuple[int, float]:
        """The newest version, and the seconds until a value expires."""
        server = self._server
        while True:
            version, next_due, clock = server.rows(server.statements.newest, [Int4(number)])[0]
            if not 0 < next_due <= clock:
                return version, (next_due - clock) / 1e9 if next_due else LOOK_SECONDS
            server.rows(server.statements.tick, [Int4(number)])

    def _ask(self, number: int) -> None:
        """Let the namespace notify."""
        now = time.monotonic()
        with self._changed:
            if self._thread is None and not self._stopped:
                self._thread = threading.Thread(target=self._run, name="occamdb-postgres-listen", daemon=True)
                self._thread.start()
            if not self.hears or self._asked.get(number, 0.0) > now:
                return
            self._asked[number] = now + ASKED_SECONDS / 3
        server = self._server
        server.rows(
            server.statements.listen_until,
            [Int8(int(ASKED_SECONDS * 1e9)), Int4(number), Int8(int(ASKED_SECONDS * 2e9 / 3))],
        )

    # ---- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopped:
            try:
                self._listen()
            except (OccamError, psycopg.Error, OSError):
                pass  # the waiters poll meanwhile, and say what is wrong
            finally:
                self._lose()
            with self._changed:
                if not self._stopped:
                    self._changed.wait(_AGAIN_SECONDS)

    def _listen(self) -> None:
        channel = self._server.location.channel
        connection = self._server.pool.connect(time.monotonic() + self._server.pool.timeout)
        self.connection = connection
        connection.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
        proof = f"proof {id(self)}"
        connection.execute("select pg_notify(%s, %s)", [channel, proof])
        until = time.monotonic() + _PROOF_SECONDS
        while not self._stopped:
            for note in connection.notifies(timeout=LOOK_SECONDS, stop_after=1):
                if note.payload == proof:
                    with self._changed:
                        self.hears = True
                        self._changed.notify_all()
                else:
                    self._heard(note.payload)
            if not self.hears and time.monotonic() > until:
                self._wait_for_another_server()

    def _wait_for_another_server(self) -> None:
        """Notifications do not arrive here, so the connection is of no use."""
        self._lose()
        with self._changed:
            while not self._stopped:
                self._changed.wait(60.0)

    def _heard(self, payload: str) -> None:
        number, _, version = payload.partition(" ")
        if number.isdigit() and version.isdigit():
            with self._changed:
                self._versions[int(number)] = max(self._versions.get(int(number), 0), int(version))
                self._changed.notify_all()

    def _lose(self) -> None:
        connection, self.connection = self.connection, None
        with self._changed:
            self.hears = False
            self._asked.clear()
            self._changed.notify_all()
        if connection is not None:
            with contextlib.suppress(psycopg.Error):
                connection.close()

    def stop(self) -> None:
        """Wake every waiter, and end the thread."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        connection = self.connection
        if connection is not None:
            shut(connection)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(2.0)
