"""The model of one namespace of a server, in plain Python: commits, snapshots, expiry, sweeping and changes.

What conflicts is `conflict_model.py`'s business; this adds effects, history and time. The clock is the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from occamdb.engine.commit.messages import (
    Op,
    OpCode,
    OpFlags,
    Request,
    RequestFlags,
    ResultEntry,
    ResultKind,
    Status,
)
from occamdb.engine.model.bounds import decode_bounds
from occamdb.engine.model.values import decode_value, encode_value

from .conflict_model import CommitSets, Newest, Validation, validate_transaction

__all__ = ["ModelReply", "NamespaceModel", "Record"]


class Record(NamedTuple):
    """The newest record of a key; `value` None: a delete, or with `expires_at` the removal of an expired value."""

    version: int
    value: bytes | None
    timestamp: int
    expires_at: int
    bound: bool


class ModelReply(NamedTuple):
    """What a commit is answered with."""

    status: Status
    version: int = 0
    detail: int = 0
    results: tuple[ResultEntry, ...] = ()
    validation: Validation = Validation()


class _Failed(Exception):
    def __init__(self, status: Status, index: int, held: int | None = None) -> None:
        self.reply = ModelReply(status, detail=index, results=() if held is None else (_number(index, held),))


def _number(index: int, value: int) -> ResultEntry:
    return ResultEntry(index, ResultKind.SIGNED if value < 0 else ResultKind.UNSIGNED, value)


@dataclass
class NamespaceModel:
    """The state of a namespace."""

    clock: int
    version: int = 0
    expiry_time: int = 0
    floor: int = 0
    newest_records: dict[bytes, Record] = field(default_factory=dict)
    history: dict[int, dict[bytes, Record]] = field(default_factory=lambda: {0: {}})  # values at each version
    range_deletes: list[tuple[bytes, bytes, int]] = field(default_factory=list)
    commits: list[tuple[int, int, dict[bytes, tuple[str, bytes | None]]]] = field(default_factory=list)

    # ---- VersionSource ---------------------------------------------------------------------------------------

    def newest(self, key: bytes) -> Newest | None:
        record = self.newest_records.get(key)
        if record is None:
            return None
        gone = record.value is None and not record.expires_at
        return Newest(0 if gone else record.version, record.version, record.expires_at)

    def newest_in_range(self, start: bytes, end: bytes) -> Iterable[tuple[bytes, Newest]]:
        for key in sorted(self.newest_records):
            if start <= key < end:
                found = self.newest(key)
                assert found is not None
                yield key, found

    # ---- snapshots -------------------------------------------------------------------------------------------

    def rows(self, version: int) -> dict[bytes, Record]:
        """The values at a version, those that have expired included."""
        return self.history[version]

    def _publish(self, changed: dict[bytes, tuple[str, bytes | None]], now: int) -> None:
        self.version += 1
        self.expiry_time = now
        self.history[self.version] = {k: r for k, r in self.newest_records.items() if r.value is not None}
        if changed:
            self.commits.append((self.version, now, dict(sorted(changed.items()))))

    @property
    def now(self) -> int:
        """The time by which the next commit judges."""
        return max(self.clock, self.expiry_time)

    # ---- commits ---------------------------------------------------------------------------------------------

    def commit(self, request: Request) -> ModelReply:
        """Judge and apply."""
        blind = bool(request.flags & RequestFlags.BLIND)
        validation = self._judge(request, blind)
        if not validation.ok:
            return ModelReply(Status.CONFLICT, validation=validation)
        if request.flags & RequestFlags.JUDGE_ONLY:
            return ModelReply(Status.COMMITTED)
        if all(op.code.is_check for op in request.ops):
            return ModelReply(Status.COMMITTED, self.version)
        before = dict(self.newest_records)
        changed: dict[bytes, tuple[str, bytes | None]] = {}
        results: list[ResultEntry] = []
        try:
            for index, op in sorted(
                enumerate(request.ops), key=lambda item: item[1].code != OpCode.DELETE_RANGE
            ):
                results += self._apply(index, op, changed)
        except _Failed as failed:
            self.newest_records = before
            return failed.reply
        for op in request.ops:
            if op.code is OpCode.DELETE_RANGE:
                self.range_deletes.append((op.key, op.value, self.version + 1))
        self._publish(changed, self.now)
        version = self.version
        self.remove_expired()
        ordered = tuple(sorted(results, key=lambda result: result.op_index))
        return ModelReply(Status.COMMITTED, version, results=ordered)

    def _judge(self, request: Request, blind: bool) -> Validation:
        ops = request.ops
        checked = [op for op in ops if not op.flags & OpFlags.UNCHECKED]
        sets = CommitSets(
            None if blind else request.start_version,
            request.read_time,
            reads={op.key: op.argument for op in ops if op.code is OpCode.READ},
            ranges=[(op.key, op.value) for op in ops if op.code is OpCode.RANGE],
            cas={op.key: op.argument for op in ops if op.code is OpCode.CAS},
            writes={op.key for op in checked if op.code in (OpCode.PUT, OpCode.DELETE)},
            adds={op.key for op in checked if op.code is OpCode.ADD},
            deleted_ranges=[(op.key, op.value) for op in checked if op.code is OpCode.DELETE_RANGE],
            commit_time=self.now,
        )
        return validate_transaction(self, sets, range_deletes=self.range_deletes)

    def _visible(self, key: bytes) -> Record | None:
        record = self.newest_records.get(key)
        if record is None or record.value is None or 0 < record.expires_at <= self.now:
            return None
        return record

    def _apply(
        self, index: int, op: Op, changed: dict[bytes, tuple[str, bytes | None]]
    ) -> Iterator[ResultEntry]:
        held = self._visible(op.key)
        if op.code is OpCode.PUT:
            self._put(op.key, op.value, op.expires_at, bool(op.flags & OpFlags.EPHEMERAL), changed)
        elif op.code is OpCode.DELETE:
            if held is not None:
                self._delete(op.key, changed)
            if op.flags & OpFlags.WANT_RESULT:
                yield ResultEntry(index, ResultKind.EXISTED, int(held is not None))
        elif op.code is OpCode.ADD:
            total = self._add(index, op, held)
            self._put(
                op.key,
                encode_value(total),
                held.expires_at if held else 0,
                held is not None and held.bound,
                changed,
            )
            if op.flags & OpFlags.WANT_RESULT:
                yield _number(index, total)
        elif op.code is OpCode.DELETE_RANGE:
            for key, record in list(self.newest_records.items()):
                if op.key <= key < op.value and record.value is not None:
                    self._delete(key, changed)

    def _add(self, index: int, op: Op, held: Record | None) -> int:
        value = 0
        if held is not None:
            assert held.value is not None
            value = decode_value(held.value)
            if type(value) is not int:
                raise _Failed(Status.NOT_AN_INTEGER, index)
        total = value + op.argument
        if not -(2**63) <= total < 2**64:
            raise _Failed(Status.INTEGER_OVERFLOW, index)
        most, least = decode_bounds(op.value) if op.value else (None, None)
        if (most is not None and total > most) or (least is not None and total < least):
            raise _Failed(Status.BOUND_REACHED, index, value)
        return total

    def _put(
        self,
        key: bytes,
        value: bytes,
        expires_at: int,
        bound: bool,
        changed: dict[bytes, tuple[str, bytes | None]],
    ) -> None:
        self.newest_records[key] = Record(self.version + 1, value, self.now, expires_at, bound)
        changed[key] = "put", value

    def _delete(self, key: bytes, changed: dict[bytes, tuple[str, bytes | None]]) -> None:
        self.newest_records[key] = Record(self.version + 1, None, self.now, 0, False)
        changed[key] = "delete", None

    # ---- housekeeping ----------------------------------------------------------------------------------------

    def remove_expired(self) -> bool:
        """Remove what has expired, as a commit of its own; whether there was anything."""
        now = self.now
        due = [
            key
            for key, record in self.newest_records.items()
            if record.value is not None and 0 < record.expires_at <= now
        ]
        for key in due:
            self.newest_records[key] = self.newest_records[key]._replace(value=None)
        if due:
            self._publish(dict.fromkeys(due, ("expire", None)), now)
        return bool(due)

    def end_session(self) -> bool:
        """Delete the keys that are bound to the session; whether there were any."""
        bound = [key for key, record in self.newest_records.items() if record.bound and self._visible(key)]
        changed: dict[bytes, tuple[str, bytes | None]] = {}
        for key in bound:
            self._delete(key, changed)
        if bound:
            self._publish(changed, self.now)
            self.remove_expired()
        return bool(bound)
