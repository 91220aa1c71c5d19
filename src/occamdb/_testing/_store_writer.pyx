"""The store's writer side, driven from Python."""

from libc.stdlib cimport free, realloc

from ..engine.store._arena cimport arena_flip
from ..engine.store._layout cimport (
    NODE_SIZE, PAGE_SIZE, RECORD_SIZE, RECORD_TOMBSTONE, STORE_LAYOUT_VERSION, TOMBSTONE_SIZE, Node, Record, key_hash, node_at,
    node_key, record_at, record_value,
)
from ..engine.store._store cimport (
    Store, store_check, store_collect, store_create, store_destroy, store_ensure_node, store_find, store_force_collect,
    store_held_by, store_install, store_new_record, store_next, store_pending_bytes, store_publish, store_seek, store_uninstall,
)
from ..ipc._atomics cimport i64, load_relaxed_u64, load_seq_cst_u64, store_seq_cst_u64, u8, u32, u64


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
        cdef int error = store_create(&self.store, &bytes_view[0], bytes_view.shape[0], fd, database_id, incarnation, 0)
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
