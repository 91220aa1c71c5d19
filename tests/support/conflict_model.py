"""The model of the commit core's validation: what makes a transaction conflict, as pure functions over newest versions.

The product has one judge, `engine/commit/_validate.pyx`. The tests compare it with the rules below, which are
written for the reader and not for speed.

A commit has one place in the total order, and there it must find what it read. The state there is that of the
newest versions at the commit's time; the state it read is that of its snapshot, `start_version` at `read_time`.
A key with an expiry time is in a state while the state's time is earlier. The background removal of an expired
key changes no state.

1. A version of 0 means absent: never written, deleted, or expired at the commit's time.
2. Reads and CAS compare what is there now. A scanned range is as it was if no key in it was written since, be it
   by a delete, and none that was there has expired since.
3. A write asks only whether somebody else wrote the key since: it does not care what was there. A key that expired
   was written by nobody.
4. A CAS key is checked by its expected version alone, even when it is in the write set too.
5. Deleting a range counts as a write of every possible key in it: what goes into it from an older snapshot conflicts,
   be it a key that never was there, an increment, or a CAS that expects absence. What the snapshot held there does
   not matter: a CAS compares with what is there now, and reads nothing. So a CAS that expects absence conflicts too
   if its key was alive in the snapshot and has expired since, whether that was before or after the range was deleted.
6. Every conflict is counted; the first CONFLICTS_LISTED_MAX are listed: reads, ranges, CAS, then writes and deleted
   ranges.

    check    conflicts when
    read     version now (expired: 0) != version read
    range    some key in [start, end) has written_version > start_version, or read_time < expires_at <= now
    cas      version now (expired: 0) != expected version; with 0 expected, as add
    write    written_version > start_version; as add
    add      a range with the key in it was deleted after start_version
    delete   of a range: some key in it has written_version > start_version; a range that meets it was deleted since
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from occamdb.engine.commit.messages import CONFLICTS_LISTED_MAX
from occamdb.engine.model.conflict_records import cas_conflict, range_conflict, read_conflict, write_conflict
from occamdb.engine.model.errors import CASConflict, Conflict, ConflictError, ReadConflict, WriteConflict

__all__ = [
    "CONFLICTS_LISTED_MAX",
    "CommitSets",
    "Newest",
    "Validation",
    "VersionSource",
    "validate_cas_set",
    "validate_ranges",
    "validate_read_set",
    "validate_transaction",
    "validate_write_set",
    "version_now",
]

RangeDelete = tuple[bytes, bytes, int]  # start, end, version


class Newest(NamedTuple):
    """The newest record of a key, as its last writer left it: the removal of an expired key leaves no trace here.

    Attributes:
      version: of the value that is there; 0 when the newest record is a delete.
      written_version: of the commit that wrote the newest record, value or delete.
      expires_at: when the value expires, in nanoseconds since the epoch; 0 never.
    """

    version: int
    written_version: int
    expires_at: int = 0


class VersionSource(Protocol):
    """The newest committed state, by stored key."""

    def newest(self, key: bytes) -> Newest | tuple[int, int, int] | None:
        """(version, written_version, expires_at) of a key; None when it was never written."""
        ...

    def newest_in_range(self, start: bytes, end: bytes) -> Iterable[tuple[bytes, Newest]]:
        """(key, newest record) of every key in [start, end), deletes included, in key order."""
        ...


@dataclass(frozen=True, slots=True)
class CommitSets:
    """What a transaction brings to its validation; keys are stored keys.

    Attributes:
      start_version: of its snapshot; None for a blind transaction, whose writes are not checked.
      read_time: the expiry time of its snapshot, nanoseconds since the epoch: what expired by then it saw as absent.
      commit_time: by which the newest state is judged. Never earlier than `read_time`: the later of the two counts.
      reads: the version read of each key, 0 for absent.
      ranges: the [start, end) scanned.
      cas: the expected version of each key, 0 for absent.
      writes: the keys put or deleted. Not those written by a CAS (its own check is stricter).
      adds: the keys added to: an increment reads nothing and is resolved when applied, so it conflicts with the
        deletion of a range around it and with nothing else.
      deleted_ranges: the [start, end) deleted; checked like writes, under every isolation.
    """

    start_version: int | None
    read_time: int
    reads: Mapping[bytes, int] = field(default_factory=dict)
    ranges: Iterable[tuple[bytes, bytes]] = ()
    cas: Mapping[bytes, int] = field(default_factory=dict)
    writes: AbstractSet[bytes] = frozenset()
    adds: AbstractSet[bytes] = frozenset()
    deleted_ranges: Iterable[tuple[bytes, bytes]] = ()
    commit_time: int = 0

    @property
    def now(self) -> int:
        """The time by which the newest state is judged."""
        return max(self.read_time, self.commit_time)


@dataclass(frozen=True, slots=True)
class Validation:
    """The outcome: no conflicts means it may commit.

    Attributes:
      conflicts: the first of them, at most CONFLICTS_LISTED_MAX.
      found: how many there are in all.
    """

    conflicts: tuple[Conflict, ...] = ()
    found: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing conflicts."""
        return self.found == 0

    def error(self) -> ConflictError:
        """The error a commit with these conflicts raises."""
        return ConflictError(conflicts=self.conflicts, conflicts_found=self.found)


def version_now(source: VersionSource, key: bytes, now: int) -> int:
    """The current version of a key at a time; 0 absent."""
    newest = source.newest(key)
    if newest is None:
        return 0
    version, _, expires_at = newest
    return 0 if expires_at and expires_at <= now else version


def validate_read_set(source: VersionSource, reads: Mapping[bytes, int], now: int) -> Iterator[ReadConflict]:
    """Every key whose current version is not the one that was read."""
    for key, read_version in reads.items():
        found = version_now(source, key, now)
        if found != read_version:
            yield read_conflict(key, read_version, found)


def validate_ranges(
    source: VersionSource,
    ranges: Iterable[tuple[bytes, bytes]],
    start_version: int,
    read_time: int = 0,
    now: int = 0,
) -> Iterator[ReadConflict]:
    """Every range in which some key, deleted ones included, was written after `start_version`, or in which one that was
    there at `read_time` has expired by `now` (equal times: expiry does not matter)."""
    for start, end in ranges:
        for _, (version, written_version, expires_at) in source.newest_in_range(start, end):
            if written_version > start_version or (version and read_time < expires_at <= now):
                yield range_conflict(start, end, start_version, written_version)
                break


def validate_cas_set(source: VersionSource, cas: Mapping[bytes, int], now: int) -> Iterator[CASConflict]:
    """Every key whose current version is not the expected one."""
    for key, expected in cas.items():
        found = version_now(source, key, now)
        if found != expected:
            yield cas_conflict(key, expected, found)


def validate_write_set(
    source: VersionSource, writes: Iterable[bytes], start_version: int
) -> Iterator[WriteConflict]:
    """Every key that was written, deletes included, after `start_version`."""
    for key in writes:
        newest = source.newest(key)
        if newest is not None and newest[1] > start_version:
            yield write_conflict(key, start_version, newest[1])


def erased_since(range_deletes: Iterable[RangeDelete], key: bytes, start_version: int) -> int:
    """The newest version after `start_version` at which a range with this key in it was deleted; 0: none."""
    found = [
        version for start, end, version in range_deletes if version > start_version and start <= key < end
    ]
    return max(found, default=0)


def validate_erased(
    range_deletes: Iterable[RangeDelete], keys: Iterable[bytes], start_version: int
) -> Iterator[WriteConflict]:
    """Every key that was deleted as part of a range after `start_version`, whether it was there or not."""
    for key in keys:
        erased = erased_since(range_deletes, key, start_version)
        if erased:
            yield write_conflict(key, start_version, erased)


def validate_transaction(
    source: VersionSource,
    sets: CommitSets,
    *,
    serializable: bool = True,
    range_deletes: Sequence[RangeDelete] = (),
) -> Validation:
    """Every conflict of a transaction.

    Args:
      source: the newest committed state.
      sets: what the transaction read and wants to write.
      serializable: False for isolation "snapshot": reads and ranges are not checked.
      range_deletes: those committed so far.
    """
    return _collect(_conflicts(source, sets, serializable, range_deletes))


def _conflicts(
    source: VersionSource, sets: CommitSets, serializable: bool, range_deletes: Sequence[RangeDelete]
) -> Iterator[Conflict]:
    if serializable:
        yield from validate_read_set(source, sets.reads, sets.now)
        if sets.start_version is not None:
            yield from validate_ranges(source, sets.ranges, sets.start_version, sets.read_time, sets.now)
    yield from validate_cas_set(source, sets.cas, sets.now)
    if sets.start_version is not None:
        start = sets.start_version
        absent = [
            key
            for key, expected in sets.cas.items()
            if expected == 0 and version_now(source, key, sets.now) == 0
        ]
        yield from validate_erased(range_deletes, absent, start)
        for key in sets.writes:
            found = list(validate_write_set(source, [key], start))
            yield from found or validate_erased(range_deletes, [key], start)
        yield from validate_erased(range_deletes, sets.adds, start)
        yield from _validate_deleted_ranges(source, sets.deleted_ranges, start, range_deletes)


def _validate_deleted_ranges(
    source: VersionSource,
    ranges: Iterable[tuple[bytes, bytes]],
    start_version: int,
    range_deletes: Sequence[RangeDelete],
) -> Iterator[ReadConflict]:
    for start, end in ranges:
        found = list(validate_ranges(source, [(start, end)], start_version))
        met = [v for s, e, v in range_deletes if v > start_version and max(s, start) < min(e, end)]
        if not found and met:
            found = [range_conflict(start, end, start_version, max(met))]
        yield from found


def _collect(conflicts: Iterator[Conflict]) -> Validation:
    listed: list[Conflict] = []
    found = 0
    for conflict in conflicts:
        found += 1
        if found <= CONFLICTS_LISTED_MAX:
            listed.append(conflict)
    return Validation(tuple(listed), found)
