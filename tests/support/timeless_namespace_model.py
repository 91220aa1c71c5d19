"""A namespace of a server as a plain model: every record of every key, judged by `conflict_model.py`.

It has no clock. Each call says by which time it is judged, so that a test can compare a backend whose clock it sets, or
replay commits by the times that they came back with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from occamdb.engine.commit.messages import (
    Op,
    OpCode,
    OpFlags,
    Request,
    RequestFlags,
    ResultKind,
    Status,
)
from occamdb.engine.model.bounds import decode_bounds
from occamdb.engine.model.values import Codec

from .conflict_model import CommitSets, Newest, RangeDelete, Validation, validate_transaction

__all__ = ["ModelReply", "NamespaceModel", "Stored"]

_codec = Codec()


@dataclass(frozen=True)
class Stored:
    """A record. `value` None: a delete."""

    version: int
    timestamp: int
    value: bytes | None
    expires_at: int = 0

    def live(self, now: int) -> bool:
        return self.value is not None and not 0 < self.expires_at <= now


@dataclass
class ModelReply:
    """What a commit should answer."""

    status: Status
    version: int = 0
    results: list[tuple[int, ResultKind, int]] = field(default_factory=list)
    validation: Validation = field(default_factory=Validation)


@dataclass
class NamespaceModel:
    """See the module. `state` is what readers see at the newest version; `newest_of` what validation asks."""

    version: int = 0
    state: dict[bytes, Stored] = field(default_factory=dict)
    newest_of: dict[bytes, Newest] = field(default_factory=dict)
    range_deletes: list[RangeDelete] = field(default_factory=list)
    log: list[tuple[int, list[tuple[str, bytes, bytes | None]]]] = field(default_factory=list)

    # ---- what conflict_model asks -------------------------------------------------------------------------

    def newest(self, key: bytes) -> Newest | None:
        return self.newest_of.get(key)

    def newest_in_range(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, Newest]]:
        return ((key, self.newest_of[key]) for key in sorted(self.newest_of) if start <= key < end)

    # ---- what a server does -------------------------------------------------------------------------------

    def expire(self, now: int) -> None:
        """Remove what has expired, as a commit of its own; it changes nothing that validation asks."""
        due = sorted(key for key, record in self.state.items() if not record.live(now))
        if due:
            self.version += 1
            for key in due:
                del self.state[key]
            self.log.append((self.version, [("expire", key, None) for key in due]))

    def commit(self, request: Request, now: int) -> ModelReply:
        """Judge and apply; nothing may be due at `now`."""
        found = validate_transaction(self, _sets(request, now), range_deletes=self.range_deletes)
        if not found.ok:
            return ModelReply(Status.CONFLICT, validation=found)
        if request.flags & RequestFlags.JUDGE_ONLY:
            return ModelReply(Status.COMMITTED)
        if all(op.code.is_check for op in request.ops):
            return ModelReply(Status.COMMITTED, self.version)
        return self._apply(request, now)

    def _apply(self, request: Request, now: int) -> ModelReply:
        version = self.version + 1
        after = dict(self.state)
        written: dict[bytes, Stored] = {}
        reply = ModelReply(Status.COMMITTED, version)
        ranges = [(op.key, op.value) for op in request.ops if op.code is OpCode.DELETE_RANGE]
        for start, end in ranges:
            for key in [key for key in after if start <= key < end and after[key].live(now)]:
                del after[key]
                written[key] = Stored(version, now, None)
        for index, op in enumerate(request.ops):
            before = after.get(op.key)
            before = before if before is not None and before.live(now) else None
            if op.code is OpCode.PUT:
                written[op.key] = after[op.key] = Stored(version, now, op.value, op.expires_at)
            elif op.code is OpCode.DELETE:
                if before is not None:
                    del after[op.key]
                    written[op.key] = Stored(version, now, None)
                if op.flags & OpFlags.WANT_RESULT:
                    reply.results.append((index, ResultKind.EXISTED, int(before is not None)))
            elif op.code is OpCode.ADD:
                total = _sum(op, before)
                if isinstance(total, Status):
                    return ModelReply(total)
                expires_at = before.expires_at if before is not None else 0
                written[op.key] = after[op.key] = Stored(version, now, _codec.encode(total), expires_at)
                if op.flags & OpFlags.WANT_RESULT:
                    kind = ResultKind.SIGNED if total < 0 else ResultKind.UNSIGNED
                    reply.results.append((index, kind, total))
        self.version, self.state = version, after
        for key, record in written.items():
            self.newest_of[key] = Newest(
                version if record.value is not None else 0, version, record.expires_at
            )
        self.range_deletes.extend((start, end, version) for start, end in ranges)
        changes = [
            ("put" if r.value is not None else "delete", k, r.value) for k, r in sorted(written.items())
        ]
        self.log.append((version, changes))
        return reply


def _sets(request: Request, now: int) -> CommitSets:
    ops = request.ops
    blind = bool(request.flags & RequestFlags.BLIND)
    checked = [op for op in ops if not op.flags & OpFlags.UNCHECKED]
    writes: dict[bytes, Any] = dict.fromkeys(
        op.key for op in checked if op.code in (OpCode.PUT, OpCode.DELETE)
    )
    return CommitSets(
        None if blind else request.start_version,
        request.read_time,
        {op.key: op.argument for op in ops if op.code is OpCode.READ},
        [(op.key, op.value) for op in ops if op.code is OpCode.RANGE],
        {op.key: op.argument for op in ops if op.code is OpCode.CAS},
        writes.keys(),
        dict.fromkeys(op.key for op in checked if op.code is OpCode.ADD).keys(),
        [(op.key, op.value) for op in checked if op.code is OpCode.DELETE_RANGE],
        now,
    )


def _sum(op: Op, before: Stored | None) -> int | Status:
    base = 0 if before is None or before.value is None else _codec.decode(before.value)
    if type(base) is not int:
        return Status.NOT_AN_INTEGER
    total = base + op.argument
    if not -(2**63) <= total < 2**64:
        return Status.INTEGER_OVERFLOW
    at_most, at_least = decode_bounds(op.value) if op.value else (None, None)
    if (at_most is not None and total > at_most) or (at_least is not None and total < at_least):
        return Status.BOUND_REACHED
    return total
