"""Memory of the store: blocks of any size from pages of 16 KiB, and the quarantine of unlinked blocks."""

from ...ipc._atomics cimport i64, u8, u16, u32, u64

cdef enum:
    CLASS_COUNT = 96
    RUN_BINS = 256

cdef struct Page:               # private; meaningful at the first page of a slab or run (and the last of a free run)
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
    u32 pages_high              # pages below have been used; above nothing was ever written
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

cdef int arena_open(Arena *a, u8 *base, u64 size, int fd, void *reclaim_word, void *readable_word) noexcept nogil
cdef void arena_close(Arena *a) noexcept nogil
cdef u32 arena_alloc(Arena *a, u64 size) noexcept nogil
cdef void arena_free(Arena *a, u32 ref) noexcept nogil
cdef u64 arena_block_size(const Arena *a, u32 ref) noexcept nogil
cdef bint arena_reserve(Arena *a, u32 count) noexcept nogil
cdef u64 arena_retire(Arena *a, u32 ref) noexcept nogil
cdef void arena_flip(Arena *a) noexcept nogil
cdef int arena_check(const Arena *a, char *message, size_t message_size) noexcept nogil
cdef u64 arena_rounded(u64 size) noexcept nogil
# Preallocates bytes [start, end) of the segment. SHORT_OF_NOTHING when the pages are there.
cdef u32 fallocate_range(int fd, u64 start, u64 end) noexcept nogil
