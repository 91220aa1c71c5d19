"""Range tombstones, writer side: the commit thread only. See `_range_tombstones.pyx`."""

from ...ipc._atomics cimport i64, u8, u32, u64
from ._layout cimport RECORD_TOMBSTONE, RangeBlock, Record, node_at, record_at
from ._store cimport Store

# Add a range tombstone and return its slot; ranges_drop undoes it until it is published. -1: no slot or no
# memory is left, or the keys are too long for one.
cdef int ranges_add(Store *s, const u8 *start, u32 start_size, const u8 *end, u32 end_size, u64 version,
                    i64 timestamp) noexcept nogil
# Take back the newest add of the batch, which is in `slot`.
cdef void ranges_drop(Store *s, u32 slot) noexcept nogil
# The oldest range tombstone newer than `version` that holds the node's key; NULL: none does.
cdef const RangeBlock *ranges_find(const Store *s, u32 node, u64 version) noexcept nogil
# Turn up to `budget` nodes of the oldest range into ordinary tombstones. False: the store is full, try again
# later. REQUIRES: no batch is open.
cdef bint ranges_convert(Store *s, u32 budget) noexcept nogil


cdef inline const RangeBlock *ranges_cover(const Store *s, u32 node) noexcept nogil:
    """The range tombstone that deleted the node's newest value: the oldest newer than it. NULL: none did."""
    cdef const Record *record
    cdef u32 head
    if s.range_active == 0:
        return NULL
    head = node_at(s.base, node).head
    if head == 0:
        return NULL
    record = record_at(s.base, head)
    if record.flags & RECORD_TOMBSTONE:
        return NULL
    return ranges_find(s, node, record.version)
