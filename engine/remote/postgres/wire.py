"""Requests and replies between a commit request's bytes and the server's function `commit_many`.

1. Requests travel as one array of a composite type, in PostgreSQL's binary format, so one statement carries any number
   of them. Operations are sorted by kind, and keep their order within a kind.
2. What the server answers names an operation by its kind and its place among those. `Sent` turns that into indices of
   the request, and checks that they are there.
3. Integers of increments are msgpack on both ways, because they do not fit a bigint.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...commit.messages import (
    CONFLICTS_LISTED_MAX,
    ConflictEntry,
    ConflictKind,
    Op,
    OpCode,
    OpFlags,
    Reply,
    Request,
    RequestFlags,
    ResultEntry,
    ResultKind,
    Status,
)
from ...model.bounds import decode_bounds
from ...model.errors import ProtocolError
from ...model.values import Codec

__all__ = ["SNAPSHOT_EXPIRED", "VOID", "Sent", "encode_requests"]

SNAPSHOT_EXPIRED = 100  # a status of commit_many: the request's snapshot is older than what the server keeps
VOID = 101  # and: its name was given up

_BYTEA, _INT8, _INT2 = 17, 20, 21
_BYTEA_ARRAY, _INT8_ARRAY, _INT2_ARRAY = 1001, 1016, 1005
_I64_MAX = (1 << 63) - 1
_ARRAY = struct.Struct(">iiIii")  # dimensions, has nulls, type of elements, count, lower bound
_FIELD = struct.Struct(">Ii")  # type, size (-1: null)
_INT8_FIELD = struct.Struct(">Iiq")
_SIZE = struct.Struct(">i")
_RECORD_FIELDS = 25
_integers = Codec()

_KINDS = {
    1: (ConflictKind.READ, OpCode.READ),
    2: (ConflictKind.RANGE, OpCode.RANGE),
    3: (ConflictKind.CAS, OpCode.CAS),
    4: (ConflictKind.WRITE, OpCode.CAS),
    5: (ConflictKind.WRITE, OpCode.PUT),
    6: (ConflictKind.WRITE, OpCode.DELETE),
    7: (ConflictKind.WRITE, OpCode.ADD),
    8: (ConflictKind.RANGE, OpCode.DELETE_RANGE),
}  # by rule of the function `conflicts`: what is reported, and of which operations
_ORDER = {OpCode.PUT: 1, OpCode.DELETE: 2, OpCode.ADD: 3}


@dataclass(slots=True)
class Sent:
    """A request as it was sent: reads the reply to it."""

    request: Request
    sequence: int
    indices: dict[OpCode, list[int]] = field(default_factory=dict)

    def op_at(self, code: OpCode, place: int) -> tuple[int, Op]:
        """The operation of a kind at a place from 1, and its index in the request."""
        indices = self.indices.get(code, [])
        if not 1 <= place <= len(indices):
            raise ProtocolError(
                f"the server answered about operation {place} of {len(indices)} ({code.name})"
            )
        return indices[place - 1], self.request.ops[indices[place - 1]]

    def reply(self, row: Sequence[Any]) -> Reply:
        """The reply in a row of `commit_many`, whose status is one of `Status`."""
        sequence, status, version, at, place, r_kind, r_place, r_value, found, k_rule, k_place, k_found = row
        try:
            known = Status(status)
        except ValueError:
            raise ProtocolError(f"the server answered with the status {status}") from None
        if known is Status.CONFLICT:
            conflicts = tuple(map(self._conflict, k_rule, k_place, k_found))
            if len(conflicts) > min(found, CONFLICTS_LISTED_MAX):
                raise ProtocolError(f"the server listed {len(conflicts)} of {found} conflicts")
            return Reply(known, sequence, conflicts=conflicts, conflicts_found=found)
        results = tuple(map(self._result, r_kind, r_place, r_value)) if r_kind else ()
        detail = 0 if place is None else self.op_at(OpCode.ADD, place)[0]
        if known is not Status.COMMITTED:
            return Reply(known, sequence, detail=detail, results=results)
        return Reply(known, sequence, version, at, results=tuple(sorted(results, key=_op_index)))

    def _conflict(self, rule: int, place: int, found: int) -> ConflictEntry:
        if rule not in _KINDS:
            raise ProtocolError(f"the server named a conflict by the rule {rule}")
        kind, code = _KINDS[rule]
        _, op = self.op_at(code, place)
        expected = op.argument if rule in (1, 3) else self.request.start_version
        return ConflictEntry(kind, op.key, expected, found, op.value if kind is ConflictKind.RANGE else b"")

    def _result(self, kind: int, place: int, value: bytes) -> ResultEntry:
        if kind == 1:
            return ResultEntry(self.op_at(OpCode.DELETE, place)[0], ResultKind.EXISTED, int(value != b"\x00"))
        number = _integers.decode(value)
        if type(number) is not int:
            raise ProtocolError("the server answered with something else than an integer")
        index, _ = self.op_at(OpCode.ADD, place)
        return ResultEntry(index, ResultKind.SIGNED if number < 0 else ResultKind.UNSIGNED, number)


def _op_index(result: ResultEntry) -> int:
    return result.op_index


# ---- encoding ----------------------------------------------------------------------------------------------------


def encode_requests(sent: Sequence[Sent], request_type: int) -> bytes:
    """The array of requests, as the argument of `commit_many`. Fills their `indices`.

    Args:
      request_type: the object id of the composite type.
    """
    parts = [_ARRAY.pack(1, 0, request_type, len(sent), 1)]
    for one in sent:
        record = _record(one)
        parts.append(_SIZE.pack(len(record)))
        parts.append(record)
    return b"".join(parts)


def _record(sent: Sent) -> bytes:
    request = sent.request
    indices = sent.indices
    indices.clear()
    for index, op in enumerate(request.ops):
        indices.setdefault(op.code, []).append(index)
    ops = {code: [request.ops[index] for index in places] for code, places in indices.items()}
    parts = [
        struct.pack(">i", _RECORD_FIELDS),
        _INT8_FIELD.pack(_INT8, 8, sent.sequence),
        _INT8_FIELD.pack(_INT8, 8, min(request.start_version, _I64_MAX)),
        _INT8_FIELD.pack(_INT8, 8, request.read_time),
        struct.pack(">Iih", _INT2, 2, request.flags & (RequestFlags.BLIND | RequestFlags.JUDGE_ONLY)),
    ]
    found = ops.get(OpCode.READ, ())
    parts += _keys(found), _versions(found)
    found = ops.get(OpCode.RANGE, ())
    parts += _keys(found), _values(found)
    found = ops.get(OpCode.CAS, ())
    parts += _keys(found), _versions(found)
    found = ops.get(OpCode.DELETE_RANGE, ())
    parts += _keys(found), _values(found), _flags(found)
    found = ops.get(OpCode.PUT, ())
    parts += _keys(found), _values(found), _expiries(found), _flags(found)
    found = ops.get(OpCode.DELETE, ())
    parts += _keys(found), _flags(found)
    found = ops.get(OpCode.ADD, ())
    parts += _keys(found), _bigints([op.argument for op in found])
    bounds = [decode_bounds(op.value) if op.value else (None, None) for op in found]
    parts += _bounds([most for most, _ in bounds]), _bounds([least for _, least in bounds]), _flags(found)
    parts.append(_order(request))
    return b"".join(parts)


def _keys(ops: Sequence[Op]) -> bytes:
    return _byteas([op.key for op in ops])


def _values(ops: Sequence[Op]) -> bytes:
    return _byteas([op.value for op in ops])


def _versions(ops: Sequence[Op]) -> bytes:
    # No version is as large as that: such an expectation is never met.
    return _bigints([op.argument if op.argument <= _I64_MAX else -1 for op in ops])


def _expiries(ops: Sequence[Op]) -> bytes:
    return _bigints([op.expires_at for op in ops]) if any(op.expires_at for op in ops) else _null(_INT8_ARRAY)


def _flags(ops: Sequence[Op]) -> bytes:
    return _smallints(
        [op.flags & (OpFlags.UNCHECKED | OpFlags.WANT_RESULT | OpFlags.EPHEMERAL) for op in ops]
    )


def _bounds(numbers: Sequence[int | None]) -> bytes:
    return _byteas([None if number is None else bytes(_integers.encode(number)) for number in numbers])


def _order(request: Request) -> bytes:
    """The kinds of the effects on single keys in their order, if some key has more than one."""
    effects = [op for op in request.ops if op.code in _ORDER]
    if len({op.key for op in effects}) == len(effects):
        return _null(_INT2_ARRAY)
    return _smallints([_ORDER[op.code] for op in effects])


def _null(kind: int) -> bytes:
    return _FIELD.pack(kind, -1)


def _byteas(items: Sequence[bytes | None]) -> bytes:
    if not items:
        return _null(_BYTEA_ARRAY)
    parts = [_ARRAY.pack(1, int(None in items), _BYTEA, len(items), 1)]
    for item in items:
        if item is None:
            parts.append(_SIZE.pack(-1))
        else:
            parts.append(_SIZE.pack(len(item)))
            parts.append(item)
    body = b"".join(parts)
    return _FIELD.pack(_BYTEA_ARRAY, len(body)) + body


def _bigints(items: Sequence[int]) -> bytes:
    return _numbers(items, _INT8_ARRAY, _INT8, "iq", 8)


def _smallints(items: Sequence[int]) -> bytes:
    return _numbers(items, _INT2_ARRAY, _INT2, "ih", 2)


def _numbers(items: Sequence[int], array: int, element: int, form: str, size: int) -> bytes:
    count = len(items)
    if not count:
        return _null(array)
    flat: list[int] = []
    for item in items:
        flat += size, item
    body = _ARRAY.pack(1, 0, element, count, 1) + struct.pack(">" + form * count, *flat)
    return _FIELD.pack(array, len(body)) + body
