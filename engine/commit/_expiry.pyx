"""When keys expire: a binary min-heap by expiry time, private to the commit core.

1. An entry names a key and the version that carries the expiry time. It is stale once the key has another
   newest version. A stale entry is dropped when it is met, so an overwrite needs no search.
2. Key bytes are copied: a node may be freed and reused while a stale entry still names it.
3. When stale entries could outnumber live ones, the owner filters the heap (`compact_at`). So the memory
   follows the number of live keys with a TTL, not the number of overwrites.
"""

from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy


cdef void expiry_init(ExpiryHeap *heap) noexcept nogil:
    heap.entries = NULL
    heap.count = 0
    heap.capacity = 0
    heap.compact_at = 4096


cdef void expiry_free(ExpiryHeap *heap) noexcept nogil:
    cdef u64 index
    for index in range(heap.count):
        free(heap.entries[index].key)
    free(heap.entries)
    expiry_init(heap)


cdef void _sift_up(ExpiryHeap *heap, u64 index) noexcept nogil:
    cdef ExpiryEntry entry = heap.entries[index]
    cdef u64 parent
    while index > 0:
        parent = (index - 1) // 2
        if heap.entries[parent].expires_at <= entry.expires_at:
            break
        heap.entries[index] = heap.entries[parent]
        index = parent
    heap.entries[index] = entry


cdef void _sift_down(ExpiryHeap *heap, u64 index) noexcept nogil:
    cdef ExpiryEntry entry = heap.entries[index]
    cdef u64 child
    while True:
        child = 2 * index + 1
        if child >= heap.count:
            break
        if child + 1 < heap.count and heap.entries[child + 1].expires_at < heap.entries[child].expires_at:
            child += 1
        if entry.expires_at <= heap.entries[child].expires_at:
            break
        heap.entries[index] = heap.entries[child]
        index = child
    heap.entries[index] = entry


cdef int expiry_push(ExpiryHeap *heap, i64 expires_at, u64 version, const u8 *key, u32 key_size) noexcept nogil:
    """Remember one key. Returns 0, or -1 when private memory ran out (the heap is unchanged)."""
    cdef u64 capacity
    cdef ExpiryEntry *grown
    cdef u8 *copy
    if heap.count == heap.capacity:
        capacity = heap.capacity * 2 if heap.capacity else 256
        grown = <ExpiryEntry *>realloc(heap.entries, capacity * sizeof(ExpiryEntry))
        if grown == NULL:
            return -1
        heap.entries = grown
        heap.capacity = capacity
    copy = <u8 *>malloc(key_size)
    if copy == NULL:
        return -1
    memcpy(copy, key, key_size)
    heap.entries[heap.count].expires_at = expires_at
    heap.entries[heap.count].version = version
    heap.entries[heap.count].key = copy
    heap.entries[heap.count].key_size = key_size
    heap.count += 1
    _sift_up(heap, heap.count - 1)
    return 0


cdef void expiry_pop(ExpiryHeap *heap) noexcept nogil:
    """Drop the earliest entry. REQUIRES: count > 0."""
    free(heap.entries[0].key)
    heap.count -= 1
    if heap.count:
        heap.entries[0] = heap.entries[heap.count]
        _sift_down(heap, 0)


cdef void expiry_rebuild(ExpiryHeap *heap) noexcept nogil:
    """Restore heap order after the owner removed entries in place; sets the next compaction point."""
    cdef u64 index = heap.count // 2
    while index > 0:
        index -= 1
        _sift_down(heap, index)
    heap.compact_at = 4096 if heap.count < 2048 else 2 * heap.count
