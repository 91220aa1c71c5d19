"""Runs of pages in the store segment: preallocation, free runs, and the reserve.

1. Pages below `pages_high` are slabs, large runs or free runs. No two free runs touch each other, and none
   touches `pages_high`. Pages from there on are not in use.
2. Pages are preallocated (posix_fallocate) before anything is written to them, and only while the machine has
   the memory (`_memory`). If either runs out, the allocation fails; there is no SIGBUS, and no process is
   killed for it.
3. Ordinary allocations leave a reserve of pages for urgent ones (tombstones). The reserve is backed like the
   rest, so a store that is full, or whose shared memory is, can still delete.
"""

from libc.errno cimport EFBIG, EINTR

from ...ipc._atomics cimport i64, store_release_u64
from ._arena_state cimport Arena, Page
from ._layout cimport PAGE_SIZE, SLACK_PAGES
from ._memory cimport SHORT_OF_FILE_SIZE, SHORT_OF_NOTHING, SHORT_OF_SHM, memory_shortage

cdef extern from *:
    int ctz "__builtin_ctzll"(unsigned long long) nogil

cdef extern from "fcntl.h" nogil:
    int posix_fallocate(int fd, i64 offset, i64 size)

cdef enum:
    RESERVE_PAGES_MIN = 4
    BACKING_STEP_MIN = 1 << 20
    BACKING_STEP_MAX = 64 << 20


# ---- preallocation ----

cdef bint pages_back(Arena *a, u64 need) noexcept nogil:
    """Preallocate the first `need` bytes and the slack.

    In steps, so that growth does not cost a system call for each page.
    """
    cdef u64 slack = SLACK_PAGES * PAGE_SIZE
    cdef u64 end = <u64>a.page_count * PAGE_SIZE + slack
    cdef u64 target = end
    cdef u64 step = a.backed // 16
    cdef u32 short_of
    need += slack
    if need <= a.backed:
        return True
    if a.fd >= 0:
        step = BACKING_STEP_MIN if step < BACKING_STEP_MIN else BACKING_STEP_MAX if step > BACKING_STEP_MAX else step
        target = a.backed + step
        target = need if target < need else end if target > end else target
        short_of = fallocate_range(a.fd, a.backed, target)
        if short_of and target != need:
            target = need
            short_of = fallocate_range(a.fd, a.backed, need)
        if short_of:
            a.short_of = short_of
            return False
    a.backed = target
    # Release: a reader that follows a ref into the new pages sees that they may be read.
    store_release_u64(a.readable_word, target - slack)
    return True


cdef u32 fallocate_range(int fd, u64 start, u64 end) noexcept nogil:
    """Preallocate a part of the file. Returns SHORT_OF_NOTHING when its pages are there."""
    cdef int error = EINTR
    cdef u32 short_of = memory_shortage(end - start)
    if short_of:
        return short_of
    while error == EINTR:
        error = posix_fallocate(fd, <i64>start, <i64>(end - start))
    if error == 0:
        return SHORT_OF_NOTHING
    return SHORT_OF_FILE_SIZE if error == EFBIG else SHORT_OF_SHM


# ---- free runs ----

cdef void link_run(Arena *a, u32 start, u32 pages) noexcept nogil:
    """Make a free run. Both ends are marked, so that its neighbours can find it."""
    cdef u32 b = bin_of(pages)
    cdef u32 first = a.run_bins[b]
    a.pages[start].kind = PAGE_FREE
    a.pages[start].start = start
    a.pages[start].pages = pages
    a.pages[start].previous = 0
    a.pages[start].next = first
    a.pages[start + pages - 1].kind = PAGE_FREE
    a.pages[start + pages - 1].start = start
    if first:
        a.pages[first].previous = start
    a.free_pages += pages
    a.run_bins[b] = start
    a.run_bins_used[b >> 6] |= <u64>1 << (b & 63)


cdef void unlink_run(Arena *a, u32 start) noexcept nogil:
    cdef Page *p = &a.pages[start]
    cdef u32 b = bin_of(p.pages)
    a.free_pages -= p.pages
    if p.next:
        a.pages[p.next].previous = p.previous
    if p.previous:
        a.pages[p.previous].next = p.next
        return
    a.run_bins[b] = p.next
    if p.next == 0:
        a.run_bins_used[b >> 6] &= ~(<u64>1 << (b & 63))


cdef u32 find_run(Arena *a, u32 pages) noexcept nogil:
    """A free run of at least `pages`: the first of the lowest bin in which all runs fit; 0: none."""
    cdef u32 b = bin_of(pages)
    if pages >= 64 and bin_of(pages - 1) == b:
        b += 1              # runs in this bin may be shorter
    cdef u32 word = b >> 6
    cdef u64 bits
    if word > 3:
        return 0
    bits = a.run_bins_used[word] & (~<u64>0 << (b & 63))
    while bits == 0:
        word += 1
        if word > 3:
            return 0
        bits = a.run_bins_used[word]
    return a.run_bins[(word << 6) + ctz(bits)]


cdef u32 search_run(Arena *a, u32 pages) noexcept nogil:
    """The last resort before the store is full: a run from the bin that `find_run` had to skip."""
    cdef u32 run = a.run_bins[bin_of(pages)]
    while run and a.pages[run].pages < pages:
        run = a.pages[run].next
    return run


# ---- taking and giving back ----

cdef bint leaves_reserve(Arena *a, u32 pages) noexcept nogil:
    """Whether an allocation may take so many pages and still leave the reserve, 1/64 of what is used."""
    cdef u64 need = <u64>pages + a.pages_high // 64 + RESERVE_PAGES_MIN
    cdef u64 in_use = a.pages_high - a.free_pages
    if a.urgent:
        return True
    if in_use + need > a.page_limit:
        return False
    if need <= a.free_pages:
        return True
    need += in_use
    return need <= a.page_count and pages_back(a, need * PAGE_SIZE)


cdef u32 pages_take(Arena *a, u32 pages, u16 kind) noexcept nogil:
    """The first page of a new slab or large run; see _pages.pxd."""
    cdef u32 run, rest
    if not leaves_reserve(a, pages):
        return 0
    run = find_run(a, pages)
    if run == 0:
        if pages <= a.page_count - a.pages_high and pages_back(a, <u64>(a.pages_high + pages) * PAGE_SIZE):
            run = a.pages_high
            a.pages_high += pages
            mark_pages(a, run, pages, kind)
            return run
        run = search_run(a, pages)
        if run == 0:
            return 0
    unlink_run(a, run)
    rest = a.pages[run].pages - pages
    if rest:
        link_run(a, run + pages, rest)
    mark_pages(a, run, pages, kind)
    return run


cdef void mark_pages(Arena *a, u32 start, u32 pages, u16 kind) noexcept nogil:
    cdef u32 i
    for i in range(start, start + pages):
        a.pages[i].kind = PAGE_INNER
        a.pages[i].start = start
    a.pages[start].kind = kind
    a.pages[start].pages = pages


cdef void pages_give(Arena *a, u32 start) noexcept nogil:
    """Return a slab or large run, merged with free neighbours."""
    cdef u32 pages = a.pages[start].pages
    cdef u32 neighbour
    a.pages[start].kind = PAGE_NEVER        # merged into a neighbour it is no longer the start of anything
    if a.pages[start - 1].kind == PAGE_FREE:
        neighbour = a.pages[start - 1].start
        unlink_run(a, neighbour)
        pages += a.pages[neighbour].pages
        start = neighbour
    if start + pages == a.pages_high:
        a.pages_high = start
        return
    if a.pages[start + pages].kind == PAGE_FREE:
        neighbour = start + pages
        unlink_run(a, neighbour)
        pages += a.pages[neighbour].pages
    link_run(a, start, pages)
