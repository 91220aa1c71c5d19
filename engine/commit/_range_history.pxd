"""Recent range deletes with their versions; private to the commit core. See `_range_history.pyx`."""

from ...ipc._atomics cimport u8, u32, u64

cdef struct RangeDelete:
    u64 version
    u8 *keys                        # start key, end key
    u32 start_size
    u32 end_size
    bint large                      # became a range tombstone: its keys are not on the list of recent writes

cdef struct RangeHistory:
    RangeDelete entries[256]        # a ring, newest at (next - 1)
    u64 next
    u64 oldest                      # entries before this one were forgotten
    u64 floor                       # range deletes up to this version may be missing

cdef void history_free(RangeHistory *h) noexcept nogil
cdef void history_push(RangeHistory *h, const u8 *start, u32 start_size, const u8 *end, u32 end_size, u64 version,
                       bint large) noexcept nogil
# Forgets the entries of `version` and later, because the request or the batch was undone.
cdef void history_undo(RangeHistory *h, u64 version) noexcept nogil
cdef u64 history_search(const RangeHistory *h, const u8 *start, u32 start_size, const u8 *end, u32 end_size, u64 after,
                        bint large_only) noexcept nogil


cdef inline u64 history_overlap(const RangeHistory *h, const u8 *start, u32 start_size, const u8 *end, u32 end_size,
                                u64 after, bint large_only) noexcept nogil:
    """A version above `after` at which a range that meets [start, end) was deleted; 0: none is known."""
    if h.next == h.oldest or h.entries[(h.next - 1) & 255].version <= after:
        return 0
    return history_search(h, start, start_size, end, end_size, after, large_only)


cdef inline u64 history_cover(const RangeHistory *h, const u8 *key, u32 key_size, u64 after) noexcept nogil:
    """A version above `after` at which a range with this key in it was deleted; 0: none is known."""
    if h.next == h.oldest or h.entries[(h.next - 1) & 255].version <= after:
        return 0
    return history_search(h, key, key_size, NULL, 0, after, False)
