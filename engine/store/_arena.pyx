"""Allocator of the store segment: blocks of any size, and the quarantine of unlinked blocks.

The segment is a row of 16 KiB pages; page 0 is the header's. Small blocks live in slabs, of one size class
each. Blocks above 128 KiB are runs of whole pages (`_pages`). All bookkeeping is private memory of the
writer: after a crash the store is rebuilt from the log and never attached again, so nothing here has to be
crash-safe.

1. A bitmap bit is set exactly for the free blocks of a slab. A slab with a free block is in its class's
   partial list.
2. A block that was ever published goes through `arena_retire`. Its bytes stay as they are until `arena_flip`
   has raised `reclaim_sequence`. Only blocks that no reader can have seen may go to `arena_free` directly.
3. Callers promise retirements ahead (`arena_reserve`), so that taking a block out of use cannot fail
   half-way.
"""

from libc.errno cimport EINVAL, ENOMEM, ENOSPC
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memset

from ...ipc._atomics cimport fence_release, load_relaxed_u64, store_seq_cst_u64, u8, u16, u32, u64
from ._arena_state cimport BITMAP_WORDS, CLASS_COUNT, Arena, Page
from ._layout cimport PAGE_SIZE, REF_SHIFT, SLACK_PAGES
from ._pages cimport PAGE_INNER, PAGE_LARGE, PAGE_SLAB, clz, pages_back, pages_give, pages_take

cdef extern from *:
    int ctz "__builtin_ctzll"(unsigned long long) nogil

cdef enum:
    PAGE_REFS = 1024            # refs a page has
    SMALL_MAX = 512
    BLOCK_MAX = 131072          # larger blocks are runs of pages

cdef u32 class_size[96]
cdef u32 class_pages[96]


# ---- size classes ----

cdef inline u32 class_of(u64 size) noexcept nogil:
    """The smallest class for `size` bytes (1..BLOCK_MAX): steps of 16 up to 512, then 8 steps a doubling."""
    if size <= SMALL_MAX:
        return <u32>((size + 15) >> 4) - 1
    cdef u32 top = 63 - clz(size - 1)           # 9 for 513..1024
    cdef u32 step = <u32>(((size - 1) >> (top - 3)) & 7)
    return 32 + (top - 9) * 8 + step


cdef void fill_classes() noexcept:
    """Give each class slabs of the fewest pages that hold 8 blocks, or waste less than an eighth."""
    cdef u32 c, pages, objects
    cdef u64 size
    for c in range(CLASS_COUNT):
        if c < 32:
            size = (c + 1) * 16
        else:
            size = (<u64>512 << ((c - 32) // 8)) // 8 * (8 + (c - 32) % 8 + 1)
        class_size[c] = <u32>size
        pages = 1
        while True:
            objects = <u32>(pages * PAGE_SIZE // size)
            if objects >= 8 or (objects and (pages * PAGE_SIZE - objects * size) * 8 < pages * PAGE_SIZE):
                break
            pages += 1
        class_pages[c] = pages


fill_classes()


cdef bint slab_shape(u32 size_class, u32 *block_size, u32 *pages) noexcept nogil:
    """How the slabs of a class are built; see _arena.pxd."""
    if size_class >= CLASS_COUNT:
        return False
    block_size[0] = class_size[size_class]
    pages[0] = class_pages[size_class]
    return True


# ---- life ----

cdef int arena_open(Arena *a, u8 *base, u64 size, int fd, void *reclaim_word, void *readable_word) noexcept nogil:
    """Take over zero-filled memory; see _arena.pxd."""
    memset(a, 0, sizeof(Arena))
    if size < (1 << 20) or size > (<u64>1 << 36) or (<u64>base & 15):
        return EINVAL
    a.base = base
    a.size = size
    a.fd = fd
    a.reclaim_word = reclaim_word
    a.readable_word = readable_word
    a.page_count = <u32>(size // PAGE_SIZE) - SLACK_PAGES
    a.page_limit = a.page_count
    # calloc leaves the pages of these tables untouched until used: a large store costs nothing at the start.
    a.pages = <Page *>calloc(a.page_count + 1, sizeof(Page))
    a.bitmaps = <u64 *>calloc(<size_t>a.page_count * BITMAP_WORDS, 8)
    if a.pages == NULL or a.bitmaps == NULL:
        arena_close(a)
        return ENOMEM
    if not pages_back(a, PAGE_SIZE):
        arena_close(a)
        return ENOSPC
    a.pages[0].kind = PAGE_LARGE
    a.pages[0].pages = 1
    a.pages_high = 1
    a.allocated = PAGE_SIZE
    return 0


cdef void arena_close(Arena *a) noexcept nogil:
    free(a.pages)
    free(a.bitmaps)
    free(a.quarantine)
    a.pages = NULL
    a.bitmaps = NULL
    a.quarantine = NULL
    a.quarantine_count = 0
    a.quarantine_capacity = 0


# ---- slabs and blocks ----

cdef void link_slab(Arena *a, u32 slab) noexcept nogil:
    cdef u32 c = a.pages[slab].size_class
    cdef u32 first = a.partial[c]
    a.pages[slab].previous = 0
    a.pages[slab].next = first
    if first:
        a.pages[first].previous = slab
    a.partial[c] = slab


cdef void unlink_slab(Arena *a, u32 slab) noexcept nogil:
    cdef Page *p = &a.pages[slab]
    if p.next:
        a.pages[p.next].previous = p.previous
    if p.previous:
        a.pages[p.previous].next = p.next
    else:
        a.partial[p.size_class] = p.next


cdef u32 new_slab(Arena *a, u32 c) noexcept nogil:
    cdef u32 slab = pages_take(a, class_pages[c], PAGE_SLAB)
    cdef u32 capacity, i
    cdef u64 *bitmap
    if slab == 0:
        return 0
    capacity = class_pages[c] * PAGE_SIZE // class_size[c]
    a.pages[slab].size_class = <u16>c
    a.pages[slab].used = 0
    a.pages[slab].capacity = <u16>capacity
    bitmap = a.bitmaps + <u64>slab * BITMAP_WORDS
    for i in range(BITMAP_WORDS):
        if capacity >= (i + 1) * 64:
            bitmap[i] = ~<u64>0
        elif capacity <= i * 64:
            bitmap[i] = 0
        else:
            bitmap[i] = (<u64>1 << (capacity - i * 64)) - 1
    link_slab(a, slab)
    return slab


cdef bint trim(Arena *a) noexcept nogil:
    """Give back the empty slabs that were kept for their class's next block. True: there were some."""
    cdef bint found = False
    cdef u32 c, slab, following
    for c in range(CLASS_COUNT):
        slab = a.partial[c]
        while slab:
            following = a.pages[slab].next
            if a.pages[slab].used == 0:
                unlink_slab(a, slab)
                pages_give(a, slab)
                found = True
            slab = following
    return found


cdef u32 alloc_small(Arena *a, u64 size) noexcept nogil:
    cdef u32 c = class_of(size)
    cdef u32 slab = a.partial[c]
    cdef u32 word = 0, index
    cdef u64 *bitmap
    if slab == 0:
        slab = new_slab(a, c)
        if slab == 0:
            return 0
    bitmap = a.bitmaps + <u64>slab * BITMAP_WORDS
    while bitmap[word] == 0:
        word += 1
    index = (word << 6) + ctz(bitmap[word])
    bitmap[word] &= bitmap[word] - 1
    a.pages[slab].used += 1
    if a.pages[slab].used == a.pages[slab].capacity:
        unlink_slab(a, slab)
    a.allocated += class_size[c]
    return slab * PAGE_REFS + index * (class_size[c] >> REF_SHIFT)


cdef u32 alloc_large(Arena *a, u64 size) noexcept nogil:
    cdef u64 pages = (size + PAGE_SIZE - 1) // PAGE_SIZE
    cdef u32 run
    if pages >= a.page_count:
        return 0
    run = pages_take(a, <u32>pages, PAGE_LARGE)
    if run == 0:
        return 0
    a.allocated += pages * PAGE_SIZE
    return run * PAGE_REFS


cdef inline u32 try_alloc(Arena *a, u64 size) noexcept nogil:
    return alloc_small(a, size) if size <= BLOCK_MAX else alloc_large(a, size)


cdef u32 arena_alloc(Arena *a, u64 size) noexcept nogil:
    """Find a block; see _arena.pxd."""
    cdef u32 ref = try_alloc(a, size)
    if ref == 0 and a.quarantine_count:
        arena_flip(a)
        ref = try_alloc(a, size)
    if ref == 0 and trim(a):
        ref = try_alloc(a, size)
    return ref


cdef u64 arena_rounded(u64 size) noexcept nogil:
    """Bytes that a block of `size` bytes takes."""
    if size <= BLOCK_MAX:
        return class_size[class_of(size)]
    return (size + PAGE_SIZE - 1) // PAGE_SIZE * PAGE_SIZE


cdef inline bint locate(const Arena *a, u32 ref, u32 *slab, u32 *index) noexcept nogil:
    """Whether a block in use starts at `ref`. `index` is its number in the slab, ~0 for a large run."""
    cdef u32 page = ref // PAGE_REFS
    cdef u32 offset, step
    if ref == 0 or page >= a.pages_high:
        return False
    if a.pages[page].kind == PAGE_LARGE:
        slab[0] = page
        index[0] = ~<u32>0
        return ref % PAGE_REFS == 0
    if a.pages[page].kind == PAGE_INNER:
        page = a.pages[page].start
    if a.pages[page].kind != PAGE_SLAB:
        return False
    offset = ref - page * PAGE_REFS
    step = class_size[a.pages[page].size_class] >> REF_SHIFT
    slab[0] = page
    index[0] = offset // step
    if offset % step or index[0] >= a.pages[page].capacity:
        return False
    return (a.bitmaps[<u64>page * BITMAP_WORDS + (index[0] >> 6)] >> (index[0] & 63)) & 1 == 0


cdef u64 arena_block_size(const Arena *a, u32 ref) noexcept nogil:
    """Bytes of the block at `ref`, 0 if no block in use starts there."""
    cdef u32 slab, index
    if not locate(a, ref, &slab, &index):
        return 0
    if index == ~<u32>0:
        return <u64>a.pages[slab].pages * PAGE_SIZE
    return class_size[a.pages[slab].size_class]


cdef void arena_free(Arena *a, u32 ref) noexcept nogil:
    """Give a block back at once; see _arena.pxd."""
    cdef u32 slab, index
    cdef Page *p
    if not locate(a, ref, &slab, &index):
        return
    p = &a.pages[slab]
    if index == ~<u32>0:
        a.allocated -= <u64>p.pages * PAGE_SIZE
        pages_give(a, slab)
        return
    a.bitmaps[<u64>slab * BITMAP_WORDS + (index >> 6)] |= <u64>1 << (index & 63)
    a.allocated -= class_size[p.size_class]
    if p.used == p.capacity:
        link_slab(a, slab)
    p.used -= 1
    # One empty slab of one page may stay if it is the only partial slab of its class. Then blocks that come
    # and go in turn do not move pages.
    if p.used == 0 and (p.pages > 1 or a.partial[p.size_class] != slab or p.next != 0):
        unlink_slab(a, slab)
        pages_give(a, slab)


# ---- quarantine ----

cdef bint arena_reserve(Arena *a, u32 count) noexcept nogil:
    """Make room for `count` retirements beside the promised ones; see _arena.pxd."""
    cdef u64 need = <u64>a.quarantine_count + a.quarantine_promised + count
    cdef u64 capacity
    cdef void *grown
    if need <= a.quarantine_capacity:
        return True
    capacity = need + need // 2 + 64
    grown = realloc(a.quarantine, capacity * 4)
    if grown == NULL or capacity > 0xFFFFFFFFULL:
        return False
    a.quarantine = <u32 *>grown
    a.quarantine_capacity = <u32>capacity
    return True


cdef u64 arena_retire(Arena *a, u32 ref) noexcept nogil:
    """Keep an unlinked block intact until the next flip; see _arena.pxd."""
    cdef u64 size = arena_block_size(a, ref)
    a.quarantine[a.quarantine_count] = ref
    a.quarantine_count += 1
    a.quarantine_bytes += size
    return size


cdef void arena_flip(Arena *a) noexcept nogil:
    """Let the quarantined blocks be used again.

    A reader that loads the raised sequence sees every unlinking that came before (the store is a release), so
    it cannot reach these blocks. One that loaded the older value may be inside them, and finds the sequence
    changed when it is done.
    """
    cdef u32 i
    if a.quarantine_count == 0:
        return
    # seq_cst store: orders all unlinkings before it, and stands in one order with the readers' checks.
    store_seq_cst_u64(a.reclaim_word, load_relaxed_u64(a.reclaim_word) + 1)
    # Release fence: a reader that sees new bytes in a reused block, and then fences, also sees the raised
    # sequence.
    fence_release()
    for i in range(a.quarantine_count):
        arena_free(a, a.quarantine[i])
    a.quarantine_count = 0
    a.quarantine_bytes = 0
    a.flip_count += 1
