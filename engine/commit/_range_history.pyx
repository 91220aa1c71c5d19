"""The recent range deletes, for validation.

A range delete counts as a write of every possible key in its range. What a transaction writes into a range
that was deleted after it began must conflict, even if it writes a key that never existed, increments one, or
expects absence by CAS. No node remembers the delete of such a key, so this list does.

1. Entries are in the order of their versions, and every range delete above `floor` is here. `floor` rises
   when the ring wraps or private memory runs out. It starts at the version up to which recovery may have
   replayed range deletes.
2. Below `floor`, validation errs on the safe side (`_validate._erased_since`): it may refuse a transaction
   needlessly, and never accepts one wrongly.
"""

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from ..store._layout cimport key_compare

cdef enum:
    COUNT = 256                     # of RangeHistory.entries, a power of two


cdef void history_free(RangeHistory *h) noexcept nogil:
    while h.oldest != h.next:
        free(h.entries[h.oldest & (COUNT - 1)].keys)
        h.oldest += 1


cdef void history_push(RangeHistory *h, const u8 *start, u32 start_size, const u8 *end, u32 end_size, u64 version,
                       bint large) noexcept nogil:
    cdef RangeDelete *entry = &h.entries[h.next & (COUNT - 1)]
    cdef u8 *keys
    if key_compare(start, start_size, end, end_size) >= 0:
        return                          # empty
    keys = <u8 *>malloc(<u64>start_size + end_size)
    if keys == NULL:
        h.floor = version
        return
    if h.next - h.oldest == COUNT:
        free(entry.keys)
        if entry.version > h.floor:
            h.floor = entry.version
        h.oldest += 1
    memcpy(keys, start, start_size)
    memcpy(keys + start_size, end, end_size)
    entry.version = version
    entry.keys = keys
    entry.start_size = start_size
    entry.end_size = end_size
    entry.large = large
    h.next += 1


cdef void history_undo(RangeHistory *h, u64 version) noexcept nogil:
    while h.next != h.oldest and h.entries[(h.next - 1) & (COUNT - 1)].version >= version:
        h.next -= 1
        free(h.entries[h.next & (COUNT - 1)].keys)
    if h.floor >= version:
        h.floor = version - 1


cdef u64 history_search(const RangeHistory *h, const u8 *start, u32 start_size, const u8 *end, u32 end_size, u64 after,
                        bint large_only) noexcept nogil:
    """Find a range that meets [start, end), or that contains the key `start` if `end` is NULL."""
    cdef u64 position = h.next
    cdef const RangeDelete *entry
    if end != NULL and key_compare(start, start_size, end, end_size) >= 0:
        return 0
    while position != h.oldest:
        position -= 1
        entry = &h.entries[position & (COUNT - 1)]
        if entry.version <= after:
            return 0
        if large_only and not entry.large:
            continue
        if key_compare(start, start_size, entry.keys + entry.start_size, entry.end_size) >= 0:
            continue
        if end == NULL:
            if key_compare(start, start_size, entry.keys, entry.start_size) >= 0:
                return entry.version
        elif key_compare(end, end_size, entry.keys, entry.start_size) > 0:
            return entry.version
    return 0
