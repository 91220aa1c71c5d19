"""A database directory: through its coordinator, or as its files are, or what of them can be read.

1. A directory that is served is read through its coordinator. One that was not served for `GRACE_S` is recovered into
   the memory of this process. In between, while a coordinator starts again, what was seen last stays.
2. A directory that cannot be recovered because it is damaged is copied, and the copy is repaired. What could be saved
   is shown, with what was lost. The directory itself is not changed by a byte.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import occamdb
from occamdb.engine.client.offline import recovered_database
from occamdb.engine.disk.directory import read_meta
from occamdb.engine.log.salvage import repair
from occamdb.tools.console import is_served
from occamdb.tools.inspector.source import Condition, Replaceable
from occamdb.tools.stats import figures_of

__all__ = ["DirectorySource"]

GRACE_S = 3.0
ATTACH_TIMEOUT_S = 2.0


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
        self._current = Replaceable()
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
