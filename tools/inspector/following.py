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
from occamdb.engine.transaction._feed import ChangeFeed
from occamdb.engine.transaction.logged_changes import logged_changes

__all__ = ["Commit", "Follower", "RawChange", "commits_after", "newest_version"]

# A change as it is stored: "put", "delete", "expire" or "range", key, value (of a range its end).
RawChange = tuple[str, bytes, bytes | None]
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
      log: the directory whose log may be read, for what the ring has not got; None: there is none.

    Returns:
      The commits; up to which version they are all that there are; why earlier ones are missing, None if none are.
    """
    start, end = _range_of(db)
    missing = None
    found: list[Commit] = []
    reached = since
    ring = _ring(db, since, start, end)
    while ring is not None and reached < until and sum(len(commit.changes) for commit in found) < most:
        try:
            polled = ring.poll(most)
        except WatchLagged as lag:
            logged, upto = _from_log(log, reached, until, start, end, lag)
            if logged is None:
                missing = f"what was committed before version {lag.oldest:,} is no longer kept"
                reached = max(reached, lag.oldest - 1)
            else:
                found += logged
                reached = max(reached, upto)
            ring.skip_to(reached)
            continue
        found += [Commit(*row) for row in polled if row[0] <= until]
        before, reached = reached, min(ring.version, until)
        if reached == before:
            break
    if ring is None:
        logged, upto = _from_log(log, since, until, start, end, None)
        if logged is None:
            return [], until, "the history of commits is not kept where this database is read from"
        return logged, upto, None
    return found, reached, missing


def _ring(db: occamdb.Database, since: int, start: bytes, end: bytes) -> ChangeFeed | None:
    """A feed from the shared store; None where there is none: no coordinator, or another kind of engine."""
    if db.path is None:
        return None
    with suppress(occamdb.TransactionStateError, AttributeError, TypeError):
        return ChangeFeed(db.handle.attachment(), since, start, end)
    return None


def _from_log(
    log: str | None, since: int, until: int, start: bytes, end: bytes, lag: WatchLagged | None
) -> tuple[list[Commit] | None, int]:
    """Commits from the log files; None if they do not have them."""
    if log is None:
        return None, until
    try:
        rows, reached = logged_changes(log, since, until, start, end, until if lag is None else lag.oldest)
    except WatchLagged:
        return None, until
    return [Commit(*row) for row in rows], reached


class Follower:
    """The keys that were changed since the last look, for one thread.

    Args:
      most: at most so many commits are told one by one; of more than that nothing is.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._feed: ChangeFeed | None = None
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

    def _feed_at(self, db: occamdb.Database, version: int) -> ChangeFeed | None:
        if db.path is None:
            return None
        attachment = db.handle.attachment()
        feed = self._feed
        if feed is None or feed.attachment is not attachment or feed.version != version:
            with suppress(occamdb.TransactionStateError):
                feed = self._feed = ChangeFeed(attachment, version, *_range_of(db), bare=True)
        return feed
