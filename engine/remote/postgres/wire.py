"""Requests and replies between a commit request's bytes and the server's function `commit_many`.

1. Requests travel as one array of a composite type, in PostgreSQL's binary format, so one statement carries any number
   of them. Operations are sorted by kind, and keep their order within a kind.
2. What the server answers names an operation by its kind and its place among those. `Sent` turns that into indices of
   the request, and checks that they are there.
3. Integers of increments are msgpack on both ways, because they do not fit a bigint.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from psycopg import pq

from ...commit.messages import (
    CONFLICTS_LISTED_MAX,
    ConflictEntry,
    ConflictKind,
    Op,
    OpCode,
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
from .calls import number, numbers, values

__all__ = ["SNAPSHOT_EXPIRED", "VOID", "Sent", "encode_requests", "reply_rows"]

SNAPSHOT_EXPIRED = 100  # a status of commit_many: the request's snapshot is older than what the server keeps
VOID = 101  # and: its name was given up

_BYTEA, _INT8, _INT2 = 17, 20, 21
_BYTEA_ARRAY, _INT8_ARRAY, _INT2_ARRAY = 1001, 1016, 1005
_I64_MAX = (1 << 63) - 1
_ARRAY = struct.Struct(">iiIii")  # dimensions, has nulls, type of elements, count, lower bound
_FIELD = struct.Struct(">Ii")  # type, size (-1: null)
_RECORD_HEAD = struct.Struct(">iIiqIiqIiqIih")  # the number of fields, then four of them
_JUDGED_FLAGS = int(RequestFlags.BLIND | RequestFlags.JUDGE_ONLY)
_SIZE = struct.Struct(">i")
_RECORD_FIELDS = 25
_REPLY_FIELDS = 12
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


def reply_rows(result: pq.abc.PGresult) -> list[tuple[Any, ...]]:
    """The rows of `commit_many`, read as the type `reply` says."""
    if result.nfields != _REPLY_FIELDS:
        raise ProtocolError(f"the server answered with {result.nfields} columns instead of {_REPLY_FIELDS}")
    rows = []
    for row in range(result.ntuples):
        get = result.get_value
        results = get(row, 5)
        found = get(row, 8)
        version, at, place = get(row, 2), get(row, 3), get(row, 4)
        rows.append(
            (
                number(get(row, 0)),
                number(get(row, 1)),
                None if version is None else number(version),
                None if at is None else number(at),
                None if place is None else number(place),
                None if results is None else numbers(results),
                numbers(get(row, 6)),
                values(get(row, 7)),
                None if found is None else number(found),
                numbers(get(row, 9)),
                numbers(get(row, 10)),
                numbers(get(row, 11)),
            )
        )
    return rows


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
        if op.code in indices:
            indices[op.code].append(index)
        else:
            indices[op.code] = [index]
    parts = [
        _RECORD_HEAD.pack(
            _RECORD_FIELDS,
            *(_INT8, 8, sent.sequence),
            *(_INT8, 8, min(request.start_version, _I64_MAX)),
            *(_INT8, 8, request.read_time),
            *(_INT2, 2, int(request.flags) & _JUDGED_FLAGS),
        )
    ]
    for code, fields, nothing in _FIELDS:
        if code in indices:
            ops = [request.ops[index] for index in indices[code]]
            parts += [one(ops) for one in fields]
        else:
            parts.append(nothing)
    parts.append(_order(request, indices))
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
    return _smallints([int(op.flags) & 7 for op in ops])


def _deltas(ops: Sequence[Op]) -> bytes:
    return _bigints([op.argument for op in ops])


def _most(ops: Sequence[Op]) -> bytes:
    return _byteas([_integer(decode_bounds(op.value)[0]) if op.value else None for op in ops])


def _least(ops: Sequence[Op]) -> bytes:
    return _byteas([_integer(decode_bounds(op.value)[1]) if op.value else None for op in ops])


def _integer(number: int | None) -> bytes | None:
    return None if number is None else bytes(_integers.encode(number))


def _order(request: Request, indices: dict[OpCode, list[int]]) -> bytes:
    """The kinds of the effects on single keys in their order, if some key has more than one."""
    if sum(len(indices.get(code, ())) for code in _ORDER) > 1:
        effects = [op for op in request.ops if op.code in _ORDER]
        if len({op.key for op in effects}) < len(effects):
            return _smallints([_ORDER[op.code] for op in effects])
    return _null(_INT2_ARRAY)


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


_Encoder = Callable[[Sequence[Op]], bytes]


def _fields(code: OpCode, *fields: _Encoder) -> tuple[OpCode, tuple[_Encoder, ...], bytes]:
    kinds: dict[_Encoder, int] = {
        _versions: _INT8_ARRAY,
        _expiries: _INT8_ARRAY,
        _deltas: _INT8_ARRAY,
        _flags: _INT2_ARRAY,
    }
    return code, fields, b"".join(_null(kinds.get(one, _BYTEA_ARRAY)) for one in fields)


# The fields of the type `request` behind its header, by kind of operation, and what stands there when there is none.
_FIELDS = (
    _fields(OpCode.READ, _keys, _versions),
    _fields(OpCode.RANGE, _keys, _values),
    _fields(OpCode.CAS, _keys, _versions),
    _fields(OpCode.DELETE_RANGE, _keys, _values, _flags),
    _fields(OpCode.PUT, _keys, _values, _expiries, _flags),
    _fields(OpCode.DELETE, _keys, _flags),
    _fields(OpCode.ADD, _keys, _deltas, _most, _least, _flags),
)
