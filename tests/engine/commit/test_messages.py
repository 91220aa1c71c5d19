"""The wire format: round trips, garbage, agreement with the compiled structs, and the errors replies mean."""

import errno
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from occamdb._testing import _wire
from occamdb.engine.commit import messages
from occamdb.engine.commit.messages import (
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
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
    request_size,
)
from occamdb.engine.model import errors
from occamdb.engine.model.bounds import encode_bounds
from occamdb.engine.model.errors import CASConflict, ConflictError, ProtocolError, ReadConflict, WriteConflict
from occamdb.engine.model.keys import Namespace, TypeTag, encode_key, tag_prefix
from occamdb.engine.model.public_types import RunId

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
i64 = st.integers(-(2**63), 2**63 - 1)
blobs = st.binary(max_size=30)


@st.composite
def ops(draw: st.DrawFn) -> Op:
    code = draw(st.sampled_from(OpCode))
    argument = draw(i64 if code is OpCode.ADD else u64)
    flags = draw(st.sampled_from([OpFlags.NONE, OpFlags.UNCHECKED, OpFlags.WANT_RESULT, OpFlags(3)]))
    # The value of an increment is its bounds, or nothing.
    pairs = st.tuples(u64, st.none()) | st.tuples(st.none(), i64) | st.just((None, None))
    bounded = pairs.map(lambda pair: encode_bounds(*pair) or b"")
    value = draw(bounded if code is OpCode.ADD else blobs)
    return Op(code, draw(blobs), value, argument, draw(i64), flags)


requests = st.builds(
    Request,
    sequence=u64,
    start_version=u64,
    read_time=i64,
    ops=st.lists(ops(), max_size=8).map(lambda o: tuple(sorted(o, key=lambda op: not op.code.is_check))),
    run_id=st.binary(min_size=16, max_size=16),
    flags=st.sampled_from([RequestFlags.NONE, RequestFlags.BLIND, RequestFlags.SYNC, RequestFlags(3)]),
    turn=u64,
)


@st.composite
def results(draw: st.DrawFn) -> ResultEntry:
    kind = draw(st.sampled_from(ResultKind))
    values = {ResultKind.EXISTED: st.integers(0, 1), ResultKind.SIGNED: i64, ResultKind.UNSIGNED: u64}
    return ResultEntry(draw(u32), kind, draw(values[kind]))


conflicts = st.builds(ConflictEntry, st.sampled_from(ConflictKind), blobs, u64, u64, blobs)


@st.composite
def replies(draw: st.DrawFn) -> Reply:
    listed = tuple(draw(st.lists(conflicts, max_size=16)))
    return Reply(
        draw(st.sampled_from(Status)),
        draw(u64),
        draw(u64),
        draw(i64),
        draw(u32),
        tuple(draw(st.lists(results(), max_size=4))),
        listed,
        draw(st.integers(len(listed), 2**64 - 1)),
    )


@given(requests)
def test_requests_round_trip(request: Request) -> None:
    data = encode_request(request)
    assert decode_request(data) == request
    assert len(data) == request_size(request.ops)


@given(replies())
def test_replies_round_trip(reply: Reply) -> None:
    assert decode_reply(encode_reply(reply)) == reply


# --- Agreement with the compiled side ------------------------------------------------------------


def test_struct_sizes_agree() -> None:
    assert _wire.struct_sizes() == {
        "RequestHeader": messages.REQUEST_HEADER.size,
        "OpHeader": messages.OP_HEADER.size,
        "ReplyHeader": messages.REPLY_HEADER.size,
        "ResultEntry": messages.RESULT.size,
        "ConflictHeader": messages.CONFLICT_HEADER.size,
    }


def test_constants_agree() -> None:
    compiled = _wire.constants()
    mine = {
        "REQUEST_MAGIC": messages.REQUEST_MAGIC,
        "REPLY_MAGIC": messages.REPLY_MAGIC,
        "REQUEST_HEADER_SIZE": messages.REQUEST_HEADER.size,
        "OP_HEADER_SIZE": messages.OP_HEADER.size,
        "REPLY_HEADER_SIZE": messages.REPLY_HEADER.size,
        "RESULT_SIZE": messages.RESULT.size,
        "CONFLICT_HEADER_SIZE": messages.CONFLICT_HEADER.size,
        "CONFLICTS_LISTED_MAX": messages.CONFLICTS_LISTED_MAX,
        "KIND_COMMIT": messages.KIND_COMMIT,
        "REQUEST_BLIND": RequestFlags.BLIND,
        "REQUEST_SYNC": RequestFlags.SYNC,
        "OP_UNCHECKED": OpFlags.UNCHECKED,
        "OP_WANT_RESULT": OpFlags.WANT_RESULT,
        **{f"OP_{code.name}": code for code in OpCode},
        **{f"STATUS_{status.name}": status for status in Status},
        **{f"RESULT_{kind.name}": kind for kind in ResultKind},
        **{f"CONFLICT_{kind.name}": kind for kind in ConflictKind},
    }
    assert compiled == mine


@given(requests)
def test_request_headers_agree(request: Request) -> None:
    data = encode_request(request)
    assert _wire.parse_request_header(data) == messages.REQUEST_HEADER.unpack_from(data)


@given(replies())
def test_reply_headers_agree(reply: Reply) -> None:
    data = encode_reply(reply)
    assert _wire.parse_reply_header(data) == messages.REPLY_HEADER.unpack_from(data)


@given(conflicts)
def test_conflict_headers_agree(entry: ConflictEntry) -> None:
    data = encode_reply(Reply(Status.CONFLICT, 1, conflicts=(entry,), conflicts_found=1))
    head = _wire.parse_conflict_header(data[messages.REPLY_HEADER.size :])
    assert head == (entry.kind, len(entry.key), len(entry.end), entry.expected, entry.found)


@given(ops())
def test_ops_agree(op: Op) -> None:
    compiled = _wire.encode_op(op.code, op.flags, op.key, op.value, op.argument % 2**64, op.expires_at)
    assert compiled == encode_request(Request(1, ops=(op,)))[messages.REQUEST_HEADER.size :]


# --- Garbage -------------------------------------------------------------------------------------


def decodes_or_refuses(decode: Any, encode: Any, data: bytes) -> None:
    """A message that is accepted says the same when it is encoded again, except in reserved bytes."""
    try:
        message = decode(data)
    except ProtocolError as error:
        assert error.details["expected"] and 0 <= error.details["position"] <= len(data)
        return
    assert decode(encode(message)) == message and len(encode(message)) == len(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_an_error(data: bytes) -> None:
    decodes_or_refuses(decode_request, encode_request, data)
    decodes_or_refuses(decode_reply, encode_reply, data)


@given(requests, replies(), st.data())
def test_a_changed_byte_is_a_message_or_an_error(request: Request, reply: Reply, data: st.DataObject) -> None:
    for message, decode, encode in (
        (encode_request(request), decode_request, encode_request),
        (encode_reply(reply), decode_reply, encode_reply),
    ):
        damaged = bytearray(message)
        place = data.draw(st.integers(0, len(damaged) - 1))
        damaged[place] ^= data.draw(st.integers(1, 255))
        decodes_or_refuses(decode, encode, bytes(damaged))


@given(requests, replies())
def test_every_truncation_and_every_surplus_is_an_error(request: Request, reply: Reply) -> None:
    for data, decode in ((encode_request(request), decode_request), (encode_reply(reply), decode_reply)):
        assert callable(decode)
        for size in range(len(data)):
            with pytest.raises(ProtocolError):
                decode(data[:size])
        with pytest.raises(ProtocolError):
            decode(data + b"\x00")


def test_checks_must_come_before_effects() -> None:
    put, read = Op(OpCode.PUT, b"k", b"v"), Op(OpCode.READ, b"k")
    assert decode_request(encode_request(Request(1, ops=(read, put)))).ops == (read, put)
    with pytest.raises(ProtocolError, match="checks before effects"):
        decode_request(encode_request(Request(1, ops=(put, read))))


def test_a_huge_count_is_refused_before_it_is_believed() -> None:
    data = bytearray(encode_request(Request(1)))
    data[32:36] = b"\xff\xff\xff\xff"
    with pytest.raises(ProtocolError, match="room for 4294967295"):
        decode_request(bytes(data))


# --- What replies mean ---------------------------------------------------------------------------

RUN = RunId.new()
PREFIX = tag_prefix(Namespace(run_id=RUN).prefix, TypeTag.KV)
KEY = encode_key(PREFIX, "k")
REQUEST = Request(1, ops=(Op(OpCode.READ, b"other"), Op(OpCode.ADD, KEY, argument=1)))


def test_committed_is_no_error() -> None:
    assert Reply(Status.COMMITTED, 1, 9).error() is None


def test_conflicts_become_records() -> None:
    entries = (
        ConflictEntry(ConflictKind.READ, KEY, 1, 2),
        ConflictEntry(ConflictKind.RANGE, PREFIX, 4, 5, PREFIX + b"z"),
        ConflictEntry(ConflictKind.WRITE, KEY, 4, 6),
        ConflictEntry(ConflictKind.CAS, KEY, 0, 3),
    )
    error = Reply(Status.CONFLICT, 1, conflicts=entries, conflicts_found=30).error()
    assert isinstance(error, ConflictError) and error.conflicts_found == 30
    assert error.conflicts == (
        ReadConflict("k", 1, 2, None, RUN, TypeTag.KV),
        ReadConflict("", 4, 5, ("", "z"), RUN, TypeTag.KV),
        WriteConflict("k", 4, 6, RUN, TypeTag.KV),
        CASConflict("k", 0, 3, RUN, TypeTag.KV),
    )


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (Status.STORE_FULL, errors.StoreFullError),
        (Status.LOG_WRITE_ERROR, errors.LogWriteError),
        (Status.NOT_AN_INTEGER, errors.NotAnIntegerError),
        (Status.INTEGER_OVERFLOW, errors.IntegerOverflowError),
        (Status.BOUND_REACHED, errors.BoundReached),
        (Status.TOO_LARGE, errors.TransactionTooLarge),
        (Status.LOG_FAILED, errors.LogWriteError),
        (Status.BAD_REQUEST, errors.ProtocolError),
        (Status.STOPPING, errors.CoordinatorUnavailable),
    ],
)
def test_every_status_is_an_error_with_a_hint(status: Status, kind: type[errors.OccamError]) -> None:
    error = Reply(status, 1, detail=1).error(REQUEST)
    assert type(error) is kind and error.message and error.hint


def test_details_reach_the_error() -> None:
    error = Reply(Status.LOG_WRITE_ERROR, 1, detail=errno.ENOSPC).error()
    assert isinstance(error, errors.LogWriteError)
    assert error.errno == errno.ENOSPC and "No space left" in error.message
    named = Reply(Status.NOT_AN_INTEGER, 1, detail=1).error(REQUEST)
    assert isinstance(named, errors.NotAnIntegerError) and named.key == "k" and "'k'" in named.message
    unnamed = Reply(Status.INTEGER_OVERFLOW, 1, detail=99).error(REQUEST)
    assert isinstance(unnamed, errors.IntegerOverflowError) and unnamed.key is None
