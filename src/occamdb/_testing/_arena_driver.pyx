"""The store's allocator driven from Python, for its tests."""

from ..engine.store._arena cimport arena_alloc, arena_block_size, arena_close, arena_flip, arena_free, arena_open
from ..engine.store._arena cimport arena_reserve, arena_retire, arena_rounded
from ..engine.store._arena_state cimport Arena
from ..engine.store._arena_check cimport arena_check
from ..engine.store._layout cimport PAGE_SIZE
from ..ipc._atomics cimport u8, u32, u64


cdef class ArenaDriver:
    """An arena driven from Python, for tests. It keeps `reclaim_sequence` and `readable` outside the memory.

    Args:
      buffer: writable memory; it stays referenced.
      fd: its file, -1 for anonymous memory.
    """

    cdef Arena arena
    cdef u64 reclaim_sequence
    cdef u64 readable
    cdef object view

    def __init__(self, buffer, int fd=-1):
        self.view = memoryview(buffer).cast("B")
        cdef u8[::1] bytes_view = self.view
        cdef int error = arena_open(&self.arena, &bytes_view[0], bytes_view.shape[0], fd, &self.reclaim_sequence,
                                    &self.readable)
        if error:
            raise OSError(error, "arena_open failed")

    def __dealloc__(self):
        arena_close(&self.arena)

    def alloc(self, u64 size, bint urgent=False):
        """Ref of a block, 0 when full; urgent ones may use the reserve."""
        self.arena.urgent = urgent
        return arena_alloc(&self.arena, size)

    def free(self, u32 ref):
        """Give a block back at once."""
        arena_free(&self.arena, ref)

    def retire(self, u32 ref):
        """Put a block in quarantine."""
        if not arena_reserve(&self.arena, 1):
            raise MemoryError
        return arena_retire(&self.arena, ref)

    def flip(self):
        """Give the quarantine back; the reclaim sequence after it."""
        arena_flip(&self.arena)
        return self.reclaim_sequence

    def block_size(self, u32 ref):
        """Bytes of the block, 0: no block starts there."""
        return arena_block_size(&self.arena, ref)

    def rounded(self, u64 size):
        """Bytes a block of this size takes."""
        return arena_rounded(size)

    def check(self):
        """Raise AssertionError with the first invariant found broken."""
        cdef char[256] message
        if arena_check(&self.arena, message, 256):
            raise AssertionError((<bytes>message).decode())

    def stats(self):
        """Counters, sizes in bytes."""
        return {
            "allocated": self.arena.allocated, "used": <u64>self.arena.pages_high * PAGE_SIZE,
            "backed": self.arena.backed, "quarantine": self.arena.quarantine_bytes, "readable": self.readable,
        }
