"""The table of what workers wait for, as the commit thread keeps it; see _watchers.pyx."""

from libc.string cimport memchr

from ...ipc._atomics cimport u8, u32, u64
from ..store._layout cimport key_hash

cdef enum:
    INTEREST_GROWTH = 64            # entries added at a time

cdef struct InterestEntry:
    u64 hash
    u32 channel
    u32 next                        # index + 1 of the next entry in its bucket; 0: none

cdef struct Interest:               # private to the commit thread
    const void *register_word       # in shared memory: grows after a worker has changed its slots
    u32 registered                  # what it was when the table was made
    bint stale                      # a channel was closed since
    bint unknown                    # there was no memory for the table: everybody is woken
    u32 count                       # entries; 0: nobody waits
    u32 capacity
    u32 mask                        # buckets - 1
    InterestEntry *entries
    u32 *buckets                    # index + 1 of the first entry; 0: none
    u32 *due                        # channels to be woken, room for all
    u32 due_count


cdef inline u32 tag_prefix_size(const u8 *key, u32 key_size) noexcept nogil:
    """How many bytes of a stored key are its namespace, run id and tag; 0: it is not such a key.

    Three parts that end in NUL, 16 bytes, 1 byte: docs/wire-format.md.
    """
    cdef const u8 *at = key
    cdef const u8 *end = key + key_size
    cdef int part
    for part in range(3):
        at = <const u8 *>memchr(at, 0, <size_t>(end - at))
        if at == NULL:
            return 0
        at += 1
    return <u32>(at - key) + 17 if <size_t>(end - at) >= 17 else 0


cdef inline u64 interest_hash(const u8 *prefix, u32 size, u64 seed) noexcept nogil:
    """What a worker puts into a slot to hear of keys that begin with this namespace, run id and tag; never 0."""
    cdef u64 hash = key_hash(prefix, size, seed)
    # 0 is a free slot, and all bits stand for "everything". Two prefixes of one hash cost a wake-up for nothing.
    return hash if hash != 0 and hash != <u64>-1 else 1
