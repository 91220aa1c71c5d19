"""Ordered index: a skip list over key bytes."""

from ...ipc._atomics cimport u8, u32, u64
from ._arena cimport Arena

cdef struct OrderedIndex:       # private to the writer
    u32 first                   # sentinel before all keys
    u64 random                  # state of the height generator
    u32 finger[16]              # per level: last node at or before the latest insertion

cdef int ordered_open(OrderedIndex *o, Arena *a) noexcept nogil
cdef u32 ordered_height(OrderedIndex *o) noexcept nogil
cdef void ordered_insert(OrderedIndex *o, const u8 *base, u32 node) noexcept nogil
cdef void ordered_remove(OrderedIndex *o, const u8 *base, u32 node) noexcept nogil
cdef u32 ordered_seek(OrderedIndex *o, const u8 *base, const u8 *key, u32 key_size) noexcept nogil
cdef u32 ordered_next(OrderedIndex *o, const u8 *base, u32 node) noexcept nogil
