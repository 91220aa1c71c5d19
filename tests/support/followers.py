"""Rebuilding a run's state from its changes."""

from __future__ import annotations

from typing import Any

from occamdb import Database, RunId
from occamdb.engine.model.errors import WatchLagged
from occamdb.engine.transaction.watch import Change, Watch

__all__ = ["Follower", "apply_changes", "state_of_run"]


def apply_changes(state: dict[str, Any], changes: list[Change]) -> None:
    """What a list of changes makes of a state; checks that a delete is of something that was there."""
    for change in changes:
        if change.kind == "put":
            state[change.key] = change.value
        else:
            assert change.key in state, f"{change.kind} of {change.key!r}, which was not there"
            assert change.value is None
            del state[change.key]


def state_of_run(db: Database, run: RunId, prefix: str = "") -> tuple[dict[str, Any], int]:
    """A run's keys in one snapshot, and its version."""
    with db.begin(run, read_only=True) as txn:
        return {key: row.value for key, row in txn.scan(prefix)}, txn.start_version


class Follower:
    """A dict kept equal to a run by a watch. Where the watch lags, it begins anew from a snapshot.

    Attributes:
      lagged: how often that was.
      changes: how many changes were applied.
    """

    def __init__(self, db: Database, run: RunId, prefix: str = "", since: int | None = None) -> None:
        self.db, self.run, self.prefix = db, run, prefix
        self.lagged = self.changes = 0
        self.state: dict[str, Any] = {}
        self.seen = -1
        self.watch: Watch = db.watch(run, prefix, since=0 if since is None else since)

    def catch_up(self) -> None:
        """Apply all that has been committed."""
        try:
            while changes := self.watch.ready():
                self.apply(changes)
        except WatchLagged as lag:
            assert lag.since == self.watch.version and lag.oldest > lag.since
            self.lagged += 1
            self.watch.close()
            self.state, version = state_of_run(self.db, self.run, self.prefix)
            self.watch = self.db.watch(self.run, self.prefix, since=version)
            self.seen = version

    def apply(self, changes: list[Change]) -> None:
        """Apply changes, which have to be newer than all before."""
        apply_changes(self.state, changes)
        versions = [change.version for change in changes]
        assert versions == sorted(versions) and (not versions or versions[0] > self.seen)
        self.seen = max([self.seen, *versions])
        self.changes += len(changes)

    def reopen(self) -> None:
        """Go on with another watch from where this one stands."""
        version = self.watch.version
        self.watch.close()
        self.watch = self.db.watch(self.run, self.prefix, since=version)
