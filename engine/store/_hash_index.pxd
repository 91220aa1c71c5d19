"""Hash index: key hash to node, by extendible hashing."""

from ...ipc._atomics cimport u8, u32, u64
from ._arena_state cimport Arena
from ._layout cimport StoreHeader

cdef struct HashIndex:          # private to the writer
    StoreHeader *header
    u32 directory
    u32 depth
    u64 bucket_count
    u64 bytes

# All of these: the commit thread, or the recovery that stands in for it. Readers in other processes look keys
# up without these functions (`_reader`). `hash` is key_hash of the key under the store's seed; node 0 is
# none.

# Make an empty index and record it in `header`. 0, or ENOSPC: the arena has no room for it.
cdef int hash_open(HashIndex *h, Arena *a, StoreHeader *header) noexcept nogil
# The key's node; 0: it has none.
cdef u32 hash_find(const HashIndex *h, const u8 *base, const u8 *key, u32 key_size, u64 hash) noexcept nogil
# Add a node. False: the arena is full, and the index holds what it held. REQUIRES: its key is set and not in
# the index.
cdef bint hash_insert(HashIndex *h, Arena *a, u64 hash, u32 node) noexcept nogil
# Take a node out. False: it was not there. A reader may still come to it: the caller must quarantine its
# block.
cdef bint hash_remove(HashIndex *h, Arena *a, u64 hash, u32 node) noexcept nogil
