"""The store's garbage collector; called by `_store` only."""

from ...ipc._atomics cimport u8, u32, u64
from ._store cimport Store

cdef void collect_records(Store *s, const u64 *pins, u32 count, u32 budget) noexcept nogil
cdef void collect_nodes(Store *s, const u64 *pins, u32 count, u32 budget) noexcept nogil
cdef void tombstone_append(Store *s, u32 ref) noexcept nogil
cdef void tombstone_unlink(Store *s, u32 ref) noexcept nogil
cdef u32 bucket_search(const Store *s, u64 pin) noexcept nogil
