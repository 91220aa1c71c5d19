"""A full store: refusals change nothing, and room comes back with what is freed."""

from __future__ import annotations

import ctypes
import mmap
import os

import pytest

from occamdb._testing._store_reader import StoreReader
from occamdb._testing._store_writer import StoreWriter
from tests.engine.store.test_arena import make_file
from tests.support.store_model import make_store, settle


def fill(writer: StoreWriter, version: int, value_size: int, label: bytes = b"key") -> int:
    """Put new keys until one is refused; the number that went in."""
    count = 0
    while writer.put(b"%s %07d" % (label, count), bytes(value_size), version):
        count += 1
    return count


@pytest.mark.parametrize("value_size", [0, 100, 3000, 200_000])
@pytest.mark.parametrize("size", [2 << 20, 64 << 20])
def test_full_then_emptied_then_full_again(size: int, value_size: int) -> None:
    if value_size == 0 and size > 2 << 20:
        value_size = 1000
    writer, reader = make_store(size)
    version = 0
    counts = []
    for _ in range(3):
        version += 1
        count = fill(writer, version, value_size)
        writer.check()
        writer.publish(version)
        counts.append(count)
        assert writer.stats()["keys"] == count
        assert count * (value_size + 48) > size * 0.5 or value_size == 0
        # Deletes find room in a full store; very many at once may not, then they go in steps.
        version += 1
        writer.collect(horizon=version - 1)
        removed = 0
        while removed < count and writer.delete(b"key %07d" % removed, version):
            removed += 1
        if removed < count:
            writer.undo()
            version = delete_in_steps(writer, count, version)
        else:
            writer.publish(version)
        settle(writer)
        writer.check()
        stats = writer.stats()
        assert (stats["nodes"], stats["records"]) == (0, 0)
        assert reader.scan(version) == []
    assert min(counts) > 0.95 * max(counts)


def delete_in_steps(writer: StoreWriter, count: int, version: int) -> int:
    """Delete in commits small enough for the room there is."""
    removed = 0
    while removed < count:
        step = 0
        while step < 50 and removed + step < count and writer.delete(b"key %07d" % (removed + step), version):
            step += 1
        assert step, "a full store must keep enough room to delete"
        writer.publish(version)
        settle(writer)
        removed += step
        version += 1
    return version - 1


def test_a_refused_put_changes_nothing() -> None:
    writer, reader = make_store(2 << 20)
    fill(writer, 1, 100)
    writer.publish(1)
    writer.collect(horizon=1)
    rows = reader.scan(1)
    before = writer.stats()
    for size in (100, 1000, 100_000, 1 << 20, 1 << 26):
        assert not writer.put(b"key 0000000", bytes(size), 2)
        assert not writer.put(b"another", bytes(size), 2)
    writer.collect(horizon=1)
    after = writer.stats()
    assert {name: after[name] for name in ("keys", "nodes", "records", "record_bytes", "superseded")} == {
        name: before[name] for name in ("keys", "nodes", "records", "record_bytes", "superseded")
    }
    assert reader.scan(1) == rows
    writer.check()


def test_overwriting_goes_on_in_a_nearly_full_store() -> None:
    """What was replaced is enough for what replaces it, again and again."""
    writer, reader = make_store(2 << 20)
    count = fill(writer, 1, 500)
    for i in range(count - 100, count):
        writer.delete(b"key %07d" % i, 1)
    writer.undo(200)
    writer.publish(1)
    count = writer.stats()["keys"]
    settle(writer)
    used = writer.stats()["used_bytes"]
    for version in range(2, 3000):
        assert writer.put(b"key %07d" % (version * 7 % count), bytes(500), version)
        writer.publish(version)
        writer.collect([version], horizon=version)
    assert writer.stats()["used_bytes"] <= used + (64 << 10)
    assert len(reader.scan(2999)) == count
    writer.check()


def test_a_pin_that_fills_the_store_gives_it_back_when_it_goes() -> None:
    writer, reader = make_store(2 << 20)
    for i in range(1000):
        writer.put(b"%04d" % i, bytes(400), 1)
    writer.publish(1)
    version, refused = 1, False
    while not refused:
        version += 1
        refused = not writer.put(b"%04d" % (version % 1000), bytes(1500), version)
        if not refused:
            writer.publish(version)
        writer.collect([1], horizon=version - 1)
    assert writer.held_by(1) > 0
    writer.check()
    assert [len(row[1]) for row in reader.scan(1)] == [400] * 1000
    writer.collect([], horizon=version - 1, force=True)
    assert writer.held_by(1) == 0
    assert writer.put(b"%04d" % (version % 1000), bytes(1500), version)


def test_shared_memory_that_runs_out_is_a_full_store() -> None:
    """The file cannot be backed beyond 3 MiB though the store may be 8: refused, never SIGBUS, and readers go on."""
    file_size, store_size = 3 << 20, 8 << 20
    fd = make_file(store_size, file_size)
    # Map the whole range as the coordinator does; the part past the file's end must never be touched.
    memory = map_beyond(fd, store_size)
    try:
        writer = StoreWriter(memory, fd)
        reader = StoreReader(memory)
        count = fill(writer, 1, 1000)
        writer.publish(1)
        stats = writer.stats()
        assert stats["backed_bytes"] <= file_size < store_size
        assert count * 1000 > file_size * 0.6
        assert len(reader.scan(1)) == count
        writer.check()
        assert os.fstat(fd).st_size == file_size
        writer.close()
    finally:
        os.close(fd)


def map_beyond(fd: int, size: int) -> memoryview:
    """A mapping longer than the file, which Python's mmap refuses to make."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    ]
    address = libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
    assert address not in (None, ctypes.c_void_p(-1).value)
    return memoryview((ctypes.c_ubyte * size).from_address(address)).cast("B")
