"""A few connections of one process to one server.

1. A connection is used by one thread at a time. What a call leaves behind is clean: every statement is a transaction of
   its own, except in migrations.
2. A forked child leaves the parent's connections alone, and makes its own. It must not close them: that would end the
   parent's sessions.
3. A server that no longer answers is noticed by the watch thread, which shuts the socket of a call that has lasted too
   long. The call then fails like one whose server died.
4. A connection goes to a server that takes writes (target_session_attrs=read-write), whichever of the hosts that is.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import psycopg

from ...model.errors import DatabaseClosedError, OccamError
from .errors import Fate, connect_error, fate_of, server_error, unavailable
from .location import Location

__all__ = ["Connection", "Pool", "abandon", "shut"]

Connection = psycopg.Connection[Any]
T = TypeVar("T")

COUNT_MAX = 8
CONNECT_SECONDS = 5
WATCH_SECONDS = 0.25
_PAUSE_SECONDS = 0.02
_PAUSE_SECONDS_MAX = 0.5

# Plans that do not depend on the parameters or on statistics: every statement goes by an index.
_SETTINGS = (
    "set default_transaction_isolation = 'read committed'; set plan_cache_mode = force_generic_plan;"
    " set enable_seqscan = off; set enable_bitmapscan = off; set enable_hashjoin = off; set enable_mergejoin = off;"
    " set jit = off; set max_parallel_workers_per_gather = 0"
)

_abandoned: list[Connection] = []  # of the parent, in a forked child


class Pool:
    """Connections to one server, for the threads of one process.

    Args:
      location: where.
      timeout: seconds to try for, when a call gives no deadline.
    """

    def __init__(self, location: Location, timeout: float) -> None:
        self.location = location
        self.timeout = timeout
        self.prepare = True  # False behind a pooler that does not keep prepared statements
        self.reconnects = 0
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._idle: list[Connection] = []
        self._count = 0
        self._closed = False
        self._busy: dict[Connection, float] = {}  # until when
        self._watch: threading.Thread | None = None
        self._watching = threading.Event()  # set when it must end

    def after_fork(self) -> None:
        """Forget the connections of the parent, if this is a forked child."""
        if self._pid != os.getpid():
            _abandoned.extend(self._idle)
            _abandoned.extend(self._busy)
            self._begin()

    def deadline(self, given: float | None) -> float:
        """When to give up, on the monotonic clock."""
        return time.monotonic() + self.timeout if given is None else given

    # ---- calls ---------------------------------------------------------------------------------------------------

    def run(self, call: Callable[[Connection], T], deadline: float | None = None) -> T:
        """The result of a call that may be made again: a read, or what does no harm when done twice.

        Raises:
          ServerUnavailable: no server answered until the deadline.
          ServerSetupError and others: what the server said.
        """
        deadline = self.deadline(deadline)
        pause = _PAUSE_SECONDS
        while True:
            try:
                with self.connection(deadline) as connection:
                    return call(connection)
            except psycopg.Error as error:
                why = self.retried(error)
            if time.monotonic() + pause >= deadline:
                raise unavailable(self.location, why)
            time.sleep(pause)
            pause = min(2 * pause, _PAUSE_SECONDS_MAX)

    def retried(self, error: psycopg.Error) -> str:
        """Why to try again after an error; raises the engine's error if there is no use in it."""
        fate = fate_of(error)
        if fate is Fate.UNPREPARED:
            self.prepare = False
        elif fate not in (Fate.LOST, Fate.REPEAT):
            raise server_error(error, self.location) from None
        return str(error)

    @contextlib.contextmanager
    def connection(self, deadline: float) -> Iterator[Connection]:
        """A connection for a call that ends before the deadline or is cut off. Its errors are those of the driver."""
        connection = self._take(deadline)
        # Several tries fit in before the deadline: the server that stopped answering may not be the one to ask.
        until = min(deadline, time.monotonic() + max(1.0, self.timeout / 2))
        with self._changed:
            self._busy[connection] = until
        try:
            yield connection
        except psycopg.Error as error:
            if fate_of(error) in (Fate.LOST, Fate.UNPREPARED):
                self._discard(connection)
                connection = None  # type: ignore[assignment]
            raise
        except BaseException:
            self._discard(connection)  # in the middle of an answer, perhaps
            connection = None  # type: ignore[assignment]
            raise
        finally:
            if connection is not None:
                self._give_back(connection)

    def _take(self, deadline: float) -> Connection:
        self.after_fork()
        with self._changed:
            while not self._idle and self._count >= COUNT_MAX and not self._closed:
                if not self._changed.wait(deadline - time.monotonic()):
                    raise unavailable(self.location, "all connections of this process are busy")
            if self._closed:
                raise DatabaseClosedError()
            if self._idle:
                return self._idle.pop()
            self._count += 1
        try:
            return self.connect(deadline)
        except BaseException:
            with self._changed:
                self._count -= 1
                self._changed.notify()
            raise

    def connect(self, deadline: float) -> Connection:
        """A connection that is not one of the pool's."""
        pause = _PAUSE_SECONDS
        while True:
            left = deadline - time.monotonic()
            parameters: dict[str, Any] = {
                "application_name": "occamdb",
                "target_session_attrs": "read-write",
                "connect_timeout": str(max(2, min(CONNECT_SECONDS, int(left)))),
                "tcp_user_timeout": str(int(max(2.0, self.timeout) * 1000)),
                **self.location.parameters,
            }
            try:
                connection = psycopg.connect(**parameters, autocommit=True)
                try:
                    connection.prepare_threshold = 0 if self.prepare else None
                    connection.execute(_SETTINGS, prepare=False)
                except BaseException:
                    connection.close()
                    raise
                self._start_watch()
                return connection
            except psycopg.Error as error:
                refusal = connect_error(error, self.location) if error.sqlstate is None else None
                if error.sqlstate is not None and fate_of(error) is Fate.DEFINITE:
                    refusal = server_error(error, self.location)
                why = str(error)
            if refusal is not None:
                raise refusal
            if time.monotonic() + pause >= deadline:
                raise _give_up(self.location, why)
            time.sleep(pause)
            pause = min(2 * pause, _PAUSE_SECONDS_MAX)

    def _give_back(self, connection: Connection) -> None:
        with self._changed:
            self._busy.pop(connection, None)
            if not (self._closed or connection.closed or connection.broken):
                self._idle.append(connection)
                self._changed.notify()
                return
            self._count -= 1
            self._changed.notify()
        connection.close()

    def _discard(self, connection: Connection) -> None:
        with self._changed:
            self._busy.pop(connection, None)
            self._count -= 1
            self.reconnects += 1
            # The others lead to the same server: if it died, each would cost a call.
            idle, self._idle = self._idle, []
            self._count -= len(idle)
            self._changed.notify_all()
        for one in (connection, *idle):
            with contextlib.suppress(psycopg.Error):
                one.close()

    # ---- the watch -----------------------------------------------------------------------------------------------

    def _start_watch(self) -> None:
        with self._changed:
            if self._watch is None and not self._closed:
                self._watch = threading.Thread(target=self._look, name="occamdb-postgres-watch", daemon=True)
                self._watch.start()

    def _look(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                now = time.monotonic()
                for connection, until in list(self._busy.items()):
                    if until <= now:
                        shut(connection)
            self._watching.wait(WATCH_SECONDS)

    def close(self) -> None:
        """Close what is idle now, and the others when their calls end."""
        self.after_fork()
        with self._changed:
            self._closed = True
            self._watching.set()
            idle, self._idle = self._idle, []
            self._count -= len(idle)
            self._changed.notify_all()
            watch = self._watch
        for connection in idle:
            connection.close()
        if watch is not None and watch is not threading.current_thread():
            watch.join(1.0)

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed


def abandon(connection: Connection) -> None:
    """Never touch this connection of the parent again, not even by its end."""
    _abandoned.append(connection)


def shut(connection: Connection) -> None:
    """Make the thread that waits for an answer on this connection see that it is lost."""
    with contextlib.suppress(OSError, psycopg.Error):
        with socket.socket(fileno=os.dup(connection.fileno())) as copy:
            copy.shutdown(socket.SHUT_RDWR)


def _give_up(location: Location, why: str) -> OccamError:
    if "too many" in why or "remaining connection slots" in why:
        return unavailable(
            location, why, "raise max_connections on the server, or put a pooler in front of it"
        )
    if "read-only" in why or "standby" in why or "not read-write" in why:
        return unavailable(
            location,
            why,
            "only standbys answered: name all servers of the cluster in the URL, host1,host2,host3",
        )
    return unavailable(location, why)
