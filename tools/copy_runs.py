"""Copies runs from one database into another, whatever engines they have: on the level of keys and values, so
that every primitive comes along.

1. A run is read on one snapshot, its record in the run index too.
2. While a run is being copied it has a mark in the destination, and no record in the run index. One transaction puts
   the mark and removes what was there. Another one, after the copy has been compared with the source, adds the record
   with its index entries and removes the mark. So a run without a mark is whole. A copy that was interrupted leaves
   the mark, and the next copy of that run begins it anew.
3. Each batch reads the mark, which names the copy: of two copies of one run at once, the one that began first ends.
4. Rows are written in the order of their versions: what is newer at the source is not older in the copy. Several
   versions may become one, and the rows of a commit that is larger than a batch several.
5. A value is stored as it was, that of a user's type too: nothing is restored. An expiry time stays the same moment.
   Keys that are bound to a session end with it, so they are left out.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from occamdb.ipc.errors import OccamError
from occamdb.tools.copy_spool import Spool, SpooledRow

if TYPE_CHECKING:
    from occamdb import Database, RunId, Transaction

__all__ = ["MARK_TAG", "Copied", "CopyMismatch", "RunCopier", "is_half", "run_ids"]

MARK_TAG = 0x1F  # of no primitive
_MARK = b"copy"
_BATCH_BYTES = 1 << 20
_BATCH_ROWS = 500
_VALUE_SIZE_MAX = (1 << 31) - 1
_CLOCK_NS = 1000  # an expiry time may be off by that, as a time to live is given in seconds


class CopyMismatch(OccamError):
    """A copy is not what its source is. The run in the destination stays marked as half copied."""

    code = "occam.copy.mismatch"


@dataclass(frozen=True, slots=True)
class Copied:
    """What became of one run.

    Attributes:
      rows, size: keys, and the bytes of keys and values.
      ephemeral: keys that were left out because they are bound to a session.
      indexed: it is in the run index.
      same: it was there already, and nothing was written.
      faults: what the primitives find wrong in it, as in the source.
    """

    rows: int
    size: int
    ephemeral: int
    indexed: bool
    same: bool = False
    faults: tuple[str, ...] = ()


def is_half(db: Database, run_id: RunId) -> bool:
    """Whether a run was not copied to its end."""
    return bool(db.space(run_id, MARK_TAG, raw=True).exists(_MARK))


def run_ids(db: Database) -> list[RunId]:
    """Every run of a namespace that has data or a record in the run index."""
    from occamdb.engine.model.keys import RUN_ID_SIZE, RunId, successor
    from occamdb.engine.model.public_types import RESERVED_RUN

    found = dict.fromkeys(run.run_id for run in db.runs.list_runs())
    base = db.current_namespace.base
    start: bytes | None = base
    while start is not None and (key := db.first_key(start)) is not None and key.startswith(base):
        run_id = RunId(bytes=key[len(base) : len(base) + RUN_ID_SIZE])
        if run_id != RESERVED_RUN:
            found[run_id] = None
        start = successor(base + run_id.bytes)
    return list(found)


class RunCopier:
    """Copies runs of one namespace.

    Args:
      source, destination: each in the namespace that is meant, without hooks for types of the user's own.
      replace: runs that are in the destination are replaced.
    """

    def __init__(self, source: Database, destination: Database, *, replace: bool = False) -> None:
        self._source = source
        self._destination = destination
        self._replace = replace

    def in_order(self, wanted: list[RunId]) -> list[RunId]:
        """The runs in an order in which parents come before their children.

        Raises:
          NotFoundError: the parent of a run is neither among them nor in the destination.
        """
        from occamdb.engine.model.errors import NotFoundError

        parents = {run.run_id: run.parent_run_id for run in self._source.runs.list_runs()}
        ordered: dict[RunId, None] = {}
        among = set(wanted)
        for run_id in wanted:
            above: list[RunId] = []
            at: RunId | None = run_id
            while at is not None and at in among and at not in ordered and at not in above:
                above.append(at)
                at = parents.get(at)
            if at is not None and at not in among and self._destination.runs.get_run(at) is None:
                raise NotFoundError(
                    f"run {above[-1]} is a child of {at}, which is not in the destination",
                    hint=f"copy both: --run {at} --run {above[-1]}",
                )
            ordered |= dict.fromkeys(reversed(above))
        return list(ordered)

    def exists(self, run_id: RunId) -> bool:
        """Whether the destination has the whole of a run of this id, or of another run of the same id."""
        if is_half(self._destination, run_id):
            return False
        prefix = self._destination.current_namespace.base + run_id.bytes
        first = self._destination.first_key(prefix)
        return (first is not None and first.startswith(prefix)) or self._record(
            self._destination, run_id
        ) is not None

    def compare(self, run_id: RunId) -> Copied | None:
        """What `copy` would return, if the run in the destination is the same; None if it differs."""
        with Spool() as spool:
            record, ephemeral = self._read(run_id, spool)
            try:
                self._verify(run_id, spool, order=False)
            except CopyMismatch:
                return None
            if record != self._record(self._destination, run_id):
                return None
            rows, size = spool.totals()
            return Copied(rows, size, ephemeral, record is not None, same=True)

    def copy(self, run_id: RunId, progress: Callable[[int, int], None] = lambda done, total: None) -> Copied:
        """Copy one run, whatever the destination has of it unless `replace` is off.

        Args:
          progress: called with the rows that were written, and all of them.

        Raises:
          AlreadyExistsError: it is in the destination, and not to be replaced.
          KeyTooLarge, ValueTooLarge: the destination cannot hold it; nothing was written.
          CopyMismatch: the copy differs, because somebody else wrote to it.
          SnapshotExpired: the source did not keep the snapshot as long as it took to read it.
        """
        from occamdb.engine.model.errors import AlreadyExistsError

        if not self._replace and self.exists(run_id):
            raise AlreadyExistsError(
                f"run {run_id} is in the destination, and differs",
                hint="--replace copies it again, and drops what is there",
            )
        with Spool() as spool:
            record, ephemeral = self._read(run_id, spool)
            self._check_sizes(spool)
            rows, size = spool.totals()
            nonce = self._begin(run_id)
            self._write(run_id, spool, nonce, lambda done: progress(done, rows))
            self._verify(run_id, spool, order=True)
            faults = self._faults(run_id, spool.tags())
        self._end(run_id, nonce, record)
        return Copied(rows, size, ephemeral, record is not None, faults=faults)

    # ---- the source ----------------------------------------------------------------------------------------------

    def _read(self, run_id: RunId, spool: Spool) -> tuple[Any, int]:
        """Everything of a run on one snapshot; its record in the run index, and how many keys are left out."""
        left_out = 0
        with self._source.begin(run_id, read_only=True) as snapshot:
            record = self._record_in(snapshot, run_id)
            for tag in _tags(self._source, snapshot):
                if tag == MARK_TAG:
                    from occamdb.engine.model.errors import InvalidArgumentError

                    raise InvalidArgumentError(
                        f"run {run_id} of the source is itself a copy that was interrupted",
                        hint="copy it there to its end first",
                    )
                kept: list[SpooledRow] = []
                for row, session in _rows(snapshot, tag):
                    if session:
                        left_out += 1
                        continue
                    kept.append(row)
                    if len(kept) == _BATCH_ROWS:
                        spool.add(kept)
                        kept.clear()
                spool.add(kept)
        return record, left_out

    @staticmethod
    def _record_in(transaction: Transaction, run_id: RunId) -> Any:
        """The record of a run in the run index."""
        from occamdb.primitives import layout

        return _index_of(transaction).get(layout.run(run_id.bytes))

    def _record(self, db: Database, run_id: RunId) -> Any:
        with db.begin(run_id, read_only=True) as snapshot:
            return self._record_in(snapshot, run_id)

    def _check_sizes(self, spool: Spool) -> None:
        from occamdb.engine.model.errors import KeyTooLarge, ValueTooLarge

        limits = self._destination.handle.limits
        key_size, value_size = spool.largest()
        if key_size > limits.key_size_max:
            raise KeyTooLarge(size=key_size, limit=limits.key_size_max)
        if value_size > limits.value_size_max:
            raise ValueTooLarge(size=value_size, limit=limits.value_size_max)

    # ---- the destination -----------------------------------------------------------------------------------------

    def _begin(self, run_id: RunId) -> bytes:
        """Mark the run as half copied, and remove what is there of it."""
        from occamdb.primitives.run_records import save_run

        nonce = secrets.token_bytes(8)
        mark = [nonce, datetime.now(UTC), str(self._source.path)]

        def begin(txn: Transaction) -> None:
            old = self._record_in(txn, run_id)
            if old is not None:
                save_run(_index_of(txn), run_id.bytes, old, None, 0)
            txn.delete_run_range(run_id)
            txn.space(MARK_TAG, raw=True).put(_MARK, mark)

        self._destination.transaction(run_id, begin)
        return nonce

    def _write(self, run_id: RunId, spool: Spool, nonce: bytes, progress: Callable[[int], None]) -> None:
        """Write all rows, the oldest version first."""
        from occamdb.engine.model.errors import TransactionTooLarge

        done = 0
        for batch in _batches(spool.by_version(), self._batch_bytes):
            parts = [batch]
            while parts:
                part = parts.pop()
                try:
                    self._put(run_id, part, nonce)
                except TransactionTooLarge:
                    if len(part) == 1:
                        raise
                    # The server counts in another way: halves, the older first.
                    half = len(part) // 2
                    parts += [part[half:], part[:half]]
                    continue
                done += len(part)
                progress(done)

    @property
    def _batch_bytes(self) -> int:
        return min(_BATCH_BYTES, self._destination.handle.limits.transaction_size_max // 2)

    def _put(self, run_id: RunId, rows: list[SpooledRow], nonce: bytes) -> None:
        """Write some rows in one transaction."""
        codec = self._destination.codec

        def put(txn: Transaction) -> None:
            self._require_mark(txn, run_id, nonce)
            now = txn.read_time
            for row in rows:
                ttl = None
                if row.expires_at:
                    if row.expires_at <= now:
                        continue
                    ttl = (row.expires_at - now) / 1e9
                txn.space(row.tag, raw=True).put(row.key, codec.decode(row.value), ttl=ttl)

        self._destination.transaction(run_id, put)

    @staticmethod
    def _require_mark(txn: Transaction, run_id: RunId, nonce: bytes) -> None:
        mark = txn.space(MARK_TAG, raw=True).get(_MARK)
        if mark is None or mark[0] != nonce:
            raise CopyMismatch(
                f"another copy of run {run_id} began after this one",
                hint="let it end: one is enough",
                details={"run_id": str(run_id)},
            )

    def _end(self, run_id: RunId, nonce: bytes, record: Any) -> None:
        """Add the run to the index and take its mark away: from now on it is whole."""
        from occamdb.primitives.run_records import begin_names, save_run

        def end(txn: Transaction) -> None:
            self._require_mark(txn, run_id, nonce)
            if record is not None:
                index = _index_of(txn)
                begin_names(index)
                save_run(index, run_id.bytes, None, record, 0)
            txn.space(MARK_TAG, raw=True).delete(_MARK)

        self._destination.transaction(run_id, end)

    # ---- the comparison ------------------------------------------------------------------------------------------

    def _verify(self, run_id: RunId, spool: Spool, *, order: bool) -> None:
        """Compare the destination with what was read: every key, value and expiry time, and the order of versions.

        Raises:
          CopyMismatch: they differ.
        """
        with self._destination.begin(run_id, read_only=True) as snapshot:
            now = snapshot.read_time
            for tag in sorted({*spool.tags(), *_tags(self._destination, snapshot)} - {MARK_TAG}):
                found = (
                    row
                    for row, session in _rows(snapshot, tag)
                    if not session and not 0 < row.expires_at <= now + _CLOCK_NS
                )
                copied: list[tuple[int, bytes]] = []
                with closing(spool.of_tag(tag)) as wanted:
                    alive = (row for row in wanted if not 0 < row.expires_at <= now + _CLOCK_NS)
                    for ours, theirs in zip_longest(alive, found):
                        _require_same(run_id, tag, ours, theirs)
                        copied.append((theirs.version, theirs.key))
                if order:
                    spool.note_copied(tag, copied)
        version = spool.misordered() if order else None
        if version is not None:
            raise _mismatch(
                run_id, f"what version {version} wrote is older in it than what was written before"
            )

    def _faults(self, run_id: RunId, tags: list[int]) -> tuple[str, ...]:
        """What the primitives find wrong in the run: broken event chains and the like.

        Both sides hold the same now. The one on this machine is asked, where reading a key is no round trip.
        """
        from occamdb.primitives.extension import registered_primitives

        by_tag = {int(primitive.tag): primitive for primitive in registered_primitives()}
        with self._source.begin(run_id, read_only=True) as there:
            db = self._destination if there.is_far else self._source
        found: list[str] = []
        with db.begin(run_id, read_only=True) as snapshot:
            for tag in tags:
                primitive = by_tag.get(tag)
                if primitive is not None and primitive.auditor is not None:
                    faults = primitive.auditor(snapshot.space(tag, raw=True))
                    found += [f"{primitive.name}: {each.message}" for each in faults if not each.advisory]
        return tuple(found)


def _index_of(transaction: Transaction) -> Any:
    """The run index in a transaction."""
    from occamdb.engine.model.public_types import RESERVED_RUN, TypeTag

    return transaction.for_run(RESERVED_RUN).space(TypeTag.RUN, raw=True)


def _tags(db: Database, transaction: Transaction) -> list[int]:
    """The parts of a transaction's run that may have keys in its snapshot."""
    from occamdb.engine.model.keys import successor, tag_prefix

    if not transaction.is_far:
        every = range(1, 0xFF)
        return [tag for tag in every if any(True for _ in transaction.space(tag, raw=True).keys(limit=1))]
    handle: Any = db.handle
    prefix = db.current_namespace.base + transaction.run_id.bytes
    found: list[int] = []
    start, end = prefix, successor(prefix)
    while end is not None and start < end:
        rows, _ = handle.backend.scan(start, end, transaction.start_version, 1)
        if not rows:
            break
        tag = rows[0].key[len(prefix)]
        found.append(tag)
        start = successor(tag_prefix(prefix, tag)) or end
    return found


def _rows(transaction: Transaction, tag: int) -> Iterator[tuple[SpooledRow, int]]:
    """The rows of one part of a run, and the sessions that they are bound to."""
    space = transaction.space(tag, raw=True)
    codec = space.codec
    for key, found in space.scan():
        value = codec.encode(found.value, _VALUE_SIZE_MAX)
        yield SpooledRow(tag, key, value, found.version, found.expires_at_ns), found.session


def _batches(rows: Iterator[SpooledRow], size_max: int) -> Iterator[list[SpooledRow]]:
    """Rows in batches. One of several versions does not end in the middle of a version."""
    batch: list[SpooledRow] = []
    size = 0
    for row in rows:
        if batch and (size + row.size > size_max or len(batch) >= _BATCH_ROWS):
            cut = len(batch)
            while cut and batch[cut - 1].version == row.version:
                cut -= 1
            cut = cut or len(batch)
            yield batch[:cut]
            batch = batch[cut:]
            size = sum(each.size for each in batch)
        batch.append(row)
        size += row.size
    if batch:
        yield batch


def _require_same(run_id: RunId, tag: int, ours: SpooledRow | None, theirs: SpooledRow | None) -> None:
    if ours is None or theirs is None or ours.key != theirs.key:
        missing = theirs is None or (ours is not None and ours.key < theirs.key)
        key = ours.key if missing and ours is not None else theirs.key if theirs is not None else b""
        raise _mismatch(run_id, f"the key {key!r} of part {tag:#04x} {'is missing' if missing else 'is new'}")
    if ours.value != theirs.value:
        raise _mismatch(run_id, f"the key {ours.key!r} of part {tag:#04x} has another value")
    if (
        bool(ours.expires_at) != bool(theirs.expires_at)
        or abs(ours.expires_at - theirs.expires_at) > _CLOCK_NS
    ):
        raise _mismatch(run_id, f"the key {ours.key!r} of part {tag:#04x} expires at another time")


def _mismatch(run_id: RunId, what: str) -> CopyMismatch:
    return CopyMismatch(
        f"the copy of run {run_id} differs: {what}",
        hint="nobody may write to a run in the destination while it is copied; copy it again",
        details={"run_id": str(run_id)},
    )
