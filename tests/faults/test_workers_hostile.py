"""W14, W15: a worker whose ring holds anything at all. It is disconnected; nobody else notices.

Real processes first: a raw attachment writes garbage into its own channel segment by mmap. Then the commit core alone,
in this process, with thousands of mutations of good requests, ending in the audit of every invariant of its store.
"""

from __future__ import annotations

import contextlib
import mmap
import random
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from occamdb import Database, OccamError, RunId, SnapshotExpired
from occamdb.engine.commit._commit_core import CommitCore
from occamdb.engine.commit.messages import (
    Op,
    OpCode,
    OpFlags,
    Request,
    RequestFlags,
    Status,
    decode_reply,
    encode_request,
)
from occamdb.engine.disk.directory import socket_path
from occamdb.engine.model.bounds import encode_bounds
from occamdb.ipc import layout
from occamdb.ipc._channel import ClientChannel
from occamdb.ipc.control import ControlClient
from occamdb.ipc.errors import ChannelError
from occamdb.ipc.process import own_identity
from occamdb.ipc.segment import attach_segment
from tests.support import processes
from tests.support.processes import open_database, segments_of, wait_until

RING_SIZE = 64 * 1024


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("hostile") / "db"
    keeper = open_database(path, ring_size=RING_SIZE, transaction_size_max="1MiB", value_size_max="512KiB")
    yield path
    keeper.close()
    processes.stop_coordinator(path)


def write_raw(memory: mmap.mmap, tail: int, data: bytes) -> None:
    """Bytes into a channel's request ring at `tail`, and the new tail."""
    for offset, byte in enumerate(data):
        memory[layout.RINGS_OFFSET + (tail + offset) % RING_SIZE] = byte
    struct.pack_into("<Q", memory, layout.REQUEST_TAIL_OFFSET, tail + len(data))


class Intruder:
    """An attachment that writes what it likes where it may."""

    def __init__(self, path: Path) -> None:
        self.client = ControlClient.connect(socket_path(str(path)), 10.0)
        self.terms = self.client.call(
            {
                "op": "attach",
                "session": 0,
                "asked": {},
                "durability": "standard",
                "process": own_identity().to_dict(),
            },
            10.0,
        )
        assert self.terms["ok"]
        self.segment = attach_segment(self.terms["channel"], writable=True)
        self.memory = self.segment.map
        self.bell = attach_segment(self.terms["bell"], writable=True)
        self.doorbell = ClientChannel(self.memory, self.bell.map, ring_size=RING_SIZE)
        self.tail = 0

    def word(self, offset: int, value: int) -> None:
        """Store a u64."""
        struct.pack_into("<Q", self.memory, offset, value & (2**64 - 1))

    def publish(self, data: bytes) -> None:
        """Bytes into the request ring behind those before, whatever they are, and the tail behind them."""
        write_raw(self.memory, self.tail, data)
        self.tail += len(data)
        self.doorbell.ring()

    def taken(self) -> bool:
        """Whether the coordinator has taken all of it."""
        (head,) = struct.unpack_from("<Q", self.memory, layout.REQUEST_HEAD_OFFSET)
        return bool(head == self.tail)

    def close(self) -> None:
        self.client.close()
        self.doorbell.close()
        self.segment.close()
        self.bell.close()


@pytest.fixture
def intruder(path: Path) -> Iterator[Intruder]:
    one = Intruder(path)
    yield one
    one.close()


def frame(body: bytes, size: int | None = None) -> bytes:
    """A message as rings carry it; `size`: a lie about its length."""
    count = len(body) if size is None else size
    return struct.pack("<II", count, (count ^ layout.MESSAGE_CHECK) & 0xFFFFFFFF) + body


def put(key: bytes = b"key", value: bytes = b"\x01", **fields: Any) -> Op:
    return Op(OpCode.PUT, key, value, **fields)


def add(bounds: bytes) -> Op:
    return Op(OpCode.ADD, b"key", bounds, argument=1)


def blind(*ops: Op, sequence: int = 1) -> bytes:
    return encode_request(Request(sequence, ops=ops, flags=RequestFlags.BLIND))


def patched(data: bytes, offset: int, form: str, *values: Any) -> bytes:
    changed = bytearray(data)
    struct.pack_into(form, changed, offset, *values)
    return bytes(changed)


GOOD = blind(put())
BOUNDS = encode_bounds(5, 1) or b""
BAD_MESSAGES = {
    "no frame at all": b"\xde\xad\xbe\xef" * 8,
    "a frame of zeros": bytes(64),
    "a frame check that is wrong": patched(frame(GOOD), 4, "<I", 0),
    "larger than any transaction": frame(GOOD, 1 << 20 | 1),
    "4 GiB announced": frame(GOOD, 0xFFFFFFFF),
    "an empty request": frame(b""),
    "half a header": frame(GOOD[:40]),
    "the wrong magic": frame(patched(GOOD, 0, "<I", 0x12345678)),
    "an unknown kind": frame(patched(GOOD, 4, "<H", 2)),
    "unknown flags": frame(patched(GOOD, 6, "<H", 0x8001)),
    "a body size that is short": frame(patched(GOOD, 36, "<I", 1)),
    "a body size that is long": frame(patched(GOOD, 36, "<I", 0xFFFFFFFF)),
    "more ops than there are": frame(patched(GOOD, 32, "<I", 0xFFFFFFFF)),
    "fewer ops than there are": frame(patched(GOOD, 32, "<I", 0)),
    "op code 0": frame(patched(GOOD, 64, "<B", 0)),
    "op code 99": frame(patched(GOOD, 64, "<B", 99)),
    "unknown op flags": frame(patched(GOOD, 65, "<B", 0x80)),
    "a key beyond the end": frame(patched(GOOD, 66, "<H", 0xFFFF)),
    "a value beyond the end": frame(patched(GOOD, 68, "<I", 0xFFFFFFFF)),
    "an empty key": frame(blind(put(key=b""))),
    "an empty value": frame(blind(put(value=b""))),
    "a read with a value": frame(blind(Op(OpCode.READ, b"key", b"value"))),
    "bounds of the wrong size": frame(blind(add(BOUNDS[:-1]))),
    "bounds with unknown flags": frame(blind(add(patched(BOUNDS, 0, "<B", 0x11)))),
    "bounds with reserved bytes in use": frame(blind(add(patched(BOUNDS, 7, "<B", 1)))),
    "bounds that bound nothing": frame(blind(add(patched(BOUNDS, 0, "<B", 0)))),
    "a range without an end": frame(blind(Op(OpCode.RANGE, b"key"))),
    "a check after an effect": frame(blind(put(), Op(OpCode.READ, b"key"))),
    "sequence 0": frame(blind(put(), sequence=0)),
}


def wait_thrown_out(db: Database, path: Path, intruder: Intruder) -> None:
    wait_until(intruder.client.peer_gone, what="the disconnection")
    name = intruder.terms["channel"].lstrip("/")
    wait_until(lambda: name not in segments_of(path, "c"), what="the removal of its segment")
    assert intruder.terms["session"] not in {w["session"] for w in db.stats()["workers"]}


@pytest.mark.parametrize("what", BAD_MESSAGES)
def test_a_bad_message_ends_its_sender_alone(what: str, path: Path, db: Database, intruder: Intruder) -> None:
    run = RunId.new()
    pid = db.stats()["pid"]
    with db.snapshot(run) as view:
        version = db.put(run, "before", what)
        intruder.publish(BAD_MESSAGES[what])
        wait_thrown_out(db, path, intruder)
        # The others: same coordinator, next version, snapshots as they were. The bad request did nothing.
        assert db.put(run, "after", what) == version + 1
        assert view.get("before") is None
    assert db.get(run, "before") == db.get(run, "after") == what
    assert db.stats()["pid"] == pid


COUNTERS = {
    "a tail far ahead": (layout.REQUEST_TAIL_OFFSET, 1 << 40),
    "a tail one byte more than a ring ahead": (layout.REQUEST_TAIL_OFFSET, RING_SIZE + 1),
    "a tail before the head": (layout.REQUEST_TAIL_OFFSET, -1),
}


@pytest.mark.parametrize("what", COUNTERS)
def test_an_impossible_counter(what: str, path: Path, db: Database, intruder: Intruder) -> None:
    run = RunId.new()
    intruder.word(*COUNTERS[what])
    wait_thrown_out(db, path, intruder)
    db.put(run, "after", 1)
    assert db.get(run, "after") == 1


def test_an_impossible_counter_of_the_reply_ring(path: Path, db: Database, intruder: Intruder) -> None:
    """The commit stands, its answer goes nowhere, and nothing is written outside the ring."""
    run = RunId.new()
    intruder.word(layout.REPLY_HEAD_OFFSET, 1 << 50)
    sequence = 0
    # The head last seen leaves room for a ring of replies; then the coordinator looks again.
    while sequence < RING_SIZE // 64 and not intruder.client.peer_gone():
        sequence += 1
        intruder.publish(frame(blind(put(), sequence=sequence)))
        wait_until(lambda: intruder.client.peer_gone() or intruder.taken(), what="the request to be taken")
    assert sequence > 1
    wait_thrown_out(db, path, intruder)
    db.put(run, "after", 1)
    assert db.get(run, "after") == 1


def test_lying_slots_hold_back_nothing_but_garbage(path: Path, db: Database, intruder: Intruder) -> None:
    """Pins of the future, of everything, more slots than there are: reclamation and stats go on."""
    run = RunId.new()
    struct.pack_into("<I", intruder.memory, layout.SLOTS_HIGH_OFFSET, 0xFFFFFFFF)
    chance = random.Random(5)
    for slot in range(layout.SLOT_COUNT):
        lie = chance.choice((2**64 - 1, 2**63, 10**12, chance.getrandbits(64)))
        intruder.word(layout.SLOTS_OFFSET + slot * layout.SLOT_SIZE, lie)
        intruder.word(layout.SLOTS_OFFSET + slot * layout.SLOT_SIZE + 8, chance.getrandbits(64))
    for number in range(300):
        db.put(run, "k", number)
    assert db.stats()["workers"]
    wait_until(lambda: db.stats()["store"]["superseded"] == 0, what="reclamation")
    # The most it can do: hold back what its own snapshots could see.
    intruder.word(layout.SLOTS_OFFSET + 8, 0)
    intruder.word(layout.SLOTS_OFFSET, db.stats()["version"] + 1)
    for number in range(300):
        db.put(run, "k", number)
    assert db.stats()["store"]["superseded"] > 0
    intruder.client.close()
    wait_until(lambda: db.stats()["store"]["superseded"] == 0, what="reclamation after its end")


def test_lies_in_a_well_formed_request_stay_its_own(path: Path, db: Database, intruder: Intruder) -> None:
    """W15: forged versions, an invented read set, values that do not decode (see engine/README.md)."""
    run = RunId.new()
    prefix = db.prefix_of(run)
    version = db.put(run, "honest", 1)
    future = 2**64 - 2
    requests = [
        # From the future: its own writes are not checked, and carry the version that was due.
        Request(1, future, 0, (put(prefix + b"a"),)),
        # A read that never happened, a range that ends before it starts, a CAS on an invented version.
        Request(2, 0, 0, (Op(OpCode.READ, prefix + b"honest", argument=future), put(prefix + b"b"))),
        Request(3, version, 0, (Op(OpCode.RANGE, prefix + b"z", prefix + b"a"), put(prefix + b"c"))),
        Request(
            4,
            0,
            0,
            (
                Op(OpCode.CAS, prefix + b"honest", argument=7),
                put(prefix + b"honest", flags=OpFlags.UNCHECKED),
            ),
        ),
        # A value that is not msgpack, and a key that is not one of ours.
        Request(5, 0, 0, (put(prefix + b"junk", b"\xc1"),), flags=RequestFlags.BLIND),
        Request(6, 0, 0, (put(b"\xff no key", b"\x01"),), flags=RequestFlags.BLIND),
        Request(7, 0, -5, (put(prefix + b"old", b"\x01", expires_at=-1),), flags=RequestFlags.BLIND),
        Request(8, 0, 0, (put(prefix + b"last"),), flags=RequestFlags.BLIND),
    ]
    for request in requests:
        intruder.publish(frame(encode_request(request)))
    wait_until(intruder.taken, what="the requests to be taken")
    last = wait_until(lambda: db.get(run, "last"), what="the last one")
    assert last == 1
    with pytest.raises(OccamError):
        db.get(run, "junk")
    assert db.get(run, "old") is None
    found = db.get_versioned(run, "a")
    assert found is not None and found.version == version + 1
    assert db.get(run, "b") is None
    assert db.get(run, "honest") == 1
    later = db.put(run, "honest", 2)
    assert version < later < version + 20
    assert db.get(run, "honest") == 2
    assert db.stats()["ok"]


# ---- the commit core alone, thousands of times ------------------------------------------------------------------


class Core:
    """A commit core with its thread in this process, and channels over anonymous memory."""

    def __init__(self) -> None:
        self.store = mmap.mmap(-1, 16 << 20)
        self.bell = mmap.mmap(-1, layout.BELL_SEGMENT_SIZE)
        self.core = CommitCore(
            self.store, -1, b"0123456789abcdef", 1, bell_buffer=self.bell, channel_count_max=4,
            key_size_max=1024, value_size_max=1 << 16, request_size_max=1 << 17,
        )  # fmt: skip
        self.thread = threading.Thread(target=self.core.run)
        self.thread.start()

    def channel(self, session: int) -> tuple[int, mmap.mmap]:
        memory = mmap.mmap(-1, layout.channel_size(RING_SIZE))
        view = memoryview(memory)
        layout.write_channel_header(view, session, RING_SIZE)
        view.release()
        index = self.core.open_channel(session, memory, RING_SIZE)
        assert index >= 0
        return index, memory

    def close_channel(self, index: int) -> None:
        from occamdb.engine.commit._commit_core import CHANNEL_STATE_CLOSED

        self.core.close_channel(index)
        wait_until(lambda: self.core.channel_state(index) == CHANNEL_STATE_CLOSED, what="the drain")
        self.core.release_channel(index)

    def stop(self) -> None:
        self.core.stop()
        self.thread.join()


def random_request(chance: random.Random, sequence: int) -> bytes:
    """A good request over a few keys, large values among them."""
    keys = [b"hostile/%d" % n for n in range(6)]
    checks = [
        Op(chance.choice((OpCode.READ, OpCode.CAS)), chance.choice(keys), argument=chance.randrange(4))
        for _ in range(chance.randrange(3))
    ]
    if chance.random() < 0.3:
        checks.append(Op(OpCode.RANGE, b"hostile/", b"hostile0"))
    effects = []
    for _ in range(chance.randrange(4)):
        code = chance.choice((OpCode.PUT, OpCode.DELETE, OpCode.ADD, OpCode.DELETE_RANGE))
        value = {
            OpCode.PUT: bytes([chance.randrange(128)]) * chance.choice((1, 30, 5000)),
            OpCode.DELETE_RANGE: b"hostile/3",
        }.get(code, b"")
        flags = OpFlags.WANT_RESULT if chance.random() < 0.3 else OpFlags.NONE
        effects.append(
            Op(
                code,
                chance.choice(keys),
                value,
                chance.randrange(-5, 5) if code == OpCode.ADD else 0,
                0,
                flags,
            )
        )
    effects.sort(key=lambda op: op.code != OpCode.DELETE_RANGE)
    how = chance.choice((RequestFlags.NONE, RequestFlags.BLIND))
    ops = (*checks, *effects)
    return encode_request(Request(sequence, chance.randrange(4), chance.randrange(100), ops, flags=how))


def mutate(chance: random.Random, data: bytes) -> bytes:
    """Some bytes flipped, cut out, doubled or overwritten by extreme integers."""
    changed = bytearray(data)
    for _ in range(chance.randrange(1, 4)):
        position = chance.randrange(len(changed))
        kind = chance.randrange(4)
        if kind == 0:
            changed[position] ^= 1 << chance.randrange(8)
        elif kind == 1 and position + 4 <= len(changed):
            extreme = chance.choice((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFF))
            struct.pack_into("<I", changed, position, extreme)
        elif kind == 2:
            del changed[position : position + chance.randrange(1, 30)]
        else:
            changed[position:position] = changed[position : position + chance.randrange(1, 30)]
        if not changed:
            return b"\0"
    return bytes(changed)


def test_mutated_requests_never_hurt_the_core() -> None:
    """Every mutation, by itself in a channel of its own, beside one that works and is never disturbed."""
    chance = random.Random(1)
    core = Core()
    try:
        _, memory = core.channel(1)
        honest = ClientChannel(memory, core.bell, ring_size=RING_SIZE)
        broken = 0
        for number in range(1500):
            index, hostile = core.channel(2 + number)
            sequence = 1
            channel = ClientChannel(hostile, core.bell, ring_size=RING_SIZE)
            for _ in range(chance.randrange(4)):
                channel.exchange(random_request(chance, sequence), 60.0)
                sequence += 1
            data = mutate(chance, frame(random_request(chance, sequence)))
            (tail,) = struct.unpack_from("<Q", hostile, layout.REQUEST_TAIL_OFFSET)
            write_raw(hostile, tail, data)
            channel.ring()
            value = b"\xcd" + struct.pack(">H", number)
            answer = decode_reply(honest.exchange(blind(put(b"honest", value), sequence=number + 1), 60.0))
            assert answer.status is Status.COMMITTED
            broken += core.core.channel_state(index) != 1
            core.close_channel(index)
            with contextlib.suppress(ChannelError):
                channel.close()
        assert broken > 500  # the mutations do reach what they are meant to reach
        honest.close()
    finally:
        core.stop()
    assert core.core.check() is None


def channel_of(db: Database) -> str:
    """The segment that a database's snapshots are pinned in."""
    handle: Any = db.handle
    return str(handle.pool.primary.terms.channel)


def test_a_worker_that_was_thrown_out_comes_back(path: Path) -> None:
    """Its channel breaks under it, by whatever fault: its snapshots end, and it attaches anew by itself.

    The pins of the old channel no longer protect anything, so no snapshot may begin on it.
    """
    run = RunId.new()
    with open_database(path) as db, open_database(path) as other:
        db.put(run, "k", 0)
        view = db.snapshot(run)
        name = channel_of(db)
        with attach_segment(name, writable=True) as segment:
            struct.pack_into("<Q", segment.map, layout.REQUEST_TAIL_OFFSET, 1 << 40)
        wait_until(lambda: name.lstrip("/") not in segments_of(path, "c"), what="the removal of its segment")
        with pytest.raises(SnapshotExpired):
            view.get("k")
        other.put(run, "k", 1)
        assert db.get(run, "k") == 1
        with db.snapshot(run) as fresh:
            for number in range(500):
                other.put(run, "k", number)
            assert fresh.get("k") == 1
            assert db.put(run, "k", "mine") == other.put(run, "k", "theirs") - 1
            assert fresh.get("k") == 1
        assert channel_of(db) != name


def test_thrown_out_with_a_request_on_its_way(path: Path) -> None:
    """The channel breaks before the request is taken: asked on the way back, it never happened, and is sent again."""
    run = RunId.new()
    with open_database(path) as db:
        for number in range(20):
            name = channel_of(db)
            with attach_segment(name, writable=True) as segment:
                (head,) = struct.unpack_from("<Q", segment.map, layout.REQUEST_HEAD_OFFSET)
                # A header that is none where the next request begins; the request's own bytes follow too late.
                struct.pack_into("<Q", segment.map, layout.RINGS_OFFSET + head % RING_SIZE, 0)
                struct.pack_into("<Q", segment.map, layout.REQUEST_TAIL_OFFSET, head + 8)
            assert db.kv.increment(run, "n") == number + 1
        assert db.get(run, "n") == 20
