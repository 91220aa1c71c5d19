"""Allocator of the store segment and the quarantine of unlinked blocks.

The segment is a row of 16 KiB pages; page 0 is the header's. Small blocks live in slabs (one size class each),
blocks above 128 KiB are runs of whole pages. All bookkeeping is private memory of the writer: after a crash the
store is rebuilt from the log, never reattached, so nothing here needs to be crash-safe.

1. Pages below `pages_high` are slabs, large runs or free runs; no two free runs touch; none touches
   `pages_high`.
2. A bitmap bit is set exactly for the free blocks of a slab. A slab with a free block is in its class's partial
   list.
3. Pages are preallocated (posix_fallocate) before anything is written to them, and only while the machine has
   the memory (`_memory`): running out of either is a failed allocation, never SIGBUS or a process killed for
   it.
4. A block that was ever published goes through `arena_retire`; its bytes stay as they are until `arena_flip`
   has raised `reclaim_sequence`. Only blocks that no reader can have seen may go to `arena_free` directly.
5. Ordinary allocations leave a reserve of pages, backed like the rest, for urgent ones (tombstones): a store
   that is full, or whose shared memory is, can still delete.
6. Callers promise retirements ahead (`arena_reserve`), so that taking a block out of use cannot fail half-way.
"""

from libc.errno cimport EFBIG, EINTR, EINVAL, ENOMEM, ENOSPC
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memset

from ...ipc._atomics cimport i64, u8, u16, u32, u64
from ...ipc._atomics cimport fence_release, load_relaxed_u64, store_release_u64, store_seq_cst_u64
from ._layout cimport PAGE_SIZE, REF_SHIFT, SLACK_PAGES
from ._memory cimport SHORT_OF_FILE_SIZE, SHORT_OF_NOTHING, SHORT_OF_SHM, memory_shortage

cdef extern from *:
    int ctz "__builtin_ctzll"(unsigned long long) nogil
    int clz "__builtin_clzll"(unsigned long long) nogil

cdef extern from "fcntl.h" nogil:
    int posix_fallocate(int fd, i64 offset, i64 size)

cdef enum:
    PAGE_NEVER = 0              # never used, or inside a free run
    PAGE_SLAB = 1
    PAGE_LARGE = 2
    PAGE_FREE = 3               # first and last page of a free run
    PAGE_INNER = 4              # further pages of a slab or large run
    BITMAP_WORDS = 16           # 1024 blocks of 16 bytes fill a page; larger slabs hold fewer
    PAGE_REFS = 1024
    SMALL_MAX = 512
    BLOCK_MAX = 131072          # larger blocks are runs of pages
    RESERVE_PAGES_MIN = 4
    BACKING_STEP_MIN = 1 << 20
    BACKING_STEP_MAX = 64 << 20

cdef u32 class_size[96]
cdef u32 class_pages[96]


cdef inline u32 class_of(u64 size) noexcept nogil:
    """The smallest class that holds `size` bytes (1..BLOCK_MAX): steps of 16 to 512, then 8 steps a doubling."""
    if size <= SMALL_MAX:
        return <u32>((size + 15) >> 4) - 1
    cdef u32 top = 63 - clz(size - 1)           # 9 for 513..1024
    cdef u32 step = <u32>(((size - 1) >> (top - 3)) & 7)
    return 32 + (top - 9) * 8 + step


cdef void fill_classes() noexcept:
    """Slabs take the fewest pages that hold 8 blocks, or waste less than an eighth."""
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


cdef inline u32 bin_of(u32 pages) noexcept nogil:
    """Free-run bin: exact below 64 pages, then 8 bins a doubling."""
    if pages < 64:
        return pages
    cdef u32 top = 63 - clz(pages)
    return 64 + (top - 6) * 8 + ((pages >> (top - 3)) & 7)


cdef int arena_open(Arena *a, u8 *base, u64 size, int fd, void *reclaim_word, void *readable_word) noexcept nogil:
    """Take over zero-filled memory; page 0 becomes the caller's. 0, or an errno."""
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
    if not back(a, PAGE_SIZE):
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


# ---- pages ----

cdef bint back(Arena *a, u64 need) noexcept nogil:
    """Preallocate the first `need` bytes and the slack; in steps, so that growth does not cost a system call a page."""
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
    """SHORT_OF_NOTHING when the pages are there."""
    cdef int error = EINTR
    cdef u32 short_of = memory_shortage(end - start)
    if short_of:
        return short_of
    while error == EINTR:
        error = posix_fallocate(fd, <i64>start, <i64>(end - start))
    if error == 0:
        return SHORT_OF_NOTHING
    return SHORT_OF_FILE_SIZE if error == EFBIG else SHORT_OF_SHM


cdef void link_run(Arena *a, u32 start, u32 pages) noexcept nogil:
    """Make a free run; both ends are marked so that neighbours can find it."""
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
    """A free run of at least `pages`: the first of the lowest bin all of whose runs fit, else 0."""
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
    """Last resort before the store is full: a run from the bin `find_run` had to skip."""
    cdef u32 run = a.run_bins[bin_of(pages)]
    while run and a.pages[run].pages < pages:
        run = a.pages[run].next
    return run


cdef bint leaves_reserve(Arena *a, u32 pages) noexcept nogil:
    """May an allocation take so many pages? The reserve that must then be left is 1/64 of what is used."""
    cdef u64 need = <u64>pages + a.pages_high // 64 + RESERVE_PAGES_MIN
    cdef u64 in_use = a.pages_high - a.free_pages
    if a.urgent:
        return True
    if in_use + need > a.page_limit:
        return False
    if need <= a.free_pages:
        return True
    need += in_use
    return need <= a.page_count and back(a, need * PAGE_SIZE)


cdef u32 take_pages(Arena *a, u32 pages, u16 kind) noexcept nogil:
    """First page of a new slab or large run; 0: full."""
    cdef u32 run, rest
    if not leaves_reserve(a, pages):
        return 0
    run = find_run(a, pages)
    if run == 0:
        if pages <= a.page_count - a.pages_high and back(a, <u64>(a.pages_high + pages) * PAGE_SIZE):
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


cdef void give_pages(Arena *a, u32 start) noexcept nogil:
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


# ---- slabs ----

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
    cdef u32 slab = take_pages(a, class_pages[c], PAGE_SLAB)
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
    """Give back the empty slabs kept for their class's next block. Was there any?"""
    cdef bint found = False
    cdef u32 c, slab, following
    for c in range(CLASS_COUNT):
        slab = a.partial[c]
        while slab:
            following = a.pages[slab].next
            if a.pages[slab].used == 0:
                unlink_slab(a, slab)
                give_pages(a, slab)
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
    run = take_pages(a, <u32>pages, PAGE_LARGE)
    if run == 0:
        return 0
    a.allocated += pages * PAGE_SIZE
    return run * PAGE_REFS


cdef inline u32 try_alloc(Arena *a, u64 size) noexcept nogil:
    return alloc_small(a, size) if size <= BLOCK_MAX else alloc_large(a, size)


cdef u32 arena_alloc(Arena *a, u64 size) noexcept nogil:
    """A block of at least `size` (> 0) bytes, contents undefined; 0: full, even with the quarantine given back."""
    cdef u32 ref = try_alloc(a, size)
    if ref == 0 and a.quarantine_count:
        arena_flip(a)
        ref = try_alloc(a, size)
    if ref == 0 and trim(a):
        ref = try_alloc(a, size)
    return ref


cdef u64 arena_rounded(u64 size) noexcept nogil:
    """Bytes a block of `size` bytes takes."""
    if size <= BLOCK_MAX:
        return class_size[class_of(size)]
    return (size + PAGE_SIZE - 1) // PAGE_SIZE * PAGE_SIZE


cdef inline bint locate(const Arena *a, u32 ref, u32 *slab, u32 *index) noexcept nogil:
    """Is `ref` the start of a handed-out block? `index` is its number in a slab, ~0 for a large run."""
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
    """Bytes of the block at `ref`, 0 when no handed-out block starts there."""
    cdef u32 slab, index
    if not locate(a, ref, &slab, &index):
        return 0
    if index == ~<u32>0:
        return <u64>a.pages[slab].pages * PAGE_SIZE
    return class_size[a.pages[slab].size_class]


cdef void arena_free(Arena *a, u32 ref) noexcept nogil:
    """Give back a block no reader can be looking at. A ref that is no block is ignored (check() reports the leak)."""
    cdef u32 slab, index
    cdef Page *p
    if not locate(a, ref, &slab, &index):
        return
    p = &a.pages[slab]
    if index == ~<u32>0:
        a.allocated -= <u64>p.pages * PAGE_SIZE
        give_pages(a, slab)
        return
    a.bitmaps[<u64>slab * BITMAP_WORDS + (index >> 6)] |= <u64>1 << (index & 63)
    a.allocated -= class_size[p.size_class]
    if p.used == p.capacity:
        link_slab(a, slab)
    p.used -= 1
    # One empty one-page slab may stay, when it is its class's only partial one: no page traffic at a boundary.
    if p.used == 0 and (p.pages > 1 or a.partial[p.size_class] != slab or p.next != 0):
        unlink_slab(a, slab)
        give_pages(a, slab)


# ---- quarantine ----

cdef bint arena_reserve(Arena *a, u32 count) noexcept nogil:
    """Room for `count` retirements beside the promised ones; False: out of private memory."""
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
    """An unlinked block: kept intact until the next flip. Needs a place from arena_reserve. Returns its size."""
    cdef u64 size = arena_block_size(a, ref)
    a.quarantine[a.quarantine_count] = ref
    a.quarantine_count += 1
    a.quarantine_bytes += size
    return size


cdef void arena_flip(Arena *a) noexcept nogil:
    """Let the quarantined blocks be used again.

    A reader that loads the raised sequence sees every unlinking that came before (the store is a release), so it
    cannot reach these blocks. One that loaded the older value may be inside them, and finds the sequence changed when
    it is done.
    """
    cdef u32 i
    if a.quarantine_count == 0:
        return
    # seq_cst store: orders all unlinkings before it, and stands in one order with the readers' checks.
    store_seq_cst_u64(a.reclaim_word, load_relaxed_u64(a.reclaim_word) + 1)
    # Release fence: whoever sees new bytes in a reused block (and then fences) also sees the raised sequence.
    fence_release()
    for i in range(a.quarantine_count):
        arena_free(a, a.quarantine[i])
    a.quarantine_count = 0
    a.quarantine_bytes = 0
    a.flip_count += 1


# ---- audit ----

cdef int fail(char *message, size_t size, const char *what, u64 where) noexcept nogil:
    snprintf(message, size, "arena: %s (at %llu)", what, <unsigned long long>where)
    return 1


cdef int check_slab(const Arena *a, u32 slab, u64 *allocated, char *message, size_t size) noexcept nogil:
    cdef const Page *p = &a.pages[slab]
    cdef u32 i, free_blocks = 0
    cdef u64 bits
    for i in range(BITMAP_WORDS):
        bits = a.bitmaps[<u64>slab * BITMAP_WORDS + i]
        while bits:
            free_blocks += 1
            bits &= bits - 1
    if p.size_class >= CLASS_COUNT or p.pages != class_pages[p.size_class]:
        return fail(message, size, "slab with a wrong class", slab)
    if free_blocks + p.used != p.capacity:
        return fail(message, size, "slab bitmap and count differ", slab)
    allocated[0] += <u64>p.used * class_size[p.size_class]
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
    """0: all invariants hold; else 1 and a message."""
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
