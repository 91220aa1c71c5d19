"""The etcd operations of a batch, and whether they fit into one transaction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from .judge import Batch
from .records import Head, Kind, LogEntry, Record
from .space import Space
from .wire import delete, put

__all__ = ["Writes"]

_OVERHEAD: Final = 64  # bytes around a key and its value
_RESERVE: Final = 4096  # for the head and the conditions


class Writes:
    """What a batch writes.

    1. No key is written twice, and none that is put lies in a range that is removed: etcd refuses both. So a range is
       removed in the pieces between the keys that are put.
    2. Whatever expires, and whatever is bound to a session, gets its index entry in the same transaction.
    """

    def __init__(self, space: Space, batch: Batch) -> None:
        self._space = space
        self._batch = batch
        self._settings = space.client.settings

    def fits(self) -> bool:
        """Whether the servers, as they are set up by our settings, take it in one transaction."""
        count, size = 2, _RESERVE
        for key, record in self._batch.written.items():
            indices = bool(record.expires_at) + bool(record.session)
            count += 1 + indices
            size += (1 + indices) * (len(key) + _OVERHEAD) + len(record.value)
        for commit in self._batch.commits:
            size += sum(len(change.key) + 8 for change in commit.changes)
        if len(self._batch.commits) > 1:  # values that are replaced within the batch travel in the log
            size += sum(
                len(change.value or b"") for commit in self._batch.log_commits() for change in commit.changes
            )
        return count <= self._settings.max_txn_ops and size <= self._settings.max_request_bytes

    def build(self) -> tuple[Head, list[dict[str, Any]]]:
        """The next head, and all operations."""
        batch, keys = self._batch, self._space.keys
        head = self._head()
        ops = [
            put(keys.head, head.encode()),
            put(keys.log(head.version), LogEntry(batch.log_commits()).encode()),
        ]
        ops.extend(self._removals())
        for key, record in batch.written.items():
            ops.append(put(keys.record(key), record.encode()))
            if record.kind is Kind.VALUE and record.expires_at:
                ops.append(put(keys.expiry(record.expires_at, key), b""))
            if record.session:
                ops.append(put(keys.bound(record.session, key), b""))
        return head, ops

    def _head(self) -> Head:
        batch = self._batch
        before = batch.view.head
        age = int(self._settings.snapshot_max_age * 1e9)
        head = before.advanced(batch.version, batch.now, age)
        records: list[Record] = list(batch.written.values())
        times = [record.expires_at for record in records if record.kind is Kind.VALUE and record.expires_at]
        times += [before.next_due] if before.next_due else []
        sessions = {record.session for record in records if record.session}
        return replace(
            head,
            next_due=min(times, default=0),
            range_deleted=batch.version if batch.removed else before.range_deleted,
            bound=tuple(sorted(sessions.union(before.bound))) if sessions else before.bound,
        )

    def _removals(self) -> Iterator[dict[str, Any]]:
        keys = self._space.keys
        written = sorted(self._batch.written)
        for start, end in _merged(self._batch.removed):
            for key in written:
                if start <= key < end:
                    if start < key:
                        yield delete(keys.record(start), keys.record(key))
                    start = key + b"\x00"
            if start < end:
                yield delete(keys.record(start), keys.record(end))


def _merged(ranges: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The same ranges without overlaps."""
    found: list[tuple[bytes, bytes]] = []
    for start, end in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        elif start < end:
            found.append((start, end))
    return found
