"""A binary heap of keys that expire; see _expiry.pyx."""

from ...ipc._atomics cimport i64, u8, u32, u64

cdef struct ExpiryEntry:
    i64 expires_at
    u64 version                     # of the record that carries this expiry time
    u8 *key                         # own copy: the node may be freed and reused meanwhile
    u32 key_size

cdef struct ExpiryHeap:
    ExpiryEntry *entries
    u64 count
    u64 capacity
    u64 compact_at                  # compact when `count` reaches this

cdef void expiry_init(ExpiryHeap *heap) noexcept nogil
cdef void expiry_free(ExpiryHeap *heap) noexcept nogil
cdef int expiry_push(ExpiryHeap *heap, i64 expires_at, u64 version, const u8 *key, u32 key_size) noexcept nogil
cdef void expiry_pop(ExpiryHeap *heap) noexcept nogil
cdef void expiry_rebuild(ExpiryHeap *heap) noexcept nogil
