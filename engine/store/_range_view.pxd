"""Range tombstones as a reader sees them: the list is copied at the start of each walk, before any `head` is
loaded.

A record of version v of a key in [start, end) is absent for a snapshot at V if v < t <= V, t being the
tombstone's version.

    reader                                    commit thread
    V = committed_version (acquire)           slot = ref, range_count (release)
                                              later: committed_version = t (release)
    1. copies the list (acquire)              installs a tombstone at t on every covered key (release)
    2. walks: loads heads (acquire)           slot = 0, range_count (release)

1. A reader with V >= t sees the slot as it was set, or a later state of it: the slot is set before t is
   published.
2. A reader that finds the slot empty again acquired that store, and loads heads after it: it sees every
   ordinary tombstone that took the entry's place. Copying the list after loading a head would miss both.
3. A block named by the list is unlinked (slot = 0) and quarantined before its memory is reused. A walk that
   read reused bytes sees `reclaim_sequence` raised and is repeated. The sizes are checked once, on private
   copies; the slack behind the readable part makes RANGE_KEYS_MAX bytes at any readable offset safe to touch.
"""

from ...ipc._atomics cimport load_acquire_u32, load_relaxed_u64, u8, u32, u64
from ._layout cimport RANGE_BLOCK_SIZE, RANGE_KEYS_MAX, RANGE_SLOTS, REF_SHIFT, RangeBlock, StoreHeader, key_compare
from ._reader cimport Reader

cdef struct RangeSeen:
    u64 version
    const u8 *start
    const u8 *end
    u32 start_size
    u32 end_size

cdef struct RangeView:          # what one walk goes by
    u32 count
    RangeSeen seen[64]          # only the first `count` are filled in


cdef inline bint ranges_load(const Reader *r, u64 version, RangeView *view) noexcept nogil:
    """Copy the list of those that a snapshot at `version` sees. False: a slot names no block (damage)."""
    cdef const StoreHeader *header = <const StoreHeader *>r.base
    # Acquire: see the module's docstring, 1 and 2.
    cdef u32 count = load_acquire_u32(&header.range_count), slot, ref
    cdef u64 offset
    cdef const RangeBlock *block
    cdef RangeSeen *seen
    view.count = 0
    if count == 0:
        return True
    if count > RANGE_SLOTS:
        return False
    for slot in range(count):
        # Acquire: the block is complete when its ref is seen.
        ref = load_acquire_u32(&header.ranges[slot])
        if ref == 0:
            continue
        offset = <u64>ref << REF_SHIFT
        if offset >= r.limit or offset >= load_relaxed_u64(&header.readable):
            return False
        block = <const RangeBlock *>(r.base + offset)
        seen = &view.seen[view.count]
        seen.version = block.version
        seen.start_size = block.start_size
        seen.end_size = block.end_size
        # Torn sizes come from a block that was reused: the walk is repeated, whatever it finds.
        if seen.version > version or <u64>seen.start_size + seen.end_size > RANGE_KEYS_MAX:
            continue
        seen.start = <const u8 *>block + RANGE_BLOCK_SIZE
        seen.end = seen.start + seen.start_size
        view.count += 1
    return True


cdef inline bint ranges_hide(const RangeView *view, const u8 *key, u32 key_size, u64 version) noexcept nogil:
    """Is a record of this version deleted by one of the ranges?"""
    cdef u32 i
    cdef const RangeSeen *seen
    for i in range(view.count):
        seen = &view.seen[i]
        if (version < seen.version and key_compare(key, key_size, seen.start, seen.start_size) >= 0
                and key_compare(key, key_size, seen.end, seen.end_size) < 0):
            return True
    return False
