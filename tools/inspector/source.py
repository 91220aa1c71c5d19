"""The database that is looked at: through its coordinator, or as its files are, or what of them can be read.

1. Reading never starts a coordinator and changes no byte of the directory.
2. `look` decides where to read; it is called by one thread, once a second. A directory that is served is read through
   its coordinator. One that was not served for `GRACE_S` is recovered into the memory of this process. In between,
   while a coordinator starts again, what was seen last stays.
3. Whoever reads holds a lease of the opened database (`reading`). One that was replaced is closed when the last lease
   ends.
4. A directory that cannot be recovered because it is damaged is copied, and the copy is repaired. What could be saved
   is shown, with what was lost.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import occamdb
from occamdb.engine.client.offline import recovered_database
from occamdb.engine.disk.directory import read_meta
from occamdb.engine.log.salvage import repair
from occamdb.engine.model.errors import CoordinatorUnavailable
from occamdb.tools.console import is_served, reading, require_database
from occamdb.tools.coordinator import coordinator_of
from occamdb.tools.stats import figures_of

__all__ = ["Condition", "DirectorySource", "ServerSource", "Source", "source_of"]

GRACE_S = 3.0
ATTACH_TIMEOUT_S = 2.0
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


def source_of(target: str, namespace: str | None) -> Source:
    """The database that a path, or the address of a server, names.

    Raises:
      NotFoundError: there is no database.
    """
    if "://" in target:
        return ServerSource(target, namespace)
    return DirectorySource(require_database(Path(target)), namespace)


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


class _Replaceable:
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


def in_namespace(db: occamdb.Database, namespace: str | None) -> occamdb.Database:
    """The database as one namespace sees it: "tenant/app/agent", trailing parts optional."""
    return db.namespace(*namespace.split("/", 2)) if namespace else db


class DirectorySource:
    """A database directory.

    Args:
      path: of a database.
      namespace: "tenant/app/agent", trailing parts optional; None: the default one.
    """

    look_s = 0.1  # the version is a word in shared memory

    def __init__(self, path: Path, namespace: str | None) -> None:
        self.path = path
        self.name = str(path)
        self.log: str | None = str(path)
        self.condition = Condition("unreadable", ("The database is being opened.",))
        self._namespace = namespace
        self._current = _Replaceable()
        self._seen: object = None  # what `meta` said when the files were read
        self._missing_since: float | None = None

    def reading(self) -> Any:
        """A lease of the database."""
        return self._current.lease()

    def close(self) -> None:
        """Close what is open."""
        self._current.fail(occamdb.DatabaseClosedError())

    def figures(self) -> dict[str, Any] | None:
        """What the coordinator answers; None if none does."""
        if self.condition.kind != "served" or self.condition.is_gone:
            return None
        try:
            return figures_of(self.path)
        except (occamdb.OccamError, OSError):
            return None

    def look(self) -> None:
        """Decide where to read: see the module."""
        try:
            served = is_served(self.path)
        except OSError as error:
            self._give_up(error)
            return
        if served:
            self._missing_since = None
            if self.condition.kind != "served" or self._is_other_coordinator():
                self._attach()
            return
        if self.condition.kind == "served":
            now = time.monotonic()
            if self._missing_since is None:
                self._missing_since = now
            if now - self._missing_since < GRACE_S:
                self._say_gone()
                return
        if self.condition.kind == "served" or self._meta() != self._seen or self._seen is None:
            self._recover()

    def _is_other_coordinator(self) -> bool:
        """Whether the coordinator changed since the database was attached to."""
        return self._meta() != self._seen or self.condition.is_gone

    def _meta(self) -> object:
        with suppress(OSError, occamdb.OccamError):
            return read_meta(self.path)
        return None

    def _say_gone(self) -> None:
        note = (
            "The coordinator of this database is gone. What it served last is shown until another one starts, "
            "or the files are read."
        )
        self.condition = Condition("served", (note,), is_gone=True)

    def _attach(self) -> None:
        seen = self._meta()
        durability = occamdb.Durability(getattr(seen, "durability", None) or "standard")
        with ExitStack() as closing:
            try:
                db = closing.enter_context(
                    occamdb.open(self.path, durability=durability, start="never", timeout=ATTACH_TIMEOUT_S)
                )
            except (occamdb.OccamError, OSError) as error:
                # It may be starting, or have just ended: what is open stays, and the next look tries again.
                if self.condition.kind == "served":
                    self._say_gone()
                else:
                    self._give_up(error)
                return
            self._current.replace(in_namespace(db, self._namespace), closing.pop_all())
        self._seen = seen
        self.condition = Condition("served")

    def _recover(self) -> None:
        seen = self._meta()
        with ExitStack() as closing:
            try:
                db = closing.enter_context(recovered_database(occamdb.Database, self.path))
                condition = Condition("at rest", (_at_rest(),))
            except (occamdb.CorruptionError, occamdb.IncompatibleFormatError) as error:
                if self._is_changing(seen):
                    return
                try:
                    db, condition = _salvaged(self.path, error, closing)
                except (occamdb.OccamError, OSError) as second:
                    self._give_up(error if isinstance(second, occamdb.CorruptionError) else second)
                    self._seen = seen
                    return
            except (occamdb.OccamError, OSError) as error:
                if not self._is_changing(seen):
                    self._give_up(error)
                    self._seen = seen
                return
            if self._is_changing(seen):
                return  # what was read may be torn
            self._current.replace(in_namespace(db, self._namespace), closing.pop_all())
        self._seen = seen
        self._missing_since = None
        self.condition = condition

    def _is_changing(self, seen: object) -> bool:
        # A coordinator writes the next incarnation into `meta` before it touches the log.
        return is_served(self.path) or self._meta() != seen

    def _give_up(self, error: Exception) -> None:
        self._current.fail(error)
        hint = getattr(error, "hint", "")
        self.condition = Condition("unreadable", (str(getattr(error, "message", error)), hint))

    @property
    def coordinator(self) -> int | None:
        """The pid of the coordinator, as far as that can be told."""
        with suppress(occamdb.OccamError, OSError):
            holder = coordinator_of(self.path)
            return None if holder is None else holder.pid
        return None


def _at_rest() -> str:
    return (
        "No coordinator serves this database: what is shown is the content of its files, "
        "as the next coordinator would recover it."
    )


def _salvaged(
    path: Path, error: occamdb.OccamError, closing: ExitStack
) -> tuple[occamdb.Database, Condition]:
    """What can be saved of a damaged directory, from a repaired copy, and what cannot."""
    copy = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="occamdb-inspect-"))) / "copy"
    shutil.copytree(path, copy, ignore=_not_files, symlinks=True)
    report = repair(copy)
    db = closing.enter_context(recovered_database(occamdb.Database, copy))
    lost = (
        f"This database is damaged: {error.message}",
        f"What could be saved is shown: {report.keys:,} keys, up to version {report.version:,}. "
        "The directory itself was not touched; `occamdb check --repair` would do the same to it.",
        *report.actions,
    )
    return db, Condition("damaged", lost)


def _not_files(folder: str, names: list[str]) -> set[str]:
    """What a copy leaves out: sockets, the lock, and files that only hold room."""
    return {
        name
        for name in names
        if name in ("LOCK", "reserve", "coordinator.json") or Path(folder, name).is_socket()
    }


class ServerSource:
    """A database on a server, such as PostgreSQL.

    Args:
      address: as `occamdb.open` takes it.
      namespace: "tenant/app/agent", trailing parts optional; None: the default one.
    """

    look_s = 0.5  # each look is a round trip

    def __init__(self, address: str, namespace: str | None) -> None:
        self.name = without_password(address)
        self.condition = Condition("unreadable", ("The server is being asked.",))
        self.log: str | None = None
        self._address = address
        self._namespace = namespace
        self._current = _Replaceable()
        self._is_open = False

    def reading(self) -> Any:
        """A lease of the database."""
        return self._current.lease()

    def close(self) -> None:
        """Close what is open."""
        self._current.fail(occamdb.DatabaseClosedError())

    def look(self) -> None:
        """Open it, if that did not succeed yet."""
        if self._is_open:
            return
        with ExitStack() as closing:
            try:
                db = closing.enter_context(reading(self._address, self._namespace))
            except (occamdb.OccamError, OSError) as error:
                self._current.fail(error)
                self.condition = Condition("unreadable", (str(getattr(error, "message", error)),))
                return
            self._current.replace(db, closing.pop_all())
        self.name = db.path or self.name
        self._is_open = True
        self.condition = Condition("server")

    def figures(self) -> dict[str, Any] | None:
        """What the server answers; None if it does not."""
        try:
            with self._current.lease() as db:
                found: dict[str, Any] = db.stats()
        except (occamdb.OccamError, OSError) as error:
            if self._is_open:
                self.condition = Condition("server", (str(getattr(error, "message", error)),), is_gone=True)
            return None
        if self._is_open:
            self.condition = Condition("server")
        return found | {"read_at": time.time()}


def without_password(address: str) -> str:
    """An address of a server without what is secret in it."""
    from urllib.parse import urlsplit, urlunsplit

    try:
        parts = urlsplit(address)
    except ValueError:
        return address.partition("://")[0] + "://…"
    place = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, place, parts.path, "", ""))
