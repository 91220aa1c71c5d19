"""What a follower has rebuilt from a feed, and what has to hold for it.

The state at version v is compared with a snapshot at v. Every key has the same value of the same version in both. The
one exception are keys with a TTL, which all lie below `ttl/`: a snapshot leaves one out from its deadline on, and the
feed says so only when the coordinator has deleted it. Such a key may be in the state and not in the snapshot if its
deadline has passed; never the other way round.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import occamdb
    from occamdb.engine.transaction.watch import Change, Watch

GROUP_SIZE = 5  # keys that are always written, and always deleted, together
CLOCK_SLACK_NS = 20_000_000  # between the clock readings of a writer, of the coordinator and of a reader

Row = tuple[Any, int]  # value, version


def deadline_ns(row: Row) -> int:
    """The earliest moment at which a key with a TTL is over; its writer put it into the value."""
    return int(row[0]["until"])


def in_commits(changes: list[Change]) -> list[list[Change]]:
    """Changes as a list for each commit."""
    commits: list[list[Change]] = []
    for change in changes:
        if not commits or commits[-1][0].version != change.version:
            commits.append([])
        commits[-1].append(change)
    return commits


def commits_up_to(watch: Watch, version: int, seconds: float) -> list[list[Change]]:
    """What a watch has up to a version that is committed, and perhaps more.

    It waits at most so many seconds for the watch to come there.

    Raises:
      WatchLagged: something in between is no longer kept.
    """
    commits: list[list[Change]] = []
    deadline = time.monotonic() + seconds
    while True:
        commits += in_commits(watch.ready())
        if watch.version >= version or time.monotonic() > deadline:
            return commits
        time.sleep(0.001)


@dataclass(slots=True)
class FollowedState:
    """The keys with a prefix, as a feed tells of them.

    Attributes:
      prefix: of the keys.
      version: of the last commit that was applied, or of the snapshot it began with.
    """

    prefix: str = ""
    version: int = 0
    rows: dict[str, Row] = field(default_factory=dict)

    @classmethod
    def of_snapshot(cls, txn: occamdb.Transaction, prefix: str) -> FollowedState:
        """The state that a read-only transaction sees."""
        rows = {key: (row.value, row.version) for key, row in txn.scan(prefix)}
        return cls(prefix, txn.start_version, rows)

    # ---- changes ------------------------------------------------------------------------------------------

    def apply(self, commit: list[Change]) -> list[str]:
        """Take in the changes of one commit; what is wrong with them, in words."""
        version = commit[0].version
        wrong: list[str] = []
        if any(change.version != version for change in commit):
            wrong.append(f"versions {sorted({change.version for change in commit})} came as one commit")
        if version <= self.version:
            wrong.append(f"version {version} came after {self.version}")
        if len({change.key for change in commit}) != len(commit):
            wrong.append(f"version {version} changes a key twice")
        wrong += _broken_groups(commit)
        for change in commit:
            wrong += self._apply_one(change)
        self.version = version
        return wrong

    def _apply_one(self, change: Change) -> list[str]:
        key, before = change.key, self.rows.get(change.key)
        if not key.startswith(self.prefix):
            return [f"{key} does not begin with {self.prefix}"]
        if change.kind == "put":
            self.rows[key] = (change.value, change.version)
            counted = before[0] if before else 0
            if key.startswith("count/") and not (isinstance(counted, int) and change.value == counted + 1):
                return [f"{key} went from {counted} to {change.value}"]
            return []
        self.rows.pop(key, None)
        expires = key.startswith("ttl/")
        if before is None and not expires:
            return [f"{change.kind} of {key}, which was not there"]
        if change.kind == "expire" and not expires:
            return [f"{key} expired; it has no TTL"]
        if (
            change.kind == "expire"
            and before
            and change.committed_at_ns + CLOCK_SLACK_NS < deadline_ns(before)
        ):
            return [f"{key} expired {(deadline_ns(before) - change.committed_at_ns) / 1e6:.0f} ms early"]
        return []

    # ---- comparing ------------------------------------------------------------------------------------------

    def differences(self, snapshot: FollowedState) -> list[str]:
        """Where this is not the state of a snapshot at the same version."""
        now = time.time_ns() + CLOCK_SLACK_NS
        found = []
        for key in sorted(self.rows.keys() | snapshot.rows.keys()):
            mine, true = self.rows.get(key), snapshot.rows.get(key)
            if mine == true:
                continue
            if mine and true is None and key.startswith("ttl/") and deadline_ns(mine) <= now:
                continue
            found.append(f"{key} is {_short(mine)} by the feed and {_short(true)} in a snapshot")
        return found

    # ---- on file ----------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Leave it in a file for another follower; a kill leaves the file as it was."""
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps([self.prefix, self.version, self.rows]))
        os.replace(draft, path)

    @classmethod
    def load(cls, path: Path) -> FollowedState:
        """What `save` left."""
        prefix, version, rows = json.loads(path.read_text())
        return cls(prefix, version, {key: (row[0], row[1]) for key, row in rows.items()})


def _broken_groups(commit: list[Change]) -> list[str]:
    groups: dict[str, list[Change]] = defaultdict(list)
    for change in commit:
        if change.key.startswith("group/"):
            groups[change.key.rsplit("/", 1)[0]].append(change)
    found = []
    for name, changes in groups.items():
        tokens = {None if change.value is None else change.value["t"] for change in changes}
        if len(changes) != GROUP_SIZE or len(tokens) != 1:
            found.append(
                f"version {commit[0].version} has {len(changes)} of {GROUP_SIZE} keys of {name}, "
                f"of {len(tokens)} transactions"
            )
    return found


def _short(row: Row | None) -> str:
    return "absent" if row is None else f"{str(row[0])[:40]} (version {row[1]})"
