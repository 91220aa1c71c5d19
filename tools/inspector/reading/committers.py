"""Which session made a commit: the log has it, the store does not.

Reading a segment of the log takes some tens of milliseconds and as much memory as the segment. So one thread reads at a
time, what was found is kept, and after each reading there is a rest.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable

from occamdb.engine.disk.directory import DatabaseDirectory
from occamdb.engine.log.wal_format import BeginTxn, decode_body
from occamdb.engine.log.wal_reader import Segment, list_segments, open_image
from occamdb.engine.model.errors import OccamError

__all__ = ["Committers"]

KEPT_MAX = 10_000
REST_FACTOR = 20
SEGMENTS_MAX = 2


class Committers:
    """The sessions of commits, by version. Used by any thread.

    Args:
      log: the database directory; None: there is no log to read.
    """

    def __init__(self, log: str | None) -> None:
        self._log = log
        self._known: OrderedDict[int, int] = OrderedDict()
        self._lock = threading.Lock()
        self._rest_until = 0.0

    def sessions(self, versions: Iterable[int]) -> dict[int, int]:
        """The sessions of these commits, as far as they are known or can be found out now."""
        wanted = {version for version in versions if version}
        if self._log is None or not wanted:
            return {}
        missing = wanted - self._known.keys()
        if missing and time.monotonic() >= self._rest_until and self._lock.acquire(blocking=False):
            try:
                began = time.monotonic()
                self._find(self._log, sorted(missing))
                ended = time.monotonic()
                self._rest_until = ended + REST_FACTOR * (ended - began)
            finally:
                self._lock.release()
        return {version: self._known[version] for version in wanted if version in self._known}

    def _find(self, log: str, versions: list[int]) -> None:
        try:
            directory = DatabaseDirectory(log, create=False)
        except (OccamError, OSError):
            return
        try:
            segments = list_segments(directory)
            for segment, inside in _by_segment(segments, versions)[-SEGMENTS_MAX:]:
                self._search(directory, segment, inside)
        except (OccamError, OSError, ValueError):
            pass  # it was removed meanwhile, or is damaged: then it is not known
        finally:
            directory.close()
        while len(self._known) > KEPT_MAX:
            self._known.popitem(last=False)

    def _search(self, directory: DatabaseDirectory, segment: Segment, versions: list[int]) -> None:
        image = open_image(directory, segment)
        reached = segment.previous_version
        for version in versions:
            reached = image.skip_to(reached, version)
            state, found, first, _, _ = image.advance(reached)
            if state != "whole" or found != version:
                continue
            entry = image.entry(first)
            begin = None if entry is None else decode_body(entry[0], entry[1])
            if isinstance(begin, BeginTxn):
                self._known[version] = begin.session
            reached = found


def _by_segment(segments: list[Segment], versions: list[int]) -> list[tuple[Segment, list[int]]]:
    """The versions that may be in each segment, both in ascending order."""
    found = []
    for at, segment in enumerate(segments):
        end = segments[at + 1].first_version if at + 1 < len(segments) else None
        inside = [
            version
            for version in versions
            if version >= segment.first_version and (end is None or version < end)
        ]
        if inside:
            found.append((segment, inside))
    return found
