"""Ordered index: a skip list over key bytes."""

from ...ipc._atomics cimport u8, u32, u64
from ._arena_state cimport Arena

cdef struct OrderedIndex:       # private to the writer
    u32 first                   # sentinel before all keys
    u64 random                  # state of the height generator
    u32 finger[16]              # per level: last node at or before the latest insertion

# All of these: the commit thread, or the recovery that stands in for it. Readers in other processes walk the
# links of the nodes themselves, without these functions (`_reader`). `base` is where the store is mapped; a
# `u32 node` is a reference into it, 0 for none.

# Make an empty index. 0, or ENOSPC: the arena has no room for the sentinel.
cdef int ordered_open(OrderedIndex *o, Arena *a) noexcept nogil
# A height (1..HEIGHT_MAX) for the next node. The caller sizes the node's block by it and sets node.height.
cdef u32 ordered_height(OrderedIndex *o) noexcept nogil
# Link a node. From here on readers find it.
# REQUIRES: its height and key are set; no node with that key is linked.
cdef void ordered_insert(OrderedIndex *o, const u8 *base, u32 node) noexcept nogil
# Unlink a node. REQUIRES: it is linked. A reader may still stand on it: the caller must quarantine its block.
cdef void ordered_remove(OrderedIndex *o, const u8 *base, u32 node) noexcept nogil
# The first node whose key is not before `key`; 0: there is none.
cdef u32 ordered_seek(OrderedIndex *o, const u8 *base, const u8 *key, u32 key_size) noexcept nogil
# The node after `node`; 0: there is none. REQUIRES: `node` is linked.
cdef u32 ordered_next(OrderedIndex *o, const u8 *base, u32 node) noexcept nogil
