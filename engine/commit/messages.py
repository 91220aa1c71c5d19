"""The request and reply of a commit in plain Python (docs/wire-format.md): the model of `_wire.pxd`.

Used by tests, by tools, and to recover outcomes. The hot path writes and reads the same bytes in compiled
code. Everything decoded here may come from another process: every size is checked before it is followed, and
a fault raises a `ProtocolError` with its position.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any

from ..model.bounds import decode_bounds, well_formed
from ..model.conflict_records import cas_conflict, range_conflict, read_conflict, write_conflict
from ..model.errors import (
    BoundReached,
    Conflict,
    ConflictError,
    CoordinatorUnavailable,
    IntegerOverflowError,
    LogWriteError,
    NotAnIntegerError,
    OccamError,
    ProtocolError,
    StoreFullError,
    TransactionTooLarge,
)
from .shortage import store_full

__all__ = [
    "CONFLICTS_LISTED_MAX",
    "REPLY_TURN",
    "ConflictEntry",
    "ConflictKind",
    "Op",
    "OpCode",
    "OpFlags",
    "Reply",
    "Request",
    "RequestFlags",
    "ResultEntry",
    "ResultKind",
    "Status",
    "decode_reply",
    "decode_request",
    "encode_reply",
    "encode_request",
    "request_size",
]

REQUEST_MAGIC = 0x5152434F
REPLY_MAGIC = 0x5052434F
KIND_COMMIT = 1
CONFLICTS_LISTED_MAX = 16
REPLY_TURN = 1  # a flag

REQUEST_HEADER = struct.Struct("<IHHQQqII16sQ")
OP_HEADER = struct.Struct("<BBHIQq")
REPLY_HEADER = struct.Struct("<IHHQQqIIIIQQ")
RESULT = struct.Struct("<IIQQ")
CONFLICT_HEADER = struct.Struct("<B3xIIIQQ")

_U64 = (1 << 64) - 1


class RequestFlags(IntFlag):
    """BLIND: no start version, no write checks. SYNC: answer when on disk. JUDGE_ONLY: only list the conflicts."""

    NONE = 0
    BLIND = 1
    SYNC = 2
    JUDGE_ONLY = 4
    PATIENT = 8


class OpCode(IntEnum):
    """READ, RANGE and CAS are checks and come first; the others are effects."""

    READ = 1
    RANGE = 2
    CAS = 3
    PUT = 4
    DELETE = 5
    ADD = 6
    DELETE_RANGE = 7

    @property
    def is_check(self) -> bool:
        """Whether it only checks."""
        return self <= OpCode.CAS


class OpFlags(IntFlag):
    """How one op is carried out.

    UNCHECKED: the effect of a CAS, without first-committer check. WANT_RESULT: answer with a result. EPHEMERAL: a put
    whose key lives as long as the handle that sends it.
    """

    NONE = 0
    UNCHECKED = 1
    WANT_RESULT = 2
    EPHEMERAL = 4


class Status(IntEnum):
    """What became of a request."""

    COMMITTED = 0
    CONFLICT = 1
    STORE_FULL = 2
    LOG_WRITE_ERROR = 3
    NOT_AN_INTEGER = 4
    INTEGER_OVERFLOW = 5
    TOO_LARGE = 6
    LOG_FAILED = 7
    BAD_REQUEST = 8
    STOPPING = 9
    BOUND_REACHED = 10


class ResultKind(IntEnum):
    """EXISTED: was the key there (0 or 1). SIGNED, UNSIGNED: the integer an ADD resulted in."""

    EXISTED = 1
    SIGNED = 2
    UNSIGNED = 3


class ConflictKind(IntEnum):
    """Which check failed."""

    READ = 1
    RANGE = 2
    WRITE = 3
    CAS = 4


@dataclass(frozen=True, slots=True)
class Op:
    """One check or effect.

    Attributes:
      code: what to do.
      key: the stored key; the start of a range.
      value: the encoded value; the end of a range, exclusive; the bounds of an ADD (`model/bounds.py`), or nothing.
      argument: READ: version read; CAS: expected version; RANGE: rows seen; ADD: the delta, signed.
      expires_at: nanoseconds since the epoch, 0 never.
      flags: see `OpFlags`.
    """

    code: OpCode
    key: bytes
    value: bytes = b""
    argument: int = 0
    expires_at: int = 0
    flags: OpFlags = OpFlags.NONE


@dataclass(frozen=True, slots=True)
class Request:
    """A commit request.

    Attributes:
      sequence: the second half of the txn_id, from 1.
      start_version: of the transaction's snapshot.
      read_time: the expiry time of its snapshot, nanoseconds since the epoch.
      ops: checks first, then effects.
      run_id: 16 bytes, for the log.
      flags: see `RequestFlags`.
      turn: not 0: grant a turn if it loses. It names the transaction, over all its attempts.
    """

    sequence: int
    start_version: int = 0
    read_time: int = 0
    ops: tuple[Op, ...] = ()
    run_id: bytes = bytes(16)
    flags: RequestFlags = RequestFlags.NONE
    turn: int = 0


@dataclass(frozen=True, slots=True)
class ResultEntry:
    """The result of one op.

    Attributes:
      op_index: which op, counted from 0 over all ops of the request.
      kind: what `value` is.
      value: as an integer with its sign; EXISTED: 0 or 1.
    """

    op_index: int
    kind: ResultKind
    value: int


@dataclass(frozen=True, slots=True)
class ConflictEntry:
    """A conflict as it travels: stored keys. `end` is that of a range."""

    kind: ConflictKind
    key: bytes
    expected: int
    found: int
    end: bytes = b""

    def record(self) -> Conflict:
        """The record users see."""
        if self.kind is ConflictKind.RANGE:
            return range_conflict(self.key, self.end, self.expected, self.found)
        make: Callable[[bytes, int, int], Conflict] = _RECORDS[self.kind]
        return make(self.key, self.expected, self.found)


_RECORDS: dict[ConflictKind, Callable[[bytes, int, int], Conflict]] = {
    ConflictKind.READ: read_conflict,
    ConflictKind.WRITE: write_conflict,
    ConflictKind.CAS: cas_conflict,
}


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a commit request.

    Attributes:
      status: what became of it.
      sequence: that of the request.
      commit_version: of what was written; 0 unless COMMITTED.
      committed_at: nanoseconds since the epoch.
      detail: errno, op index or `Shortage`, by status.
      results: of the ops that asked for one.
      conflicts: the first of them.
      conflicts_found: how many there were in all.
      turn: the transaction has a turn now.
    """

    status: Status
    sequence: int
    commit_version: int = 0
    committed_at: int = 0
    detail: int = 0
    results: tuple[ResultEntry, ...] = ()
    conflicts: tuple[ConflictEntry, ...] = ()
    conflicts_found: int = 0
    turn: bool = False

    def error(
        self, request: Request | None = None, *, size: int = 0, store_size_max: int = 0
    ) -> OccamError | None:
        """The error this reply means to the caller, None for COMMITTED.

        Args:
          request: what was asked, to name the key of a failed op.
          size: of the request in bytes, when known.
          store_size_max: the limit of a store that is full, when known.
        """
        if self.status is Status.COMMITTED:
            return None
        if self.status is Status.CONFLICT:
            records = tuple(entry.record() for entry in self.conflicts)
            return ConflictError(conflicts=records, conflicts_found=self.conflicts_found)
        if self.status is Status.STORE_FULL and store_size_max:
            return store_full(self.detail, size, store_size_max)
        if self.status is Status.BOUND_REACHED:
            return _bound_reached(request, self)
        return status_error(self.status, self.detail, _key_of(request, self.detail))


def _bound_reached(request: Request | None, reply: Reply) -> BoundReached:
    value = reply.results[0].value if reply.results else None
    if request is None or reply.detail >= len(request.ops):
        return BoundReached(value=value)
    op = request.ops[reply.detail]
    at_most, at_least = decode_bounds(op.value) if well_formed(op.value) else (None, None)
    key = read_conflict(op.key, 0, 0).key
    return BoundReached(key=key, value=value, by=op.argument, at_most=at_most, at_least=at_least)


def _key_of(request: Request | None, op_index: int) -> bytes | None:
    return request.ops[op_index].key if request is not None and op_index < len(request.ops) else None


def status_error(status: int, detail: int, key: bytes | None = None) -> OccamError:
    """The error of a status other than COMMITTED and CONFLICT.

    Args:
      status: as in the reply.
      detail: errno, op index, or 0, by status.
      key: the stored key of the op that failed, when known.
    """
    user_key = None if key is None else read_conflict(key, 0, 0).key
    if status == Status.STORE_FULL:
        return StoreFullError()
    if status == Status.LOG_WRITE_ERROR:
        why = os.strerror(detail) if detail else "unknown error"
        return LogWriteError(f"the log could not be written: {why} (errno {detail})", errno=detail)
    if status == Status.LOG_FAILED:
        return LogWriteError(
            "an earlier sync of the log failed; no commits until the coordinator is restarted",
            errno=detail,
            hint="check the disk, then restart the coordinator (`occamdb stop`, then open again)",
        )
    if status == Status.NOT_AN_INTEGER:
        return NotAnIntegerError(key=user_key)
    if status == Status.INTEGER_OVERFLOW:
        return IntegerOverflowError(key=user_key)
    if status == Status.BOUND_REACHED:
        return BoundReached(key=user_key)
    if status == Status.TOO_LARGE:
        return TransactionTooLarge(
            "the coordinator refused the transaction: a key, a value or the whole is too large"
        )
    if status == Status.STOPPING:
        return CoordinatorUnavailable("the coordinator is stopping; nothing was committed", hint="try again")
    return ProtocolError(
        f"the coordinator could not read the request (status {status}, detail {detail})",
        hint="a fault in occamdb, or different builds of it on one database: please report it",
    )


# --- Requests ------------------------------------------------------------------------------------


def request_size(ops: Iterable[Op]) -> int:
    """The bytes of a request with these ops."""
    return REQUEST_HEADER.size + sum(OP_HEADER.size + len(op.key) + len(op.value) for op in ops)


def encode_request(request: Request) -> bytes:
    """The bytes of a request. `struct.error` when a field does not fit."""
    body = b"".join(_encode_op(op) for op in request.ops)
    header = REQUEST_HEADER.pack(
        REQUEST_MAGIC,
        KIND_COMMIT,
        request.flags,
        request.sequence,
        request.start_version,
        request.read_time,
        len(request.ops),
        len(body),
        request.run_id,
        request.turn,
    )
    return header + body


def _encode_op(op: Op) -> bytes:
    header = OP_HEADER.pack(op.code, op.flags, len(op.key), len(op.value), op.argument & _U64, op.expires_at)
    return header + op.key + op.value


def decode_request(data: bytes) -> Request:
    """Read a request as strictly as the coordinator does.

    Raises:
      ProtocolError: wrong magic, kind, flags, sizes, or order of ops.
    """
    header = _unpack(REQUEST_HEADER, data, 0, "a request header")
    magic, kind, flags, sequence, start_version, read_time, op_count, body_size, run_id, turn = header
    _require(magic == REQUEST_MAGIC, 0, f"request magic {REQUEST_MAGIC:#x}, found {magic:#x}")
    _require(kind == KIND_COMMIT, 4, f"kind {KIND_COMMIT}, found {kind}")
    _require(flags <= 15, 6, "known flags")
    _check_body(data, REQUEST_HEADER.size, body_size, op_count, OP_HEADER.size)
    ops: list[Op] = []
    position = REQUEST_HEADER.size
    for _ in range(op_count):
        op, position = _decode_op(data, position)
        _require(
            not (op.code.is_check and ops and not ops[-1].code.is_check), position, "checks before effects"
        )
        ops.append(op)
    _require(position == len(data), position, "the end of the request")
    return Request(sequence, start_version, read_time, tuple(ops), run_id, RequestFlags(flags), turn)


def _decode_op(data: bytes, position: int) -> tuple[Op, int]:
    fields = _unpack(OP_HEADER, data, position, "an op header")
    code, flags, key_size, value_size, argument, expires_at = fields
    known = flags <= 7 and (flags & OpFlags.EPHEMERAL == 0 or code == OpCode.PUT)
    _require(1 <= code <= 7 and known, position, f"a known op, found code {code}, flags {flags}")
    key, position = _bytes(data, position + OP_HEADER.size, key_size)
    value, position = _bytes(data, position, value_size)
    if code == OpCode.ADD:
        argument = _signed(argument)
        _require(not value or well_formed(value), position, "bounds of an increment, or none")
    return Op(OpCode(code), key, value, argument, expires_at, OpFlags(flags)), position


# --- Replies -------------------------------------------------------------------------------------


def encode_reply(reply: Reply) -> bytes:
    """The bytes of a reply. `struct.error` when a field does not fit."""
    results = b"".join(RESULT.pack(r.op_index, r.kind, r.value & _U64, 0) for r in reply.results)
    conflicts = b"".join(_encode_conflict(entry) for entry in reply.conflicts)
    header = REPLY_HEADER.pack(
        REPLY_MAGIC,
        reply.status,
        REPLY_TURN if reply.turn else 0,
        reply.sequence,
        reply.commit_version,
        reply.committed_at,
        len(reply.results),
        len(reply.conflicts),
        reply.detail,
        len(results) + len(conflicts),
        reply.conflicts_found,
        0,
    )
    return header + results + conflicts


def _encode_conflict(entry: ConflictEntry) -> bytes:
    head = CONFLICT_HEADER.pack(entry.kind, len(entry.key), len(entry.end), 0, entry.expected, entry.found)
    return head + entry.key + entry.end


def decode_reply(data: bytes) -> Reply:
    """Read a reply.

    Raises:
      ProtocolError: wrong magic, status, sizes or counts.
    """
    header = _unpack(REPLY_HEADER, data, 0, "a reply header")
    magic, status, flags, sequence, version, committed_at, result_count, conflict_count = header[:8]
    detail, body_size, conflicts_found, _ = header[8:]
    _require(magic == REPLY_MAGIC, 0, f"reply magic {REPLY_MAGIC:#x}, found {magic:#x}")
    _require(status <= max(Status), 4, f"a known status, found {status}")
    _require(flags <= REPLY_TURN, 6, f"known flags, found {flags}")
    _require(conflict_count <= CONFLICTS_LISTED_MAX, 36, f"at most {CONFLICTS_LISTED_MAX} conflicts")
    _require(conflict_count <= conflicts_found, 48, f"at least {conflict_count} conflicts found")
    _check_body(data, REPLY_HEADER.size, body_size, result_count, RESULT.size)
    results, position = [], REPLY_HEADER.size
    for _ in range(result_count):
        results.append(_decode_result(data, position))
        position += RESULT.size
    conflicts = []
    for _ in range(conflict_count):
        entry, position = _decode_conflict(data, position)
        conflicts.append(entry)
    _require(position == len(data), position, "the end of the reply")
    return Reply(
        Status(status),
        sequence,
        version,
        committed_at,
        detail,
        tuple(results),
        tuple(conflicts),
        conflicts_found,
        bool(flags),
    )


def _decode_result(data: bytes, position: int) -> ResultEntry:
    op_index, kind, value, _ = _unpack(RESULT, data, position, "a result")
    _require(1 <= kind <= 3, position + 4, f"a known kind of result, found {kind}")
    return ResultEntry(op_index, ResultKind(kind), _signed(value) if kind == ResultKind.SIGNED else value)


def _decode_conflict(data: bytes, position: int) -> tuple[ConflictEntry, int]:
    kind, key_size, end_size, _, expected, found = _unpack(CONFLICT_HEADER, data, position, "a conflict")
    _require(1 <= kind <= 4, position, f"a known kind of conflict, found {kind}")
    key, position = _bytes(data, position + CONFLICT_HEADER.size, key_size)
    end, position = _bytes(data, position, end_size)
    return ConflictEntry(ConflictKind(kind), key, expected, found, end), position


# --- Reading untrusted bytes ---------------------------------------------------------------------


def _require(true: bool, position: int, expected: str) -> None:
    if not true:
        raise ProtocolError(
            f"damaged message at {position}: expected {expected}",
            hint="a fault in occamdb, or different builds of it on one database: please report it",
            details={"position": position, "expected": expected},
        )


def _unpack(form: struct.Struct, data: bytes, position: int, what: str) -> tuple[Any, ...]:
    _require(len(data) - position >= form.size, position, f"{what} of {form.size} bytes")
    return form.unpack_from(data, position)


def _bytes(data: bytes, position: int, size: int) -> tuple[bytes, int]:
    left = len(data) - position
    _require(size <= left, position, f"{size} bytes, {left} are left")
    return data[position : position + size], position + size


def _check_body(data: bytes, header_size: int, body_size: int, count: int, item_size: int) -> None:
    actual = len(data) - header_size
    _require(body_size == actual, header_size, f"a body of {body_size} bytes, found {actual}")
    _require(count * item_size <= actual, header_size, f"room for {count} entries, found {actual} bytes")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
