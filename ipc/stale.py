"""Segments whose coordinator is dead: find and remove them.

Used at every open, under the ownership lock, and by `doctor`. A segment's name tells database and
incarnation; the incarnation's doorbell segment tells which process made it.

Invariants:
  1. Without the lock, an incarnation is dead only if its owner is known and that process is gone, or if it
     has no owner note and is old: a coordinator notes itself before it makes any other segment.
  2. Removing a name harms nobody who has the segment mapped.
  3. Segments of other users are reported, never touched.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Final

from .errors import SegmentError
from .layout import SegmentName, database_prefix, parse_segment_name, read_bell_owner
from .process import ProcessIdentity, boot_id, is_alive
from .segment import attach_segment, list_segments, segment_stat, unlink_segment

# A creator needs milliseconds from a segment to its owner note.
UNOWNED_AGE_MIN: Final = 60.0


@dataclass(frozen=True, slots=True)
class Incarnation:
    """All segments of one incarnation of one database.

    Attributes:
      database: first 16 hex digits of the database id.
      number: the incarnation.
      names: its segments, with leading slashes.
      allocated_size: bytes of shared memory they take.
      owner: the coordinator that made them, None if not noted.
      dead: nobody will use these names again.
      foreign: they belong to another user.
    """

    database: str
    number: int
    names: tuple[str, ...]
    allocated_size: int
    owner: ProcessIdentity | None
    dead: bool
    foreign: bool


def list_incarnations(database_id: bytes | None = None) -> list[Incarnation]:
    """What is in this machine's shared memory, of one database or of all. Reads only."""
    prefix = "" if database_id is None else database_prefix(database_id)
    parsed = [
        (part.database, part.incarnation, name)
        for name, part in _parsed(list_segments(prefix))
        if part is not None
    ]
    found = []
    for (database, number), rows in groupby(sorted(parsed), itemgetter(0, 1)):
        incarnation = _describe(database, number, [name for _, _, name in rows])
        if incarnation is not None:
            found.append(incarnation)
    return found


def remove_dead(
    database_id: bytes | None = None, *, retire: Callable[[str], None] | None = None
) -> list[str]:
    """Remove the segments of incarnations that are certainly dead. For `doctor`; needs no lock.

    Args:
      database_id: of one database; None for all.
      retire: called with each name before it is removed. An incarnation for which it raises SegmentError
        stays.

    Returns:
      The names removed.
    """
    removed: list[str] = []
    for incarnation in list_incarnations(database_id):
        if not incarnation.dead or incarnation.foreign:
            continue
        try:
            for name in incarnation.names:
                if retire is not None:
                    retire(name)
        except SegmentError:
            continue
        removed += _unlink_all(incarnation.names)
    return removed


def remove_superseded(database_id: bytes, *, keep_incarnation: int | None = None) -> list[str]:
    """Remove all segments of a database but those of one incarnation.

    REQUIRES: the caller holds the database's ownership lock, so that no other coordinator of it can be alive.

    Returns:
      The names removed.
    """
    names = [
        name
        for name, part in _parsed(list_segments(database_prefix(database_id)))
        if part is not None and part.incarnation != keep_incarnation and not _is_foreign(name)
    ]
    return _unlink_all(names)


def _parsed(names: list[str]) -> Iterator[tuple[str, SegmentName | None]]:
    return ((name, parse_segment_name(name)) for name in names)


def _unlink_all(names: tuple[str, ...] | list[str]) -> list[str]:
    return [name for name in names if unlink_segment(name)]


def _is_foreign(name: str) -> bool:
    found = segment_stat(name)
    return found is not None and found.st_uid != os.geteuid()


def _describe(database: str, number: int, names: list[str]) -> Incarnation | None:
    """None if every segment went away meanwhile."""
    found = [state for state in map(segment_stat, names) if state is not None]
    if not found:
        return None
    owner = _owner(str(SegmentName(database, number, "bell")))
    age = time.time() - max(state.st_ctime for state in found)
    return Incarnation(
        database=database,
        number=number,
        names=tuple(names),
        allocated_size=sum(state.st_blocks * 512 for state in found),
        owner=owner,
        dead=not is_alive(owner) if owner else age > UNOWNED_AGE_MIN,
        foreign=any(state.st_uid != os.geteuid() for state in found),
    )


def _owner(bell: str) -> ProcessIdentity | None:
    """Who is noted in a doorbell segment; None if there is none or it cannot be read."""
    try:
        with attach_segment(bell, writable=False) as segment:
            noted = read_bell_owner(bytes(segment.map))
    except SegmentError:
        return None
    # Shared memory does not outlive a boot.
    return ProcessIdentity(noted[0], noted[1], boot_id()) if noted else None
