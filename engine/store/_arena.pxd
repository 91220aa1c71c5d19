"""Memory of the store: blocks of any size from pages of 16 KiB, and the quarantine of unlinked blocks."""

from ...ipc._atomics cimport u8, u32, u64
from ._arena_state cimport Arena

# All of these: the commit thread, or the recovery that stands in for it. A ref is a byte offset divided by
# 16; 0 is none.

# Takes over zero-filled memory; page 0 becomes the caller's. 0, or an errno: EINVAL (size or alignment),
# ENOMEM, ENOSPC.
cdef int arena_open(Arena *a, u8 *base, u64 size, int fd, void *reclaim_word, void *readable_word) noexcept nogil
cdef void arena_close(Arena *a) noexcept nogil
# A block of at least `size` (> 0) bytes, contents undefined. 0: full, even with the quarantine given back.
cdef u32 arena_alloc(Arena *a, u64 size) noexcept nogil
# Gives a block back at once. REQUIRES: no reader can be looking at it. A ref that is not a block is ignored
# (the audit reports the leak).
cdef void arena_free(Arena *a, u32 ref) noexcept nogil
# Bytes of the block at `ref`; 0 if no block in use starts there.
cdef u64 arena_block_size(const Arena *a, u32 ref) noexcept nogil
# Bytes that a block of `size` bytes takes.
cdef u64 arena_rounded(u64 size) noexcept nogil
# Makes room for `count` retirements beside the promised ones. False: out of private memory.
cdef bint arena_reserve(Arena *a, u32 count) noexcept nogil
# Puts an unlinked block into the quarantine, where it stays intact until the next flip. Returns its size.
# REQUIRES: a place from arena_reserve.
cdef u64 arena_retire(Arena *a, u32 ref) noexcept nogil
# Lets the quarantined blocks be used again. REQUIRES: every one of them was unlinked with release order.
cdef void arena_flip(Arena *a) noexcept nogil
# Block size and pages of the slabs of a class. False: there is no such class.
cdef bint slab_shape(u32 size_class, u32 *block_size, u32 *pages) noexcept nogil
