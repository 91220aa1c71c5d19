"""Memory of the store: blocks of any size from pages of 16 KiB, and the quarantine of unlinked blocks."""

from ...ipc._atomics cimport i64, u8, u16, u32, u64

cdef enum:
    CLASS_COUNT = 96
    RUN_BINS = 256
    BITMAP_WORDS = 16           # 1024 blocks of 16 bytes fill a page; larger slabs hold fewer

cdef struct Page:               # private; valid at the first page of a slab or run, and last of a free run
    u32 start                   # first page of the slab, run or free run this page belongs to
    u32 pages                   # its length; kept at the first page
    u32 previous                # neighbours in a list of partial slabs or of free runs
    u32 next
    u16 kind                    # PAGE_*
    u16 size_class
    u16 used                    # blocks handed out of a slab
    u16 capacity

cdef struct Arena:              # private to the writer
    u8 *base
    u64 size
    int fd
    u32 page_count
    u32 page_limit              # ordinary allocations keep the pages in use at or below this many
    u32 pages_high              # from this page on none is in use
    u32 free_pages              # in free runs
    bint urgent                 # set around an allocation that may use the reserve: it is there to free more
    u64 backed                  # bytes preallocated from the start
    u32 short_of                # why the last growth failed (_memory.pxd); the caller resets it
    Page *pages
    u64 *bitmaps                # 16 words a page; bit set: block is free
    u32 partial[96]             # per class: slabs that have a free block
    u64 run_bins_used[4]
    u32 run_bins[256]           # free page runs by size
    u64 allocated               # bytes of blocks handed out, quarantined ones included
    void *reclaim_word          # header.reclaim_sequence
    void *readable_word         # header.readable
    u32 *quarantine             # unlinked blocks that readers may still look at
    u32 quarantine_count
    u32 quarantine_capacity
    u32 quarantine_promised     # entries kept free for blocks whose retirement must not fail
    u64 quarantine_bytes
    u64 flip_count

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
