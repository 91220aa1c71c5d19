"""The shared store, writer side: key nodes, version chains, both indexes, publication.

Owner: the commit thread of the coordinator (or the one process of an in-memory database). No other thread
calls it.

1. `node.head` leads to the newest record; versions along `prev` never grow. Two records of one node may carry
   the same version (a range delete and a put of one commit): the newest counts, the other is garbage once
   published.
2. A record is complete before `head` names it (release). Records above `committed_version` are invisible to
   every snapshot, so a batch is installed first and published by one release store; taking it back is the
   exact reverse.
3. Both indexes hold the same nodes. A node with head 0 is absent to everybody; it is removed by the next
   collect unless a commit gave it a record.
4. Blocks a reader may have seen leave through the quarantine only (`_arena`), also when a batch is undone.
5. Failing is clean: a function that returns 0 for "full" left the store as it was.
"""

from libc.errno cimport EINVAL
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

from ...ipc._atomics cimport i64, u8, u16, u32, u64
from ...ipc._atomics cimport clock_monotonic_ns, load_relaxed_u64, store_release_u32
from ...ipc._atomics cimport store_relaxed_u64, store_release_u64, store_seq_cst_u64
from ._arena cimport arena_alloc, arena_close, arena_flip, arena_free, arena_open, arena_reserve
from ._arena cimport arena_retire, arena_rounded
from ._change_ring cimport change_open, change_publish
from ._check cimport check_store
from ._collect cimport bucket_search, collect_nodes, collect_records, tombstone_append, tombstone_unlink
from ._hash_index cimport hash_find, hash_insert, hash_open
from ._layout cimport BINDING_SIZE, RECORD_BOUND
from ._layout cimport KEY_SIZE_MAX, NODE_FRESH, NODE_SIZE, PAGE_SIZE, RECORD_SIZE, RECORD_TOMBSTONE
from ._layout cimport STORE_HEADER_SIZE, STORE_LAYOUT_VERSION, TOMBSTONE_SIZE, Bucket, RangeBlock, Tombstone
from ._layout cimport node_at, node_key, record_at, record_value, store_magic
from ._ordered_index cimport ordered_height, ordered_insert, ordered_next, ordered_open, ordered_seek

cdef enum:
    FLIP_INTERVAL_NS = 1000000          # readers repeat a walk that a flip falls into: flip seldom
    FLIP_BYTES = 4 << 20                # but do not let the quarantine grow beyond this
    COLLECT_ALL = 0x7FFFFFFF        # more than a store can hold


# ---- life ----

cdef int store_create(Store *s, u8 *base, u64 size, int fd, const u8 *database_id, u64 incarnation,
                      u64 change_size) noexcept nogil:
    cdef int error
    cdef StoreHeader *header = <StoreHeader *>base
    memset(s, 0, sizeof(Store))
    if base == NULL or change_size >= size:
        return EINVAL
    error = arena_open(&s.arena, base, size - change_size, fd, &header.reclaim_sequence, &header.readable)
    if error:
        return error
    s.base = base
    s.size = size
    s.header = header
    s.hash_seed = key_hash(database_id, 16, STORE_LAYOUT_VERSION)
    header.layout_version = STORE_LAYOUT_VERSION
    header.header_size = STORE_HEADER_SIZE
    memcpy(header.database_id, database_id, 16)
    header.incarnation = incarnation
    header.size = size
    header.hash_seed = s.hash_seed
    error = hash_open(&s.hashes, &s.arena, header)
    if error == 0:
        error = ordered_open(&s.order, &s.arena)
    if error == 0:
        error = change_open(&s.changes, header, base, size - change_size, change_size, fd)
    if error:
        arena_close(&s.arena)
        return error
    header.first_node = s.order.first
    s.flipped_at = clock_monotonic_ns()
    show_counters(s)
    # Release: a process that sees the magic sees a complete, empty store.
    store_release_u64(&header.magic, store_magic())
    return 0


cdef void store_limit(Store *s, u64 size) noexcept nogil:
    cdef u64 pages = size // PAGE_SIZE
    s.arena.page_limit = <u32>pages if pages < s.arena.page_count else s.arena.page_count


cdef void store_destroy(Store *s) noexcept nogil:
    arena_close(&s.arena)
    free(s.buckets)
    free(s.fresh)
    free(s.range_cursor)
    s.range_cursor = NULL
    s.buckets = NULL
    s.fresh = NULL
    s.bucket_count = 0
    s.bucket_capacity = 0
    s.fresh_count = 0
    s.fresh_capacity = 0


cdef void show_counters(Store *s) noexcept nogil:
    """Statistics for other processes; relaxed, because nothing is decided by them."""
    cdef StoreHeader *h = s.header
    cdef u64 used = <u64>s.arena.pages_high * PAGE_SIZE
    store_relaxed_u64(&h.key_count, s.key_count)
    store_relaxed_u64(&h.record_count, s.record_count)
    store_relaxed_u64(&h.node_bytes, s.node_bytes)
    store_relaxed_u64(&h.record_bytes, s.record_bytes)
    store_relaxed_u64(&h.superseded_bytes, s.superseded_bytes)
    store_relaxed_u64(&h.index_bytes, s.hashes.bytes)
    store_relaxed_u64(&h.quarantine_bytes, s.arena.quarantine_bytes)
    store_relaxed_u64(&h.free_bytes, used - s.arena.allocated)
    store_relaxed_u64(&h.used_bytes, used)
    store_relaxed_u64(&h.backed_bytes, s.arena.backed)


# ---- nodes ----

cdef u32 store_find(Store *s, const u8 *key, u32 key_size, u64 hash) noexcept nogil:
    return hash_find(&s.hashes, s.base, key, key_size, hash)


cdef bint fresh_reserve(Store *s) noexcept nogil:
    cdef u64 capacity
    cdef void *grown
    if s.fresh_count < s.fresh_capacity:
        return True
    capacity = <u64>s.fresh_capacity * 2 + 256
    if capacity > 0xFFFFFFFFULL:
        return False
    grown = realloc(s.fresh, capacity * 4)
    if grown == NULL:
        return False
    s.fresh = <u32 *>grown
    s.fresh_capacity = <u32>capacity
    return True


cdef u32 store_ensure_node(Store *s, const u8 *key, u32 key_size, u64 hash) noexcept nogil:
    cdef u32 ref = store_find(s, key, key_size, hash)
    cdef u32 height
    cdef Node *node
    if ref:
        return ref
    if key_size > KEY_SIZE_MAX or not fresh_reserve(s):
        return 0
    height = ordered_height(&s.order)
    ref = arena_alloc(&s.arena, NODE_SIZE + 4 * height + key_size)
    if ref == 0:
        return 0
    node = node_at(s.base, ref)
    node.hash = hash
    node.head = 0
    node.key_size = <u16>key_size
    node.height = <u8>height
    node.flags = NODE_FRESH
    memcpy(node_key(node), key, key_size)
    if not hash_insert(&s.hashes, &s.arena, hash, ref):
        arena_free(&s.arena, ref)       # nobody has seen it
        return 0
    ordered_insert(&s.order, s.base, ref)
    s.fresh[s.fresh_count] = ref
    s.fresh_count += 1
    s.queued += 1
    s.node_count += 1
    s.node_bytes += arena_rounded(NODE_SIZE + 4 * height + key_size)
    return ref


cdef u32 store_seek(Store *s, const u8 *key, u32 key_size) noexcept nogil:
    return ordered_seek(&s.order, s.base, key, key_size)


cdef u32 store_next(Store *s, u32 node) noexcept nogil:
    return ordered_next(&s.order, s.base, node)


# ---- records ----

cdef inline u64 _binding_size(u32 flags) noexcept nogil:
    return BINDING_SIZE if flags & RECORD_BOUND else 0


cdef inline u64 _bound(const Record *record) noexcept nogil:
    return (record.flags & RECORD_BOUND) != 0


cdef inline u64 record_size(const Record *record) noexcept nogil:
    """Bytes of the record's block."""
    if record.flags & RECORD_TOMBSTONE:
        return TOMBSTONE_SIZE
    return arena_rounded(RECORD_SIZE + <u64>record.value_size + _binding_size(record.flags))


cdef u32 store_new_record(Store *s, u64 version, i64 timestamp, i64 expires_at, u32 flags, const u8 *value,
                          u32 value_size) noexcept nogil:
    cdef bint tombstone = flags & RECORD_TOMBSTONE
    cdef u32 ref
    cdef Record *record
    if tombstone:
        value_size = 0
    # Reserve the place in the quarantine now, because undoing an installed record must not fail.
    if not arena_reserve(&s.arena, 1):
        return 0
    s.arena.urgent = tombstone      # a full store can still delete
    ref = arena_alloc(&s.arena, TOMBSTONE_SIZE if tombstone
                      else RECORD_SIZE + <u64>value_size + _binding_size(flags))
    s.arena.urgent = False
    if ref == 0:
        return 0
    s.arena.quarantine_promised += 1
    record = record_at(s.base, ref)
    record.version = version
    record.timestamp = timestamp
    record.expires_at = expires_at
    record.prev = 0
    record.newer = 0
    record.gc_next = 0
    record.node = 0
    record.value_size = value_size
    record.flags = flags
    if value_size:
        memcpy(record_value(record), value, value_size)
    return ref


cdef void store_install(Store *s, u32 node, u32 record) noexcept nogil:
    cdef Node *n = node_at(s.base, node)
    cdef Record *r = record_at(s.base, record)
    cdef Record *old
    cdef u64 bytes = record_size(r)
    r.prev = n.head
    r.node = node
    if n.head:
        old = record_at(s.base, n.head)
        old.newer = record
        old.gc_next = s.pending
        s.pending = n.head
        s.superseded_count += 1
        s.superseded_bytes += record_size(old)
        s.key_count -= not (old.flags & RECORD_TOMBSTONE)
        s.bound_count -= _bound(old)
    if r.flags & RECORD_TOMBSTONE:
        tombstone_append(s, record)
        s.queued += 1
    else:
        s.key_count += 1
        s.bound_count += _bound(r)
    s.record_count += 1
    s.record_bytes += bytes
    # Release: the record is complete before a reader can reach it.
    store_release_u32(&n.head, record)


cdef void unsupersede(Store *s, u32 ref) noexcept nogil:
    """The newest entry of the pending stack becomes a head again."""
    cdef Record *record = record_at(s.base, ref)
    s.pending = record.gc_next
    record.gc_next = 0
    record.newer = 0
    s.superseded_count -= 1
    s.superseded_bytes -= record_size(record)
    s.key_count += not (record.flags & RECORD_TOMBSTONE)
    s.bound_count += _bound(record)


cdef void store_uninstall(Store *s, u32 node, u32 record) noexcept nogil:
    cdef Node *n = node_at(s.base, node)
    cdef Record *r = record_at(s.base, record)
    # Release: the older record was published before. Readers on the undone record walk on from it: it is
    # quarantined.
    store_release_u32(&n.head, r.prev)
    if r.prev:
        unsupersede(s, r.prev)
    if r.flags & RECORD_TOMBSTONE:
        tombstone_unlink(s, record)
    else:
        s.key_count -= 1
        s.bound_count -= _bound(r)
    s.record_count -= 1
    s.record_bytes -= record_size(r)
    if s.arena.quarantine_promised:
        s.arena.quarantine_promised -= 1
        arena_retire(&s.arena, record)


# ---- publication and collection ----

cdef void queue_pending(Store *s) noexcept nogil:
    """Move the batch's superseded records to the queue. The stack has them reversed: oldest goes first."""
    cdef u32 first = 0, last = s.pending, ref = s.pending, following
    cdef Record *record
    while ref:
        record = record_at(s.base, ref)
        following = record.gc_next
        if record.flags & RECORD_TOMBSTONE:
            tombstone_unlink(s, ref)    # replaced for good: it leaves with the superseded records
        record.gc_next = first
        s.queued += 1
        first = ref
        ref = following
    if first == 0:
        return
    if s.superseded_last:
        record_at(s.base, s.superseded_last).gc_next = first
    else:
        s.superseded_first = first
    s.superseded_last = last
    s.pending = 0


cdef void store_publish(Store *s, u64 version) noexcept nogil:
    queue_pending(s)
    s.arena.quarantine_promised = 0     # nothing published is taken back
    show_counters(s)
    # Before the version: a follower that sees the version finds its changes below `change_end`.
    change_publish(&s.changes)
    # Release: a snapshot that takes this version sees every record of the batch.
    store_release_u64(&s.header.committed_version, version)


cdef void store_collect(Store *s, const u64 *pins, u32 count, u32 budget) noexcept nogil:
    cdef i64 now
    cdef u64 effort = budget + 2 * <u64>s.queued
    s.queued = 0
    budget = <u32>effort if effort < COLLECT_ALL else COLLECT_ALL
    if pins == NULL:
        # seq_cst: as the pin protocol requires. Without a reader there is nothing to wait for.
        store_seq_cst_u64(&s.header.gc_horizon, load_relaxed_u64(&s.header.committed_version))
    collect_records(s, pins, count, budget)
    collect_nodes(s, pins, count, budget)
    if s.arena.quarantine_count == 0:
        return
    now = clock_monotonic_ns()
    if now - s.flipped_at >= FLIP_INTERVAL_NS or s.arena.quarantine_bytes >= FLIP_BYTES:
        arena_flip(&s.arena)
        s.flipped_at = now
    show_counters(s)


cdef void store_force_collect(Store *s, const u64 *pins, u32 count) noexcept nogil:
    collect_records(s, pins, count, COLLECT_ALL)
    arena_flip(&s.arena)
    s.flipped_at = clock_monotonic_ns()
    show_counters(s)


cdef u64 store_held_by(Store *s, u64 pin_version) noexcept nogil:
    cdef u32 i = bucket_search(s, pin_version)
    if i < s.bucket_count and s.buckets[i].pin == pin_version:
        return s.buckets[i].bytes
    return 0


cdef u64 store_pending_bytes(Store *s) noexcept nogil:
    return s.superseded_bytes + s.arena.quarantine_bytes + TOMBSTONE_SIZE * s.tombstone_count \
        + <u64>NODE_SIZE * s.fresh_count


cdef int store_check(Store *s, char *message, size_t message_size) noexcept nogil:
    return check_store(s, message, message_size)


def assert_layout():
    """The sizes and offsets that other builds of this layout version rely on."""
    cdef StoreHeader *h = NULL
    offsets = (<size_t>&h.committed_version, <size_t>&h.gc_horizon, <size_t>&h.reclaim_sequence, <size_t>&h.superseded,
               <size_t>&h.hash_root, <size_t>&h.key_count, <size_t>&h.used_bytes, <size_t>&h.spin_hint,
               <size_t>&h.range_count, <size_t>&h.change_offset, <size_t>&h.change_end)
    sizes = (sizeof(Node), sizeof(Record), sizeof(Record) + sizeof(Tombstone), sizeof(Bucket), sizeof(RangeBlock))
    if (offsets != (64, 128, 192, 256, 320, 384, 448, 512, 576, 896, 960) or sizes != (16, 48, 64, 256, 24)
            or sizeof(StoreHeader) != 1024):
        raise ImportError(f"the compiler laid out the store differently: {offsets}, {sizes}, {sizeof(StoreHeader)}")


assert_layout()
