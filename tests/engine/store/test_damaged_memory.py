"""A reader on damaged memory: wrong answers are allowed, faults and endless loops are not."""

from __future__ import annotations

import ctypes
import mmap
import random
import struct

import pytest

from occamdb._testing._store_reader import StoreReader
from occamdb._testing._store_writer import StoreWriter

SIZE = 1 << 20


def guarded_memory() -> tuple[mmap.mmap, memoryview]:
    """SIZE bytes followed by a page that may not be touched."""
    memory = mmap.mmap(-1, SIZE + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert libc.mprotect(address + SIZE, mmap.PAGESIZE, 0) == 0
    return memory, memoryview(memory)[:SIZE]


def image() -> tuple[bytes, list[bytes]]:
    """A store with a few hundred keys and several versions of each."""
    memory = bytearray(SIZE)
    keys = [b"key %04d" % (i * 7 % 300) for i in range(300)]
    with StoreWriter(memory) as writer:
        for version in range(1, 4):
            for key in keys:
                writer.put(key, b"value" * version, version)
            writer.publish(version)
    return bytes(memory), keys


def read_all(reader: StoreReader, keys: list[bytes]) -> int:
    """Use every read function; count the answers that were "damaged"."""
    damaged = 0
    for key in keys[:40]:
        try:
            reader.get(key, 2)
        except RuntimeError:
            damaged += 1
    for reverse in (False, True):
        for start, end in ((b"", None), (b"key 0100", b"key 0200"), (b"zzz", None)):
            try:
                for _ in range(5):
                    _, resume = reader.page(start, end, 3, 64, False, reverse)
                    if resume is None:
                        break
                    start, end = (start, resume) if reverse else (resume, end)
            except RuntimeError:
                damaged += 1
    return damaged


def damage(chance: random.Random, memory: memoryview, used: int) -> None:
    kind = chance.randrange(5)
    if kind == 0:  # flipped bits
        for _ in range(chance.randrange(1, 200)):
            at = chance.randrange(64, used)
            memory[at] ^= 1 << chance.randrange(8)
    elif kind == 1:  # words that look like refs, anywhere
        for _ in range(chance.randrange(1, 2000)):
            at = chance.randrange(64, used - 4) & ~3
            struct.pack_into(
                "<I", memory, at, chance.choice([0, 1, 0xFFFFFFFF, chance.randrange(used // 16)])
            )
    elif kind == 2:  # refs just below the end, where sizes reach beyond it
        for _ in range(chance.randrange(1, 2000)):
            at = chance.randrange(64, used - 4) & ~3
            struct.pack_into("<I", memory, at, SIZE // 16 - chance.randrange(1, 6000))
    elif kind == 3:  # a stretch of noise
        at = chance.randrange(64, used)
        size = min(chance.randrange(1, 20_000), used - at)
        memory[at : at + size] = chance.randbytes(size)
    else:  # one part copied over another: plausible structures in wrong places, cycles
        for _ in range(20):
            size = chance.randrange(16, 1000) & ~15
            source, target = (chance.randrange(1024, used - size) & ~15 for _ in range(2))
            memory[target : target + size] = bytes(memory[source : source + size])


@pytest.mark.parametrize("seed", range(6))
def test_random_damage_never_faults_or_hangs(seed: int) -> None:
    chance = random.Random(seed)
    good, keys = image()
    _memory, view = guarded_memory()
    damaged = 0
    for _ in range(40):
        view[:] = good
        # The slack and everything behind the used part too: stray refs lead there.
        view[SIZE - 100_000 :] = chance.randbytes(100_000)
        for _ in range(chance.randrange(1, 4)):
            damage(chance, view, chance.choice([2048, 200_000, SIZE - 64]))
        try:
            reader = StoreReader(view)
        except ValueError:
            continue
        damaged += read_all(reader, keys)
    assert damaged > 0, "the damage must have been noticeable"


def test_noise_behind_a_good_header() -> None:
    chance = random.Random(99)
    good, keys = image()
    _memory, view = guarded_memory()
    view[:] = good
    for _ in range(20):
        view[1024:] = chance.randbytes(SIZE - 1024)
        reader = StoreReader(view)
        assert read_all(reader, keys) > 0


def test_cycles_end() -> None:
    """Every ref of every tower and chain leads to one and the same node."""
    good, keys = image()
    words = struct.unpack(f"<{SIZE // 4}I", good)
    reader = StoreReader(good)
    assert read_all(reader, keys) == 0
    targets = sorted({word for word in words[5000:9000] if 1024 < word < SIZE // 32})
    for target in targets[:: len(targets) // 3]:
        looped = struct.pack(
            f"<{SIZE // 4}I",
            *(target if i > 4096 and 1024 < word < SIZE // 32 else word for i, word in enumerate(words)),
        )
        read_all(StoreReader(looped), keys[:3])


@pytest.mark.parametrize(
    "offset, value",
    [(0, b"OTHERSTO"), (8, b"\x7f\x00\x00\x00"), (12, b"\x00\x00\x00\x00"), (40, b"\x00" * 8)],
)
def test_foreign_or_truncated_memory_is_refused(offset: int, value: bytes) -> None:
    good, _ = image()
    changed = bytearray(good)
    changed[offset : offset + len(value)] = value
    with pytest.raises(ValueError, match="no store of layout version"):
        StoreReader(changed)
    with pytest.raises(ValueError):
        StoreReader(good[: SIZE // 2])
    with pytest.raises(ValueError):
        StoreReader(b"")
