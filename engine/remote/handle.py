"""A server as the engine of a database: `EngineHandle` over a `Backend`. See engine_handle.py for the methods.

1. A handle belongs to one namespace, because versions count there; `of` makes one for another. All of them share the
   connections and the session of the first, and close together.
2. What a server has no answer to (checkpoints, backups, files) raises UnsupportedError.
3. Turns are not granted: a transaction that loses again and again is helped by its pauses alone.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..commit.messages import RequestFlags
from ..model.errors import DatabaseClosedError, UnsupportedError
from ..model.keys import successor
from ..model.limits import Limits
from ..model.public_types import BackupSummary
from ..model.settings import Settings
from ..transaction._answer import Answer
from ..transaction.waiting import WaitHub
from ._source import RemoteSource, ServerClock

if TYPE_CHECKING:
    from ..transaction.engine_handle import PinnedSnapshot
    from .backend import Backend, Outcome

__all__ = ["Opener", "RemoteHandle", "answer_of", "wants_sync"]

Opener = Callable[[bytes], "Backend"]  # opens the backend of a namespace; picklable

_FLAGS = 6  # the low byte of a request's flags


class _Family:
    """What the handles of one connection share.

    Attributes:
      clock: of the server. A ttl counts from it, also before the first snapshot of a namespace.
      handles: by namespace, as long as a database uses them.
      lock: while one is made, or all are closed.
    """

    def __init__(self, clock: ServerClock) -> None:
        self.clock = clock
        self.handles: weakref.WeakValueDictionary[bytes, RemoteHandle] = weakref.WeakValueDictionary()
        self.lock = threading.Lock()


class RemoteHandle:
    """One namespace of a server.

    Args:
      opener: connects to the server; called now, and in each process that gets the handle through a fork or pickled.
      base: what the stored keys of the namespace begin with.
    """

    orphaned = False  # there is no coordinator
    path = None  # and no directory

    def __init__(self, opener: Opener, base: bytes) -> None:
        backend = opener(base)
        self._begin(opener, base, backend, _Family(ServerClock(backend.begin().clock)))

    def _begin(self, opener: Opener, base: bytes, backend: Backend, family: _Family) -> None:
        self._opener = opener
        self._base = base
        self._backend = backend
        self._family = family
        self._pid = os.getpid()
        self._source = self._new_source()
        self.closed = False
        self.waits = WaitHub(self)
        self.settings = Settings.of({})
        family.handles[base] = self

    def _new_source(self) -> RemoteSource:
        end = successor(self._base)
        assert end is not None, "a namespace ends in a NUL"
        return RemoteSource(self._backend, self._base, end, self._family.clock)

    def __reduce__(self) -> Any:
        return RemoteHandle, (self._opener, self._base)

    def of(self, base: bytes) -> RemoteHandle:
        if base == self._base:
            return self
        with self._family.lock:
            other = self._family.handles.get(base)
            if other is None:
                other = RemoteHandle.__new__(RemoteHandle)
                other._begin(self._opener, base, self.backend.of(base), self._family)
                other.closed = self.closed
            return other

    @property
    def backend(self) -> Backend:
        """The server, as this namespace of it is used."""
        return self._backend

    @property
    def location(self) -> str:
        """Where it is, as `open` takes it and without secrets."""
        return self._backend.location

    @property
    def limits(self) -> Limits:
        return self._backend.limits

    @property
    def durability(self) -> str:
        return self._backend.durability

    @property
    def log_mode(self) -> str:
        return self._backend.durability

    @property
    def session(self) -> int:
        return self._backend.session

    def attachment(self) -> RemoteSource:
        if self.closed:
            raise DatabaseClosedError()
        if self._pid != os.getpid():
            # The backend makes connections of its own; views of the parent keep the parent's source.
            self._pid = os.getpid()
            self._source = self._new_source()
        return self._source

    def submit(self, request: bytearray, deadline: float | None) -> Answer:
        self.attachment()
        return answer_of(self._backend.commit(bytes(request), deadline, durable=wants_sync(request)))

    def keep_session(self) -> None:
        self._backend.keep_session()

    def revive(self, limit: float) -> None:
        """Never called."""

    def admin(self, message: dict[str, Any]) -> dict[str, Any]:
        self.attachment()
        if message.get("kind") == "stats":
            return self._backend.stats() | {"retries": self._source.retries, "durability": self.durability}
        raise UnsupportedError(
            f"a database on {self._backend.engine} has no {message.get('kind')}",
            hint="the server's own tools do that",
        )

    def copy_to(
        self, snapshot: PinnedSnapshot, destination: Path, progress: Callable[[int], None] | None
    ) -> BackupSummary:
        raise UnsupportedError(
            f"a database on {self._backend.engine} is backed up with the server's own tools",
            hint="`occamdb copy URL DIRECTORY` copies runs into a directory",
        )

    def close(self) -> None:
        """End the session and the connections, of all namespaces."""
        with self._family.lock:
            handles = list(self._family.handles.values())
        for handle in handles:
            handle.closed = True
            handle._source.shut_down()
        self._backend.close()


def wants_sync(request: bytearray) -> bool:
    """Whether a request asks to be synced before it is acknowledged."""
    return bool(request[_FLAGS] & RequestFlags.SYNC)


def answer_of(outcome: Outcome) -> Answer:
    """A backend's outcome as the transaction takes it."""
    return Answer(outcome.session, outcome.sequence, outcome.reply, outcome.durability)
