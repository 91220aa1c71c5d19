"""One server as one process uses it: connections, the session, and the clock. All namespaces share it.

1. The session is a random number. A forked child, and a process whose session has ended, begins another one.
2. Every request gets a sequence of its own in the session. A sequence is never used for two requests.
3. The clock is the server's, as last heard, moved on by the monotonic clock of this machine. It is never ahead of what
   the server would say by more than the two run apart.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from psycopg import pq
from psycopg.types.numeric import Int8

from ...model.errors import OccamError
from .calls import Call
from .durability import Durability, ask_durability
from .keeper import Keeper, remove_ended
from .listener import Listener
from .location import Location
from .migrations import FORMAT, check_schema, migrate_on
from .pool import Connection, Pool, abandon
from .statements import Statements

__all__ = ["Server", "execute"]

_CLOSE_SECONDS = 5.0  # the session ends anyway, later


class Server:
    """Shared by the backends of all namespaces.

    Args:
      location: where.
      timeout: seconds to try for.
      durability: of commits that do not ask for more: "none", "standard" or "always".
      age: seconds for which old versions are kept.
      session_seconds: how long a session that binds keys outlives the last sign of its process.
      housekeeping: sweep, in a thread.
    """

    def __init__(
        self,
        location: Location,
        timeout: float,
        durability: str,
        age: float,
        session_seconds: float,
        housekeeping: bool = True,
    ) -> None:
        self.location = location
        self.statements = Statements(location)
        self.housekeeping = housekeeping
        self.age_ns = int(age * 1e9)
        self.session_ns = int(session_seconds * 1e9)
        self.pool = Pool(location, timeout)
        self.numbers: set[int] = set()  # of the namespaces that are used here
        self._begin()
        try:
            self._asked = durability
            self.request_type, self.durability = self.pool.run(lambda c: self._open(c, durability))
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        self._pid = os.getpid()
        self.token = object()  # another one in each process
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self.keeper = Keeper(self)
        self.listener = Listener(self)
        self._closed = False
        self.renew_session()
        self.offset = time.time_ns() - time.monotonic_ns()

    def _open(self, connection: Connection, durability: str) -> tuple[int, Durability]:
        """Make or check the schema, and learn what the server does for durability."""
        if check_schema(connection, self.location) != FORMAT:
            migrate_on(connection, self.location)
        row = connection.execute(self.statements.request_type).fetchone()
        assert row is not None
        self.heard(row[1])
        return int(row[0]), ask_durability(connection, durability, self.location)

    def renew_session(self) -> None:
        """Begin another session."""
        self.session = secrets.randbits(62) + 1
        self.sequences = itertools.count(1)
        self.kept = False  # keys may be bound to it: it is kept alive
        self.kept_until = 0.0

    def here(self) -> Server:
        """Itself, in this process: forks are noticed."""
        if self._pid != os.getpid():
            listening = self.listener.connection
            if listening is not None:
                abandon(listening)
            self.pool.after_fork()
            self._begin()
        return self

    def ask_durability(self, deadline: float | None = None) -> None:
        """Learn anew what the server does for durability; raises ServerSetupError if it is less than was asked."""
        self.durability = self.pool.run(lambda c: ask_durability(c, self._asked, self.location), deadline)

    # ---- the clock -----------------------------------------------------------------------------------------------

    def heard(self, clock: int) -> None:
        """The server's clock, in an answer that came just now."""
        self.offset = clock - time.monotonic_ns()

    def clock(self) -> int:
        """The server's clock now, as far as it is known."""
        return time.monotonic_ns() + self.offset

    # ---- calls ---------------------------------------------------------------------------------------------------

    @property
    def executor(self) -> ThreadPoolExecutor:
        """Threads that wait for the server in place of tasks."""
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(8, "occamdb-postgres")
            return self._executor

    def rows(self, statement: bytes, parameters: Any, deadline: float | None = None) -> list[tuple[Any, ...]]:
        """The rows of a statement that may be made again."""
        return self.here().pool.run(lambda c: execute(c, statement, parameters), deadline)

    def call(self, call: Call, parameters: Sequence[bytes]) -> pq.abc.PGresult:
        """The result of a call that may be made again."""
        pool = self.here().pool
        return pool.run(lambda c: call.run(c, parameters, pool.prepare))

    def keep_session(self, deadline: float | None = None) -> None:
        """See `Backend.keep_session`. If the session has ended, another one begins, and is kept."""
        while True:
            with self._lock:
                if self.kept and time.monotonic() < self.kept_until:
                    return
                session, first = self.session, not self.kept
            before = time.monotonic()
            parameters = [Int8(session), Int8(self.session_ns), first]
            alive = self.rows(self.statements.keep_alive, parameters, deadline)[0][0]
            with self._lock:
                if alive and self.session == session:
                    self.kept = True
                    self.kept_until = before + self.session_ns / 3e9
                    break
            if not alive:
                self.session_ended(session)
        self.keeper.start()

    def session_ended(self, session: int) -> None:
        """Begin another session, unless that was done."""
        with self._lock:
            if self.session == session:
                self.renew_session()

    def close(self) -> None:
        """End the session, if it can be done quickly, and the connections."""
        self.here()
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self.keeper.stop()
        self.listener.stop()
        if self.kept:
            with contextlib.suppress(OccamError):
                until = time.monotonic() + min(self.pool.timeout, _CLOSE_SECONDS)
                self.rows(self.statements.end_session, [Int8(self.session)], until)
                remove_ended(self, until)
        self.pool.close()
        if self._executor is not None:
            self._executor.shutdown(wait=False)


def execute(connection: Connection, statement: bytes, parameters: Any) -> list[tuple[Any, ...]]:
    """The rows of one statement, as binary."""
    cursor = connection.execute(statement, parameters, binary=True)
    return cursor.fetchall() if cursor.description else []
