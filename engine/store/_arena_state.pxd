"""The state of the allocator, which `_pages` and `_arena` share: the table of pages, the lists, the quarantine."""

from ...ipc._atomics cimport u8, u16, u32, u64

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
