"""Reading what a batch of requests has to be judged by: the head, and the newest records of their keys and ranges.

1. All of a view is read at one revision, or by one transaction of etcd.
2. Of a scanned range only what changed since the snapshot is read: records with a later `mod_revision` than that of the
   snapshot. Values that expired since are among them, because their removal rewrote them.
3. Deleted ranges leave nothing in etcd; the log tells what they removed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from ...commit.messages import OpCode, Request, RequestFlags
from ...model.errors import SnapshotExpired
from .judge import View
from .records import Commit, Head, LogEntry, Record
from .space import RANGES_MAX, Look, Space
from .tending import Tending
from .wire import KeyValue, Page, range_of

__all__ = ["Plan", "needs_floor", "range_deletes"]

_PAGE: Final = 1000


def needs_floor(request: Request) -> bool:
    """Whether a request can be judged only if nothing newer than its snapshot was forgotten."""
    return not request.flags & RequestFlags.BLIND and any(op.code is not OpCode.READ for op in request.ops)


class Plan:
    """What to read for some requests.

    Args:
      requests: of one namespace.

    Raises:
      SnapshotExpired: the snapshot of one of them is no longer known.
    """

    def __init__(self, space: Space, requests: Sequence[Request]) -> None:
        self._space = space
        points: dict[bytes, None] = {}
        self._changed: dict[tuple[bytes, bytes, int], int] = {}
        self._contents: dict[tuple[bytes, bytes], None] = {}
        starts = [r.start_version for r in requests if needs_floor(r)]
        self._since = min(starts, default=None)
        for request in requests:
            for op in request.ops:
                if op.code is OpCode.RANGE:
                    if not request.flags & RequestFlags.BLIND:
                        start = request.start_version
                        revision = space.revision_of(start, exact=False)
                        self._changed[op.key, op.value, start] = revision
                elif op.code is OpCode.DELETE_RANGE:
                    self._contents[op.key, op.value] = None
                else:
                    points[op.key] = None
        self._points = list(points)

    def ranges(self) -> list[dict[str, Any]]:
        """The ranges to read, by the arguments of `range_of`."""
        keys = self._space.keys
        made: list[dict[str, Any]] = [{"key": keys.record(key)} for key in self._points]
        for (start, end, _), revision in self._changed.items():
            made.append({"key": keys.record(start), "end": keys.record(end), "changed_after": revision})
        for start, end in self._contents:
            made.append({"key": keys.record(start), "end": keys.record(end), "limit": _PAGE})
        return made

    @property
    def inline(self) -> list[dict[str, Any]] | None:
        """The ranges, if one transaction reads all of them in one piece; else None."""
        count = len(self._points) + len(self._changed)
        return (
            [range_of(**ask) for ask in self.ranges()] if count < RANGES_MAX and not self._contents else None
        )

    def read(self, tending: Tending, deadline: float) -> View:
        """Look, and read the view at that moment."""
        ranges = self.ranges()
        look = tending.look([range_of(**ask) for ask in ranges[: RANGES_MAX - 2]], deadline)
        pages = list(look.pages)
        for first in range(RANGES_MAX - 2, len(ranges), RANGES_MAX):
            pages.extend(self._space.at(look.revision, ranges[first : first + RANGES_MAX]))
        return self.view(look, pages)

    def view(self, look: Look, pages: Sequence[Page]) -> View:
        """The view of what was read."""
        head = look.head
        view = View(head, look.mod_revision)
        found = iter(pages)
        for key in self._points:
            page = next(found)
            view.points[key] = Record.decode(page.rows[0].value) if page.rows else None
        for name in self._changed:
            view.changed[name] = self._decoded(next(found).rows)
        for bounds in self._contents:
            view.contents[bounds] = self._decoded(self._rest(next(found), bounds[1], look.revision))
        if self._since is not None and head.range_deleted > self._since:
            if self._since < head.floor:
                view.erased = ()  # such a request is refused
            else:
                view.erased = list(range_deletes(self._space, self._since, look))
        return view

    def is_whole(self, head: Head) -> bool:
        """Whether `view` needs nothing beside the inline ranges at this head."""
        return self._since is None or head.range_deleted <= self._since

    def _decoded(self, rows: Sequence[KeyValue]) -> list[tuple[bytes, Record]]:
        return [(self._space.keys.stored(row.key), Record.decode(row.value)) for row in rows]

    def _rest(self, page: Page, end: bytes, revision: int) -> list[KeyValue]:
        rows = list(page.rows)
        while page.more:
            ask: Mapping[str, Any] = {
                "key": rows[-1].key + b"\x00",
                "end": self._space.keys.record(end),
                "limit": _PAGE,
            }
            (page,) = self._space.at(revision, [ask])
            rows.extend(page.rows)
        return rows


def range_deletes(space: Space, since: int, look: Look) -> Iterator[Commit]:
    """The commits after `since` that deleted ranges, oldest first."""
    first, end = space.keys.log(since + 1), space.keys.log(look.head.range_deleted) + b"\xff"
    while True:
        (page,) = space.at(look.revision, [{"key": first, "end": end, "limit": _PAGE // 4}])
        entries = [LogEntry.decode(row.value, row.mod_revision) for row in page.rows]
        if not entries and not page.more:
            return
        for entry in entries:
            yield from (c for c in entry.commits if c.ranges and c.version > since)
        if not page.more:
            return
        first = page.rows[-1].key + b"\x00"


def expired(version: int, floor: int) -> SnapshotExpired:
    """The error of a snapshot that is older than what is kept to judge by."""
    return SnapshotExpired(
        f"the snapshot at version {version} is too old to commit; the oldest that may is {floor}",
        hint="do less in one transaction; raise snapshot_max_age for long ones",
        details={"version": version, "floor": floor},
    )
