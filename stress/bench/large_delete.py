"""How long others' commits take while a run of many keys is deleted: key by key, and as a range tombstone.

    python -m occamdb.stress.bench.large_delete [keys]

One process with a commit core of its own in memory, a thread and two channels. It measures how long the
commit thread keeps a request waiting. "quiet" is the same traffic without a deletion.
"""

from __future__ import annotations

import contextlib
import mmap
import sys
import threading
import time

from occamdb.engine.commit._commit_core import CommitCore
from occamdb.engine.commit.messages import (
    Op,
    OpCode,
    Request,
    RequestFlags,
    Status,
    decode_reply,
    encode_request,
)
from occamdb.ipc import layout
from occamdb.ipc._channel import ClientChannel

RING_SIZE = 1 << 20
PREFIX = b"\0\0\0" + bytes(16) + b"\x01"
OTHER = b"\0\0\0" + bytes(16) + b"\x02key"
BATCH = 1000
INLINE_ALL = 0xFFFFFFF


class Client:
    """One channel of a core."""

    def __init__(self, core: CommitCore, bell: mmap.mmap, session: int) -> None:
        """Open the channel."""
        buffer = mmap.mmap(-1, layout.channel_size(RING_SIZE))
        with memoryview(buffer) as view:
            layout.write_channel_header(view, session, RING_SIZE)
        core.open_channel(session, buffer, RING_SIZE)
        self.channel = ClientChannel(buffer, bell, 0, ring_size=RING_SIZE)
        self.sequence = 0

    def commit(self, *ops: Op) -> None:
        """A blind commit."""
        self.sequence += 1
        request = Request(self.sequence, 0, time.time_ns(), ops, flags=RequestFlags.BLIND)
        self.channel.send(encode_request(request), 120)
        reply = decode_reply(self.channel.receive(120))
        if reply.status is not Status.COMMITTED:
            raise RuntimeError(f"the commit ended with {reply.status.name}")


def percentile(times: list[float], share: float) -> float:
    """In milliseconds."""
    return sorted(times)[min(len(times) - 1, int(share * len(times)))] * 1000


def measure(keys: int, how: str) -> None:
    """One store, filled, and the latencies of small commits for two seconds from the deletion on."""
    store = mmap.mmap(-1, 512 * keys + (64 << 20))
    bell = mmap.mmap(-1, layout.BELL_SEGMENT_SIZE)
    core = CommitCore(store, -1, b"0123456789abcdef", 1, bell_buffer=bell, channel_count_max=2)
    core.start_at(0)
    core.set_range_limits(*([INLINE_ALL] if how == "key by key" else []))
    deleter, worker = Client(core, bell, 1), Client(core, bell, 2)
    thread = threading.Thread(target=core.run)
    thread.start()
    with contextlib.ExitStack() as stack:
        stack.callback(thread.join)
        stack.callback(core.stop)
        for first in range(0, keys, BATCH):
            names = (PREFIX + b"%08d" % number for number in range(first, min(keys, first + BATCH)))
            deleter.commit(*(Op(OpCode.PUT, name, bytes([0xC4, 100]) + bytes(100)) for name in names))
        worker.commit(Op(OpCode.PUT, OTHER, b"\x01"))
        whole = Op(OpCode.DELETE_RANGE, PREFIX, PREFIX + b"\xff")
        other = threading.Thread(target=deleter.commit, args=(whole,))
        times: list[float] = []
        end = time.monotonic() + 2
        if how != "quiet":
            other.start()
            stack.callback(other.join)
        while time.monotonic() < end:
            began = time.perf_counter()
            worker.commit(Op(OpCode.PUT, OTHER, b"\x01"))
            times.append(time.perf_counter() - began)
    print(
        f"{how:<16} {len(times):>7,} commits: p50 {percentile(times, 0.5):8.3f} ms, "
        f"p99 {percentile(times, 0.99):8.3f} ms, "
        f"p99.9 {percentile(times, 0.999):8.3f} ms, longest {max(times) * 1000:9.3f} ms; "
        f"range tombstones left {core.stats()['range_tombstones']}"
    )


def main() -> None:
    """Both ways and neither, one after the other."""
    keys = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    for how in ("quiet", "key by key", "range tombstone"):
        measure(keys, how)


if __name__ == "__main__":
    main()
