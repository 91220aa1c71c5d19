"""A follower of the change ring: a private position, and private copies of the blocks.

The argument for each step is in `_change_ring.pyx`; here is what a follower does for it.

1. A block is copied first and believed afterwards: the copy counts if `change_tail`, loaded behind an acquire fence,
   is still at or below the block's position.
2. Sizes are checked against the ring before they are used, also in copies that are thrown away. What lies outside the
   ring is never read.
3. `position` is a shortcut. If it was lapped, the follower looks for its version again, by the links back from the
   newest block. It lags only if the floor has passed its version.
4. A loop ends: each step back goes at least one block header down to a position that is still in the ring, so a ring
   has no more steps than headers fit into it. A follower that is lapped again and again finds the floor above its
   version in the end. `TURNS_MAX` ends it in a ring that is damaged.
5. The header that was checked is the one that is handed on with the copy. So what parses the copy relies on a size
   that fits the buffer, even if the writer breaks the rules.
"""

from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from ...ipc._atomics cimport fence_acquire, load_acquire_u64, load_relaxed_u64, u32
from ._change_ring cimport CHANGE_BLOCK_SIZE, CHANGE_COMMIT, CHANGE_GAP, CHANGE_SIZE_MIN, CHANGE_WRAP
from ._layout cimport STORE_HEADER_SIZE

cdef enum:
    TURNS_MAX = 1000000

    BLOCK_GOOD = 0
    BLOCK_GONE = 1
    BLOCK_BAD = 2


cdef int cursor_open(ChangeCursor *c, const u8 *base, u64 size, u64 version) noexcept nogil:
    cdef const StoreHeader *header = <const StoreHeader *>base
    c.header = header
    c.size = header.change_size
    c.version = version
    c.placed = False
    c.buffer = NULL
    c.capacity = 0
    if c.size == 0:
        return 2
    if c.size & (c.size - 1) or c.size < CHANGE_SIZE_MIN or c.size > size:
        return 1
    if header.change_offset < STORE_HEADER_SIZE or header.change_offset > size - c.size:
        return 1
    c.data = base + header.change_offset
    return 0


cdef void cursor_close(ChangeCursor *c) noexcept nogil:
    free(c.buffer)
    c.buffer = NULL
    c.capacity = 0


cdef inline bint _gone(const ChangeCursor *c, u64 position) noexcept nogil:
    """Whether what was copied from a block at `position` may be torn."""
    # Behind the copy; pairs with the writer's release fence between the tail and the bytes.
    fence_acquire()
    return load_relaxed_u64(&c.header.change_tail) > position


cdef int _peek(const ChangeCursor *c, u64 position, ChangeBlock *block) noexcept nogil:
    """Copy and check the header of the block at a position that was below `change_end`. BLOCK_*."""
    cdef u64 offset = position & (c.size - 1)
    if offset & (CHANGE_BLOCK_SIZE - 1):
        return BLOCK_BAD
    memcpy(block, c.data + offset, sizeof(ChangeBlock))
    if _gone(c, position):
        return BLOCK_GONE
    if block.size < CHANGE_BLOCK_SIZE or block.size & (CHANGE_BLOCK_SIZE - 1) or block.size > c.size - offset:
        return BLOCK_BAD
    if block.kind == CHANGE_WRAP:
        return BLOCK_GOOD if block.size == c.size - offset else BLOCK_BAD
    if block.kind != CHANGE_COMMIT and block.kind != CHANGE_GAP:
        return BLOCK_BAD
    return BLOCK_GOOD


cdef int _place(ChangeCursor *c) noexcept nogil:
    """Find the position of the first block after `version`. CURSOR_NOTHING: found; else why not."""
    cdef ChangeBlock block
    # Acquire, in this order: the end before the last block, the tail before the floor (_change_ring, invariant 3).
    cdef u64 end = load_acquire_u64(&c.header.change_end)
    cdef u64 at = load_acquire_u64(&c.header.change_last)
    cdef u64 tail = load_acquire_u64(&c.header.change_tail)
    cdef u64 start = end, steps = 0
    cdef int found
    # Acquire: not older than the tail. From here on nothing after `version` is missing at or above the tail.
    c.oldest = load_acquire_u64(&c.header.change_floor)
    if c.oldest > c.version:
        return CURSOR_LAGS
    if at == 0 or at < tail:
        # No block is left. All that comes lies at `end` or above, or at the tail if the end is behind it.
        start = end if end > tail else tail
    while at >= tail and at != 0:
        found = _peek(c, at, &block)
        if found == BLOCK_BAD:
            return CURSOR_DAMAGED
        if found == BLOCK_GONE:
            return CURSOR_LAGS          # for now: the caller looks again
        if block.version <= c.version:
            start = at + block.size
            break
        start = at
        if block.back == 0:
            break                       # nothing older was left when it was written
        steps += 1
        if block.back < CHANGE_BLOCK_SIZE or block.back > at or steps > c.size // CHANGE_BLOCK_SIZE:
            return CURSOR_DAMAGED
        at -= block.back
    c.position = start
    c.placed = True
    return CURSOR_NOTHING


cdef int _place_again(ChangeCursor *c) noexcept nogil:
    """`_place`, again while the writer laps us and our version is still in the ring."""
    cdef u32 turns = 0
    cdef int found
    while turns < TURNS_MAX:
        turns += 1
        found = _place(c)
        if found != CURSOR_LAGS or c.oldest > c.version:
            return found
    return CURSOR_DAMAGED


cdef bint _fits(ChangeCursor *c, u64 size) noexcept nogil:
    """Make `buffer` hold a block of this size. False: no private memory."""
    cdef void *grown
    if size <= c.capacity:
        return True
    grown = realloc(c.buffer, size)
    if grown == NULL:
        return False
    c.buffer = <u8 *>grown
    c.capacity = size
    return True


cdef int cursor_next(ChangeCursor *c, u64 limit) noexcept nogil:
    cdef ChangeBlock block
    cdef u64 end
    cdef u32 turns = 0
    cdef int found
    while turns < TURNS_MAX:
        turns += 1
        if not c.placed:
            found = _place_again(c)
            if found != CURSOR_NOTHING:
                return found
        # Acquire, after `limit` was loaded: every block up to that version lies below.
        end = load_acquire_u64(&c.header.change_end)
        if c.position >= end:
            c.version = limit if limit > c.version else c.version
            return CURSOR_NOTHING
        found = _peek(c, c.position, &block)
        if found == BLOCK_GONE:
            c.placed = False
            continue
        if found == BLOCK_BAD:
            return CURSOR_DAMAGED
        if block.kind != CHANGE_WRAP and block.version > c.version:
            if block.version > limit:
                c.version = limit if limit > c.version else c.version
                return CURSOR_NOTHING
            if block.kind == CHANGE_GAP:
                c.oldest = block.version
                return CURSOR_LAGS
            if not _fits(c, block.size):
                return CURSOR_NO_MEMORY
            memcpy(c.buffer, c.data + (c.position & (c.size - 1)), block.size)
            if _gone(c, c.position):
                c.placed = False
                continue
            memcpy(c.buffer, &block, sizeof(ChangeBlock))
            c.position += block.size
            c.version = block.version
            return CURSOR_BLOCK
        c.position += block.size
    return CURSOR_DAMAGED
