"""Deleting a large range at once: a range tombstone in the store's header, converted piece by piece.

`_range_view.pxd` is the readers' side, with the memory order. Only the commit thread writes.

1. A key in [start, end) whose newest record is not a tombstone and has a version v < t is *covered*: deleted
   at t. With several such ranges, the oldest of them newer than v deleted it; the others found nothing there.
2. Whatever judges a key's newest version asks `ranges_cover` first. Whatever writes to a covered key first
   installs the ordinary tombstone of version t, then its own record. So versions on a chain never go down,
   and no record is ever put into the middle of a chain.
3. An entry is added before t is published, and taken back with the batch. It is dropped when its conversion
   has passed its end: from then on every key that was covered carries a tombstone of version t (or of an
   older range's). Keys written behind the cursor have newer versions, or a tombstone by 2.
4. Conversion runs only between batches, the oldest version first. Its tombstones carry a published version
   and say what readers saw before. So nothing changes for anybody, and they are neither logged nor undone. A
   restart replays the log's DeleteRange entry as a whole.
"""

from libc.stdlib cimport realloc
from libc.string cimport memcpy

from ...ipc._atomics cimport load_relaxed_u64, store_release_u32
from ._arena cimport arena_alloc, arena_reserve, arena_retire
from ._layout cimport RANGE_BLOCK_SIZE, RANGE_KEYS_MAX, RANGE_SLOTS, Node, key_compare, node_key
from ._layout cimport range_at, range_end, range_start
from ._store cimport store_install, store_new_record, store_next, store_publish, store_seek


cdef inline bint _inside(const RangeBlock *block, const u8 *key, u32 key_size) noexcept nogil:
    return (key_compare(key, key_size, range_start(block), block.start_size) >= 0
            and key_compare(key, key_size, range_end(block), block.end_size) < 0)


cdef int ranges_add(Store *s, const u8 *start, u32 start_size, const u8 *end, u32 end_size, u64 version,
                    i64 timestamp) noexcept nogil:
    cdef u32 slot = 0, ref
    cdef RangeBlock *block
    if <u64>start_size + end_size > RANGE_KEYS_MAX:
        return -1
    while slot < RANGE_SLOTS and s.header.ranges[slot] != 0:
        slot += 1
    # Reserve the place in the quarantine now, because undoing must not fail.
    if slot == RANGE_SLOTS or not arena_reserve(&s.arena, 1):
        return -1
    s.arena.urgent = True           # a full store can still delete
    ref = arena_alloc(&s.arena, RANGE_BLOCK_SIZE + <u64>start_size + end_size)
    s.arena.urgent = False
    if ref == 0:
        return -1
    s.arena.quarantine_promised += 1
    block = range_at(s.base, ref)
    block.version = version
    block.timestamp = timestamp
    block.start_size = start_size
    block.end_size = end_size
    memcpy(range_start(block), start, start_size)
    memcpy(range_end(block), end, end_size)
    # Release: the block is complete before a reader can reach it; the count comes last, before
    # `committed_version`.
    store_release_u32(&s.header.ranges[slot], ref)
    if slot >= s.header.range_count:
        store_release_u32(&s.header.range_count, slot + 1)
    s.range_active += 1
    return <int>slot


cdef void _unlink(Store *s, u32 slot) noexcept nogil:
    """Empty a slot and retire its block (one place is reserved)."""
    cdef u32 ref = s.header.ranges[slot], count
    # Release: a reader that sees the slot empty sees the tombstones that took its place.
    store_release_u32(&s.header.ranges[slot], 0)
    count = s.header.range_count
    while count and s.header.ranges[count - 1] == 0:
        count -= 1
    store_release_u32(&s.header.range_count, count)
    arena_retire(&s.arena, ref)
    s.range_active -= 1


cdef void ranges_drop(Store *s, u32 slot) noexcept nogil:
    if s.arena.quarantine_promised:
        s.arena.quarantine_promised -= 1
    _unlink(s, slot)


cdef const RangeBlock *ranges_find(const Store *s, u32 node, u64 version) noexcept nogil:
    """The oldest range tombstone over the node's key that is newer than `version`; NULL: none."""
    cdef const Node *entry = node_at(s.base, node)
    cdef const RangeBlock *found = NULL
    cdef const RangeBlock *block
    cdef u32 slot
    for slot in range(s.header.range_count):
        if s.header.ranges[slot] == 0:
            continue
        block = range_at(s.base, s.header.ranges[slot])
        if (block.version > version and (found == NULL or block.version < found.version)
                and _inside(block, node_key(entry), entry.key_size)):
            found = block
    return found


cdef u32 _oldest(const Store *s) noexcept nogil:
    """The slot of the oldest range tombstone. REQUIRES: there is one."""
    cdef u32 slot, found = RANGE_SLOTS
    for slot in range(s.header.range_count):
        if s.header.ranges[slot] and (found == RANGE_SLOTS or range_at(s.base, s.header.ranges[slot]).version
                                      < range_at(s.base, s.header.ranges[found]).version):
            found = slot
    return found


cdef bint _remember(Store *s, u32 node) noexcept nogil:
    """Note where to continue. False: private memory ran out, and the conversion begins again."""
    cdef const Node *entry = node_at(s.base, node)
    cdef void *grown = realloc(s.range_cursor, entry.key_size + 1)
    if grown == NULL:
        s.range_version = 0
        return False
    s.range_cursor = <u8 *>grown
    memcpy(s.range_cursor, node_key(entry), entry.key_size)
    s.range_cursor_size = entry.key_size
    return True


cdef bint _convert_node(Store *s, u32 node) noexcept nogil:
    """The ordinary tombstone for a covered key. False: the store is full."""
    cdef const RangeBlock *block = ranges_cover(s, node)
    cdef u32 record
    if block == NULL:
        return True
    record = store_new_record(s, block.version, block.timestamp, 0, RECORD_TOMBSTONE, NULL, 0)
    if record == 0:
        return False
    store_install(s, node, record)
    return True


cdef bint ranges_convert(Store *s, u32 budget) noexcept nogil:
    cdef u32 slot = _oldest(s), node
    cdef const RangeBlock *block = range_at(s.base, s.header.ranges[slot])
    cdef bint fits = True, ended = False
    # Slot and version name one entry for good: a slot holds one range of a version, and only published ranges
    # are converted.
    if s.range_version == block.version and s.range_slot == slot:
        node = store_seek(s, s.range_cursor, s.range_cursor_size)
    else:
        node = store_seek(s, range_start(block), block.start_size)
        s.range_slot = slot
    while node and key_compare(node_key(node_at(s.base, node)), node_at(s.base, node).key_size, range_end(block),
                               block.end_size) < 0:
        if budget:
            fits = _convert_node(s, node)
        if budget == 0 or not fits:
            s.range_version = block.version
            _remember(s, node)
            break
        budget -= 1
        node = store_next(s, node)
    else:
        # The end was reached. Without a place in the quarantine the entry stays for another round.
        ended = True
        fits = arena_reserve(&s.arena, 1)
        s.range_version = 0
    # What was replaced joins the collector's queue; the version stays the one that is published.
    store_publish(s, load_relaxed_u64(&s.header.committed_version))
    if ended and fits:
        _unlink(s, slot)
    return fits
