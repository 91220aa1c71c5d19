"""Reading one namespace: its head, its snapshots, and the rows of a snapshot.

1. A snapshot at version V is read at a revision of etcd at which the head said V. Such a revision is remembered when a
   snapshot begins, the latest for each version. One that is not remembered is found by the log entry that follows.
2. What etcd holds at a revision never changes. So rows may come from any member that has the revision, and only from
   the cluster that gave it out.
3. The head that is kept here is one that was read or written; there may be a newer one. It is used only where a
   comparison in etcd confirms it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from ...model.errors import OccamError, SnapshotExpired
from ..backend import Row
from .client import Client
from .gateway import Refused
from .records import Head, Keys, Kind, LogEntry, Record
from .wire import KeyValue, Page, TxnAnswer, range_of, read_txn, txn

__all__ = ["RANGES_MAX", "Look", "Space"]

RANGES_MAX: Final = 100  # ranges in one transaction; a default server takes 128
_REMEMBERED: Final = 4096  # versions
T = TypeVar("T")
_SEEN: Final = 10_000  # keys
_PAGE_BYTES: Final = 4 << 20  # about so much a page of a scan has
_PAGE_ROWS: Final = 1000


class Look(NamedTuple):
    """The head of a namespace, and what was read with it."""

    head: Head
    mod_revision: int  # of the head; 0: there is none
    revision: int  # at which all of it was read
    pages: Sequence[Page]


class Space:
    """One namespace. Any thread may call."""

    def __init__(self, client: Client, base: bytes) -> None:
        self.client = client
        self.keys = Keys(client.prefix, base)
        self._lock = threading.Lock()
        self._revisions: OrderedDict[int, int] = OrderedDict()
        self._cluster = 0
        self._head = Head()
        self._mod_revision = -1
        self._row_size = _PAGE_BYTES // 64  # of a scan, as far as is known
        self._seen: dict[bytes, tuple[int, int]] = {}  # by key: the snapshot it was read at, and its version

    # ---- the head -----------------------------------------------------------------------------------------

    def look(self, ranges: Sequence[Mapping[str, Any]] = (), deadline: float | None = None) -> Look:
        """Read the newest head, and ranges at the same moment (at most RANGES_MAX).

        Raises:
          ServerUnavailable: no member answers.
        """
        asked = txn([], [range_of(self.keys.head), *ranges])
        answer = self.ask(asked, deadline if deadline is not None else self.client.deadline())
        return self.take(answer)

    def ask(self, asked: Mapping[str, Any], deadline: float) -> TxnAnswer:
        """A transaction that only reads."""
        try:
            return read_txn(self.client.gateway.ask("/v3/kv/txn", asked, deadline))
        except Refused as refused:
            raise _reading_refused(self.client, refused) from None

    def take(self, answer: TxnAnswer) -> Look:
        """An answer whose first range is the head."""
        rows = answer.pages[0].rows
        head, mod_revision = (Head.decode(rows[0].value), rows[0].mod_revision) if rows else (Head(), 0)
        if head.cluster == 0:
            head = Head(cluster=answer.cluster)
        self.note(head, mod_revision, answer.revision, answer.cluster)
        return Look(head, mod_revision, answer.revision, answer.pages[1:])

    def note(self, head: Head, mod_revision: int, revision: int, cluster: int) -> None:
        """Remember a head that was the newest at `revision`."""
        with self._lock:
            if cluster != self._cluster:  # the revisions of another cluster mean nothing here
                self._revisions.clear()
                self._cluster, self._mod_revision = cluster, -1
            if mod_revision >= self._mod_revision:
                self._head, self._mod_revision = head, mod_revision
            if head.cluster == cluster and revision > self._revisions.get(head.version, 0):
                self._revisions[head.version] = revision
                self._revisions.move_to_end(head.version)
                if len(self._revisions) > _REMEMBERED:
                    self._revisions.popitem(last=False)

    @property
    def cluster(self) -> int:
        """The id of the etcd cluster that answered last."""
        return self._cluster

    def known(self) -> tuple[Head, int] | None:
        """The last head that was seen and its `mod_revision`; there may be a newer one."""
        with self._lock:
            return None if self._mod_revision < 0 else (self._head, self._mod_revision)

    def revision_of(self, version: int, *, exact: bool) -> int:
        """A revision at which the head said `version`; not `exact`: one at which it said no more.

        Raises:
          SnapshotExpired: there is none any longer.
        """
        with self._lock:
            revision = self._revisions.get(version)
        if revision is not None:
            return revision
        look = self.look([range_of(self.keys.log(version + 1), self.keys.log_end, limit=1)])
        if look.head.version == version:
            return look.revision
        rows = look.pages[0].rows
        if look.head.floor <= version < look.head.version and rows:
            first = LogEntry.decode(rows[0].value, rows[0].mod_revision).commits[0].version
            if not exact or first == version + 1:
                return rows[0].mod_revision - 1
        raise SnapshotExpired(
            f"version {version} is no longer kept; the oldest that is kept is {look.head.floor}",
            details={"version": version, "floor": look.head.floor, "newest": look.head.version},
        )

    # ---- rows ---------------------------------------------------------------------------------------------

    def row(self, found: KeyValue) -> Row | None:
        """A record as readers see it; None: there is no value."""
        record = Record.decode(found.value)
        if record.kind is not Kind.VALUE:
            return None
        key = self.keys.stored(found.key)
        return Row(key, record.value, record.version, record.timestamp, record.expires_at, record.session)

    def at_version(self, version: int, read: Callable[[int], T]) -> T:
        """What `read` returns for a revision at which the head said `version`.

        The revision that is remembered may be compacted away while a later one is not.

        Raises:
          SnapshotExpired: there is none any longer.
        """
        try:
            return read(self.revision_of(version, exact=True))
        except SnapshotExpired:
            with self._lock:
                known = self._revisions.pop(version, None)
            if known is None:
                raise
        return read(self.revision_of(version, exact=True))

    def saw(self, keys: Sequence[bytes], rows: Sequence[Row | None], version: int) -> None:
        """Remember what was read at a snapshot."""
        if len(self._seen) > _SEEN:
            self._seen = {}
        self._seen.update(
            (key, (version, row.version if row is not None else 0))
            for key, row in zip(keys, rows, strict=True)
        )

    def was_read(self, key: bytes, version: int, found: int) -> bool:
        """Whether we know that a key had this version at a snapshot."""
        return self._seen.get(key) == (version, found)

    def read(self, keys: Sequence[bytes], revision: int) -> list[Row | None]:
        """The rows of some keys at a revision."""
        rows: list[Row | None] = []
        for first in range(0, len(keys), RANGES_MAX):
            ranges = [
                {"key": self.keys.record(key), "end": None, "limit": 0, "reverse": False}
                for key in keys[first : first + RANGES_MAX]
            ]
            rows.extend(self.row(page.rows[0]) if page.rows else None for page in self.at(revision, ranges))
        return rows

    def at(self, revision: int, ranges: Sequence[Mapping[str, Any]]) -> Sequence[Page]:
        """Some ranges at a revision, by the arguments of `range_of`.

        Raises:
          SnapshotExpired: etcd has compacted it away.
        """
        for any_member in (True, False):
            asked = txn([], [range_of(**ask, revision=revision, any_member=any_member) for ask in ranges])
            try:
                answer = read_txn(self.client.gateway.ask("/v3/kv/txn", asked, self.client.deadline()))
            except Refused as refused:
                if any_member and "future revision" in refused.text:
                    continue  # this member lags: ask again with the leader's word
                raise _reading_refused(self.client, refused) from None
            if answer.cluster != self._cluster:
                raise SnapshotExpired(
                    "the snapshot belongs to another etcd cluster than the one that answers"
                )
            return answer.pages
        raise AssertionError("the second round returned or raised")

    def scan(
        self, start: bytes, end: bytes, revision: int, limit: int, reverse: bool
    ) -> tuple[list[Row], bool]:
        """Rows of a range at a revision; see `Backend.scan`."""
        rows: list[Row] = []
        while True:
            size = max(1, min(_PAGE_ROWS, _PAGE_BYTES // self._row_size))
            ask = {
                "key": self.keys.record(start),
                "end": self.keys.record(end),
                "limit": min(size, limit - len(rows)),
                "reverse": reverse,
            }
            (page,) = self.at(revision, [ask])
            rows.extend(row for found in page.rows if (row := self.row(found)) is not None)
            if page.rows:
                self._row_size = max(1, sum(len(found.value) for found in page.rows) // len(page.rows))
            if not page.more or not page.rows:
                return rows, True
            if len(rows) >= limit or (rows and len(page.rows) * self._row_size > _PAGE_BYTES // 2):
                return rows, False
            last = self.keys.stored(page.rows[-1].key)
            start, end = (start, last) if reverse else (last + b"\x00", end)


def _reading_refused(client: Client, refused: Refused) -> OccamError:
    if "compacted" in refused.text:
        return SnapshotExpired(
            "etcd has compacted the revision of this snapshot away",
            hint="begin again on a fresh snapshot; raise snapshot_max_age, and --auto-compaction-retention of etcd",
        )
    return client.gateway.setup_error(refused)
