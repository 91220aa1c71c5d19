"""Approximate counts of the keys that conflict most often.

The commit core keeps one table. Each worker keeps another one, of the conflicts that it finds itself.
"""

from libc.string cimport memcmp, memcpy

from ...ipc._atomics cimport u8, u32, u64

cdef enum:
    HOT_KEY_SIZE = 96               # of a longer key only this much is kept

cdef struct HotKey:
    u64 count                       # 0: unused
    u32 size
    u8 key[HOT_KEY_SIZE]


cdef inline void note_hot_key(HotKey *keys, u32 capacity, const u8 *key, u64 key_size) noexcept nogil:
    """Space-saving counters (Metwally, Agrawal, El Abbadi 2005). REQUIRES: nobody else writes to `keys`."""
    cdef u32 size = <u32>key_size if key_size < HOT_KEY_SIZE else HOT_KEY_SIZE
    cdef HotKey *least = keys
    cdef HotKey *entry
    cdef u32 index
    for index in range(capacity):
        entry = &keys[index]
        if entry.count and entry.size == size and memcmp(entry.key, key, size) == 0:
            entry.count += 1
            return
        if entry.count < least.count:
            least = entry
    least.count += 1
    least.size = size
    memcpy(least.key, key, size)
