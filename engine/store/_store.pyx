"""The shared store, writer side: key nodes, version chains, both indexes, publication.

Owner: the commit thread of the coordinator (or the one process of an in-memory database). No other thread calls it.

1. `node.head` leads to the newest record; versions along `prev` never grow. Two records of one node may carry the same
   version (a range delete and a put of one commit): the newest counts, the other is garbage once published.
2. A record is complete before `head` names it (release). Records above `committed_version` are invisible to every
   snapshot, so a batch is installed first and published by one release store; taking it back is the exact reverse.
3. Both indexes hold the same nodes. A node with head 0 is absent to everybody; it is removed by the next collect
   unless a commit gave it a record.
4. Blocks a reader may have seen leave through the quarantine only (`_arena`), also when a batch is undone.
5. Failing is clean: a function that returns 0 for "full" left the store as it was.

`StoreWriter` wraps all of it for tests and tools.
"""

from libc.errno cimport EINVAL, ENOSPC
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

from ...ipc._atomics cimport i64, u8, u16, u32, u64
from ...ipc._atomics cimport clock_monotonic_ns, load_relaxed_u64, load_seq_cst_u64, store_release_u32
from ...ipc._atomics cimport store_relaxed_u64, store_release_u64, store_seq_cst_u64
from ._arena cimport arena_alloc, arena_block_size, arena_close, arena_flip, arena_free, arena_open, arena_reserve
from ._arena cimport arena_retire, arena_rounded
from ._check cimport check_store
from ._collect cimport bucket_search, collect_nodes, collect_records, tombstone_append, tombstone_unlink
from ._hash_index cimport hash_find, hash_insert, hash_open
from ._layout cimport KEY_SIZE_MAX, NODE_FRESH, NODE_SIZE, PAGE_SIZE, RECORD_SIZE, RECORD_TOMBSTONE, REF_SHIFT
from ._layout cimport STORE_HEADER_SIZE, STORE_LAYOUT_VERSION, TOMBSTONE_SIZE, Bucket, RangeBlock, Tombstone
from ._layout cimport node_at, node_key, record_at, record_value, store_magic
from ._ordered_index cimport ordered_height, ordered_insert, ordered_next, ordered_open, ordered_seek

cdef enum:
    FLIP_INTERVAL_NS = 1000000          # readers repeat a walk that a flip falls into: flip seldom
    FLIP_BYTES = 4 << 20                # but do not let the quarantine grow beyond this
    COLLECT_ALL = 0x7FFFFFFF        # more than a store can hold


# ---- life ----

cdef int store_create(Store *s, u8 *base, u64 size, int fd, const u8 *database_id, u64 incarnation) noexcept nogil:
    cdef int error
    cdef StoreHeader *header = <StoreHeader *>base
    memset(s, 0, sizeof(Store))
    if base == NULL:
        return EINVAL
    error = arena_open(&s.arena, base, size, fd, &header.reclaim_sequence, &header.readable)
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
    """Statistics for other processes; relaxed, nobody decides by them."""
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

cdef inline u64 record_size(const Record *record) noexcept nogil:
    """Bytes of the record's block."""
    if record.flags & RECORD_TOMBSTONE:
        return TOMBSTONE_SIZE
    return arena_rounded(RECORD_SIZE + <u64>record.value_size)


cdef u32 store_new_record(Store *s, u64 version, i64 timestamp, i64 expires_at, u32 flags, const u8 *value,
                          u32 value_size) noexcept nogil:
    cdef bint tombstone = flags & RECORD_TOMBSTONE
    cdef u32 ref
    cdef Record *record
    if tombstone:
        value_size = 0
    # The place in the quarantine is taken ahead: undoing an installed record must not fail.
    if not arena_reserve(&s.arena, 1):
        return 0
    s.arena.urgent = tombstone      # a full store can still delete
    ref = arena_alloc(&s.arena, TOMBSTONE_SIZE if tombstone else RECORD_SIZE + <u64>value_size)
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


cdef void store_drop_record(Store *s, u32 record) noexcept nogil:
    if s.arena.quarantine_promised:
        s.arena.quarantine_promised -= 1
    arena_free(&s.arena, record)        # never installed: nobody has seen it


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
    if r.flags & RECORD_TOMBSTONE:
        tombstone_append(s, record)
        s.queued += 1
    else:
        s.key_count += 1
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


cdef void store_uninstall(Store *s, u32 node, u32 record) noexcept nogil:
    cdef Node *n = node_at(s.base, node)
    cdef Record *r = record_at(s.base, record)
    # Release: the older record was published before. Readers on the undone record walk on from it: it is quarantined.
    store_release_u32(&n.head, r.prev)
    if r.prev:
        unsupersede(s, r.prev)
    if r.flags & RECORD_TOMBSTONE:
        tombstone_unlink(s, record)
    else:
        s.key_count -= 1
    s.record_count -= 1
    s.record_bytes -= record_size(r)
    if s.arena.quarantine_promised:
        s.arena.quarantine_promised -= 1
        arena_retire(&s.arena, record)


# ---- publication and collection ----

cdef void queue_pending(Store *s) noexcept nogil:
    """Move the batch's superseded records to the queue, oldest replacement first (the stack has them reversed)."""
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
    # Release: a snapshot that takes this version sees every record of the batch.
    store_release_u64(&s.header.committed_version, version)


cdef void store_collect(Store *s, const u64 *pins, u32 count, u32 budget) noexcept nogil:
    cdef i64 now
    cdef u64 effort = budget + 2 * <u64>s.queued
    s.queued = 0
    budget = <u32>effort if effort < COLLECT_ALL else COLLECT_ALL
    if pins == NULL:
        # seq_cst: as the pin protocol asks of whoever raises it; with no reader there is nothing to wait for.
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


# ---- for tests and tools ----

cdef class StoreWriter:
    """A store driven from Python: tests, tools and measurements; the commit thread uses the functions above.

    Args:
      buffer: writable zero-filled memory to make the store in; it stays referenced.
      fd: its file, to be preallocated as the store grows; -1 for anonymous memory.
    """

    cdef Store store
    cdef object view
    cdef bint open
    cdef list installed

    def __init__(self, buffer, int fd=-1, bytes database_id=b"0123456789abcdef", u64 incarnation=1):
        if len(database_id) != 16:
            raise ValueError(f"database_id is {len(database_id)} bytes long; it must be 16")
        self.view = memoryview(buffer).cast("B")
        cdef u8[::1] bytes_view = self.view
        cdef int error = store_create(&self.store, &bytes_view[0], bytes_view.shape[0], fd, database_id, incarnation)
        if error:
            raise OSError(error, f"store_create failed with {bytes_view.shape[0]} bytes")
        self.open = True
        self.installed = []

    def __dealloc__(self):
        if self.open:
            store_destroy(&self.store)

    def close(self):
        """Free the private tables and let go of the buffer."""
        if self.open:
            store_destroy(&self.store)
            self.open = False
            self.view = None

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.close()

    cdef int require_open(self) except -1:
        if not self.open:
            raise ValueError("the store is closed")
        return 0

    def ensure(self, bytes key):
        """Find or make the node of a key; False when the store is full."""
        self.require_open()
        return store_ensure_node(&self.store, key, len(key), key_hash(key, len(key), self.store.hash_seed)) != 0

    cdef bint write(self, bytes key, bytes value, u64 version, i64 timestamp, i64 expires_at, u32 flags) except -1:
        self.require_open()
        cdef u32 node = store_ensure_node(&self.store, key, len(key), key_hash(key, len(key), self.store.hash_seed))
        cdef u32 record
        if node == 0:
            return False
        record = store_new_record(&self.store, version, timestamp, expires_at, flags, value, len(value))
        if record == 0:
            return False
        store_install(&self.store, node, record)
        self.installed.append((node, record))
        return True

    def put(self, bytes key, bytes value, u64 version, i64 timestamp=0, i64 expires_at=0):
        """Install a record in the current batch; False when the store is full."""
        return self.write(key, value, version, timestamp, expires_at, 0)

    def delete(self, bytes key, u64 version, i64 timestamp=0):
        """Install a tombstone in the current batch; False when the store is full."""
        return self.write(key, b"", version, timestamp, 0, RECORD_TOMBSTONE)

    def undo(self, Py_ssize_t count=-1):
        """Take back the newest `count` installs of the batch (all by default)."""
        self.require_open()
        while self.installed and count != 0:
            node, record = self.installed.pop()
            store_uninstall(&self.store, node, record)
            count -= 1

    def publish(self, u64 version):
        """Show the batch to snapshots from `version` on."""
        self.require_open()
        self.installed.clear()
        store_publish(&self.store, version)

    cdef list sorted_pins(self, object pins):
        self.require_open()
        return sorted(pins)

    def collect(self, pins=(), u64 horizon=0, u32 budget=0x7FFFFFFF, bint force=False):
        """One round of garbage collection: raise gc_horizon to `horizon` (if higher), collect for these pins.

        The caller has made sure that no snapshot below the horizon exists except the pins.
        """
        ordered = self.sorted_pins(pins)
        cdef u32 count = len(ordered), i
        cdef u64 *array = <u64 *>realloc(NULL, 8 * (count + 1))
        if array == NULL:
            raise MemoryError
        for i in range(count):
            array[i] = ordered[i]
        with nogil:
            if horizon > load_relaxed_u64(&self.store.header.gc_horizon):
                store_seq_cst_u64(&self.store.header.gc_horizon, horizon)
            if force:
                store_force_collect(&self.store, array, count)
            else:
                store_collect(&self.store, array, count, budget)
        free(array)

    def collect_slots(self, slots):
        """A round for pins in shared slots: raise the horizon to the newest version, then read the slots.

        Returns the pins seen. Slots are u64 words, snapshot version + 1, 0 free; see `StoreReader.pin`.
        """
        self.require_open()
        cdef const u64[::1] words = slots
        cdef u64 value
        cdef Py_ssize_t i
        # seq_cst store, then seq_cst loads: a reader that this misses sees the raised horizon and takes a newer version.
        store_seq_cst_u64(&self.store.header.gc_horizon, load_relaxed_u64(&self.store.header.committed_version))
        pins = []
        for i in range(words.shape[0]):
            value = load_seq_cst_u64(&words[i])
            if value:
                pins.append(value - 1)
        self.collect(pins)
        return pins

    def flip(self):
        """Give the quarantine back at once."""
        self.require_open()
        arena_flip(&self.store.arena)

    def held_by(self, u64 pin):
        """Bytes of superseded records waiting for this pin to go."""
        self.require_open()
        return store_held_by(&self.store, pin)

    def newest(self, bytes key):
        """(version, flags, value) of the newest record, published or not; None: no node or no record."""
        self.require_open()
        cdef u32 node = store_find(&self.store, key, len(key), key_hash(key, len(key), self.store.hash_seed))
        if node == 0 or node_at(self.store.base, node).head == 0:
            return None
        cdef Record *record = record_at(self.store.base, node_at(self.store.base, node).head)
        return record.version, record.flags, (<const char *>record_value(record))[:record.value_size]

    def nodes_from(self, bytes key, Py_ssize_t limit=-1):
        """Keys of the nodes at or after `key`, in order, whatever their records."""
        self.require_open()
        cdef u32 node = store_seek(&self.store, key, len(key))
        found = []
        while node and limit != 0:
            found.append((<const char *>node_key(node_at(self.store.base, node)))[:node_at(self.store.base, node).key_size])
            node = store_next(&self.store, node)
            limit -= 1
        return found

    def check(self):
        """Raise AssertionError with the first invariant found broken."""
        self.require_open()
        cdef char[256] message
        cdef int wrong
        message[0] = 0
        with nogil:
            wrong = store_check(&self.store, message, 256)
        if wrong:
            raise AssertionError((<bytes>message).decode())

    def stats(self):
        """Counters of the store and its allocator, sizes in bytes."""
        self.require_open()
        cdef Store *s = &self.store
        return {
            "keys": s.key_count, "nodes": s.node_count, "records": s.record_count, "superseded": s.superseded_count,
            "superseded_bytes": s.superseded_bytes, "node_bytes": s.node_bytes, "record_bytes": s.record_bytes,
            "index_bytes": s.hashes.bytes, "quarantine_bytes": s.arena.quarantine_bytes,
            "pending_bytes": store_pending_bytes(s), "allocated_bytes": s.arena.allocated,
            "used_bytes": <u64>s.arena.pages_high * PAGE_SIZE, "backed_bytes": s.arena.backed,
            "tombstones": s.tombstone_count, "tombstone_horizon": s.tombstone_horizon, "flips": s.arena.flip_count,
            "hash_depth": s.hashes.depth, "buckets": s.hashes.bucket_count, "pin_buckets": s.bucket_count,
            "committed_version": load_relaxed_u64(&s.header.committed_version),
            "gc_horizon": load_relaxed_u64(&s.header.gc_horizon),
        }


def hash_of(bytes key, bytes database_id=b"0123456789abcdef"):
    """The hash of a key in the store of this database."""
    return key_hash(key, len(key), key_hash(database_id, 16, STORE_LAYOUT_VERSION))


def assert_layout():
    """The sizes and offsets that other builds of this layout version rely on."""
    cdef StoreHeader *h = NULL
    offsets = (<size_t>&h.committed_version, <size_t>&h.gc_horizon, <size_t>&h.reclaim_sequence, <size_t>&h.superseded,
               <size_t>&h.hash_root, <size_t>&h.key_count, <size_t>&h.used_bytes, <size_t>&h.spin_hint,
               <size_t>&h.range_count)
    sizes = (sizeof(Node), sizeof(Record), sizeof(Record) + sizeof(Tombstone), sizeof(Bucket), sizeof(RangeBlock))
    if (offsets != (64, 128, 192, 256, 320, 384, 448, 512, 576) or sizes != (16, 48, 64, 256, 24)
            or sizeof(StoreHeader) != 896):
        raise ImportError(f"the compiler laid out the store differently: {offsets}, {sizes}, {sizeof(StoreHeader)}")


assert_layout()
