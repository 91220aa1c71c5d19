"""A database to look at: what every kind of source offers, and a database that can be replaced while it is read.

1. Reading never starts a coordinator and writes nothing.
2. `look` decides where to read; it is called by one thread, once a second.
3. Whoever reads holds a lease of the opened database (`reading`). One that was replaced is closed when the last lease
   ends.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import occamdb
from occamdb.engine.model.errors import CoordinatorUnavailable

__all__ = ["Condition", "Replaceable", "Source"]

Kind = Literal["served", "at rest", "damaged", "server", "unreadable"]


@dataclass(frozen=True, slots=True)
class Condition:
    """What the pages say about the database as a whole.

    Attributes:
      kind: "served": through its coordinator; "at rest": as its files are; "damaged": what could be saved of them;
        "server": on a database server; "unreadable": there is nothing to show.
      notes: sentences for people, the most important one first.
      is_gone: a coordinator served it and does not do so now.
    """

    kind: Kind
    notes: tuple[str, ...] = ()
    is_gone: bool = False


class Source(Protocol):
    """A database to look at.

    Attributes:
      name: its path or address, for people.
      condition: how it is read at present.
      log: the directory whose log may be read; None: there is none.
      look_s: how long to wait between two looks at the newest version, in seconds.
    """

    name: str
    condition: Condition
    log: str | None
    look_s: float

    def reading(self) -> Any:
        """A context manager: a database to read from; closed by nobody else."""

    def look(self) -> None:
        """Decide anew where to read. Called by one thread."""

    def figures(self) -> dict[str, Any] | None:
        """The figures of the engine; None if nobody serves the database."""

    def close(self) -> None:
        """End reading."""


class _Opened:
    """One opened database and the leases of it."""

    def __init__(self, db: occamdb.Database, closing: ExitStack) -> None:
        self.db = db
        self._closing = closing
        self._leases = 1
        self._lock = threading.Lock()

    def lease(self) -> bool:
        """Take a lease; False: it is closed."""
        with self._lock:
            if self._leases == 0:
                return False
            self._leases += 1
            return True

    def release(self) -> None:
        """Give a lease back; the last one closes."""
        with self._lock:
            self._leases -= 1
            if self._leases:
                return
        self._closing.close()


class Replaceable:
    """A database that can be replaced by another one while it is read."""

    def __init__(self) -> None:
        self._opened: _Opened | None = None
        self._failure: Exception = CoordinatorUnavailable(
            "the database is being opened", hint="wait a moment"
        )

    @contextmanager
    def lease(self) -> Iterator[occamdb.Database]:
        """The database of the moment.

        Raises:
          OccamError, OSError: why there is none.
        """
        while True:
            opened = self._opened
            if opened is None:
                raise self._failure
            if opened.lease():
                break
        try:
            yield opened.db
        finally:
            opened.release()

    def replace(self, db: occamdb.Database, closing: ExitStack) -> None:
        before, self._opened = self._opened, _Opened(db, closing)
        if before is not None:
            before.release()

    def fail(self, error: Exception) -> None:
        """Have nothing to read, for this reason."""
        before, self._opened, self._failure = self._opened, None, error
        if before is not None:
            before.release()
