"""The commits of a namespace as watchers see them, and as outcomes are looked up: from the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ...model.errors import SnapshotExpired, WatchLagged
from ..backend import ChangedKey, Changes, CommitOfChanges
from .records import PUT, Change, Commit, Kind, LogEntry, Record
from .space import RANGES_MAX, Look, Space
from .tending import Tending
from .wire import range_of

__all__ = ["changes_of", "find_commit"]

_ENTRIES: Final = 256


def changes_of(
    space: Space, tending: Tending, start: bytes, end: bytes | None, since: int, limit: int, *, values: bool
) -> Changes:
    """See `Backend.changes`. Pages of the log in which nothing concerns the range are passed over."""
    while True:
        found, is_all = _page_of_changes(space, tending, start, end, since, limit, values=values)
        if found.commits or is_all:
            return found
        since = found.reached


def _page_of_changes(
    space: Space, tending: Tending, start: bytes, end: bytes | None, since: int, limit: int, *, values: bool
) -> tuple[Changes, bool]:
    """What one page of the log tells, and whether that was all."""
    keys = space.keys
    look = tending.look([range_of(keys.log(since + 1), keys.log_end, limit=_ENTRIES)])
    if since < look.head.floor:
        raise WatchLagged(since=since, oldest=look.head.floor)
    found = 0
    reached = since
    commits: list[CommitOfChanges] = []
    (page,) = look.pages
    for row in page.rows:
        entry = LogEntry.decode(row.value, row.mod_revision)
        for commit in entry.commits:
            if commit.version <= since:
                continue
            reached = commit.version
            asked = [c for c in commit.changes if start <= c.key and (end is None or c.key < end)]
            if asked:
                changes = (
                    _with_values(space, look, entry, commit, asked) if values else [_bare(c) for c in asked]
                )
                commits.append(CommitOfChanges(commit.version, commit.timestamp, changes))
                found += len(asked)
                if found >= limit:
                    return Changes(commits, reached), False
    if page.more:
        return Changes(commits, reached), False
    return Changes(commits, max(look.head.version, since)), True


def _bare(change: Change) -> ChangedKey:
    return ChangedKey(change.name, change.key, None)


def _with_values(
    space: Space, look: Look, entry: LogEntry, commit: Commit, asked: Sequence[Change]
) -> list[ChangedKey]:
    """The changes of a commit with what they put: from the log, or from the records at its revision.

    Raises:
      WatchLagged: a value is no longer kept.
    """
    wanted = [change.key for change in asked if change.kind == PUT and change.value is None]
    values: dict[bytes, bytes] = {}
    for first in range(0, len(wanted), RANGES_MAX):
        piece = wanted[first : first + RANGES_MAX]
        values.update(_values(space, look, entry.revision, commit.version, piece))
    return [
        ChangedKey(
            change.name, change.key, (change.value or values.get(change.key)) if change.kind == PUT else None
        )
        for change in asked
    ]


def _values(
    space: Space, look: Look, revision: int, version: int, keys: Sequence[bytes]
) -> dict[bytes, bytes]:
    asked = [{"key": space.keys.record(key)} for key in keys]
    try:
        pages = space.at(revision, asked)
    except SnapshotExpired:  # compacted; what nobody wrote since is still there
        pages = space.at(look.revision, asked)
    found: dict[bytes, bytes] = {}
    for key, page in zip(keys, pages, strict=True):
        record = Record.decode(page.rows[0].value) if page.rows else None
        if record is None or record.kind is not Kind.VALUE or record.version != version:
            raise WatchLagged(since=version - 1, oldest=look.head.version)
        found[key] = record.value
    return found


def find_commit(space: Space, session: int, sequence: int) -> Commit | None:
    """A commit by its name, if the log still has it."""
    first = space.keys.log(0)
    while True:
        look = space.look([range_of(first, space.keys.log_end, limit=_ENTRIES)])
        (page,) = look.pages
        for row in page.rows:
            for commit in LogEntry.decode(row.value, row.mod_revision).commits:
                if (commit.session, commit.sequence) == (session, sequence):
                    return commit
        if not page.more:
            return None
        first = page.rows[-1].key + b"\x00"
