"""Which keys are bound to which session; see _sessions.pyx."""

from ...ipc._atomics cimport u8, u32, u64

cdef enum:
    SESSION_CHAINS = 256            # a power of two

cdef struct BoundKey:
    u64 version                     # of the record that is bound
    u8 *key                         # own copy: the node may be freed and reused meanwhile
    u32 key_size

cdef struct SessionKeys:
    u64 session
    BoundKey *keys                  # in the order of the commits that bound them
    u64 count
    u64 capacity
    u64 done                        # the first so many were removed: the session is over
    u64 compact_at                  # compact when `count` reaches this
    SessionKeys *next

cdef struct SessionTable:
    SessionKeys *chains[256]
    bint crowded                    # a list has reached its `compact_at`
    bint stale                      # an entry was lost: fill the table anew from the store

# Remembers that `session` has bound a key. 0, or -1 if private memory ran out (the table is unchanged).
cdef int sessions_push(SessionTable *table, u64 session, u64 version, const u8 *key, u32 key_size) noexcept nogil
# The keys of a session; NULL if it has none.
cdef SessionKeys *sessions_find(SessionTable *table, u64 session) noexcept nogil
# Forgets a session and its keys.
cdef void sessions_drop(SessionTable *table, u64 session) noexcept nogil
cdef void sessions_free(SessionTable *table) noexcept nogil
