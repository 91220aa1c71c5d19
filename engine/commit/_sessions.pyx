"""The keys that are bound to sessions: a list of keys for each session, private to the commit core.

1. An entry names a key and the version that bound it. It is stale once the newest record of the key has another
   version or is not bound to the session; overwriting a key therefore needs no search. Whoever uses an entry looks at
   the record first.
2. Every bound record that is the newest of its key has an entry, or `stale` is set.
3. Key bytes are copied, because a node may be freed and reused while a stale entry still names its key.
4. When stale entries could outnumber live ones the owner filters the list (`compact_at`). Memory therefore follows the
   number of bound keys, however often a session puts the same key.
"""

from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

cdef enum:
    COMPACT_FIRST = 256


cdef inline u32 _chain(u64 session) noexcept nogil:
    # Session ids are random; the multiplication guards against those of tests.
    return <u32>((session * 0x9E3779B97F4A7C15ULL) >> 56) & (SESSION_CHAINS - 1)


cdef SessionKeys *sessions_find(SessionTable *table, u64 session) noexcept nogil:
    cdef SessionKeys *keys = table.chains[_chain(session)]
    while keys != NULL and keys.session != session:
        keys = keys.next
    return keys


cdef SessionKeys *_ensure(SessionTable *table, u64 session) noexcept nogil:
    cdef SessionKeys *keys = sessions_find(table, session)
    if keys != NULL:
        return keys
    keys = <SessionKeys *>calloc(1, sizeof(SessionKeys))
    if keys == NULL:
        return NULL
    keys.session = session
    keys.compact_at = COMPACT_FIRST
    keys.next = table.chains[_chain(session)]
    table.chains[_chain(session)] = keys
    return keys


cdef int sessions_push(SessionTable *table, u64 session, u64 version, const u8 *key, u32 key_size) noexcept nogil:
    cdef SessionKeys *keys = _ensure(table, session)
    cdef BoundKey *grown
    cdef u64 capacity
    cdef u8 *copy
    if keys == NULL:
        return -1
    if keys.count == keys.capacity:
        capacity = keys.capacity * 2 if keys.capacity else 8
        grown = <BoundKey *>realloc(keys.keys, capacity * sizeof(BoundKey))
        if grown == NULL:
            return -1
        keys.keys = grown
        keys.capacity = capacity
    copy = <u8 *>malloc(key_size)
    if copy == NULL:
        return -1
    memcpy(copy, key, key_size)
    keys.keys[keys.count].version = version
    keys.keys[keys.count].key = copy
    keys.keys[keys.count].key_size = key_size
    keys.count += 1
    if keys.count >= keys.compact_at:
        table.crowded = True
    return 0


cdef void _free_keys(SessionKeys *keys) noexcept nogil:
    cdef u64 index
    for index in range(keys.count):
        free(keys.keys[index].key)
    free(keys.keys)
    free(keys)


cdef void sessions_drop(SessionTable *table, u64 session) noexcept nogil:
    cdef SessionKeys **link = &table.chains[_chain(session)]
    cdef SessionKeys *keys
    while link[0] != NULL and link[0].session != session:
        link = &link[0].next
    keys = link[0]
    if keys != NULL:
        link[0] = keys.next
        _free_keys(keys)


cdef void sessions_free(SessionTable *table) noexcept nogil:
    cdef u32 index
    cdef SessionKeys *keys
    for index in range(SESSION_CHAINS):
        while table.chains[index] != NULL:
            keys = table.chains[index]
            table.chains[index] = keys.next
            _free_keys(keys)
    memset(table, 0, sizeof(SessionTable))
