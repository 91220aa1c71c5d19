"""What one thread of each process does now and then: the session's heartbeat, and sweeping for everybody.

1. The session is kept alive from the first commit on that binds keys to it. The server judges by its own clock: if the
   sign of life comes too late, the session has ended, and the process learns it here or from its next commit.
2. Any process sweeps the namespaces that it uses, and no two of them the same one at once. A process that stops
   sweeping holds nothing up. If none is left, what is old stays until one comes back.
3. The keys of an ended session are deleted by a commit in each namespace. Its row goes last, so what a keeper that died
   left undone is found again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg.types.numeric import Int4, Int8

from ...model.errors import OccamError
from .served import Served

__all__ = ["Keeper", "remove_ended"]

_log = logging.getLogger("occamdb")

SWEEP_SECONDS = 5.0
SESSION_SECONDS = 1.0
OUTCOME_SECONDS = 60.0
PIECE = 1000  # keys in one transaction: a pause of some milliseconds for the commits of the namespace
_TURN_SECONDS = 30.0  # of one round over the namespaces


class Keeper:
    """The thread; it starts with the first call of `start`."""

    def __init__(self, server: Served) -> None:
        self._server = server
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self.sweeps = 0

    def start(self) -> None:
        """Let it run from now on."""
        if self._thread is not None:
            return
        with self._lock:
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name="occamdb-postgres-keeper", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(2.0)

    def _run(self) -> None:
        server = self._server
        beat_every = server.session_ns / 3e9
        sweep_every = min(SWEEP_SECONDS, max(0.05, server.age_ns / 4e9))
        tasks: list[tuple[float, Callable[[], Any]]] = [(beat_every, self._beat)]
        if server.housekeeping:
            tasks += [
                (sweep_every, lambda: self._sweep(sweep_every)),
                (min(SESSION_SECONDS, beat_every), lambda: remove_ended(server)),
                (OUTCOME_SECONDS, lambda: server.rows(server.statements.forget_outcomes, None)),
            ]
        due = [time.monotonic() + every for every, _ in tasks]
        while not self._stop.wait(max(0.01, min(due) - time.monotonic())):
            for index, (every, task) in enumerate(tasks):
                if due[index] <= time.monotonic():
                    self._try(task)
                    due[index] = time.monotonic() + every

    def _try(self, task: Callable[[], Any]) -> None:
        if self._stop.is_set():
            return
        try:
            task()
        except (OccamError, psycopg.Error) as error:
            _log.debug("housekeeping on %s failed: %s", self._server.location.shown, error)

    def _beat(self) -> None:
        server = self._server
        if not server.kept:
            return
        session = server.session
        rows = server.rows(server.statements.keep_alive, [Int8(session), Int8(server.session_ns), False])
        if not rows[0][0]:
            server.session_ended(session)

    def _sweep(self, every: float) -> None:
        server = self._server
        until = time.monotonic() + _TURN_SECONDS
        for number in list(server.numbers):
            # Only the first piece asks whether another process was here lately.
            interval = int(every * 0.9e9)
            while not self._stop.is_set() and time.monotonic() < until:
                rows = server.rows(
                    server.statements.sweep, [Int4(number), Int8(server.age_ns), Int8(interval), Int4(PIECE)]
                )
                if not rows[0][0]:
                    break
                self.sweeps += 1
                interval = 0


def remove_ended(server: Served, deadline: float | None = None) -> None:
    """Delete the keys of every session that has ended."""
    statements = server.statements
    ended: dict[int, None] = {}
    for session, number in server.rows(statements.ended_sessions, None, deadline):
        ended[session] = None
        while number:
            parameters = [Int4(number), Int8(session), Int4(PIECE)]
            if not server.rows(statements.unbind, parameters, deadline)[0][0]:
                break
    for session in ended:
        server.rows(statements.drop_session, [Int8(session)], deadline)
