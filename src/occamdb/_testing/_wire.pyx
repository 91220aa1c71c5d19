"""What the compiler made of `engine/commit/_wire.pxd`, to be compared with `messages.py`."""

from ..engine.commit._wire cimport (
    CONFLICTS_LISTED_MAX, CONFLICT_CAS, CONFLICT_HEADER_SIZE, CONFLICT_RANGE, CONFLICT_READ, CONFLICT_WRITE,
    ConflictHeader, KIND_COMMIT, OP_ADD, OP_CAS, OP_DELETE, OP_DELETE_RANGE, OP_HEADER_SIZE, OP_PUT, OP_RANGE,
    OP_READ, OP_UNCHECKED, OP_WANT_RESULT, OpHeader, REPLY_HEADER_SIZE, REPLY_MAGIC, REQUEST_BLIND,
    REQUEST_HEADER_SIZE, REQUEST_MAGIC, REQUEST_SYNC, RESULT_EXISTED, RESULT_SIGNED, RESULT_SIZE, RESULT_UNSIGNED,
    ReplyHeader, RequestHeader, ResultEntry, STATUS_BAD_REQUEST, STATUS_BOUND_REACHED, STATUS_COMMITTED, STATUS_CONFLICT,
    STATUS_INTEGER_OVERFLOW, STATUS_LOG_FAILED, STATUS_LOG_WRITE_ERROR, STATUS_NOT_AN_INTEGER, STATUS_STOPPING,
    STATUS_STORE_FULL, STATUS_TOO_LARGE, put_op,
)
from ..ipc._atomics cimport i64, u8, u16, u32, u64


def struct_sizes() -> dict:
    """Size in bytes of each struct, by name."""
    return {
        "RequestHeader": sizeof(RequestHeader),
        "OpHeader": sizeof(OpHeader),
        "ReplyHeader": sizeof(ReplyHeader),
        "ResultEntry": sizeof(ResultEntry),
        "ConflictHeader": sizeof(ConflictHeader),
    }


def constants() -> dict:
    """Every constant of the format, by name."""
    return {
        "REQUEST_MAGIC": REQUEST_MAGIC, "REPLY_MAGIC": REPLY_MAGIC,
        "REQUEST_HEADER_SIZE": REQUEST_HEADER_SIZE, "OP_HEADER_SIZE": OP_HEADER_SIZE,
        "REPLY_HEADER_SIZE": REPLY_HEADER_SIZE, "RESULT_SIZE": RESULT_SIZE,
        "CONFLICT_HEADER_SIZE": CONFLICT_HEADER_SIZE, "CONFLICTS_LISTED_MAX": CONFLICTS_LISTED_MAX,
        "KIND_COMMIT": KIND_COMMIT, "REQUEST_BLIND": REQUEST_BLIND, "REQUEST_SYNC": REQUEST_SYNC,
        "OP_READ": OP_READ, "OP_RANGE": OP_RANGE, "OP_CAS": OP_CAS, "OP_PUT": OP_PUT, "OP_DELETE": OP_DELETE,
        "OP_ADD": OP_ADD, "OP_DELETE_RANGE": OP_DELETE_RANGE,
        "OP_UNCHECKED": OP_UNCHECKED, "OP_WANT_RESULT": OP_WANT_RESULT,
        "STATUS_COMMITTED": STATUS_COMMITTED, "STATUS_CONFLICT": STATUS_CONFLICT,
        "STATUS_STORE_FULL": STATUS_STORE_FULL, "STATUS_LOG_WRITE_ERROR": STATUS_LOG_WRITE_ERROR,
        "STATUS_NOT_AN_INTEGER": STATUS_NOT_AN_INTEGER, "STATUS_INTEGER_OVERFLOW": STATUS_INTEGER_OVERFLOW,
        "STATUS_TOO_LARGE": STATUS_TOO_LARGE, "STATUS_LOG_FAILED": STATUS_LOG_FAILED,
        "STATUS_BAD_REQUEST": STATUS_BAD_REQUEST, "STATUS_STOPPING": STATUS_STOPPING, "STATUS_BOUND_REACHED": STATUS_BOUND_REACHED,
        "RESULT_EXISTED": RESULT_EXISTED, "RESULT_SIGNED": RESULT_SIGNED, "RESULT_UNSIGNED": RESULT_UNSIGNED,
        "CONFLICT_READ": CONFLICT_READ, "CONFLICT_RANGE": CONFLICT_RANGE, "CONFLICT_WRITE": CONFLICT_WRITE,
        "CONFLICT_CAS": CONFLICT_CAS,
    }


def parse_request_header(bytes data) -> tuple:
    """The header fields of a request in order, read through the packed struct."""
    if len(data) < REQUEST_HEADER_SIZE:
        raise ValueError(f"a request header is {REQUEST_HEADER_SIZE} bytes, got {len(data)}")
    cdef const RequestHeader *h = <const RequestHeader *><const u8 *>data
    return (h.magic, h.kind, h.flags, h.sequence, h.start_version, h.read_time, h.op_count, h.body_size,
            (<const u8 *>&h.run_id[0])[:16], h.turn)


def parse_reply_header(bytes data) -> tuple:
    """The header fields of a reply in order, read through the packed struct."""
    if len(data) < REPLY_HEADER_SIZE:
        raise ValueError(f"a reply header is {REPLY_HEADER_SIZE} bytes, got {len(data)}")
    cdef const ReplyHeader *h = <const ReplyHeader *><const u8 *>data
    return (h.magic, h.status, h.flags, h.sequence, h.commit_version, h.committed_at, h.result_count,
            h.conflict_count, h.detail, h.body_size, h.conflicts_found, h.reserved2)


def parse_conflict_header(bytes data) -> tuple:
    """(kind, key_size, end_size, expected, found) of the conflict at the start of `data`."""
    if len(data) < CONFLICT_HEADER_SIZE:
        raise ValueError(f"a conflict header is {CONFLICT_HEADER_SIZE} bytes, got {len(data)}")
    cdef const ConflictHeader *h = <const ConflictHeader *><const u8 *>data
    return (h.kind, h.key_size, h.end_size, h.expected, h.found)


def encode_op(u8 code, u8 flags, bytes key, bytes value, u64 argument, i64 expires_at) -> bytes:
    """One op as the inline helper `put_op` writes it."""
    if len(key) > 0xFFFF:
        raise ValueError(f"a key on the wire is at most 65,535 bytes, got {len(key)}")
    cdef bytearray out = bytearray(OP_HEADER_SIZE + len(key) + len(value))
    cdef u8 *start = out
    cdef u8 *end = put_op(start, code, flags, key, <u16>len(key), value, <u32>len(value), argument, expires_at)
    assert end - start == len(out)
    return bytes(out)
