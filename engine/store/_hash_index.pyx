"""Hash index of the store: extendible hashing, one writer, lock-free readers.

Source: Fagin, Nievergelt, Pippenger, Strong, "Extendible hashing", ACM TODS 4(3), 1979; splits here copy.

1. Directory entry i is the bucket of all keys whose hash ends in the bits of i; a bucket of depth d is named
   by all entries that agree in their low d bits.
2. A bucket's slots only change one at a time, each by one release store of its ref. Splits and doublings make
   new pages and then redirect; the old pages stay as they were until the quarantine gives them back. So a
   reader in an old bucket or directory finds everything that was in the index when it started.
3. The directory doubles only while it stays within 16 entries a bucket (or 1024 in all): keys whose hashes
   agree in many low bits chain overflow pages instead of growing it.
"""

from libc.errno cimport ENOSPC
from libc.string cimport memcmp, memset

from ...ipc._atomics cimport load_relaxed_u32, store_relaxed_u32, store_release_u32, store_release_u64
from ._arena cimport arena_alloc, arena_free, arena_reserve, arena_retire
from ._arena_state cimport Arena
from ._layout cimport BUCKET_CHAIN_MAX, BUCKET_SIZE, BUCKET_SLOTS, DEPTH_MAX
from ._layout cimport Bucket, Node, block_at, bucket_at, home_slot, node_at, node_key


cdef struct Chain:              # buckets under construction by a split
    u32 first
    u32 last
    u32 pages


cdef inline u32 *directory_at(const HashIndex *h, const u8 *base) noexcept nogil:
    return <u32 *>block_at(base, h.directory)


cdef inline u64 low_bits(u64 hash, u32 depth) noexcept nogil:
    return hash & ((<u64>1 << depth) - 1)


cdef inline u64 directory_bytes(u32 depth) noexcept nogil:
    return (<u64>4 << depth) if depth > 2 else 16


cdef u32 new_bucket(Arena *a, u32 depth) noexcept nogil:
    cdef u32 ref = arena_alloc(a, BUCKET_SIZE)
    if ref:
        memset(block_at(a.base, ref), 0, BUCKET_SIZE)
        bucket_at(a.base, ref).depth = depth
    return ref


cdef int hash_open(HashIndex *h, Arena *a, StoreHeader *header) noexcept nogil:
    h.header = header
    h.depth = 0
    h.bucket_count = 1
    h.bytes = directory_bytes(0) + BUCKET_SIZE
    h.directory = arena_alloc(a, directory_bytes(0))
    cdef u32 bucket = new_bucket(a, 0)
    if h.directory == 0 or bucket == 0:
        return ENOSPC
    directory_at(h, a.base)[0] = bucket
    # Release: the directory's entries are complete before its ref shows.
    store_release_u64(&header.hash_root, <u64>h.directory << 8)
    return 0


cdef u32 hash_find(const HashIndex *h, const u8 *base, const u8 *key, u32 key_size, u64 hash) noexcept nogil:
    """Node of the key, or 0. This is the writer's own look-up, so it trusts what it reads."""
    cdef u32 ref = directory_at(h, base)[low_bits(hash, h.depth)]
    cdef u32 tag = <u32>(hash >> 32), i, n
    cdef const Bucket *bucket
    cdef const Node *node
    while ref:
        bucket = bucket_at(base, ref)
        i = home_slot(tag)
        for n in range(BUCKET_SLOTS):
            if bucket.slots[i].tag == tag and bucket.slots[i].ref:
                node = node_at(base, bucket.slots[i].ref)
                if node.hash == hash and node.key_size == key_size and memcmp(node_key(node), key, key_size) == 0:
                    return bucket.slots[i].ref
            i = i + 1 if i + 1 < BUCKET_SLOTS else 0
        ref = bucket.overflow
    return 0


cdef inline u32 free_slot(const Bucket *bucket, u32 tag) noexcept nogil:
    """The first free slot from the tag's home on; the bucket is not full."""
    cdef u32 i = home_slot(tag)
    while bucket.slots[i].ref:
        i = i + 1 if i + 1 < BUCKET_SLOTS else 0
    return i


cdef bint put_in_chain(const u8 *base, u32 ref, u64 hash, u32 node, u32 *last, u32 *pages) noexcept nogil:
    """Use a free slot of the chain; False: it is full (`last` and `pages` then tell its end and length)."""
    cdef Bucket *bucket
    cdef u32 i
    pages[0] = 0
    while ref:
        bucket = bucket_at(base, ref)
        if bucket.count < BUCKET_SLOTS:
            i = free_slot(bucket, <u32>(hash >> 32))
            # The tag first: a reader that sees the ref (acquire) compares the right tag or, having read the
            # tag early, misses a key that is not visible to it anyhow.
            store_relaxed_u32(&bucket.slots[i].tag, <u32>(hash >> 32))
            store_release_u32(&bucket.slots[i].ref, node)
            bucket.count += 1
            return True
        last[0] = ref
        pages[0] += 1
        ref = bucket.overflow
    return False


cdef bint hash_insert(HashIndex *h, Arena *a, u64 hash, u32 node) noexcept nogil:
    """Add a node whose key is not in the index. False: full; the index still holds what it held."""
    cdef u32 first, last = 0, pages = 0
    cdef u32 extra
    while True:
        first = directory_at(h, a.base)[low_bits(hash, h.depth)]
        if put_in_chain(a.base, first, hash, node, &last, &pages):
            return True
        if bucket_at(a.base, first).depth < h.depth:
            if not split(h, a, hash, first, pages):
                return False
        elif may_double(h):
            if not double_directory(h, a):
                return False
        else:
            if pages >= BUCKET_CHAIN_MAX:
                return False
            extra = new_bucket(a, h.depth)
            if extra == 0:
                return False
            h.bucket_count += 1
            h.bytes += BUCKET_SIZE
            # Release: the page is empty and complete before readers can follow the link.
            store_release_u32(&bucket_at(a.base, last).overflow, extra)


cdef bint may_double(const HashIndex *h) noexcept nogil:
    return h.depth < DEPTH_MAX and (h.depth < 10 or (<u64>2 << h.depth) <= 16 * h.bucket_count)


cdef bint double_directory(HashIndex *h, Arena *a) noexcept nogil:
    cdef u64 half = <u64>1 << h.depth, i
    cdef u32 ref
    cdef u32 *grown
    cdef u32 *current
    if not arena_reserve(a, 1):
        return False
    ref = arena_alloc(a, directory_bytes(h.depth + 1))
    if ref == 0:
        return False
    grown = <u32 *>block_at(a.base, ref)
    current = directory_at(h, a.base)
    for i in range(half):
        grown[i] = current[i]
        grown[half + i] = current[i]
    h.bytes += directory_bytes(h.depth + 1) - directory_bytes(h.depth)
    # Release: all entries are complete before the root names them. Readers continue in the old directory,
    # which stays as it is.
    store_release_u64(&h.header.hash_root, (<u64>ref << 8) | (h.depth + 1))
    arena_retire(a, h.directory)
    h.directory = ref
    h.depth += 1
    return True


cdef bint chain_push(Chain *chain, Arena *a, u32 depth, u32 tag, u32 node) noexcept nogil:
    cdef Bucket *bucket
    cdef u32 page, i
    if bucket_at(a.base, chain.last).count == BUCKET_SLOTS:
        page = new_bucket(a, depth)
        if page == 0:
            return False
        bucket_at(a.base, chain.last).overflow = page
        chain.last = page
        chain.pages += 1
    bucket = bucket_at(a.base, chain.last)
    i = free_slot(bucket, tag)
    bucket.slots[i].tag = tag
    bucket.slots[i].ref = node
    bucket.count += 1
    return True


cdef void chain_drop(Chain *chain, Arena *a) noexcept nogil:
    """Free a chain that was never published."""
    cdef u32 ref = chain.first, following
    while ref:
        following = bucket_at(a.base, ref).overflow
        arena_free(a, ref)
        ref = following


cdef bint split_into(Arena *a, u32 ref, u32 depth, Chain *sides) noexcept nogil:
    """Copy the chain at `ref` (its depth is one less) into two, by the next hash bit."""
    cdef Bucket *bucket
    cdef u32 i
    cdef u64 bit
    for i in range(2):
        sides[i].first = new_bucket(a, depth)
        sides[i].last = sides[i].first
        sides[i].pages = 1
    if sides[0].first == 0 or sides[1].first == 0:
        return False
    while ref:
        bucket = bucket_at(a.base, ref)
        for i in range(BUCKET_SLOTS):
            if bucket.slots[i].ref:
                bit = (node_at(a.base, bucket.slots[i].ref).hash >> (depth - 1)) & 1
                if not chain_push(&sides[bit], a, depth, bucket.slots[i].tag, bucket.slots[i].ref):
                    return False
        ref = bucket.overflow
    return True


cdef bint split(HashIndex *h, Arena *a, u64 hash, u32 first, u32 pages) noexcept nogil:
    cdef Chain[2] sides
    cdef u32 depth = bucket_at(a.base, first).depth + 1
    cdef u32 ref = first, following
    cdef u64 i
    cdef u32 *directory
    if not arena_reserve(a, pages):
        return False
    memset(sides, 0, sizeof(sides))
    if not split_into(a, first, depth, sides):
        chain_drop(&sides[0], a)
        chain_drop(&sides[1], a)
        return False
    directory = directory_at(h, a.base)
    i = low_bits(hash, depth - 1)
    while i < (<u64>1 << h.depth):
        # Release: the copy is complete before an entry names it. Until then the old page answers just as
        # well.
        store_release_u32(&directory[i], sides[(i >> (depth - 1)) & 1].first)
        i += <u64>1 << (depth - 1)
    while ref:
        following = bucket_at(a.base, ref).overflow
        arena_retire(a, ref)
        ref = following
    h.bucket_count += sides[0].pages + sides[1].pages - pages
    h.bytes = h.bytes + <u64>BUCKET_SIZE * (sides[0].pages + sides[1].pages) - <u64>BUCKET_SIZE * pages
    return True


cdef bint hash_remove(HashIndex *h, Arena *a, u64 hash, u32 node) noexcept nogil:
    """Take a node out; False: it was not there. Overflow pages stay until their chain splits."""
    cdef u32 ref = directory_at(h, a.base)[low_bits(hash, h.depth)]
    cdef Bucket *bucket
    cdef u32 i
    while ref:
        bucket = bucket_at(a.base, ref)
        for i in range(BUCKET_SLOTS):
            if bucket.slots[i].ref == node:
                store_release_u32(&bucket.slots[i].ref, 0)
                bucket.count -= 1
                return True
        ref = bucket.overflow
    return False
