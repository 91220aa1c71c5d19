"""The store's writer side: the commit thread only. See `_store.pyx` for the invariants.

A *batch* is everything from the first store_ensure_node/store_install to the store_publish that shows it (or
to the last store_uninstall that takes it back). Versions installed on one node never go down. store_collect
is called between batches only (it removes nodes: refs held over it are stale); store_force_collect may be
called inside one. store_uninstall takes back unpublished installs only, newest first over the whole batch,
not per node.
"""

from ...ipc._atomics cimport i64, u8, u32, u64
from ._arena_state cimport Arena
from ._change_ring cimport ChangeRing
from ._hash_index cimport HashIndex
from ._layout cimport Node, Record, StoreHeader, key_hash   # key_hash(key, key_size, s.hash_seed)
from ._ordered_index cimport OrderedIndex

cdef struct PinBucket:          # superseded records held back by one pin
    u64 pin
    u32 first
    u64 count
    u64 bytes

cdef struct Store:
    u8 *base
    u64 size
    StoreHeader *header
    u64 hash_seed
    u64 tombstone_horizon       # highest version of a delete whose node was removed
    u64 range_horizon           # highest version of a range delete that recovery may have replayed
    # counters
    u64 key_count               # keys whose newest record is not a tombstone
    u64 bound_count             # ... and is bound to a session
    u64 node_count
    u64 record_count            # linked records: newest, superseded, tombstones
    u64 superseded_count
    u64 superseded_bytes
    u64 node_bytes
    u64 record_bytes
    # private parts
    Arena arena
    HashIndex hashes
    OrderedIndex order
    ChangeRing changes
    u32 pending                 # stack of records superseded in the current batch
    u32 superseded_first        # queue of superseded records, oldest replacement first
    u32 superseded_last
    u32 tombstone_first         # queue of tombstones, oldest first
    u32 tombstone_last
    u32 queued                  # records, tombstones and nodes that joined a queue since the last collect
    u64 tombstone_count
    PinBucket *buckets          # sorted by pin
    u32 bucket_count
    u32 bucket_capacity
    u32 *fresh                  # nodes made since the last collect, which removes those without a record
    u32 fresh_count
    u32 fresh_capacity
    u32 range_active            # range tombstones in the header (`_range_tombstones`)
    u64 range_version           # of the one that is being converted; 0: none was begun
    u32 range_slot              # its slot
    u8 *range_cursor            # key to go on from
    u32 range_cursor_size
    i64 flipped_at              # monotonic ns of the last flip of the quarantine

# 0 ok, else an errno: EINVAL (size or alignment), ENOMEM (private tables), ENOSPC (no room for the first
# pages). REQUIRES: `base` is 16-byte aligned, zero-filled and `size` bytes long (1 MiB..64 GiB; a part of the
# last page is left unused). The last `change_size` bytes (0, or a power of two from 64 KiB) are the change
# ring's.
cdef int store_create(Store *s, u8 *base, u64 size, int fd, const u8 *database_id, u64 incarnation,
                      u64 change_size) noexcept nogil
# From here on ordinary allocations keep the store at or below `size` bytes; at first it may fill the whole
# segment. Recovery needs the difference: packed in another order than it grew in, the same content may take a
# little more.
cdef void store_limit(Store *s, u64 size) noexcept nogil
cdef void store_destroy(Store *s) noexcept nogil
cdef u32 store_find(Store *s, const u8 *key, u32 key_size, u64 hash) noexcept nogil
# The key's node, made if it has none. 0: the store is full, or key_size > KEY_SIZE_MAX.
cdef u32 store_ensure_node(Store *s, const u8 *key, u32 key_size, u64 hash) noexcept nogil
cdef u32 store_seek(Store *s, const u8 *key, u32 key_size) noexcept nogil
cdef u32 store_next(Store *s, u32 node) noexcept nogil
# Tombstones have no value: `value` is not looked at when flags has RECORD_TOMBSTONE. With RECORD_BOUND the caller fills
# in the session (`record_bind`) before it installs the record.
cdef u32 store_new_record(Store *s, u64 version, i64 timestamp, i64 expires_at, u32 flags, const u8 *value,
                          u32 value_size) noexcept nogil
cdef void store_install(Store *s, u32 node, u32 record) noexcept nogil
cdef void store_uninstall(Store *s, u32 node, u32 record) noexcept nogil
cdef void store_publish(Store *s, u64 version) noexcept nogil
# Free what no pin needs.
#   pins: snapshot versions (slot value - 1), sorted ascending, duplicates allowed. NULL: no reader has the
#     store yet (recovery), or none can have a pin; the horizon is then raised to committed_version here.
#   budget: entries looked at per queue, beside twice as many as were queued since the last call. So a backlog
#     shrinks under any load, at O(1) a write.
# REQUIRES: the caller raised header.gc_horizon (seq_cst) before it read the pins.
cdef void store_collect(Store *s, const u64 *pins, u32 count, u32 budget) noexcept nogil
# Free all collectable records at once, and give the quarantine back whatever the time. Never removes a node,
# so node refs stay valid inside a batch. (Allocations that fail flip the quarantine themselves before they
# report "full".)
cdef void store_force_collect(Store *s, const u64 *pins, u32 count) noexcept nogil
cdef u64 store_held_by(Store *s, u64 pin_version) noexcept nogil
# Not 0 while another store_collect may free something: superseded, quarantined, tombstones, nodes of failed
# commits.
cdef u64 store_pending_bytes(Store *s) noexcept nogil
# 0 sound; else 1 and a message. Slow (walks everything); the writer's thread only, also inside a batch.
cdef int store_check(Store *s, char *message, size_t message_size) noexcept nogil
