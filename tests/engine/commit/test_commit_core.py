"""The commit core by itself: batches of several channels, failing logs, expiry, a full store; no processes."""

import contextlib
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from occamdb.engine.commit._commit_core import CommitCore
from occamdb.engine.commit.messages import (
    ConflictKind,
    Op,
    OpCode,
    OpFlags,
    Reply,
    Request,
    RequestFlags,
    Status,
    decode_reply,
    encode_request,
)
from occamdb.engine.disk import failpoints
from occamdb.engine.log._wal_appender import WalAppender
from occamdb.engine.model.errors import StoreFullError
from occamdb.engine.model.public_types import RunId
from occamdb.engine.transaction._view import StoreAttachment
from occamdb.ipc import layout
from occamdb.ipc._channel import ClientChannel
from tests.support.databases import memory_database

DATABASE_ID = b"0123456789abcdef"
RING_SIZE = 1 << 16
RUN_ID = bytes(16)
PREFIX = b"\0\0\0" + RUN_ID + b"\x01"
DEADLINE_S = 30.0


class Core:
    """A commit core with a log, and the workers' ends of its channels."""

    def __init__(self, folder: Path, channel_count: int, store_size: int = 8 << 20, **options: int) -> None:
        self.store = mmap.mmap(-1, store_size)
        self.bell = mmap.mmap(-1, layout.BELL_SEGMENT_SIZE)
        self.core = CommitCore(
            self.store, -1, DATABASE_ID, 1, bell_buffer=self.bell, channel_count_max=channel_count, **options
        )
        self.log = WalAppender(os.open(folder, os.O_RDONLY), DATABASE_ID, 1, 0, 0, 1 << 20)
        self.core.start_at(0)
        self.core.attach_log(self.log, False)
        self.channels = []
        self.buffers = []
        self.sequences = [0] * channel_count
        for index in range(channel_count):
            buffer = mmap.mmap(-1, layout.channel_size(RING_SIZE))
            with memoryview(buffer) as view:
                layout.write_channel_header(view, index + 1, RING_SIZE)
            assert self.core.open_channel(index + 1, buffer, RING_SIZE) == index
            self.channels.append(ClientChannel(buffer, self.bell, 0, ring_size=RING_SIZE))
            self.buffers.append(buffer)
        self.thread: threading.Thread | None = None

    def send(self, channel: int, *ops: Op, start_version: int = 0, blind: bool = False) -> None:
        """Publish a request; `run` serves what is published so far as one batch."""
        self.sequences[channel] += 1
        request = Request(
            sequence=self.sequences[channel],
            start_version=start_version,
            read_time=time.time_ns(),
            ops=ops,
            run_id=RUN_ID,
            flags=RequestFlags.BLIND if blind else RequestFlags.NONE,
        )
        self.channels[channel].send(encode_request(request), DEADLINE_S)

    def run(self) -> None:
        """Start the commit thread."""
        self.thread = threading.Thread(target=self.core.run)
        self.thread.start()

    def receive(self, channel: int) -> Reply:
        return decode_reply(self.channels[channel].receive(DEADLINE_S))

    def commit(self, *ops: Op, blind: bool = True) -> Reply:
        self.send(0, *ops, blind=blind)
        return self.receive(0)

    def wait(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.002)

    def stop(self) -> None:
        if self.thread is not None:
            self.core.stop()
            self.thread.join(DEADLINE_S)
            assert not self.thread.is_alive()
            self.thread = None


@pytest.fixture
def make_core(tmp_path: Path) -> Iterator[Callable[..., Core]]:
    made = []

    def make(channel_count: int = 1, **sizes: int) -> Core:
        made.append(Core(tmp_path, channel_count, **sizes))
        return made[-1]

    yield make
    for core in made:
        core.stop()
    failpoints.clear()
    for core in made:
        assert core.core.check() is None
        core.log.abandon()


def key(name: str) -> bytes:
    return PREFIX + name.encode()


def put(name: str, value: bytes, expires_at: int = 0) -> Op:
    return Op(OpCode.PUT, key(name), value, expires_at=expires_at)


def add(name: str, delta: int) -> Op:
    return Op(OpCode.ADD, key(name), argument=delta, flags=OpFlags.WANT_RESULT)


INT_7 = b"\x07"
TEXT = b"\xa1x"


# ---- a batch that the log refuses -------------------------------------------------------------------------------


@pytest.mark.parametrize("log_fails", [True, False])
@pytest.mark.parametrize(
    ("second", "alone"),
    [
        (add("k", 1), Status.NOT_AN_INTEGER),
        (Op(OpCode.CAS, key("k"), argument=0), Status.CONFLICT),
        (Op(OpCode.READ, key("k"), argument=0), Status.CONFLICT),
        (Op(OpCode.RANGE, key("a"), value=key("z")), Status.CONFLICT),
    ],
    ids=["add", "cas", "read", "range"],
)
def test_who_was_refused_for_a_commit_that_is_undone_is_not_told_so(
    make_core: Callable[..., Core], second: Op, alone: Status, log_fails: bool
) -> None:
    """The first of a batch makes the second fail; if the log then refuses both, the second's reason never was."""
    core = make_core(2)
    if log_fails:
        failpoints.set("wal.before_write", "errno:ENOSPC@1")
    core.send(0, put("k", TEXT), blind=True)
    core.send(1, second)
    core.run()
    first_reply, second_reply = core.receive(0), core.receive(1)
    if not log_fails:
        assert (first_reply.status, second_reply.status) == (Status.COMMITTED, alone)
        return
    assert (first_reply.status, second_reply.status) == (Status.LOG_WRITE_ERROR, Status.LOG_WRITE_ERROR)
    assert second_reply.conflicts == ()
    core.send(1, second)
    assert core.receive(1).status is Status.COMMITTED
    assert core.core.committed_version == 1


def test_what_was_refused_before_the_first_commit_of_a_failed_batch_stands(
    make_core: Callable[..., Core],
) -> None:
    core = make_core(2)
    failpoints.set("wal.before_write", "errno:ENOSPC@1")
    core.send(0, Op(OpCode.CAS, key("k"), argument=9), put("k", INT_7))
    core.send(1, put("k", INT_7), blind=True)
    core.run()
    refused = core.receive(0)
    assert refused.status is Status.CONFLICT
    assert [(c.kind, c.expected, c.found) for c in refused.conflicts] == [(ConflictKind.CAS, 9, 0)]
    assert core.receive(1).status is Status.LOG_WRITE_ERROR
    assert core.core.committed_version == 0


# ---- expiry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", ["errno:ENOSPC@1", "errno:EIO@1*3"])
def test_expired_keys_go_although_the_log_refused_at_first(
    make_core: Callable[..., Core], failure: str
) -> None:
    core = make_core()
    core.run()
    core.commit(*(put(f"k{n}", INT_7, expires_at=time.time_ns() + 100_000_000) for n in range(20)))
    assert core.core.stats()["keys"] == 20
    failpoints.set("wal.before_write", failure)
    core.wait(lambda: core.core.stats()["log_errors"] > 0)
    assert core.core.stats()["expired"] == 0
    core.wait(lambda: core.core.stats()["keys"] == 0)
    assert core.core.stats()["expired"] == 20
    assert core.core.stats()["pending_expiries"] == 0


def test_overwritten_expiries_are_forgotten_between_batches(make_core: Callable[..., Core]) -> None:
    """The heap follows the number of keys, whatever the number of writes."""
    core = make_core()
    core.run()
    later = time.time_ns() + 3_600_000_000_000
    for _ in range(40):
        core.commit(*(put(f"k{n}", INT_7, expires_at=later) for n in range(500)))
    assert core.core.stats()["pending_expiries"] <= 5000


# ---- a full store ---------------------------------------------------------------------------------------------------


def test_a_store_full_of_deleted_keys_takes_the_next_commit() -> None:
    """Nodes of deleted keys cannot go inside a batch; the first request of one asks for it before it is refused."""
    run = RunId.new()
    with memory_database(max_store_size="1MiB") as db:
        count, full = 0, False
        while not full:
            try:
                db.put(run, f"{count:06}" + "x" * 400, 1)
                count += 1
            except StoreFullError:
                full = True
        assert count > 500
        # Few large transactions, so that nothing else makes the core look for garbage.
        for start in range(0, count, count // 8):
            with db.begin(run) as txn:
                for number in range(start, min(start + count // 8, count)):
                    txn.delete(f"{number:06}" + "x" * 400)
        for number in range(count // 2):
            db.put(run, f"new {number:06}" + "x" * 400, 1)


# ---- pins -----------------------------------------------------------------------------------------------------------


def test_the_own_pin_holds_while_channels_come_and_go(make_core: Callable[..., Core]) -> None:
    """A checkpoint's snapshot stays whole under writes to the same keys and attaching workers."""
    core = make_core(8)
    core.run()
    core.commit(*(put(f"k{n}", b"\xd9\x40" + bytes([65 + n % 26]) * 64) for n in range(50)))
    version = core.core.pin()
    attachment = StoreAttachment(core.store, core.buffers[0])
    for round_ in range(30):
        core.commit(*(put(f"k{n}", b"\xd9\x40" + b"z" * 64) for n in range(50)))
        core.core.close_channel(1 + round_ % 7)
        core.wait(lambda: core.core.channel_state(1 + round_ % 7) == 3)  # noqa: B023
        core.core.release_channel(1 + round_ % 7)
        with contextlib.closing(core.channels[1 + round_ % 7]):
            buffer = mmap.mmap(-1, layout.channel_size(RING_SIZE))
            assert core.core.open_channel(100 + round_, buffer, RING_SIZE) == 1 + round_ % 7
            core.buffers.append(buffer)
            core.channels[1 + round_ % 7] = ClientChannel(buffer, core.bell, 0, ring_size=RING_SIZE)
    assert not core.core.pin_revoked()
    assert attachment.committed_version > version
    assert core.core.stats()["store"]["superseded"] > 0
    core.core.unpin()
    core.wait(lambda: core.core.stats()["store"]["superseded"] == 0)
