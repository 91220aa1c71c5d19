"""Ordered index of the store: a skip list over key bytes, one writer, lock-free readers.

Source: Pugh, "Skip lists: a probabilistic alternative to balanced trees", CACM 33(6), 1990; publication as in
LevelDB's skiplist.h; search fingers as in Pugh, "A skip list cookbook", 1990.

1. Level 0 links all nodes in strictly ascending key order; level l links those of height > l.
2. A node is complete, its whole tower included, before any level links it; it is linked bottom level first
   and unlinked top level first. Every level is at every moment a sorted list, so a reader may stand anywhere.
3. An unlinked node keeps its tower: a reader standing on it walks on.
4. finger[l] is the sentinel or a linked node of height > l; finger[l + 1] is not after finger[l].
"""

from libc.errno cimport ENOSPC
from libc.string cimport memset

from ...ipc._atomics cimport store_release_u32
from ._arena cimport arena_alloc
from ._layout cimport HEIGHT_MAX, NODE_SIZE, Node, key_compare, node_at, node_key, node_next


cdef inline bint node_before(const u8 *base, u32 node, const u8 *key, u32 key_size) noexcept nogil:
    cdef const Node *n = node_at(base, node)
    return key_compare(node_key(n), n.key_size, key, key_size) < 0


cdef int ordered_open(OrderedIndex *o, Arena *a) noexcept nogil:
    cdef u32 level
    o.random = 0x9E3779B97F4A7C15ULL      # any odd constant: heights are the same in every run
    o.first = arena_alloc(a, NODE_SIZE + 4 * HEIGHT_MAX)
    if o.first == 0:
        return ENOSPC
    memset(node_at(a.base, o.first), 0, NODE_SIZE + 4 * HEIGHT_MAX)
    node_at(a.base, o.first).height = HEIGHT_MAX
    for level in range(HEIGHT_MAX):
        o.finger[level] = o.first
    return 0


cdef u32 ordered_height(OrderedIndex *o) noexcept nogil:
    """Height of the next node, p = 1/4. The generator is xorshift64* (Marsaglia 2003, Vigna 2014)."""
    cdef u32 height = 1
    cdef u64 bits
    o.random ^= o.random >> 12
    o.random ^= o.random << 25
    o.random ^= o.random >> 27
    bits = (o.random * 0x2545F4914F6CDD1DULL) >> 32
    while height < HEIGHT_MAX and bits & 3 == 0:
        height += 1
        bits >>= 2
    return height


cdef void find_path(const OrderedIndex *o, const u8 *base, const u8 *key, u32 key_size, u32 *path) noexcept nogil:
    """path[l]: the last node before `key` at level l. Starts from the finger when the key lies after it."""
    cdef u32 level = HEIGHT_MAX - 1, l
    cdef u32 at = o.first
    cdef u32 following
    if o.finger[0] != o.first and node_before(base, o.finger[0], key, key_size):
        level = 0
        while level < HEIGHT_MAX - 1:
            following = node_next(node_at(base, o.finger[level]))[level]
            if following == 0 or not node_before(base, following, key, key_size):
                break
            level += 1
        for l in range(level + 1, HEIGHT_MAX):
            path[l] = o.finger[l]
        at = o.finger[level]
    while True:
        following = node_next(node_at(base, at))[level]
        if following and node_before(base, following, key, key_size):
            at = following
            continue
        path[level] = at
        if level == 0:
            return
        level -= 1


cdef void ordered_insert(OrderedIndex *o, const u8 *base, u32 node) noexcept nogil:
    """Link a node whose height and key are set and whose key is not in the list."""
    cdef u32[HEIGHT_MAX] path
    cdef Node *n = node_at(base, node)
    cdef u32 *tower = node_next(n)
    cdef u32 level
    find_path(o, base, node_key(n), n.key_size, path)
    for level in range(n.height):
        tower[level] = node_next(node_at(base, path[level]))[level]
    for level in range(n.height):
        # Release: a reader that reaches the node sees its key and its whole tower.
        store_release_u32(&node_next(node_at(base, path[level]))[level], node)
    for level in range(HEIGHT_MAX):
        o.finger[level] = node if level < n.height else path[level]


cdef void ordered_remove(OrderedIndex *o, const u8 *base, u32 node) noexcept nogil:
    """Unlink a node that is in the list; its block is the caller's to retire."""
    cdef u32[HEIGHT_MAX] path
    cdef Node *n = node_at(base, node)
    cdef u32 *tower = node_next(n)
    cdef int level
    find_path(o, base, node_key(n), n.key_size, path)
    for level in range(<int>n.height - 1, -1, -1):
        # Release: what lies behind was published before; a reader that skips the node sees it whole.
        store_release_u32(&node_next(node_at(base, path[level]))[level], tower[level])
    for level in range(<int>n.height):
        if o.finger[level] == node:
            o.finger[level] = path[level]


cdef u32 ordered_seek(OrderedIndex *o, const u8 *base, const u8 *key, u32 key_size) noexcept nogil:
    """First node with a key >= the given one, 0: none."""
    cdef u32[HEIGHT_MAX] path
    find_path(o, base, key, key_size, path)
    return node_next(node_at(base, path[0]))[0]


cdef u32 ordered_next(OrderedIndex *o, const u8 *base, u32 node) noexcept nogil:
    return node_next(node_at(base, node))[0]
