"""The last conflicts of one worker, for people who ask who lost to whom, and about which key.

A worker keeps them in its channel segment, behind its tally. It writes them only when a commit was refused, so a commit
that succeeds does nothing here. The coordinator copies them when figures are asked for.

1. The worker alone writes, with the GIL. `number` is 0 while an entry is being written, and then the number of the
   conflict.
2. A reader in another process copies twice and takes what is the same in both copies. An entry that was torn
   nevertheless could only show a wrong row to a person.
"""

from libc.string cimport memcpy

from ...ipc._atomics cimport i64, store_release_u64, u8, u32, u64
from ._hot_keys cimport HOT_KEY_SIZE

cdef enum:
    RECENT_CONFLICTS = 10

cdef struct RecentConflict:
    u64 number                      # from 1; 0: unused, or being written
    i64 at                          # ns since the epoch
    u64 expected                    # the version that was read or expected; of a write or a range, the start version
    u64 found                       # the version that won; 0: the key is gone, or nothing is known
    u64 attempt                     # from 1
    u32 key_size                    # as kept
    u8 kind                         # CONFLICT_*
    u8 unused[3]
    u8 key[HOT_KEY_SIZE]            # the beginning of the stored key; of a range, of its start


cdef inline void note_recent_conflict(RecentConflict *kept, u64 number, i64 at, u8 kind, const u8 *key, u64 key_size,
                                      u64 expected, u64 found, u64 attempt) noexcept nogil:
    """Keep the conflict of this number, from 1, in place of the oldest one. REQUIRES: nobody else writes to `kept`."""
    cdef RecentConflict *entry = &kept[(number - 1) % RECENT_CONFLICTS]
    cdef u32 size = <u32>key_size if key_size < HOT_KEY_SIZE else HOT_KEY_SIZE
    store_release_u64(&entry.number, 0)
    entry.at = at
    entry.expected = expected
    entry.found = found
    entry.attempt = attempt
    entry.key_size = size
    entry.kind = kind
    memcpy(entry.key, key, size)
    # Release: a reader that sees the number sees the rest.
    store_release_u64(&entry.number, number)
