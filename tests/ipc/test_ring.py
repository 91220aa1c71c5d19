"""Rings and framing against plain bytes: wrap-around, streaming, hostile counters, lying sizes."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from occamdb._testing._ring_pair import RingPair
from occamdb.ipc.layout import MESSAGE_CHECK

CAPACITY = 64
GUARD = 256
SIZE_MAX = 1000
COUNTER, HEADER, TOO_LARGE = 1, 2, 3
START_POSITIONS = st.sampled_from([0, 1, CAPACITY - 3, 2**32 - 7, 2**63 - 9, 2**64 - 21])


def header(size: int) -> bytes:
    return struct.pack("<II", size, size ^ MESSAGE_CHECK)


class Guarded:
    """A ring between two zones that must never change."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.memory = bytearray(b"\xa5" * (128 + capacity + 2 * GUARD))
        inner = memoryview(self.memory)[GUARD : GUARD + 128 + capacity]
        inner[:128] = bytes(128)
        self.ring = RingPair(inner)

    def check(self) -> None:
        assert self.memory[:GUARD] == self.memory[-GUARD:] == b"\xa5" * GUARD


class ByteRing(RuleBasedStateMachine):
    """Bytes in, the same bytes out."""

    def __init__(self) -> None:
        super().__init__()
        self.guarded = Guarded()
        self.ring = self.guarded.ring
        self.model = b""
        self.moved = False

    @rule(position=START_POSITIONS)
    @precondition(lambda self: not self.moved)
    def start(self, position: int) -> None:
        self.ring.start_at(position)
        self.moved = True

    @rule(data=st.binary(max_size=2 * CAPACITY))
    def write(self, data: bytes) -> None:
        self.moved = True
        taken = self.ring.write(data)
        assert taken == min(len(data), CAPACITY - len(self.model))
        self.model += data[:taken]

    @rule(size=st.integers(0, 2 * CAPACITY))
    def read(self, size: int) -> None:
        assert self.ring.read(size) == self.model[:size]
        self.model = self.model[size:]

    @invariant()
    def agrees(self) -> None:
        assert self.ring.readable() == len(self.model)
        assert self.ring.writable() == CAPACITY - len(self.model)
        self.guarded.check()


class MessageRing(RuleBasedStateMachine):
    """Messages in, streamed or whole, come out whole and in order; nothing waits in vain."""

    def __init__(self) -> None:
        super().__init__()
        self.guarded = Guarded()
        self.ring = self.guarded.ring
        self.waiting: list[bytes] = []
        self.streaming = False
        self.moved = False

    @rule(position=START_POSITIONS)
    @precondition(lambda self: not self.moved)
    def start(self, position: int) -> None:
        self.ring.start_at(position)
        self.moved = True

    @rule(data=st.binary(max_size=80))
    @precondition(lambda self: not self.streaming)
    def send_whole(self, data: bytes) -> None:
        self.moved = True
        room = self.ring.writable()
        outcome = self.ring.send(data)
        assert outcome == (0 if room >= 8 + len(data) else -1)
        if outcome == 0:
            self.waiting.append(data)
        else:
            assert self.ring.writable() == room, "a message that does not fit leaves nothing behind"

    @rule(data=st.binary(max_size=300))
    @precondition(lambda self: not self.streaming)
    def begin_stream(self, data: bytes) -> None:
        self.moved = True
        self.ring.message_start(data)
        self.waiting.append(data)
        self.streaming = True
        self.go_on()

    @rule()
    @precondition(lambda self: self.streaming)
    def go_on(self) -> None:
        outcome = self.ring.message_write()
        assert outcome in (0, 1)
        assert outcome or self.ring.writable() < 8, "an unfinished message has filled the ring"
        self.streaming = outcome == 0

    @rule()
    def poll(self) -> None:
        before = self.ring.readable()
        outcome = self.ring.poll(SIZE_MAX)
        assert self.ring.progressed == (self.ring.readable() < before)
        if outcome == 1:
            assert self.ring.poll(SIZE_MAX) == 1, "complete until taken"
            assert self.ring.take() == self.waiting.pop(0)
        else:
            assert outcome == 0
            assert self.streaming or not self.waiting, "a whole message in the ring is delivered"

    @invariant()
    def guarded_zones(self) -> None:
        self.guarded.check()

    def teardown(self) -> None:
        for _ in range(10_000):
            if not self.waiting:
                break
            if self.streaming:
                self.go_on()
            self.poll()
        assert not self.waiting


TestByteRing = ByteRing.TestCase
TestByteRing.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestMessageRing = MessageRing.TestCase
TestMessageRing.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


def parse(stream: bytes, size_max: int) -> tuple[list[bytes], int]:
    """The plain model of the inbox: messages, then the fault (0 none)."""
    messages: list[bytes] = []
    while len(stream) >= 8:
        size, check = struct.unpack_from("<II", stream)
        if size ^ MESSAGE_CHECK != check:
            return messages, HEADER
        if size > size_max:
            return messages, TOO_LARGE
        if len(stream) < 8 + size:
            break
        messages.append(stream[8 : 8 + size])
        stream = stream[8 + size :]
    return messages, 0


PIECES = st.one_of(
    st.binary(max_size=40),
    st.binary(max_size=200).map(lambda data: header(len(data)) + data),
    st.integers(0, 2**32 - 1).map(header),
)


@given(st.lists(PIECES, max_size=8), st.integers(1, CAPACITY))
def test_any_stream_is_parsed_as_the_model_parses_it(pieces: list[bytes], chunk: int) -> None:
    guarded = Guarded()
    ring = guarded.ring
    stream = b"".join(pieces)
    messages: list[bytes] = []
    position = 0
    outcome = 0
    while outcome >= 0:
        taken = ring.write(stream[position : position + chunk])
        position += taken
        outcome = ring.poll(SIZE_MAX)
        if outcome == 1:
            messages.append(ring.take())
        elif outcome == 0 and position == len(stream) and not ring.progressed:
            break
    assert (messages, ring.fault) == parse(stream, SIZE_MAX)
    guarded.check()
    if outcome < 0:
        assert ring.poll(SIZE_MAX) == -1, "it stays bad"


WORDS = st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 300), st.integers(2**64 - 300, 2**64 - 1))


@given(WORDS, WORDS, st.binary(max_size=150), START_POSITIONS)
def test_forged_counters_never_lead_outside_the_ring(head: int, tail: int, data: bytes, start: int) -> None:
    guarded = Guarded()
    ring = guarded.ring
    ring.start_at(start)
    ring.force_counters(head, tail)
    readable = (tail - start) % 2**64
    used = (start - head) % 2**64
    assert ring.readable() == (readable if readable <= CAPACITY else -1)
    assert ring.writable() == (CAPACITY - used if used <= CAPACITY else -1)
    if readable > CAPACITY:
        assert ring.read(CAPACITY) is None
        assert ring.poll(SIZE_MAX) == -1 and ring.fault == COUNTER
    else:
        assert len(ring.read(2 * CAPACITY) or b"") == readable
    ring.force_counters(head, tail)
    assert ring.write(data) == (min(len(data), CAPACITY - used) if used <= CAPACITY else -1)
    guarded.check()


def test_sending_against_a_forged_counter_reports_it() -> None:
    ring = Guarded().ring
    while ring.send(b"x" * 20) == 0:
        pass
    ring.force_counters(5000, 0)
    assert ring.send(b"x" * 20) == -2
    ring.message_start(b"y" * 20)
    assert ring.message_write() == -1


def test_an_announced_size_costs_no_memory_until_the_bytes_come() -> None:
    ring = Guarded(4096).ring
    assert ring.write(header(200_000_000) + b"x" * 100) == 108
    assert ring.poll(1 << 28) == 0
    assert ring.retained < 16384


def test_a_large_buffer_is_given_back_and_a_small_one_kept() -> None:
    ring = Guarded(65536).ring

    def transfer(data: bytes) -> None:
        ring.message_start(data)
        outcome = 0
        while outcome == 0:
            ring.message_write()
            outcome = ring.poll(1 << 28)
        assert ring.take() == data

    transfer(b"s" * 5000)
    kept = ring.retained
    assert 5000 <= kept <= 65536
    transfer(b"t" * 100)
    assert ring.retained == kept
    transfer(bytes(range(256)) * 8192)
    assert ring.retained == 0


@pytest.mark.parametrize("size", [0, 127, 128, 128 + 96])
def test_a_buffer_that_holds_no_ring_is_refused(size: int) -> None:
    with pytest.raises(ValueError):
        RingPair(bytearray(size))


def test_an_exported_buffer_stays() -> None:
    buffer = bytearray(128 + 64)
    ring = RingPair(buffer)
    with pytest.raises(BufferError):
        buffer.clear()
    del ring
    buffer.clear()
