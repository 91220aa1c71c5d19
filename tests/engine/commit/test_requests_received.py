"""Requests on their way into the commit thread: incomplete ones, and large ones that wait for memory."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from occamdb.engine.commit._commit_core import CHANNEL_STATE_BROKEN, CHANNEL_STATE_CLOSED
from occamdb.engine.commit.messages import Op, Reply, Status
from occamdb.ipc import layout
from tests.engine.commit.test_commit_core import DEADLINE_S, RING_SIZE, Core, put
from tests.support.processes import open_database, stop_coordinator

MIB = 1 << 20
MESSAGE_CHECK = 0x4F43434D
WINDOW_S = 1.0

MakeCore = Callable[..., Core]


@pytest.fixture
def make_core(tmp_path: Path) -> Iterator[MakeCore]:
    made: list[Core] = []

    def make(channel_count: int, **options: Any) -> Core:
        made.append(Core(tmp_path, channel_count, 64 << 20, **options))
        return made[-1]

    yield make
    for core in made:
        core.stop()
        assert core.core.check() is None
        core.log.abandon()


def publish(core: Core, channel: int, data: bytes, *, at: int = 0) -> None:
    """Put bytes into a request ring behind the client's back, from stream position `at` on (less than a ring)."""
    buffer = core.buffers[channel]
    start = layout.RINGS_OFFSET + at
    buffer[start : start + len(data)] = data
    struct.pack_into("<Q", buffer, layout.REQUEST_TAIL_OFFSET, at + len(data))
    core.core.wake()


def taken(core: Core, channel: int) -> int:
    """Bytes that the commit thread has taken out of a request ring."""
    (head,) = struct.unpack_from("<Q", core.buffers[channel], layout.REQUEST_HEAD_OFFSET)
    return int(head)


def header(size: int) -> bytes:
    return struct.pack("<II", size, size ^ MESSAGE_CHECK)


class Sender(threading.Thread):
    """One worker that sends a request and waits for its answer."""

    def __init__(self, core: Core, channel: int, *ops: Op) -> None:
        super().__init__()
        self.core, self.channel, self.ops = core, channel, ops
        self.reply: Reply | None = None
        self.start()

    def run(self) -> None:
        self.core.send(self.channel, *self.ops, blind=True)
        self.reply = self.core.receive(self.channel)

    def result(self) -> Reply:
        self.join(DEADLINE_S)
        assert self.reply is not None
        return self.reply


def large(name: str, size: int) -> Op:
    return put(name, b"\xc6" + struct.pack(">I", size) + b"v" * size)


def committed(core: Core, channel: int) -> None:
    """A small commit: the commit thread has looked at every ring since it was called."""
    core.send(channel, put("small", b"\x07"), blind=True)
    assert core.receive(channel).status is Status.COMMITTED


# ---- a remainder that is not
# one-----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7])
def test_stray_bytes_do_not_keep_the_commit_thread_busy(make_core: MakeCore, size: int) -> None:
    core = make_core(2)
    publish(core, 1, b"\1\2\3\4\5\6\7"[:size])
    core.run()
    assert core.commit(put("k", b"\x07")).status is Status.COMMITTED
    assert core.thread is not None and core.thread.ident is not None
    clock = time.pthread_getcpuclockid(core.thread.ident)
    before = time.clock_gettime(clock)
    time.sleep(WINDOW_S)
    # A spin takes what the machine gives one thread of it; twenty idle looks a second next to nothing.
    assert time.clock_gettime(clock) - before < WINDOW_S / 20
    # They wait for the rest of a header, and are judged when it comes.
    publish(core, 1, b"\xff" * (8 - size), at=size)
    core.wait(lambda: core.core.channel_state(1) == CHANNEL_STATE_BROKEN)
    assert core.commit(put("k", b"\x08")).status is Status.COMMITTED


def test_a_request_that_comes_in_pieces_is_served(make_core: MakeCore) -> None:
    """The header alone, byte by byte, then the rest: nobody sleeps over it."""
    core = make_core(1)
    core.send(0, put("k", b"\x07"), blind=True)
    (size,) = struct.unpack_from("<Q", core.buffers[0], layout.REQUEST_TAIL_OFFSET)
    stream = bytes(core.buffers[0][layout.RINGS_OFFSET : layout.RINGS_OFFSET + size])
    struct.pack_into("<Q", core.buffers[0], layout.REQUEST_TAIL_OFFSET, 0)
    core.run()
    for at in range(8):
        publish(core, 0, stream[at : at + 1], at=at)
    core.wait(lambda: taken(core, 0) == 8)
    publish(core, 0, stream[8:], at=8)
    assert core.receive(0).status is Status.COMMITTED


# ---- memory for large requests --------------------------------------------------------------------------------------


def test_requests_beyond_the_memory_wait_their_turn(make_core: MakeCore) -> None:
    """Four workers with 3 MiB each and memory for one: all are served, and nothing is lost."""
    core = make_core(5, request_memory_max=4 * MIB)
    core.run()
    senders = [Sender(core, channel, large(f"k{channel}", 3 * MIB)) for channel in range(4)]
    # Small requests do not queue behind them.
    core.send(4, put("small", b"\x07"), blind=True)
    assert core.receive(4).status is Status.COMMITTED
    assert [sender.result().status for sender in senders] == [Status.COMMITTED] * 4


def test_half_received_requests_never_wait_for_each_other(make_core: MakeCore) -> None:
    """What enters has reserved its whole size, so a second one that would not fit beside it has to stay outside."""
    core = make_core(3, request_memory_max=4 * MIB)
    core.run()
    publish(core, 0, header(3 * MIB) + b"x" * 100)
    core.wait(lambda: taken(core, 0) == 108)
    publish(core, 1, header(3 * MIB) + b"x" * 100)
    committed(core, 2)
    assert taken(core, 1) == 0
    # The one that was begun leaves; the other enters.
    core.core.close_channel(0)
    core.wait(lambda: core.core.channel_state(0) == CHANNEL_STATE_CLOSED)
    core.wait(lambda: taken(core, 1) == 108)


def test_a_request_larger_than_the_memory_enters_alone(make_core: MakeCore) -> None:
    core = make_core(2, request_memory_max=MIB)
    core.run()
    senders = [Sender(core, channel, large(f"k{channel}", 6 * MIB)) for channel in range(2)]
    assert [sender.result().status for sender in senders] == [Status.COMMITTED] * 2


def test_who_came_first_is_not_overtaken(make_core: MakeCore) -> None:
    """A request that fits beside what is held waits behind one that came before and does not."""
    core = make_core(4, request_memory_max=8 * MIB)
    core.run()
    publish(core, 0, header(5 * MIB) + b"x" * 100)
    core.wait(lambda: taken(core, 0) == 108)
    publish(core, 1, header(6 * MIB) + b"x" * 100)
    committed(core, 3)
    publish(core, 2, header(2 * MIB) + b"x" * 100)
    committed(core, 3)
    assert (taken(core, 1), taken(core, 2)) == (0, 0)
    core.core.close_channel(0)
    core.wait(lambda: taken(core, 1) == 108)
    core.wait(lambda: taken(core, 2) == 108)


def test_a_worker_stopped_in_the_middle_does_not_keep_the_others_waiting(make_core: MakeCore) -> None:
    """It holds the memory and sends nothing: while others wait it is thrown out, else it may take its time."""
    core = make_core(2, request_memory_max=2 * MIB)
    core.run()
    publish(core, 0, header(2 * MIB) + b"x" * (RING_SIZE // 2))
    core.wait(lambda: taken(core, 0) == 8 + RING_SIZE // 2)
    assert Sender(core, 1, large("k", 2 * MIB)).result().status is Status.COMMITTED
    assert core.core.channel_state(0) == CHANNEL_STATE_BROKEN


def test_waiting_for_memory_takes_no_processor_time(make_core: MakeCore) -> None:
    core = make_core(2, request_memory_max=2 * MIB)
    core.run()
    publish(core, 0, header(2 * MIB) + b"x")
    core.wait(lambda: taken(core, 0) == 9)
    publish(core, 1, header(2 * MIB) + b"x")
    assert core.thread is not None and core.thread.ident is not None
    clock = time.pthread_getcpuclockid(core.thread.ident)
    before = time.clock_gettime(clock)
    time.sleep(WINDOW_S)
    assert time.clock_gettime(clock) - before < WINDOW_S / 20
    assert taken(core, 1) == 0


def test_memory_comes_back_from_what_ends_badly(make_core: MakeCore) -> None:
    """Refused frames, closed channels and served requests alike: afterwards the whole of it is there."""
    core = make_core(3, request_memory_max=2 * MIB)
    core.run()
    publish(core, 0, header(2 * MIB))
    core.wait(lambda: taken(core, 0) == 8)
    struct.pack_into("<Q", core.buffers[0], layout.REQUEST_TAIL_OFFSET, 1 << 40)
    core.core.wake()
    core.wait(lambda: core.core.channel_state(0) == CHANNEL_STATE_BROKEN)
    for _ in range(3):
        core.send(1, large("k", 2 * MIB - 4096), blind=True)
        assert core.receive(1).status is Status.COMMITTED
    publish(core, 2, header(2 * MIB) + b"x")
    core.wait(lambda: taken(core, 2) == 9)


def test_large_values_of_several_threads_through_a_coordinator(tmp_path: Path) -> None:
    """The setting reaches the coordinator, and what waits there is served within an ordinary timeout."""
    path = tmp_path / "db"
    with open_database(path, request_memory_max="1MiB", timeout=30) as db:
        run = db.runs.create_run().run_id

        def write(name: str) -> None:
            db.put(run, name, name.encode() * (2 * MIB))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, "abcd"))
        assert {name: len(db.get(run, name)) for name in "abcd"} == dict.fromkeys("abcd", 2 * MIB)
    stop_coordinator(path)
