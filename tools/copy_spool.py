"""The content of one run between its source and its destination: a temporary database of SQLite, in memory as long as
it is small, and then in a file without a name.

So the source is read once, in the order of keys, and its snapshot held no longer than that takes. The destination is
written in the order of versions, and compared in the order of keys.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterable
from contextlib import closing
from types import TracebackType
from typing import NamedTuple, Self

__all__ = ["Spool", "SpooledRow"]

_ROWS_AT_ONCE = 1000


class SpooledRow(NamedTuple):
    """One key of the run.

    Attributes:
      tag: the part of the run.
      key: behind the tag.
      value: encoded.
      version: at the source.
      expires_at: nanoseconds since the epoch; 0: never.
    """

    tag: int
    key: bytes
    value: bytes
    version: int
    expires_at: int

    @property
    def size(self) -> int:
        """About what it takes in a transaction."""
        return len(self.key) + len(self.value) + 64


class Spool:
    """Rows of one run. A context manager."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.executescript(
            "pragma journal_mode = off;"
            "create table row (tag int, key blob, value blob, version int, expires_at int, copied int,"
            " primary key (tag, key)) without rowid;"
            "begin;"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    def add(self, rows: Iterable[SpooledRow]) -> None:
        """Keep rows, in the order of keys."""
        self._database.executemany("insert into row values (?, ?, ?, ?, ?, null)", rows)

    def totals(self) -> tuple[int, int]:
        """How many rows there are, and their bytes."""
        (found,) = self._database.execute(
            "select count(*), coalesce(sum(length(key) + length(value)), 0) from row"
        )
        return found[0], found[1]

    def largest(self) -> tuple[int, int]:
        """The sizes of the longest key and of the largest value."""
        (found,) = self._database.execute(
            "select coalesce(max(length(key)), 0), coalesce(max(length(value)), 0) from row"
        )
        return found[0], found[1]

    def tags(self) -> list[int]:
        """The parts of the run that have rows."""
        return [tag for (tag,) in self._database.execute("select distinct tag from row order by tag")]

    def by_version(self) -> Generator[SpooledRow]:
        """All rows, the oldest version first."""
        return self._rows("order by version, tag, key")

    def of_tag(self, tag: int) -> Generator[SpooledRow]:
        """The rows of a part, in the order of keys."""
        return self._rows("where tag = ? order by key", tag)

    def _rows(self, which: str, *parameters: int) -> Generator[SpooledRow]:
        query = "select tag, key, value, version, expires_at from row " + which
        with closing(self._database.cursor()) as cursor:
            cursor.execute(query, parameters)
            while found := cursor.fetchmany(_ROWS_AT_ONCE):
                yield from (SpooledRow(*row) for row in found)

    def note_copied(self, tag: int, copied: Iterable[tuple[int, bytes]]) -> None:
        """Note the versions that keys of a part have at the destination."""
        self._database.executemany(
            "update row set copied = ? where tag = ? and key = ?",
            ((version, tag, key) for version, key in copied),
        )

    def misordered(self) -> int | None:
        """A version of which the copy is older than that of an earlier version; None: the order is kept."""
        newest = 0
        for version, low, high in self._database.execute(
            "select version, min(copied), max(copied) from row where copied is not null"
            " group by version order by version"
        ):
            if low < newest:
                return int(version)
            newest = max(newest, high)
        return None
