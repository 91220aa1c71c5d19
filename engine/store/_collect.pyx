"""Garbage collection of the store: which record versions, tombstones and nodes no reader can see any longer.

A superseded record is needed by the snapshots in [its version, version of the record that replaced it). It
waits in the superseded queue until that replacement is at or below `gc_horizon`: from then on no new pin can
fall into the interval. Then it is freed, or joins the bucket of the oldest pin inside the interval. When that
pin is gone, the bucket is looked at again. So a record is looked at once, and once more for each pin that
held it back: O(1) however long the queues are.

1. Both queues are in the order in which their records were replaced or installed. This is the order of
   versions, except for the tombstones that replace a range tombstone, which carry its older version t. Such
   an entry may wait behind newer ones, because a round stops at the first entry that is too new. It never
   goes too early, because each entry is judged by its own versions: t <= gc_horizon, so no new pin can fall
   below t, and every pin below t is seen.
2. Every linked record that is not its node's head is in exactly one of: pending stack (current batch),
   superseded queue, one pin bucket. Every tombstone not replaced by a published record is in the tombstone
   queue.
3. Freeing a record from the middle of a chain widens the interval of the next older record only by versions
   that no pin holds and none can still take.
4. A node is removed with its tombstone, once no pin is older than the tombstone. No reader sees a difference
   then. An older transaction that comes later learns from `tombstone_horizon` that the key may have been
   written.
"""

from libc.stdlib cimport realloc
from libc.string cimport memmove

from ...ipc._atomics cimport load_relaxed_u64, store_release_u32
from ._arena cimport arena_block_size, arena_reserve, arena_retire
from ._hash_index cimport hash_remove
from ._layout cimport NODE_FRESH, Node, Record, Tombstone, node_at, record_at, tombstone_at
from ._ordered_index cimport ordered_remove


# ---- pins and their buckets ----

cdef u32 first_pin_from(const u64 *pins, u32 count, u64 version) noexcept nogil:
    """Index of the first pin >= version (count: none)."""
    cdef u32 low = 0, high = count, middle
    while low < high:
        middle = (low + high) >> 1
        if pins[middle] < version:
            low = middle + 1
        else:
            high = middle
    return low


cdef u32 bucket_search(const Store *s, u64 pin) noexcept nogil:
    """Index of the first bucket with a pin >= the given one."""
    cdef u32 low = 0, high = s.bucket_count, middle
    while low < high:
        middle = (low + high) >> 1
        if s.buckets[middle].pin < pin:
            low = middle + 1
        else:
            high = middle
    return low


cdef PinBucket *bucket_for(Store *s, u64 pin) noexcept nogil:
    """The pin's bucket, made if need be; NULL: out of private memory."""
    cdef u32 i = bucket_search(s, pin)
    cdef u32 capacity
    cdef void *grown
    if i < s.bucket_count and s.buckets[i].pin == pin:
        return &s.buckets[i]
    if s.bucket_count == s.bucket_capacity:
        capacity = s.bucket_capacity * 2 + 16
        grown = realloc(s.buckets, capacity * sizeof(PinBucket))
        if grown == NULL:
            return NULL
        s.buckets = <PinBucket *>grown
        s.bucket_capacity = capacity
    memmove(&s.buckets[i + 1], &s.buckets[i], (s.bucket_count - i) * sizeof(PinBucket))
    s.bucket_count += 1
    s.buckets[i].pin = pin
    s.buckets[i].first = 0
    s.buckets[i].count = 0
    s.buckets[i].bytes = 0
    return &s.buckets[i]


cdef void bucket_push(PinBucket *bucket, Record *record, u32 ref, u64 bytes) noexcept nogil:
    record.gc_next = bucket.first
    bucket.first = ref
    bucket.count += 1
    bucket.bytes += bytes


# ---- superseded records ----

cdef inline u64 record_bytes(const Store *s, u32 ref) noexcept nogil:
    return arena_block_size(&s.arena, ref)


cdef void free_superseded(Store *s, u32 ref) noexcept nogil:
    """Unlink a record from the middle or end of its chain and retire it (one place is reserved)."""
    cdef Record *record = record_at(s.base, ref)
    cdef u64 bytes
    # Release: a reader that takes the shortcut sees the older record whole; one on this record walks on from
    # it.
    store_release_u32(&record_at(s.base, record.newer).prev, record.prev)
    if record.prev:
        record_at(s.base, record.prev).newer = record.newer
    bytes = arena_retire(&s.arena, ref)
    s.record_count -= 1
    s.record_bytes -= bytes
    s.superseded_count -= 1
    s.superseded_bytes -= bytes


cdef bint settle(Store *s, u32 ref, const u64 *pins, u32 count) noexcept nogil:
    """Free the record, or hand it to the oldest pin that sees it. False: no private memory, nothing done."""
    cdef Record *record = record_at(s.base, ref)
    cdef u32 i = first_pin_from(pins, count, record.version)
    cdef PinBucket *bucket
    if i < count and pins[i] < record_at(s.base, record.newer).version:
        bucket = bucket_for(s, pins[i])
        if bucket == NULL:
            return False
        bucket_push(bucket, record, ref, record_bytes(s, ref))
        return True
    if not arena_reserve(&s.arena, 1):
        return False
    free_superseded(s, ref)
    return True


cdef void collect_superseded(Store *s, const u64 *pins, u32 count, u64 horizon, u32 budget) noexcept nogil:
    cdef u32 ref, following
    cdef Record *record
    while budget and s.superseded_first:
        ref = s.superseded_first
        record = record_at(s.base, ref)
        if record_at(s.base, record.newer).version > horizon:
            return
        following = record.gc_next
        if not settle(s, ref, pins, count):
            return
        s.superseded_first = following
        if following == 0:
            s.superseded_last = 0
        budget -= 1


cdef bint empty_bucket(Store *s, u32 i, const u64 *pins, u32 count, u32 *budget) noexcept nogil:
    """Look again at the records of a pin that is gone. True: the bucket is empty and removed."""
    cdef u64 pin = s.buckets[i].pin
    cdef u64 bytes
    cdef u32 ref
    while s.buckets[i].first:
        if budget[0] == 0:
            return False
        budget[0] -= 1
        ref = s.buckets[i].first
        bytes = record_bytes(s, ref)
        s.buckets[i].first = record_at(s.base, ref).gc_next
        s.buckets[i].count -= 1
        s.buckets[i].bytes -= bytes
        if not settle(s, ref, pins, count):
            bucket_push(&s.buckets[i], record_at(s.base, ref), ref, bytes)
            return False
        i = bucket_search(s, pin)       # a new bucket may have moved this one
    s.bucket_count -= 1
    memmove(&s.buckets[i], &s.buckets[i + 1], (s.bucket_count - i) * sizeof(PinBucket))
    return True


cdef void collect_buckets(Store *s, const u64 *pins, u32 count, u32 budget) noexcept nogil:
    cdef u32 i = 0, at
    while i < s.bucket_count:
        at = first_pin_from(pins, count, s.buckets[i].pin)
        if at < count and pins[at] == s.buckets[i].pin:
            i += 1
        elif not empty_bucket(s, i, pins, count, &budget):
            return
        # else: the next bucket is at i. A bucket made meanwhile belongs to a live pin, so passing it by is
        # right.


# ---- tombstones and nodes ----

cdef void tombstone_append(Store *s, u32 ref) noexcept nogil:
    cdef Tombstone *links = tombstone_at(s.base, ref)
    links.older = s.tombstone_last
    links.newer = 0
    if s.tombstone_last:
        tombstone_at(s.base, s.tombstone_last).newer = ref
    else:
        s.tombstone_first = ref
    s.tombstone_last = ref
    s.tombstone_count += 1


cdef void tombstone_unlink(Store *s, u32 ref) noexcept nogil:
    cdef Tombstone *links = tombstone_at(s.base, ref)
    if links.older:
        tombstone_at(s.base, links.older).newer = links.newer
    else:
        s.tombstone_first = links.newer
    if links.newer:
        tombstone_at(s.base, links.newer).older = links.older
    else:
        s.tombstone_last = links.older
    s.tombstone_count -= 1


cdef void remove_node(Store *s, u32 ref) noexcept nogil:
    """Take a node out of both indexes and retire it (one place is reserved)."""
    cdef Node *node = node_at(s.base, ref)
    hash_remove(&s.hashes, &s.arena, node.hash, ref)
    ordered_remove(&s.order, s.base, ref)
    s.node_count -= 1
    s.node_bytes -= arena_retire(&s.arena, ref)


cdef void collect_tombstones(Store *s, u64 limit, u32 budget) noexcept nogil:
    """Remove nodes whose tombstone is all they have and is not above `limit`."""
    cdef u32 ref
    cdef Record *record
    while budget and s.tombstone_first:
        ref = s.tombstone_first
        record = record_at(s.base, ref)
        # With a `prev`, an older record still waits in its queue.
        if record.version > limit or record.prev or not arena_reserve(&s.arena, 2):
            return
        # The fresh list must not name removed nodes, and it can be longer than the budget.
        if node_at(s.base, record.node).flags & NODE_FRESH:
            return
        tombstone_unlink(s, ref)
        if record.version > s.tombstone_horizon:
            s.tombstone_horizon = record.version
        remove_node(s, record.node)
        s.record_count -= 1
        s.record_bytes -= arena_retire(&s.arena, ref)
        budget -= 1


cdef void collect_fresh(Store *s, u32 budget) noexcept nogil:
    """Remove the nodes that were made for commits that then failed."""
    cdef u32 ref
    cdef Node *node
    while budget and s.fresh_count:
        ref = s.fresh[s.fresh_count - 1]
        node = node_at(s.base, ref)
        if node.head == 0:
            if not arena_reserve(&s.arena, 1):
                return
            remove_node(s, ref)
        node.flags &= ~NODE_FRESH
        s.fresh_count -= 1
        budget -= 1


cdef void collect_records(Store *s, const u64 *pins, u32 count, u32 budget) noexcept nogil:
    """Free superseded records. Also inside a batch: nothing above gc_horizon is touched, every node stays."""
    cdef u64 horizon = load_relaxed_u64(&s.header.gc_horizon)    # own word: no order needed
    collect_superseded(s, pins, count, horizon, budget)
    collect_buckets(s, pins, count, budget)


cdef void collect_nodes(Store *s, const u64 *pins, u32 count, u32 budget) noexcept nogil:
    """Between batches: remove the nodes of failed commits and of old deletes."""
    cdef u64 limit = load_relaxed_u64(&s.header.gc_horizon)      # own word: no order needed
    if count and pins[0] < limit:
        limit = pins[0]
    collect_fresh(s, budget)
    collect_tombstones(s, limit, budget)
