"""Audit of every invariant of the store, for tests, stress runs and `occamdb check`.

Walks everything once with a private bitmap of one bit per 16 bytes: each block that the store knows of is
marked by its owner. A block marked twice, a mark where the allocator has no block, or a sum that differs from
what the allocator handed out (a leak) is an error. The writer's thread only; also sound inside a batch.
"""

from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from ...ipc._atomics cimport u8, u32, u64
from ._arena cimport arena_block_size
from ._arena_check cimport arena_check
from ._hash_index cimport hash_find
from ._layout cimport BINDING_SIZE, RECORD_BOUND
from ._layout cimport BUCKET_SLOTS, HEIGHT_MAX, PAGE_SIZE, RANGE_BLOCK_SIZE, RANGE_SLOTS, RECORD_SIZE, RECORD_TOMBSTONE
from ._layout cimport Bucket, Node, Record, block_at, bucket_at, key_compare, key_hash, node_at, node_key, node_next
from ._layout cimport RangeBlock, range_at, record_at, record_session, tombstone_at


cdef struct Audit:
    Store *store
    u64 *marks                  # one bit per ref: start of a block that was accounted for
    u64 *queued                 # one bit per ref: record seen in a queue
    u64 bytes
    u64 nodes
    u64 keys
    u64 bound
    u64 records
    u64 superseded
    u64 superseded_bytes
    u64 node_bytes
    u64 record_bytes
    u64 index_bytes
    u64 tombstones              # not replaced by a published record
    char *message
    size_t message_size


cdef int fail(Audit *audit, const char *what, u64 where) noexcept nogil:
    snprintf(audit.message, audit.message_size, "store: %s (at %llu)", what, <unsigned long long>where)
    return 1


cdef inline bint mark(u64 *marks, u32 ref) noexcept nogil:
    """Set the bit of a ref. True: it was clear."""
    cdef u64 bit = <u64>1 << (ref & 63)
    if marks[ref >> 6] & bit:
        return False
    marks[ref >> 6] |= bit
    return True


cdef u64 claim(Audit *audit, u32 ref, u64 need) noexcept nogil:
    """Mark a block as owned, and return its size. 0: it is not a block, is too small, or has an owner
    already.
    """
    cdef u64 size = arena_block_size(&audit.store.arena, ref)
    if size < need or not mark(audit.marks, ref):
        return 0
    audit.bytes += size
    return size


cdef int check_chain(Audit *audit, u32 node) noexcept nogil:
    cdef Store *s = audit.store
    cdef u32 ref = node_at(s.base, node).head, newer = 0
    cdef Record *record
    cdef u64 size
    while ref:
        size = claim(audit, ref, RECORD_SIZE)
        if size == 0:
            return fail(audit, "record is not a block of its own", ref)
        record = record_at(s.base, ref)
        if RECORD_SIZE + <u64>record.value_size + (BINDING_SIZE if record.flags & RECORD_BOUND else 0) > size:
            return fail(audit, "record larger than its block", ref)
        if record.flags & RECORD_BOUND and (record.flags & RECORD_TOMBSTONE or record_session(record) == 0):
            return fail(audit, "record bound to no session", ref)
        if record.node != node or record.newer != newer:
            return fail(audit, "record with wrong node or newer link", ref)
        if newer and record.version > record_at(s.base, newer).version:
            return fail(audit, "versions of a chain grow towards the past", ref)
        if newer:
            audit.superseded += 1
            audit.superseded_bytes += size
        elif not (record.flags & RECORD_TOMBSTONE):
            audit.keys += 1
            audit.bound += (record.flags & RECORD_BOUND) != 0
        audit.records += 1
        audit.record_bytes += size
        newer = ref
        ref = record.prev
    return 0


cdef int check_node(Audit *audit, u32 ref, u32 previous) noexcept nogil:
    cdef Store *s = audit.store
    cdef Node *node = node_at(s.base, ref)
    cdef Node *before
    cdef u64 size = claim(audit, ref, 16)
    if size == 0:
        return fail(audit, "node is not a block of its own", ref)
    if node.height == 0 or node.height > HEIGHT_MAX or 16 + 4 * <u64>node.height + node.key_size > size:
        return fail(audit, "node with impossible height or key size", ref)
    if previous != s.order.first:
        before = node_at(s.base, previous)
        if key_compare(node_key(before), before.key_size, node_key(node), node.key_size) >= 0:
            return fail(audit, "keys out of order", ref)
    if node.hash != key_hash(node_key(node), node.key_size, s.hash_seed):
        return fail(audit, "node with a wrong hash", ref)
    if hash_find(&s.hashes, s.base, node_key(node), node.key_size, node.hash) != ref:
        return fail(audit, "node is not in the hash index", ref)
    audit.nodes += 1
    audit.node_bytes += size
    return check_chain(audit, ref)


cdef int check_order(Audit *audit) noexcept nogil:
    """Every level links exactly the nodes that are tall enough, in order."""
    cdef Store *s = audit.store
    cdef u32[HEIGHT_MAX] expected
    cdef u32 level, previous = s.order.first, ref
    cdef Node *node
    if claim(audit, s.order.first, 16 + 4 * HEIGHT_MAX) == 0:
        return fail(audit, "first node is not a block", s.order.first)
    for level in range(HEIGHT_MAX):
        expected[level] = node_next(node_at(s.base, previous))[level]
    while expected[0]:
        ref = expected[0]
        if check_node(audit, ref, previous):
            return 1
        node = node_at(s.base, ref)
        for level in range(node.height):
            if expected[level] != ref:
                return fail(audit, "tower not linked at its level", ref)
            expected[level] = node_next(node)[level]
        previous = ref
    for level in range(HEIGHT_MAX):
        if expected[level]:
            return fail(audit, "upper level links a node the bottom does not", expected[level])
    return 0


cdef int check_bucket_chain(Audit *audit, u64 index, u64 *found) noexcept nogil:
    cdef Store *s = audit.store
    cdef u32 *directory = <u32 *>block_at(s.base, s.hashes.directory)
    cdef u32 ref = directory[index], i, count
    cdef u32 depth
    cdef u64 low
    cdef Bucket *bucket
    cdef u64 buckets = 0
    while ref:
        buckets += 1
        if claim(audit, ref, 256) == 0:
            return fail(audit, "bucket is not a block of its own", ref)
        audit.index_bytes += 256
        bucket = bucket_at(s.base, ref)
        depth = bucket.depth
        low = (<u64>1 << depth) - 1
        count = 0
        for i in range(BUCKET_SLOTS):
            if bucket.slots[i].ref:
                count += 1
                if bucket.slots[i].tag != <u32>(node_at(s.base, bucket.slots[i].ref).hash >> 32) \
                        or (node_at(s.base, bucket.slots[i].ref).hash & low) != (index & low):
                    return fail(audit, "bucket slot with a wrong tag or in a wrong bucket", ref)
        if count != bucket.count:
            return fail(audit, "bucket count is wrong", ref)
        found[0] += count
        ref = bucket.overflow
    return 0


cdef int check_hash(Audit *audit) noexcept nogil:
    cdef Store *s = audit.store
    cdef u32 depth = s.hashes.depth
    cdef u32 *directory = <u32 *>block_at(s.base, s.hashes.directory)
    cdef u32 local
    cdef u64 i, found = 0
    cdef u64 bytes = (<u64>4 << depth) if depth > 2 else 16
    if s.header.hash_root != (<u64>s.hashes.directory << 8 | depth):
        return fail(audit, "hash root differs from the writer's", s.header.hash_root)
    if claim(audit, s.hashes.directory, bytes) == 0:
        return fail(audit, "hash directory is not a block of its own", s.hashes.directory)
    audit.index_bytes += bytes
    for i in range(<u64>1 << depth):
        if arena_block_size(&s.arena, directory[i]) == 0:
            return fail(audit, "directory entry is not a block", i)
        local = bucket_at(s.base, directory[i]).depth
        if local > depth or directory[i] != directory[i & ((<u64>1 << local) - 1)]:
            return fail(audit, "directory entries of one bucket differ", i)
        if i >> local == 0 and check_bucket_chain(audit, i, &found):
            return 1
    if found != audit.nodes:
        return fail(audit, "hash index and ordered index hold different nodes", found)
    return 0


cdef int check_queued(Audit *audit, u32 ref) noexcept nogil:
    cdef Store *s = audit.store
    if not (audit.marks[ref >> 6] >> (ref & 63)) & 1 or record_at(s.base, ref).newer == 0:
        return fail(audit, "queue of superseded records holds something else", ref)
    if not mark(audit.queued, ref):
        return fail(audit, "superseded record in two queues", ref)
    return 0


cdef int check_superseded(Audit *audit) noexcept nogil:
    """Invariant 2 of the collector: each superseded record waits in exactly one place."""
    cdef Store *s = audit.store
    cdef u64 seen = 0, count, bytes
    cdef u32 ref = s.pending, i, last = 0
    while ref:
        if check_queued(audit, ref):
            return 1
        if record_at(s.base, ref).flags & RECORD_TOMBSTONE:
            audit.tombstones += 1           # stays in the tombstone queue until the batch is published
        seen += 1
        ref = record_at(s.base, ref).gc_next
    ref = s.superseded_first
    while ref:
        if check_queued(audit, ref):
            return 1
        seen += 1
        last = ref
        ref = record_at(s.base, ref).gc_next
    if last != s.superseded_last:
        return fail(audit, "superseded queue ends elsewhere", last)
    for i in range(s.bucket_count):
        ref = s.buckets[i].first
        count = 0
        bytes = 0
        while ref:
            if check_queued(audit, ref):
                return 1
            if record_at(s.base, ref).version > s.buckets[i].pin \
                    or record_at(s.base, record_at(s.base, ref).newer).version <= s.buckets[i].pin:
                return fail(audit, "pin bucket holds a record the pin does not see", ref)
            count += 1
            bytes += arena_block_size(&s.arena, ref)
            ref = record_at(s.base, ref).gc_next
        if count != s.buckets[i].count or bytes != s.buckets[i].bytes \
                or (i and s.buckets[i].pin <= s.buckets[i - 1].pin):
            return fail(audit, "pin bucket with wrong sums or order", s.buckets[i].pin)
        seen += count
    if seen != audit.superseded or seen != s.superseded_count:
        return fail(audit, "superseded records and their queues differ", seen)
    return 0


cdef int check_tombstones(Audit *audit) noexcept nogil:
    cdef Store *s = audit.store
    cdef u32 ref = s.tombstone_first, older = 0
    cdef u64 seen = 0
    while ref:
        if not (audit.marks[ref >> 6] >> (ref & 63)) & 1 or not (record_at(s.base, ref).flags & RECORD_TOMBSTONE) \
                or tombstone_at(s.base, ref).older != older:
            return fail(audit, "tombstone queue holds something else", ref)
        seen += 1
        older = ref
        ref = tombstone_at(s.base, ref).newer
    if older != s.tombstone_last or seen != s.tombstone_count or seen != audit.tombstones:
        return fail(audit, "tombstones and their queue differ", seen)
    return 0


cdef int count_head_tombstones(Audit *audit) noexcept nogil:
    cdef Store *s = audit.store
    cdef u32 ref = node_next(node_at(s.base, s.order.first))[0], head, i
    for i in range(s.fresh_count):
        if not (audit.marks[s.fresh[i] >> 6] >> (s.fresh[i] & 63)) & 1:
            return fail(audit, "fresh list names something that is not a node", s.fresh[i])
    while ref:
        head = node_at(s.base, ref).head
        if head and record_at(s.base, head).flags & RECORD_TOMBSTONE:
            audit.tombstones += 1
        ref = node_next(node_at(s.base, ref))[0]
    return 0


cdef int check_ranges(Audit *audit) noexcept nogil:
    """Every active range tombstone is a block of its own, in a slot below the count that readers use."""
    cdef Store *s = audit.store
    cdef u32 slot, active = 0, ref
    cdef RangeBlock *block
    for slot in range(RANGE_SLOTS):
        ref = s.header.ranges[slot]
        if ref == 0:
            continue
        active += 1
        if slot >= s.header.range_count:
            return fail(audit, "range tombstone that readers do not see", slot)
        block = range_at(s.base, ref)
        if claim(audit, ref, RANGE_BLOCK_SIZE) < RANGE_BLOCK_SIZE + <u64>block.start_size + block.end_size:
            return fail(audit, "range tombstone is not a block of its own", ref)
    if active != s.range_active or (active == 0) != (s.header.range_count == 0):
        return fail(audit, "range tombstones and their count differ", active)
    return 0


cdef int check_quarantine(Audit *audit) noexcept nogil:
    cdef Store *s = audit.store
    cdef u32 i
    cdef u64 size, bytes = 0
    for i in range(s.arena.quarantine_count):
        size = claim(audit, s.arena.quarantine[i], 1)
        if size == 0:
            return fail(audit, "quarantined block is free or still in use", s.arena.quarantine[i])
        bytes += size
    if bytes != s.arena.quarantine_bytes:
        return fail(audit, "quarantine bytes do not add up", bytes)
    return 0


cdef int check_sums(Audit *audit) noexcept nogil:
    cdef Store *s = audit.store
    if audit.bytes + PAGE_SIZE != s.arena.allocated:
        return fail(audit, "blocks leaked: reachable and handed-out bytes differ", s.arena.allocated - audit.bytes)
    if audit.nodes != s.node_count or audit.node_bytes != s.node_bytes:
        return fail(audit, "node counters are wrong", audit.nodes)
    if audit.records != s.record_count or audit.record_bytes != s.record_bytes:
        return fail(audit, "record counters are wrong", audit.records)
    if audit.superseded_bytes != s.superseded_bytes:
        return fail(audit, "superseded bytes are wrong", audit.superseded_bytes)
    if audit.keys != s.key_count:
        return fail(audit, "key counter is wrong", audit.keys)
    if audit.bound != s.bound_count:
        return fail(audit, "counter of session-bound keys is wrong", audit.bound)
    if audit.index_bytes != s.hashes.bytes:
        return fail(audit, "index bytes are wrong", audit.index_bytes)
    return 0


cdef int check_store(Store *s, char *message, size_t size) noexcept nogil:
    """Audit the store; see _check.pxd. Records that were created but not installed count as leaked."""
    cdef Audit audit
    cdef size_t words = <size_t>(s.size >> 10) + 1
    cdef int wrong
    memset(&audit, 0, sizeof(audit))
    audit.store = s
    audit.message = message
    audit.message_size = size
    if arena_check(&s.arena, message, size):
        return 1
    audit.marks = <u64 *>calloc(words, 8)
    audit.queued = <u64 *>calloc(words, 8)
    if audit.marks == NULL or audit.queued == NULL:
        wrong = fail(&audit, "no private memory for the audit", words * 16)
    else:
        wrong = check_order(&audit) or check_hash(&audit) or check_superseded(&audit) or count_head_tombstones(&audit) \
            or check_tombstones(&audit) or check_ranges(&audit) or check_quarantine(&audit) or check_sums(&audit)
    free(audit.marks)
    free(audit.queued)
    return wrong
