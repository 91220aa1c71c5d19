"""Following every commit of a namespace, for what the pages are told and for the list of commits.

The store's ring of changes has what was committed lately, and the log has more of it. Where commits come faster than
they can be told, the oldest are left out, and that is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import occamdb
from occamdb.engine.model.errors import WatchLagged
from occamdb.engine.remote.backend import Backend
from occamdb.engine.transaction.feeds import Feed, feed_of
from occamdb.engine.transaction.logged_changes import logged_changes

__all__ = ["Commit", "Follower", "RawChange", "commits_after", "newest_version"]

# A change as it is stored: "put", "delete", "expire" or "range", key, value (of a range its end).
RawChange = tuple[str, bytes, bytes | None]
SERVER_CHANGES = 2_000  # asked for at once
_ANY_RUN = occamdb.RunId.new()


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit, as far as it changed the namespace.

    Attributes:
      version: of the commit.
      at_ns: its time, in nanoseconds since 1970.
      changes: what it did.
    """

    version: int
    at_ns: int
    changes: Sequence[RawChange]


def newest_version(db: occamdb.Database) -> int:
    """The newest version that can be read."""
    with db.snapshot(_ANY_RUN) as view:
        return view.version


def _range_of(db: occamdb.Database) -> tuple[bytes, bytes]:
    return db.current_namespace.range


def commits_after(
    db: occamdb.Database, since: int, until: int, most: int, log: str | None = None
) -> tuple[list[Commit], int, str | None]:
    """Commits after `since` up to `until`, oldest first, about `most` changes.

    Args:
      log: the directory whose log may be read, for what is not at hand; None: there is none.

    Returns:
      The commits; up to which version they are all that there are; why some are missing, None if none are.
    """
    found: list[Commit] = []
    missing = None
    reached = since
    step = _commits_of_server if _backend(db) is not None else _some_commits
    while reached < until and sum(len(commit.changes) for commit in found) < most:
        rows, upto = step(db, reached, until, log)
        if rows is None:
            missing = f"what was committed up to version {max(upto, reached + 1):,} is no longer kept"
        else:
            found += rows
        reached = max(reached + 1, upto)
    return found, min(reached, until), missing


def _some_commits(
    db: occamdb.Database, since: int, until: int, log: str | None
) -> tuple[list[Commit] | None, int]:
    """The next commits, and up to which version they are all; None if they are kept nowhere."""
    start, end = _range_of(db)
    oldest = until
    ring = _ring(db, since, start, end)
    if ring is not None:
        try:
            rows = ring.poll()
            return [Commit(*row) for row in rows if row[0] <= until], ring.version
        except WatchLagged as lag:
            oldest = lag.oldest
    if log is not None:
        with suppress(WatchLagged):
            logged, reached = logged_changes(log, since, until, start, end, oldest)
            return [Commit(*row) for row in logged], reached
    # Of a commit that deleted a range, or wrote a large value that is gone, at least the keys are at hand.
    bare = _ring(db, since, start, end, bare=True)
    if bare is not None:
        with suppress(WatchLagged):
            for version, at_ns, changes in bare.poll():
                known = [("", key, None) if last is None else ("range", key, last) for key, last in changes]
                return [Commit(version, at_ns, known)] if version <= until else [], version
            return [], bare.version
    return None, min(oldest - 1, until)


def _backend(db: occamdb.Database) -> Backend | None:
    """The server of a database that is on one."""
    found: Backend | None = getattr(db.handle, "backend", None)
    return found


def _commits_of_server(
    db: occamdb.Database, since: int, until: int, log: str | None
) -> tuple[list[Commit] | None, int]:
    """As `_some_commits`, of a server."""
    backend = _backend(db)
    assert backend is not None, "asked for a database on a server"
    try:
        changes = backend.changes(*_range_of(db), since, SERVER_CHANGES, values=True)
    except WatchLagged as lag:
        return None, min(lag.oldest - 1, until)
    rows = [Commit(commit.version, commit.committed_at, list(commit.changes)) for commit in changes.commits]
    return [row for row in rows if row.version <= until], changes.reached


def _ring(db: occamdb.Database, since: int, start: bytes, end: bytes, *, bare: bool = False) -> Feed | None:
    """The changes that the engine keeps at hand; None where it keeps none."""
    with suppress(occamdb.TransactionStateError):
        return feed_of(db.handle.attachment(), since, start, end, bare=bare)
    return None


class Follower:
    """The keys that were changed since the last look, for one thread.

    Args:
      most: at most so many commits are told one by one; of more than that nothing is.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._feed: Feed | None = None
        self._version: int | None = None

    def look(self, db: occamdb.Database) -> tuple[int, list[Commit], bool]:
        """What is new.

        Returns:
          The newest version; the commits since the last look; whether these are all of them.
        """
        newest = newest_version(db)
        before, self._version = self._version, newest
        if before is None:
            return newest, [], False
        if newest == before:
            return newest, [], True
        if not before < newest <= before + self._most:
            self._feed = None
            return newest, [], False
        backend = _backend(db)
        if backend is not None:
            return self._from_server(db, backend, before)
        feed = self._feed_at(db, before)
        if feed is None:
            return newest, [], False
        try:
            rows: list[tuple[int, int, list[Any]]] = feed.poll()
        except occamdb.OccamError:
            self._feed = None
            return newest, [], False
        self._version = feed.version
        return (
            feed.version,
            [Commit(at, ns, [("", *each) for each in changes]) for at, ns, changes in rows],
            True,
        )

    def _from_server(
        self, db: occamdb.Database, backend: Backend, before: int
    ) -> tuple[int, list[Commit], bool]:
        try:
            found = backend.changes(*_range_of(db), before, SERVER_CHANGES, values=False)
        except WatchLagged:
            assert self._version is not None, "it was just set"
            return self._version, [], False
        self._version = found.reached
        told = [
            Commit(commit.version, commit.committed_at, [("", change.key, None) for change in commit.changes])
            for commit in found.commits
        ]
        return found.reached, told, True

    def _feed_at(self, db: occamdb.Database, version: int) -> Feed | None:
        feed = self._feed
        if feed is None or feed.attachment is not db.handle.attachment() or feed.version != version:
            feed = self._feed = _ring(db, version, *_range_of(db), bare=True)
        return feed
