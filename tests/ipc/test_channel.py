"""The client's end of a channel: whole exchanges, and every way in which one can be cut short."""

import ctypes
import mmap
import signal
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from occamdb._testing._echo_server import EchoServer
from occamdb.ipc import layout
from occamdb.ipc._channel import ClientChannel
from occamdb.ipc.errors import (
    ChannelBroken,
    ChannelBusy,
    ChannelError,
    ChannelTimeout,
    LayoutError,
    MessageTooLarge,
)
from tests.ipc.test_doorbell import LONG, interval_signals
from tests.support.children import child, wait_until

RING = 4096
MAP_NORESERVE = 0x4000
FOREVER = 30.0


class Parts:
    """The two segments (anonymous memory), the client, and the coordinator's end."""

    def __init__(self, ring_size: int = RING) -> None:
        self.channel = mmap.mmap(-1, layout.channel_size(ring_size))
        self.bell = mmap.mmap(-1, layout.BELL_SEGMENT_SIZE)
        layout.write_channel_header(memoryview(self.channel), 1, ring_size)
        self.client = ClientChannel(self.channel, self.bell)
        self.ring_size = ring_size

    def server(self, size_max: int = 1 << 28) -> EchoServer:
        return EchoServer(self.channel, self.bell, self.ring_size, size_max)


@pytest.fixture
def parts() -> Iterator[Parts]:
    yield Parts()


@contextmanager
def serving(parts: Parts, requests: int, *, may_spin: bool = True) -> Iterator[None]:
    """A child that echoes `requests` requests, up to 1024 bytes of each."""

    def body() -> None:
        assert parts.server().serve(requests, LONG, may_spin) == requests

    with child(body):
        yield


def pattern(size: int, salt: int) -> bytes:
    return (struct.pack("<Q", salt) * (size // 8 + 1))[:size]


@pytest.mark.parametrize("may_spin", [False, True])
def test_each_request_gets_its_own_reply(parts: Parts, may_spin: bool) -> None:
    sizes = [0, 1, 7, 8, 200, 1024, RING - 9, RING - 8, RING - 7, RING, 3 * RING + 5, 40 * RING]
    requests = [pattern(size, number) for number, size in enumerate(sizes * 20)]
    flag = ctypes.c_uint32(int(may_spin))
    client = ClientChannel(parts.channel, parts.bell, ctypes.addressof(flag), ring_size=RING)
    with serving(parts, len(requests), may_spin=may_spin):
        for request in requests:
            assert client.exchange(request, FOREVER) == request[:1024]
    assert not client.dirty and not client.broken
    if not may_spin:
        assert client.statistics["spins"] == 0


def test_any_contiguous_buffer_is_a_request(parts: Parts) -> None:
    with serving(parts, 3):
        for request in (bytearray(b"abc"), memoryview(b"abc"), mmap.mmap(-1, 3)):
            assert parts.client.exchange(request, None) == bytes(request[:])
    with pytest.raises((TypeError, BufferError)):
        parts.client.exchange("text", 1.0)
    assert not parts.client.dirty


def test_a_late_reply_is_received_later_and_by_nobody_else(parts: Parts) -> None:
    server = parts.server()
    with pytest.raises(ChannelTimeout) as caught:
        parts.client.exchange(b"first", 0.01)
    assert caught.value.sent and caught.value.retryable
    assert parts.client.dirty
    with pytest.raises(ChannelBroken, match="outstanding"):
        parts.client.exchange(b"second", 0.01)
    assert server.poll() == b"first"
    assert server.poll() is None, "the refused request was not sent"
    server.reply_with(b"reply to first")
    assert parts.client.receive(0.0) == b"reply to first"
    assert not parts.client.dirty
    with pytest.raises(ChannelBroken, match="no request"):
        parts.client.receive(0.0)


def test_a_half_sent_request_breaks_the_channel_and_is_never_seen(parts: Parts) -> None:
    server = parts.server()
    with pytest.raises(ChannelTimeout) as caught:
        parts.client.exchange(b"x" * (2 * RING), 0.01)
    assert not caught.value.sent
    assert parts.client.broken
    assert server.poll() is None and server.poll() is None
    for use in (lambda: parts.client.send(b"y", 0.0), lambda: parts.client.receive(0.0)):
        with pytest.raises(ChannelBroken, match="broken"):
            use()


def test_a_request_not_begun_leaves_the_channel_good() -> None:
    """The ring is full of somebody's leftovers: nothing of the request gets in, so nothing is broken."""
    parts = Parts()
    parts.channel[layout.REQUEST_HEAD_OFFSET : layout.REQUEST_HEAD_OFFSET + 8] = struct.pack("<q", -RING)
    with pytest.raises(ChannelTimeout) as caught:
        parts.client.send(b"z" * RING, 0.01)
    assert not caught.value.sent and not parts.client.broken and not parts.client.dirty
    assert parts.channel[layout.REQUEST_TAIL_OFFSET : layout.REQUEST_TAIL_OFFSET + 8] == bytes(8)


class Interrupt(Exception):
    """Raised by a signal handler."""


@contextmanager
def raising_signal(seconds: float) -> Iterator[None]:
    def handler(number: int, frame: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_handler_that_raises_leaves_the_reply_to_be_received(parts: Parts) -> None:
    server = parts.server()
    with raising_signal(0.02), pytest.raises(Interrupt):
        parts.client.exchange(b"one", FOREVER)
    assert parts.client.dirty
    assert server.poll() == b"one"
    server.reply_with(b"1")
    assert parts.client.receive(FOREVER) == b"1"


def test_a_handler_that_raises_in_mid_request_breaks_the_channel(parts: Parts) -> None:
    with raising_signal(0.02), pytest.raises(Interrupt):
        parts.client.exchange(b"x" * (3 * RING), FOREVER)
    assert parts.client.broken


@pytest.mark.parametrize("size", [10, 3 * RING])
def test_on_idle_runs_during_a_wait_and_may_raise(parts: Parts, size: int) -> None:
    calls = []

    def on_idle() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Interrupt

    with pytest.raises(Interrupt):
        parts.client.exchange(b"x" * size, FOREVER, on_idle)
    assert len(calls) == 3
    assert parts.client.dirty == (size == 10)
    assert parts.client.broken == (size != 10)


def test_on_idle_runs_and_the_timeout_holds_under_a_storm_of_signals(parts: Parts) -> None:
    calls = []
    with interval_signals(0.001) as seen, pytest.raises(ChannelTimeout):
        parts.client.exchange(b"x", 0.1, lambda: calls.append(len(seen)))
    assert len(calls) >= 2 and calls[-1] > calls[0]


def test_exchanges_survive_a_storm_of_signals(parts: Parts) -> None:
    with serving(parts, 3000), interval_signals(0.001) as seen:
        for number in range(3000):
            request = pattern(20 + number % 50 * 200, number)
            assert parts.client.exchange(request, FOREVER) == request[:1024]
        wait_until(lambda: seen)


def test_a_second_user_is_refused_and_the_first_unharmed(parts: Parts) -> None:
    inside = threading.Event()
    replies: list[bytes] = []
    waiter = threading.Thread(
        target=lambda: replies.append(parts.client.exchange(b"mine", FOREVER, inside.set)), daemon=True
    )
    waiter.start()
    assert inside.wait(FOREVER)
    for use in (
        lambda: parts.client.send(b"other", 1.0),
        lambda: parts.client.receive(1.0),
        parts.client.close,
    ):
        with pytest.raises(ChannelBusy):
            use()
    server = parts.server()
    assert server.poll() == b"mine"
    server.reply_with(b"yours")
    waiter.join(FOREVER)
    assert replies == [b"yours"]


def test_on_idle_cannot_use_the_channel_it_waits_on(parts: Parts) -> None:
    with pytest.raises(ChannelBusy):
        parts.client.exchange(b"x", FOREVER, lambda: parts.client.send(b"y", 1.0))
    assert parts.client.dirty


def test_the_buffers_stay_mapped_until_close(parts: Parts) -> None:
    for buffer in (parts.channel, parts.bell):
        with pytest.raises(BufferError):
            buffer.close()
    parts.client.close()
    parts.client.close()
    parts.channel.close()
    parts.bell.close()
    assert parts.client.closed and parts.client.broken
    for use in (lambda: parts.client.send(b"y", 0.0), lambda: parts.client.receive(0.0), parts.client.ring):
        with pytest.raises(ChannelBroken, match="closed"):
            use()


def frame(size: int, payload: bytes = b"") -> bytes:
    return struct.pack("<II", size, size ^ layout.MESSAGE_CHECK) + payload


@pytest.mark.parametrize(
    "junk", [b"\0" * 8, b"\xff" * 64, frame(RING - 7), frame(2**32 - 1), struct.pack("<II", 5, 5)]
)
def test_a_damaged_reply_breaks_the_channel(parts: Parts, junk: bytes) -> None:
    parts.client.send(b"x", FOREVER)
    parts.server().write_raw(junk)
    with pytest.raises(ChannelBroken, match="damaged"):
        parts.client.receive(FOREVER)
    assert parts.client.broken


@pytest.mark.parametrize("offset", [layout.REPLY_TAIL_OFFSET, layout.REQUEST_HEAD_OFFSET])
def test_an_impossible_counter_breaks_the_channel(parts: Parts, offset: int) -> None:
    parts.channel[offset : offset + 8] = struct.pack("<Q", 10 * RING)
    with pytest.raises(ChannelBroken):
        parts.client.exchange(b"x" * (2 * RING if offset == layout.REQUEST_HEAD_OFFSET else 1), 5.0)
    assert parts.client.broken


def test_a_reply_in_pieces_is_waited_for(parts: Parts) -> None:
    server = parts.server()
    parts.client.send(b"x", FOREVER)
    server.write_raw(frame(6)[:5])
    with pytest.raises(ChannelTimeout):
        parts.client.receive(0.01)
    server.write_raw(frame(6)[5:] + b"abc")
    with pytest.raises(ChannelTimeout):
        parts.client.receive(0.01)
    server.write_raw(b"def")
    assert parts.client.receive(FOREVER) == b"abcdef"


def test_a_killed_coordinator_is_a_timeout(parts: Parts) -> None:
    with child(lambda: parts.server().serve(10**9, LONG), check=False) as process:
        assert parts.client.exchange(b"x", FOREVER) == b"x"
        process.kill()
        with pytest.raises(ChannelTimeout) as caught:
            parts.client.exchange(b"x", 0.02)
        assert caught.value.sent


def test_a_worker_killed_in_mid_request_leaves_nothing_to_read(parts: Parts) -> None:
    """W2: the coordinator sees no message and never waits."""

    def body() -> None:
        parts.client.exchange(b"x" * (10 * RING), FOREVER)

    server = parts.server()
    with child(body, check=False) as process:
        wait_until(
            lambda: parts.channel[layout.REQUEST_TAIL_OFFSET : layout.REQUEST_TAIL_OFFSET + 8] != bytes(8)
        )
        process.stop()
        assert server.poll() is None, "W5: a stopped writer costs one look"
        process.kill()
    assert [server.poll() for _ in range(50)] == [None] * 50


def test_a_request_over_the_coordinators_limit_is_a_bad_frame(parts: Parts) -> None:
    server = parts.server(size_max=100)
    parts.client.send(b"x" * 101, FOREVER)
    assert server.poll() is False and server.poll() is False


def test_replies_that_do_not_fit_are_refused_not_waited_for(parts: Parts) -> None:
    server = parts.server()
    assert server.reply_with(b"x" * (RING - 8)) == 0
    assert server.reply_with(b"") == -1


def test_channels_over_wrong_memory_are_refused() -> None:
    parts = Parts()
    with pytest.raises(ChannelError, match="doorbell"):
        ClientChannel(parts.channel, bytearray(8))
    with pytest.raises(ChannelError, match="two rings"):
        ClientChannel(parts.channel, parts.bell, ring_size=2 * RING)
    with pytest.raises(LayoutError):
        ClientChannel(bytearray(layout.channel_size(RING)), parts.bell)
    with pytest.raises((BufferError, TypeError)):
        ClientChannel(bytes(layout.channel_size(RING)), parts.bell)


def test_a_message_over_four_gib_is_refused(parts: Parts) -> None:
    huge = mmap.mmap(-1, 2**32, flags=mmap.MAP_PRIVATE | MAP_NORESERVE, prot=mmap.PROT_READ)
    with huge, pytest.raises(MessageTooLarge):
        parts.client.send(huge, 1.0)
    assert not parts.client.broken
