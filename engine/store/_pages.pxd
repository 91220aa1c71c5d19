"""Runs of pages: what `_arena` builds slabs and large blocks from. See _pages.pyx.

All of these belong to the commit thread, or to the recovery that stands in for it.
"""

from ...ipc._atomics cimport u16, u32, u64
from ._arena_state cimport Arena

cdef extern from *:
    int clz "__builtin_clzll"(unsigned long long) nogil

cdef enum:
    # Kinds of pages, in Page.kind.
    PAGE_NEVER = 0              # never used, or inside a free run
    PAGE_SLAB = 1
    PAGE_LARGE = 2
    PAGE_FREE = 3               # first and last page of a free run
    PAGE_INNER = 4              # further pages of a slab or large run

# Preallocates the first `need` bytes of the segment and the slack behind them. False: there is no memory for
# it, and `short_of` says what is missing.
cdef bint pages_back(Arena *a, u64 need) noexcept nogil
# The first page of a new run of `pages` pages, marked as a slab or large run by `kind`; 0: full.
cdef u32 pages_take(Arena *a, u32 pages, u16 kind) noexcept nogil
# Gives a slab or large run back. REQUIRES: `start` is its first page, and no block in it is in use.
cdef void pages_give(Arena *a, u32 start) noexcept nogil
# Preallocates bytes [start, end) of the segment. SHORT_OF_NOTHING when the pages are there.
cdef u32 fallocate_range(int fd, u64 start, u64 end) noexcept nogil


cdef inline u32 bin_of(u32 pages) noexcept nogil:
    """Free-run bin: exact below 64 pages, then 8 bins a doubling."""
    if pages < 64:
        return pages
    cdef u32 top = 63 - clz(pages)
    return 64 + (top - 6) * 8 + ((pages >> (top - 3)) & 7)
