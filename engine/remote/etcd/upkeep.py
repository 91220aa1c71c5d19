"""What may wait: forgetting what no snapshot can ask for any more, and compacting etcd's own history.

1. Log entries up to the floor, and the tombstones and remains that they wrote, are removed. No request below the floor
   is judged, so nothing asks for them. This needs no comparison with the head: a tombstone that was written again
   meanwhile is not the same, which the transaction compares.
2. An entry goes after what it wrote, so that a process that dies in between leaves the rest to the next one.
3. Compaction takes turns over all processes: who moves the turn's key on, once it is `snapshot_max_age` old, compacts
   up to the revision at which it was set. So every revision stays for at least that long.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any, Final

import msgpack

from ...model.errors import OccamError
from .client import Client
from .gateway import Refused, Unanswered
from .records import PUT, Kind, LogEntry, Record
from .space import Space
from .wire import delete, mod_is, range_of, read_txn, txn
from .wire import put as put_op

__all__ = ["Upkeep", "compact", "sweep"]

_ENTRIES: Final = 32
_PIECE: Final = 50


class Upkeep:
    """The thread that does this for a process; it begins with the first commit."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._spaces: dict[bytes, Space] = {}
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self.swept = 0

    def note(self, space: Space) -> None:
        """Something is being committed here."""
        if space.keys.base in self._spaces and self._thread is not None:
            return
        with self._lock:
            self._spaces[space.keys.base] = space
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name="occamdb-etcd-upkeep", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        pause = max(0.5, self._client.settings.snapshot_max_age / 4)
        while not self._stop.wait(pause):
            with self._lock:
                spaces = list(self._spaces.values())
            with contextlib.suppress(OccamError, Refused, Unanswered):
                for space in spaces:
                    self.swept += sweep(space)
                if self._client.settings.compact:
                    compact(self._client)

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(2.0)


def sweep(space: Space) -> int:
    """Forget what lies below the floor of a namespace; how many log entries went."""
    keys, gateway = space.keys, space.client.gateway
    swept = 0
    while True:
        look = space.look([range_of(keys.log(0), keys.log(space_floor(space)) + b"\x00", limit=_ENTRIES)])
        (page,) = look.pages
        floor = look.head.floor
        entries = [LogEntry.decode(row.value, row.mod_revision) for row in page.rows]
        rows = [
            row for row, entry in zip(page.rows, entries, strict=True) if entry.commits[-1].version <= floor
        ]
        if not rows:
            return swept
        dead = {
            change.key
            for entry in entries[: len(rows)]
            for commit in entry.commits
            for change in commit.changes
            if change.kind != PUT
        }
        for piece in _pieces(sorted(dead), _PIECE):
            _forget(space, piece, floor)
        for names in _pieces([row.key for row in rows], _PIECE):
            gateway.ask("/v3/kv/txn", txn([], [delete(name) for name in names]), space.client.deadline())
        swept += len(rows)
        if not page.more:
            return swept


def space_floor(space: Space) -> int:
    """The floor as it was seen last."""
    known = space.known()
    return known[0].floor if known is not None else 0


def _forget(space: Space, keys: list[bytes], floor: int) -> None:
    """Remove the tombstones and remains of some keys that no judgement needs."""
    names = [space.keys.record(key) for key in keys]
    look = space.look([range_of(name) for name in names])
    compare: list[Any] = []
    ops: list[Any] = []
    for name, page in zip(names, look.pages, strict=True):
        if not page.rows:
            continue
        record = Record.decode(page.rows[0].value)
        written = record.removed_at if record.kind is Kind.EXPIRED else record.version
        if record.kind is not Kind.VALUE and written <= floor:
            compare.append(mod_is(name, page.rows[0].mod_revision))
            ops.append(delete(name))
    for condition, op in zip(compare, ops, strict=True) if not _all(space, compare, ops) else ():
        _all(space, [condition], [op])


def _all(space: Space, compare: list[Any], ops: list[Any]) -> bool:
    """Do all of it, unless one of the keys was written meanwhile."""
    if not ops:
        return True
    answer = read_txn(space.client.gateway.ask("/v3/kv/txn", txn(compare, ops), space.client.deadline()))
    return answer.succeeded


def _pieces(items: list[Any], size: int) -> list[list[Any]]:
    return [items[first : first + size] for first in range(0, len(items), size)]


def compact(client: Client) -> int:
    """Compact etcd's history if it is our turn; the revision, 0: it is not."""
    key = client.prefix + b"m"
    deadline = time.monotonic() + client.timeout
    gateway = client.gateway
    answer = read_txn(gateway.ask("/v3/kv/txn", txn([], [range_of(key)]), deadline))
    now = client.clock.now()
    rows = answer.pages[0].rows
    mod_revision, revision, since = 0, 0, 0
    if rows:
        mod_revision = rows[0].mod_revision
        with contextlib.suppress(ValueError, msgpack.exceptions.UnpackException):
            cluster, revision, since = msgpack.unpackb(rows[0].value)
            if now - since < client.settings.snapshot_max_age * 1e9:
                return 0
            revision = revision if cluster == answer.cluster else 0
    turn = bytes(msgpack.packb([answer.cluster, answer.revision, now]))
    taken = read_txn(
        gateway.send("/v3/kv/txn", txn([mod_is(key, mod_revision)], [put_op(key, turn)]), deadline)
    )
    if not taken.succeeded or not revision:
        return 0
    with contextlib.suppress(Refused):  # somebody has compacted further
        gateway.ask("/v3/kv/compaction", {"revision": str(revision)}, deadline)
    return revision
