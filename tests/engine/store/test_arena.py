"""The allocator: a model of disjoint blocks, reuse, coalescing, backing and the full store."""

from __future__ import annotations

import fcntl
import mmap
import os
import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from occamdb._testing._arena_driver import ArenaDriver

PAGE = 16384
SIZE = 4 << 20

sizes = st.one_of(st.integers(1, 600), st.integers(500, 140_000), st.integers(100_000, 1_500_000))


class ArenaMachine(RuleBasedStateMachine):
    """Blocks handed out never overlap, keep their contents, and all come back."""

    @initialize()
    def start(self) -> None:
        self.memory = mmap.mmap(-1, SIZE)
        self.arena = ArenaDriver(self.memory)
        self.blocks: dict[int, tuple[int, bytes]] = {}
        self.quarantined: dict[int, tuple[int, bytes]] = {}
        self.stamp = 0

    def claim(self, ref: int, size: int) -> None:
        block = self.arena.block_size(ref)
        assert size <= block == self.arena.rounded(size)
        assert block - size <= max(15, size // 8, 0 if size <= 131072 else PAGE)
        start = ref * 16
        for other, (taken, _) in (self.blocks | self.quarantined).items():
            assert start + block <= other * 16 or other * 16 + taken <= start
        self.stamp += 1
        mark = self.stamp.to_bytes(4, "little")
        self.memory[start : start + 1] = mark[:1]
        self.memory[start + block - 1 : start + block] = mark[:1]
        self.blocks[ref] = (block, mark[:1])

    @rule(size=sizes)
    def alloc(self, size: int) -> None:
        ref = self.arena.alloc(size)
        if ref:
            before = set(self.quarantined) - {ref}
            if self.arena.stats()["quarantine"] == 0:
                self.quarantined = {}
            assert ref in self.quarantined or ref not in before
            self.claim(ref, size)
        else:
            self.quarantined = {}
            assert self.arena.stats()["allocated"] + self.arena.rounded(size) > SIZE // 4

    @precondition(lambda self: self.blocks)
    @rule(data=st.data(), retire=st.booleans())
    def release(self, data: st.DataObject, retire: bool) -> None:
        ref = data.draw(st.sampled_from(sorted(self.blocks)))
        block = self.blocks.pop(ref)
        if retire:
            assert self.arena.retire(ref) == block[0]
            self.quarantined[ref] = block
        else:
            self.arena.free(ref)
            assert self.arena.block_size(ref) == 0

    @rule()
    def flip(self) -> None:
        self.arena.flip()
        self.quarantined = {}

    @invariant()
    def sound(self) -> None:
        if not hasattr(self, "arena"):
            return
        self.arena.check()
        stats = self.arena.stats()
        both = self.blocks | self.quarantined
        assert stats["allocated"] == PAGE + sum(size for size, _ in both.values())
        assert stats["quarantine"] == sum(size for size, _ in self.quarantined.values())
        for ref, (size, mark) in both.items():
            assert self.memory[ref * 16 : ref * 16 + 1] == mark
            assert self.memory[ref * 16 + size - 1 : ref * 16 + size] == mark

    def teardown(self) -> None:
        if hasattr(self, "arena"):
            self.arena.flip()
            for ref in self.blocks:
                self.arena.free(ref)
            self.arena.check()
            assert self.arena.stats()["allocated"] == PAGE


ArenaMachine.TestCase.settings = settings(
    max_examples=max(120, settings().max_examples), stateful_step_count=50, deadline=None
)
TestArenaMachine = ArenaMachine.TestCase


def fill(arena: ArenaDriver, size: int) -> list[int]:
    refs = []
    while ref := arena.alloc(size):
        refs.append(ref)
    return refs


@pytest.mark.parametrize("size", [1, 16, 100, 512, 513, 4096, 16384, 18432, 131072, 131073, 1_000_000])
def test_a_full_arena_holds_what_it_should_and_comes_back_whole(size: int) -> None:
    arena = ArenaDriver(mmap.mmap(-1, 8 << 20))
    pages = (8 << 20) // PAGE - 6  # without slack and header
    usable = (pages - 4 - pages // 64) * PAGE
    first = fill(arena, size)
    assert len(first) * arena.rounded(size) > usable * 0.86 - arena.rounded(size) * 8
    arena.check()
    random.Random(size).shuffle(first)
    for ref in first:
        arena.free(ref)
    arena.check()
    assert arena.stats()["allocated"] == PAGE
    # Everything has merged: one block may take all pages at once, the reserve included when it is urgent.
    assert arena.alloc(usable)
    arena = ArenaDriver(mmap.mmap(-1, 8 << 20))
    assert not arena.alloc(pages * PAGE)
    assert arena.alloc(pages * PAGE, urgent=True)
    arena.check()


def test_the_reserve_is_for_urgent_allocations_and_is_backed() -> None:
    limit = 3 << 20
    fd = make_file(SIZE, limit)
    arena = ArenaDriver(mmap.mmap(fd, limit), fd)
    refs = fill(arena, 64) + fill(arena, 3000)
    urgent = 0
    while arena.alloc(64, urgent=True):
        urgent += 1
    assert urgent >= 4 * PAGE // 64
    arena.check()
    for ref in refs[:768]:
        arena.free(ref)
    assert not arena.alloc(PAGE), "what is freed fills the reserve first"
    del arena
    os.close(fd)


def test_after_mixed_use_no_page_is_lost() -> None:
    arena = ArenaDriver(mmap.mmap(-1, 16 << 20))
    chance = random.Random(7)
    for _ in range(5):
        refs = []
        while ref := arena.alloc(int(2 ** chance.uniform(0, 18))):
            refs.append(ref)
        arena.check()
        chance.shuffle(refs)
        for ref in refs:
            (arena.free if chance.random() < 0.5 else arena.retire)(ref)
        arena.flip()
        arena.check()
    assert arena.alloc((16 << 20) - 14 * PAGE)


def test_double_free_and_foreign_refs_change_nothing() -> None:
    arena = ArenaDriver(mmap.mmap(-1, SIZE))
    kept, freed, large = arena.alloc(100), arena.alloc(100), arena.alloc(200_000)
    arena.free(freed)
    before = arena.stats()
    for ref in (0, freed, kept + 1, large + 1, large + 1024, 0xFFFFFFFF, SIZE // 16):
        arena.free(ref)
        assert arena.block_size(ref) == 0
    assert arena.stats() == before
    arena.check()


def test_a_failing_allocation_takes_the_quarantine_before_it_gives_up() -> None:
    arena = ArenaDriver(mmap.mmap(-1, SIZE))
    refs = fill(arena, 100_000)
    for ref in refs:
        arena.retire(ref)
    sequence = arena.flip()
    refs = fill(arena, 100_000)
    for ref in refs:
        arena.retire(ref)
    assert arena.alloc(2_000_000)
    assert arena.flip() == sequence + 1, "the allocation flipped, and nothing was left to flip"


def make_file(size: int, file_size: int) -> int:
    """A memory file that cannot grow: the kernel refuses to preallocate beyond its end."""
    fd = os.memfd_create("occam-test", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, file_size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    return fd


def test_pages_are_backed_before_use_and_refusal_means_full() -> None:
    limit = 3 << 20
    fd = make_file(SIZE, limit)
    # The mapping is as large as the file may become; touching it beyond the file's end would be SIGBUS.
    memory = mmap.mmap(fd, limit)
    try:
        arena = ArenaDriver(memory, fd)
        refs = fill(arena, 5000)
        stats = arena.stats()
        assert stats["backed"] <= limit
        assert os.fstat(fd).st_blocks * 512 >= stats["used"]
        assert len(refs) * 5000 > limit * 0.8
        arena.check()
        for ref in refs:
            arena.free(ref)
        assert len(fill(arena, 5000)) == len(refs)
        del arena
    finally:
        os.close(fd)


def test_no_backing_at_all_is_an_error() -> None:
    fd = os.memfd_create("occam-test")
    os.ftruncate(fd, SIZE)
    memory = mmap.mmap(fd, SIZE)
    with pytest.raises(OSError, match="arena_open"):
        ArenaDriver(memory, os.open(os.devnull, os.O_RDONLY))
    os.close(fd)


@pytest.mark.parametrize("size", [0, 4096, (1 << 20) - 1])
def test_sizes_out_of_bounds_are_refused(size: int) -> None:
    with pytest.raises((OSError, IndexError)):
        ArenaDriver(bytearray(size))
