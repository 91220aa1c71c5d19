"""Hash index: key hash to node, by extendible hashing."""

from ...ipc._atomics cimport u8, u32, u64
from ._arena cimport Arena
from ._layout cimport StoreHeader

cdef struct HashIndex:          # private to the writer
    StoreHeader *header
    u32 directory
    u32 depth
    u64 bucket_count
    u64 bytes

cdef int hash_open(HashIndex *h, Arena *a, StoreHeader *header) noexcept nogil
cdef u32 hash_find(const HashIndex *h, const u8 *base, const u8 *key, u32 key_size, u64 hash) noexcept nogil
cdef bint hash_insert(HashIndex *h, Arena *a, u64 hash, u32 node) noexcept nogil
cdef bint hash_remove(HashIndex *h, Arena *a, u64 hash, u32 node) noexcept nogil
