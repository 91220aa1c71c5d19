"""Audit of the allocator: the invariants of `_pages` and `_arena`, checked against each other.

Walks the table of pages once from page 0 to `pages_high`, then the lists of partial slabs and of free runs.
Whether each block has an owner is a question for the audit of the store (`_check`).
"""

from libc.stdio cimport snprintf

from ...ipc._atomics cimport u32, u64
from ._arena cimport slab_shape
from ._arena_state cimport BITMAP_WORDS, CLASS_COUNT, RUN_BINS, Arena, Page
from ._layout cimport PAGE_SIZE, SLACK_PAGES
from ._pages cimport PAGE_FREE, PAGE_LARGE, PAGE_SLAB, bin_of


cdef int fail(char *message, size_t size, const char *what, u64 where) noexcept nogil:
    snprintf(message, size, "arena: %s (at %llu)", what, <unsigned long long>where)
    return 1


cdef int check_slab(const Arena *a, u32 slab, u64 *allocated, char *message, size_t size) noexcept nogil:
    cdef const Page *p = &a.pages[slab]
    cdef u32 i, free_blocks = 0, block_size, pages
    cdef u64 bits
    for i in range(BITMAP_WORDS):
        bits = a.bitmaps[<u64>slab * BITMAP_WORDS + i]
        while bits:
            free_blocks += 1
            bits &= bits - 1
    if not slab_shape(p.size_class, &block_size, &pages) or p.pages != pages:
        return fail(message, size, "slab with a wrong class", slab)
    if free_blocks + p.used != p.capacity:
        return fail(message, size, "slab bitmap and count differ", slab)
    allocated[0] += <u64>p.used * block_size
    return 0


cdef int check_lists(const Arena *a, u64 free_runs, u64 partial_slabs, char *message, size_t size) noexcept nogil:
    cdef u32 i, at, previous
    for i in range(CLASS_COUNT):
        at = a.partial[i]
        previous = 0
        while at:
            if a.pages[at].kind != PAGE_SLAB or a.pages[at].size_class != i or a.pages[at].previous != previous \
                    or a.pages[at].used >= a.pages[at].capacity or partial_slabs == 0:
                return fail(message, size, "partial list holds a wrong slab", at)
            partial_slabs -= 1
            previous = at
            at = a.pages[at].next
    for i in range(RUN_BINS):
        at = a.run_bins[i]
        previous = 0
        if (at != 0) != ((a.run_bins_used[i >> 6] >> (i & 63)) & 1):
            return fail(message, size, "run bin and its bit differ", i)
        while at:
            if a.pages[at].kind != PAGE_FREE or bin_of(a.pages[at].pages) != i or a.pages[at].previous != previous \
                    or free_runs == 0:
                return fail(message, size, "run bin holds a wrong run", at)
            free_runs -= 1
            previous = at
            at = a.pages[at].next
    if free_runs or partial_slabs:
        return fail(message, size, "a free run or partial slab is in no list", free_runs)
    return 0


cdef int arena_check(const Arena *a, char *message, size_t message_size) noexcept nogil:
    """Audit the allocator; see _arena_check.pxd."""
    cdef u32 page = 0
    cdef u64 allocated = 0, free_runs = 0, free_pages = 0, partial_slabs = 0
    cdef bint after_free = False
    cdef const Page *p
    while page < a.pages_high:
        p = &a.pages[page]
        if p.pages == 0 or page + p.pages > a.pages_high:
            return fail(message, message_size, "run beyond the high-water mark", page)
        if p.kind == PAGE_SLAB:
            if check_slab(a, page, &allocated, message, message_size):
                return 1
            partial_slabs += p.used < p.capacity
        elif p.kind == PAGE_LARGE:
            allocated += <u64>p.pages * PAGE_SIZE
        elif p.kind == PAGE_FREE:
            if after_free or a.pages[page + p.pages - 1].start != page or page + p.pages == a.pages_high:
                return fail(message, message_size, "free run not merged or badly marked", page)
            free_runs += 1
            free_pages += p.pages
        else:
            return fail(message, message_size, "page of unknown kind", page)
        after_free = p.kind == PAGE_FREE
        page += p.pages
    if free_pages != a.free_pages:
        return fail(message, message_size, "free pages do not add up", free_pages)
    if allocated != a.allocated:
        return fail(message, message_size, "bytes handed out do not add up", allocated)
    if a.backed < <u64>(a.pages_high + SLACK_PAGES) * PAGE_SIZE:
        return fail(message, message_size, "pages in use without backing", a.backed)
    return check_lists(a, free_runs, partial_slabs, message, message_size)
