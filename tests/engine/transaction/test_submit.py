"""What a transaction makes of every way its commit request can end, and of a fork in between."""

import os
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from occamdb import Database, Transaction, TransactionStatus
from occamdb.engine.client.local_handle import LocalHandle
from occamdb.engine.commit import messages
from occamdb.engine.commit.messages import (
    OpCode,
    OpFlags,
    Reply,
    RequestFlags,
    ResultEntry,
    ResultKind,
    Status,
)
from occamdb.engine.model.errors import (
    CommitOutcomeUnknown,
    CoordinatorUnavailable,
    ForkedHandleError,
    LogWriteError,
    OccamError,
    ProtocolError,
    StoreFullError,
    TransactionStateError,
    TransactionTimeout,
    TransactionTooLarge,
)
from occamdb.engine.model.public_types import RunId
from occamdb.engine.model.settings import Settings
from occamdb.engine.transaction._answer import Answer, seal
from tests.support.databases import memory_database


class Interposed(LocalHandle):
    """An engine whose answer is made up by `respond(request, deadline)`, when that is set."""

    def __init__(self) -> None:
        super().__init__(Settings.of({"max_store_size": "4MiB"}))
        self.respond: Callable[[bytearray, float | None], bytes | Reply] | None = None
        self.requests: list[messages.Request] = []

    def submit(self, request: bytearray, deadline: float | None) -> Answer:
        if self.respond is None:
            answer = super().submit(request, deadline)
        else:
            seal(request, 77, False)
            answer = Answer(5, 77, self.respond(request, deadline), self.log_mode)
        self.requests.append(messages.decode_request(bytes(request)))
        return answer


@pytest.fixture
def handle() -> Interposed:
    return Interposed()


def answering(reply: Reply) -> Callable[[bytearray, float | None], bytes]:
    return lambda request, deadline: messages.encode_reply(reply)


def raising(error: BaseException) -> Callable[[bytearray, float | None], bytes]:
    def respond(request: bytearray, deadline: float | None) -> bytes:
        raise error

    return respond


# --- The request ------------------------------------------------------------------------------------


def test_request_carries_everything_once_and_checks_first(handle: Interposed, run: RunId) -> None:
    db = Database(handle)
    db.put(run, "read", 1)
    other = RunId.new()
    txn = db.begin(run)
    txn.get("read")
    txn.get("read")
    txn.get("absent")
    list(txn.scan("s/"))
    txn.cas("cas", 0, "c")
    txn.put("put", "p", ttl=60)
    txn.put("put", "last", ttl=60)
    txn.delete("gone")
    txn.add("n", -5)
    txn.for_run(other).delete_range("r/")
    start = txn.start_version
    txn.commit()
    request = handle.requests[-1]
    prefix = db.prefix_of(run)
    assert request.start_version == start
    assert request.read_time == txn.expiry_time
    assert request.flags == RequestFlags.NONE
    assert request.run_id == run.bytes
    assert request.sequence == txn.txn_id[1]  # type: ignore[index]
    ops = {(op.code, op.key): op for op in request.ops}
    assert len(ops) == len(request.ops) == 10
    assert ops[OpCode.READ, prefix + b"read"].argument == 1
    assert ops[OpCode.READ, prefix + b"absent"].argument == 0
    assert ops[OpCode.READ, prefix + b"gone"].argument == 0
    assert ops[OpCode.RANGE, prefix + b"s/"].value == prefix + b"s0"
    assert ops[OpCode.CAS, prefix + b"cas"].argument == 0
    assert ops[OpCode.PUT, prefix + b"cas"].flags == OpFlags.UNCHECKED
    assert ops[OpCode.PUT, prefix + b"put"].expires_at == txn.read_time + 60 * 10**9
    assert ops[OpCode.ADD, prefix + b"n"].argument == -5
    cleared = db.prefix_of(other)
    assert ops[OpCode.DELETE_RANGE, cleared + b"r/"].value == cleared + b"r0"
    effects = [op.code for op in request.ops if not op.code.is_check]
    assert effects[0] is OpCode.DELETE_RANGE


def test_implicit_writes_are_blind_and_small(handle: Interposed, run: RunId) -> None:
    db = Database(handle)
    db.put(run, "k", 1)
    db.delete(run, "k")
    db.space(run, 1).add("n")
    db.cas(run, "k", 0, 2)
    assert [request.flags for request in handle.requests] == [RequestFlags.BLIND] * 4
    assert [[op.code for op in request.ops] for request in handle.requests] == [
        [OpCode.PUT],
        [OpCode.DELETE],
        [OpCode.ADD],
        [OpCode.CAS, OpCode.PUT],
    ]


def test_snapshot_isolation_sends_no_reads(handle: Interposed, run: RunId) -> None:
    db = Database(handle)
    with db.begin(run, isolation="snapshot") as txn:
        txn.get("a")
        txn.delete("b")
        list(txn.scan())
        txn.put("c", 1)
    assert [op.code for op in handle.requests[-1].ops] == [OpCode.DELETE, OpCode.PUT]


def test_durable_asks_for_a_sync(handle: Interposed, run: RunId, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Interposed, "log_mode", "standard")
    txn = Database(handle).begin(run)
    txn.put("k", 1)
    txn.commit(durable=True)
    assert handle.requests[-1].flags == RequestFlags.SYNC


def test_deadline_reaches_the_handle(handle: Interposed, run: RunId) -> None:
    deadlines: list[float | None] = []

    def respond(request: bytearray, deadline: float | None) -> bytes:
        deadlines.append(deadline)
        return messages.encode_reply(Reply(Status.COMMITTED, 77, 1, 1))

    handle.respond = respond
    db = Database(handle)
    for timeout in (None, 1000.0):
        txn = db.begin(run, timeout=timeout)
        txn.put("k", 1)
        txn.commit()
    assert deadlines[0] is None
    assert deadlines[1] is not None and deadlines[1] > 100


# --- The reply --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(Status.STORE_FULL, 77), StoreFullError),
        (Reply(Status.LOG_WRITE_ERROR, 77, detail=28), LogWriteError),
        (Reply(Status.LOG_FAILED, 77), LogWriteError),
        (Reply(Status.TOO_LARGE, 77), TransactionTooLarge),
        (Reply(Status.BAD_REQUEST, 77), ProtocolError),
        (Reply(Status.STOPPING, 77), CoordinatorUnavailable),
    ],
)
def test_refusals_become_errors_and_abort(
    handle: Interposed, run: RunId, reply: Reply, error: type[OccamError]
) -> None:
    handle.respond = answering(reply)
    txn = Database(handle).begin(run)
    txn.put("k", 1)
    with pytest.raises(error):
        txn.commit()
    assert txn.status is TransactionStatus.ABORTED
    assert handle.attachment().pin_count == 0


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (CoordinatorUnavailable("gone"), TransactionStatus.ABORTED),
        (TransactionTimeout("late"), TransactionStatus.ABORTED),
        (CommitOutcomeUnknown("who knows", txn_id=(1, 77)), TransactionStatus.VALIDATING),
        (KeyboardInterrupt(), TransactionStatus.VALIDATING),
    ],
)
def test_what_submit_raises_leaves_an_honest_status(
    handle: Interposed, run: RunId, error: BaseException, status: TransactionStatus
) -> None:
    handle.respond = raising(error)
    with pytest.raises(type(error)), Database(handle).begin(run) as txn:
        txn.put("k", 1)
    assert txn.status is status
    assert handle.attachment().pin_count == 0
    with pytest.raises(TransactionStateError):
        txn.get("k")
    with pytest.raises(TransactionStateError):
        txn.commit()


def test_an_unknown_outcome_is_not_retried(handle: Interposed, run: RunId) -> None:
    handle.respond = raising(CommitOutcomeUnknown("who knows"))
    calls = []

    def work(txn: Transaction) -> None:
        calls.append(txn)
        txn.put("k", 1)

    with pytest.raises(CommitOutcomeUnknown):
        Database(handle).transaction(run, work)
    assert len(calls) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda reply: b"",
        lambda reply: reply[:40],
        lambda reply: b"XXXX" + reply[4:],
        lambda reply: reply[:8] + struct.pack("<Q", 5) + reply[16:],
    ],
)
def test_damaged_replies_are_protocol_errors(
    handle: Interposed, run: RunId, damage: Callable[[bytes], bytes]
) -> None:
    good = messages.encode_reply(Reply(Status.COMMITTED, 77, 9, 9))
    handle.respond = lambda request, deadline: damage(good)
    txn = Database(handle).begin(run)
    txn.put("k", 1)
    with pytest.raises(ProtocolError):
        txn.commit()
    assert txn.status is TransactionStatus.VALIDATING  # it may have been committed


@pytest.mark.parametrize(
    ("kind", "value"),
    [(ResultKind.UNSIGNED, (1 << 64) - 1), (ResultKind.SIGNED, -7)],
)
@pytest.mark.parametrize("encode", [lambda reply: reply, messages.encode_reply], ids=["decoded", "message"])
def test_a_decoded_outcome_is_taken_like_a_message(
    handle: Interposed, run: RunId, encode: Callable[[Reply], bytes | Reply], kind: ResultKind, value: int
) -> None:
    reply = Reply(Status.COMMITTED, 77, 9, 123, results=(ResultEntry(0, kind, value),))
    handle.respond = lambda request, deadline: encode(reply)
    db = Database(handle)
    assert db.space(run, 1).add("n") == value
    txn = db.begin(run)
    txn.put("k", 1)
    receipt = txn.commit()
    assert (receipt.version, receipt.durability, txn.txn_id) == (9, "none", (5, 77))
    assert handle.attachment().pin_count == 0


@pytest.mark.parametrize("encode", [lambda reply: reply, messages.encode_reply], ids=["decoded", "message"])
def test_a_decoded_refusal_is_taken_like_a_message(
    handle: Interposed, run: RunId, encode: Callable[[Reply], bytes | Reply]
) -> None:
    handle.respond = lambda request, deadline: encode(Reply(Status.LOG_WRITE_ERROR, 77, detail=28))
    txn = Database(handle).begin(run)
    txn.put("k", 1)
    with pytest.raises(LogWriteError):
        txn.commit()
    assert txn.status is TransactionStatus.ABORTED


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("sync", [False, True])
def test_a_seal_changes_the_sequence_and_the_sync_flag_alone(asked: bool, sync: bool) -> None:
    before = messages.Request(0, 3, 4, flags=RequestFlags.BLIND | (RequestFlags.SYNC if asked else 0))
    request = bytearray(messages.encode_request(before))
    assert seal(request, (1 << 64) - 1, sync) is (asked or sync)
    flags = RequestFlags.BLIND | (RequestFlags.SYNC if asked or sync else 0)
    assert messages.decode_request(bytes(request)) == replace(before, sequence=(1 << 64) - 1, flags=flags)
    with pytest.raises(ValueError, match="64 bytes"):
        seal(bytearray(63), 1, sync)


def test_full_store_refuses_and_goes_on(run: RunId) -> None:
    db = memory_database(max_store_size="1MiB")
    db.put(run, "k", 1)
    txn = db.begin(run)
    for index in range(40):
        txn.put(f"k{index}", b"x" * 50_000)
    with pytest.raises(StoreFullError, match="max_store_size, 1 MiB") as caught:
        txn.commit()
    assert caught.value.limit == 1 << 20 and caught.value.size > 40 * 50_000
    assert db.list(run) == ["k"]
    db.put(run, "k", 2)
    assert db.get(run, "k") == 2
    db.close()


# --- Forks ------------------------------------------------------------------------------------------


def in_child(work: Callable[[], Any]) -> str:
    """Run `work` in a forked child; the repr of what it returned, or the name of what it raised."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            try:
                result = repr(work())
            except BaseException as error:
                result = type(error).__name__
            os.write(writing, result.encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        result = pipe.read()
    os.waitpid(pid, 0)
    return result


def test_transaction_inherited_through_a_fork_is_refused_and_unharmed(run: RunId) -> None:
    db = memory_database()
    db.put(run, "k", 1)
    txn, view = db.begin(run), db.snapshot(run)
    assert txn.get("k") == 1
    txn.put("own", 1)
    rows = txn.scan()
    calls: list[Callable[[], Any]] = [
        lambda: txn.get("k"),
        lambda: txn.put("k", 2),
        lambda: txn.count(),
        lambda: next(rows),
        lambda: txn.commit(),
        lambda: txn.abort(),
        lambda: txn.__enter__(),
        lambda: view.get("k"),
    ]
    for call in calls:
        assert in_child(call) == ForkedHandleError.__name__
    pins = db.attachment().pin_count
    assert pins == 2
    for _ in range(200):
        db.put(run, "k", 2)
    assert txn.get("k") == view.get("k") == 1
    assert not txn.expired
    txn.abort()
    view.close()
    assert db.attachment().pin_count == 0
    db.close()


def test_child_letting_go_of_a_transaction_leaves_the_parents_pin(run: RunId) -> None:
    db = memory_database()
    db.put(run, "k", b"old" * 1000)
    holder: dict[str, Any] = {"txn": db.begin(run), "view": db.snapshot(run)}

    def let_go() -> str:
        holder["view"].close()
        holder.clear()
        return "gone"

    assert in_child(let_go) == "'gone'"
    for _ in range(300):
        db.put(run, "k", b"new" * 1000)
    assert holder["txn"].get("k") == b"old" * 1000
    assert holder["view"].get("k") == b"old" * 1000
    assert not holder["txn"].expired
    holder.clear()
    db.close()


def test_block_left_in_a_child_by_an_exception_is_quiet(run: RunId) -> None:
    """The child unwinds the parent's `with` block: it must neither commit nor hide its own exception."""
    db = memory_database()
    with db.begin(run) as txn:
        txn.put("k", 1)

        def leave() -> None:
            txn.__exit__(SystemExit, SystemExit(), None)

        assert in_child(leave) == "None"
        assert in_child(lambda: txn.__exit__(None, None, None)) == ForkedHandleError.__name__
        assert db.get(run, "k") is None
    assert db.get(run, "k") == 1
    db.close()
