"""A channel whose answers come through an eventfd: published in parts, polled, woken, and never waiting."""

import mmap
import os
import select
import struct
import threading

import pytest

from occamdb._testing._echo_server import EchoServer
from occamdb.ipc import layout
from occamdb.ipc._event_channel import EventChannel
from occamdb.ipc.errors import ChannelBroken
from tests.ipc.test_doorbell import LONG
from tests.support.children import child, wait_until

RING = 4096
SLEEPING_BY_EVENT = 2


class Parts:
    """The segments (anonymous memory), the event loop's channel, and the coordinator's end."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, layout.channel_size(RING))
        self.bell = mmap.mmap(-1, layout.BELL_SEGMENT_SIZE)
        layout.write_channel_header(memoryview(self.memory), 1, RING)
        self.channel = EventChannel(self.memory, self.bell)

    def server(self) -> EchoServer:
        return EchoServer(self.memory, self.bell, RING, 1 << 28)

    @property
    def sleeping(self) -> int:
        return int(struct.unpack_from("<I", self.memory, layout.WORKER_SLEEPING_OFFSET)[0])


@pytest.fixture
def parts() -> Parts:
    return Parts()


def test_a_request_and_its_reply_without_waiting(parts: Parts) -> None:
    assert parts.channel.start(b"hello") is True
    assert parts.channel.dirty and parts.channel.poll() is None
    assert parts.server().serve(1, LONG, False) == 1
    assert parts.channel.poll() == b"hello"
    assert parts.channel.idle


def test_a_request_larger_than_the_ring_is_streamed(parts: Parts) -> None:
    request = bytes(range(256)) * 200

    def body() -> None:
        assert parts.server().serve(1, LONG, False) == 1

    assert parts.channel.start(request) is False
    assert parts.channel.partial and parts.channel.broken
    with child(body):
        wait_until(parts.channel.proceed)
        assert not parts.channel.partial
        reply: list[bytes] = []
        wait_until(lambda: reply.append(found) is None if (found := parts.channel.poll()) else False)
    assert reply == [request[:1024]]
    assert parts.channel.idle


def test_half_a_request_keeps_every_other_use_out(parts: Parts) -> None:
    request = bytearray(3 * RING)
    parts.channel.start(request)
    with pytest.raises(ChannelBroken):
        parts.channel.start(b"another")
    with pytest.raises(ChannelBroken):
        parts.channel.poll()
    with pytest.raises(BufferError):
        request.clear()  # it is still being sent
    parts.channel.close()
    request.clear()
    with pytest.raises(ChannelBroken):
        parts.channel.proceed()


def test_the_flag_says_eventfd_until_a_blocking_call_and_again_behind_it(parts: Parts) -> None:
    assert parts.sleeping == 0
    parts.channel.listen()
    assert parts.sleeping == SLEEPING_BY_EVENT
    served = threading.Thread(target=lambda: parts.server().serve(1, LONG, False))
    served.start()
    assert parts.channel.exchange(b"x", 30.0) == b"x"
    served.join()
    parts.channel.listen()
    assert parts.sleeping == SLEEPING_BY_EVENT


def test_a_reply_without_a_request_and_a_damaged_one(parts: Parts) -> None:
    with pytest.raises(ChannelBroken):
        parts.channel.poll()
    parts.channel.start(b"x")
    struct.pack_into("<Q", parts.memory, layout.REPLY_TAIL_OFFSET, 1 << 40)
    with pytest.raises(ChannelBroken):
        parts.channel.poll()
    assert parts.channel.broken


def test_a_closed_channel(parts: Parts) -> None:
    parts.channel.close()
    for call in (parts.channel.listen, lambda: parts.channel.start(b"x"), parts.channel.poll):
        with pytest.raises(ChannelBroken):
            call()


def test_an_eventfd_that_is_full_is_readable() -> None:
    """What lets the coordinator ignore EAGAIN."""
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        os.eventfd_write(fd, 2**64 - 2)
        with pytest.raises(BlockingIOError):
            os.eventfd_write(fd, 1)
        assert select.select([fd], [], [], 0)[0] == [fd]
    finally:
        os.close(fd)
