"""The store's garbage collector; called by `_store` only."""

from ...ipc._atomics cimport u8, u32, u64
from ._store cimport PinBucket, Store

# The commit thread only. `pins`, `count` and `budget` are those of `store_collect`.

# Free superseded records that no pin needs. Also inside a batch: every node stays.
cdef void collect_records(Store *s, const u64 *pins, u32 count, u32 budget) noexcept nogil
# Remove the nodes of failed commits and of old deletes. REQUIRES: no batch is open, for node refs become
# stale.
cdef void collect_nodes(Store *s, const u64 *pins, u32 count, u32 budget) noexcept nogil
# Queue a tombstone for collection, at the end. REQUIRES: it is not queued.
cdef void tombstone_append(Store *s, u32 ref) noexcept nogil
# Take a tombstone out of the queue. REQUIRES: it is queued.
cdef void tombstone_unlink(Store *s, u32 ref) noexcept nogil
# The index of the first bucket whose pin is at or above `pin`; s.bucket_count: there is none.
cdef u32 bucket_search(const Store *s, u64 pin) noexcept nogil
