"""Checks, in slices, whether anything in a request's ranges was written or expired since its snapshot.

If a transaction began before the oldest entry of the list of recent writes, its ranges have to be walked node
by node. A request gets `walk_slice` steps in each batch. If that is not enough, it is parked: it stays
complete in its channel's inbox and continues in the next turn. Other requests commit meanwhile.

1. A node behind the cursor can change after it was looked at. Every such write, and every removal of an
   expired key, is in the list of recent writes after `seen`, or is a range delete in the history. Each slice
   looks at the entries added since the last one, for all ranges begun so far. A key behind the cursor that
   has expired, but was not removed yet, is in no list. So a walk of several batches does not end while a key
   is due. When the walk ends, the same batch validates and applies the request, so every answer is current.
2. If the list cannot tell what was written since the last slice (it wrapped, a batch was undone, or the
   writes times the ranges are more than one slice should compare), the remaining ranges count as changed:
   `lost`. The transaction is refused, and its next attempt begins with a newer snapshot. Something was
   written after its snapshot, but perhaps outside the range.
3. References to nodes in the list are valid while start_version >= tombstone_horizon: no node written after
   start_version can then have been freed. Each slice checks this first. The worker of a parked request still
   holds its pin, but if the pin was revoked, the horizon may rise.
4. A channel that closes is served until its walk ends. A coordinator that stops or dies has applied nothing
   of a parked request. Its worker learns this from the next coordinator, and sends the request again.
"""

from libc.stdlib cimport realloc
from libc.string cimport memcpy

from ..store._layout cimport (
    RECORD_EXPIRY, RECORD_TOMBSTONE, Node, RangeBlock, Record, key_compare, node_at, node_key, record_at,
)
from ..store._range_tombstones cimport ranges_cover
from ..store._store cimport store_next, store_seek
from ._core cimport RECENT_COUNT, Recent
from ._expiry_time cimport is_due
from ._range_walk cimport RangeWalk
from ._wire cimport (
    OP_DELETE_RANGE, OP_HEADER_SIZE, OP_RANGE, OP_UNCHECKED, REQUEST_BLIND, REQUEST_HEADER_SIZE, OpHeader, RequestHeader,
)

cdef enum:
    CATCH_UP_MAX = 131072           # comparisons of one slice with what was written since the last one
    WAITS_MAX = 64                  # turns that a finished walk waits for keys that are due to be removed

cdef i64 I64_MAX = 0x7FFFFFFFFFFFFFFF


cdef inline bint _is_checked(const RequestHeader *header, const OpHeader *op) noexcept nogil:
    if op.code == OP_RANGE:
        return True
    return op.code == OP_DELETE_RANGE and not header.flags & REQUEST_BLIND and not op.flags & OP_UNCHECKED


cdef inline u64 _op_size(const OpHeader *op) noexcept nogil:
    return OP_HEADER_SIZE + <u64>op.key_size + op.value_size


cdef u32 ranges_to_check(const u8 *request) noexcept nogil:
    cdef const RequestHeader *header = <const RequestHeader *>request
    cdef const OpHeader *op
    cdef u64 offset = REQUEST_HEADER_SIZE
    cdef u32 index, count = 0
    for index in range(header.op_count):
        op = <const OpHeader *>(request + offset)
        offset += _op_size(op)
        count += _is_checked(header, op)
    return count


cdef u64 written_version(const Core *core, u32 node) noexcept nogil:
    """The version of the last write by a transaction; 0 when there was none."""
    cdef u32 head = node_at(core.store.base, node).head
    cdef const Record *record
    cdef const RangeBlock *covered
    if head == 0:
        return 0
    covered = ranges_cover(&core.store, node)
    if covered != NULL:
        return covered.version
    record = record_at(core.store.base, head)
    return <u64>record.expires_at if record.flags & RECORD_EXPIRY else record.version


cdef inline i64 _read_time(const RequestHeader *header, const OpHeader *op) noexcept nogil:
    """The time after which an expiry in the op's range is a change. For a range delete, no expiry is one."""
    return header.read_time if op.code == OP_RANGE else I64_MAX


cdef u64 _changed_version(const Core *core, u32 node, u64 start_version, i64 read_time) noexcept nogil:
    """The version that was written, or has expired, since (`start_version`, `read_time`); 0: unchanged."""
    cdef u32 head = node_at(core.store.base, node).head
    cdef const Record *record
    cdef const Record *removed
    cdef const RangeBlock *covered
    cdef i64 expires_at
    cdef u64 version
    if head == 0:
        return 0
    covered = ranges_cover(&core.store, node)
    if covered != NULL:
        return covered.version if covered.version > start_version else 0
    record = record_at(core.store.base, head)
    if record.version > start_version and not record.flags & RECORD_EXPIRY:
        return record.version
    if record.flags & RECORD_EXPIRY:
        version = <u64>record.expires_at
        if version > start_version:
            return version
        if record.version <= start_version:
            return 0                    # removed before the snapshot
        # A snapshot between the two versions keeps the removed record. If that is gone, because the pin was
        # revoked, the time of its removal is the latest at which it can have expired.
        expires_at = record.timestamp
        if record.prev:
            removed = record_at(core.store.base, record.prev)
            if removed.version == version:
                expires_at = removed.expires_at
        return version if read_time < expires_at else 0
    if record.flags & RECORD_TOMBSTONE or record.expires_at == 0:
        return 0
    return record.version if read_time < record.expires_at <= core.now else 0


cdef inline bint _inside(const Core *core, u32 node, const OpHeader *op) noexcept nogil:
    cdef const Node *entry = node_at(core.store.base, node)
    cdef const u8 *start = <const u8 *>op + OP_HEADER_SIZE
    return (key_compare(node_key(entry), entry.key_size, start, op.key_size) >= 0
            and key_compare(node_key(entry), entry.key_size, start + op.key_size, op.value_size) < 0)


cdef void _catch_up(Core *core, RangeWalk *walk, const u8 *request) noexcept nogil:
    """Look at what was written since the last slice (invariant 1)."""
    cdef const RequestHeader *header = <const RequestHeader *>request
    cdef const OpHeader *op
    cdef u64 offset = REQUEST_HEADER_SIZE, fresh = core.recent_next - walk.seen, position
    cdef u32 index = 0
    cdef const Recent *recent
    if walk.epoch != core.recent_epoch or fresh > RECENT_COUNT or fresh * (walk.done + 1) > CATCH_UP_MAX:
        walk.lost = True
    if core.range_history.floor != walk.floor and walk.start_version < core.range_history.floor:
        walk.lost = True
    while index <= walk.done and fresh and not walk.lost:
        op = <const OpHeader *>(request + offset)
        offset += _op_size(op)
        if not _is_checked(header, op):
            continue
        position = walk.seen
        while position != core.recent_next and walk.found[index] == 0:
            recent = &core.recent[position & (RECENT_COUNT - 1)]
            position += 1
            if _inside(core, recent.node, op):
                walk.found[index] = _changed_version(core, recent.node, walk.start_version, _read_time(header, op))
        index += 1
    walk.seen = core.recent_next


cdef bint _begin(Core *core, Channel *channel, const RequestHeader *header) noexcept nogil:
    """Set up the walk of a request with `walk.count` ranges. False: private memory ran out."""
    cdef RangeWalk *walk = &channel.walk
    cdef u32 index
    cdef void *grown
    if walk.count > walk.capacity:
        grown = realloc(walk.found, <u64>walk.count * sizeof(u64))
        if grown == NULL:
            return False
        walk.found = <u64 *>grown
        walk.capacity = walk.count
    for index in range(walk.count):
        walk.found[index] = 0
    walk.active = True
    walk.lost = False
    walk.done = 0
    walk.offset = REQUEST_HEADER_SIZE
    walk.start_version = header.start_version
    walk.seen = core.recent_next
    walk.epoch = core.recent_epoch
    walk.floor = core.range_history.floor
    walk.begun = False
    walk.began_at = core.now
    walk.waits = 0
    return True


cdef bint _remember(Core *core, RangeWalk *walk, u32 node) noexcept nogil:
    cdef const Node *entry = node_at(core.store.base, node)
    cdef void *grown = realloc(walk.cursor, entry.key_size + 1)
    if grown == NULL:
        return False
    walk.cursor = <u8 *>grown
    memcpy(walk.cursor, node_key(entry), entry.key_size)
    walk.cursor_size = entry.key_size
    return True


cdef int _look_back(Core *core, RangeWalk *walk, const OpHeader *op, i64 read_time, u64 *written) noexcept nogil:
    """Go one step back along the recent writes. 1: the range is decided."""
    cdef const Recent *recent
    if walk.position == 0 or core.recent_next - walk.position >= RECENT_COUNT:
        return 1                            # everything newer than recent_floor was looked at
    walk.position -= 1
    recent = &core.recent[walk.position & (RECENT_COUNT - 1)]
    if recent.version <= walk.start_version:
        return 1
    if _inside(core, recent.node, op):
        written[0] = _changed_version(core, recent.node, walk.start_version, read_time)
        return written[0] != 0
    return 0


cdef bint _walk_one(Core *core, RangeWalk *walk, const OpHeader *op, i64 read_time, u32 *budget) noexcept nogil:
    """Alternate between the recent writes, newest first, and the nodes of the range, until one of them is
    finished.

    Each alone gives the full answer. The list is complete only back to `recent_floor`, and large range
    deletes are not in it: the history has those, back to its own floor. Keys that are due, but were not
    removed yet, are found only in the nodes. True: walk.found[walk.done] is the answer.
    """
    cdef const u8 *start = <const u8 *>op + OP_HEADER_SIZE
    cdef bint usable
    cdef u32 node, step
    cdef u64 written = 0
    if walk.begun:
        node = store_seek(&core.store, walk.cursor, walk.cursor_size)
    else:
        node = store_seek(&core.store, start, op.key_size)
        walk.position = core.recent_next
        walk.begun = True
    usable = (walk.start_version >= core.recent_floor and walk.start_version >= core.range_history.floor
              and not is_due(core))
    while node != 0 and key_compare(node_key(node_at(core.store.base, node)), node_at(core.store.base, node).key_size,
                                    start + op.key_size, op.value_size) < 0:
        if budget[0] == 0:
            if not _remember(core, walk, node):
                walk.lost = True
            return False
        budget[0] -= 1
        written = _changed_version(core, node, walk.start_version, read_time)
        if written:
            break
        node = store_next(&core.store, node)
        if not usable:
            continue
        for step in range(4):
            if _look_back(core, walk, op, read_time, &written):
                walk.found[walk.done] = written
                return True
    walk.found[walk.done] = written
    return True


cdef void _refuse_rest(Core *core, RangeWalk *walk, u64 version) noexcept nogil:
    """Mark every range without an answer as changed at `version`."""
    cdef u32 index
    for index in range(walk.count):
        if walk.found[index] == 0:
            walk.found[index] = version
    walk.done = walk.count


cdef bint walk_ranges(Core *core, Channel *channel, const u8 *request, u32 budget) noexcept nogil:
    cdef const RequestHeader *header = <const RequestHeader *>request
    cdef RangeWalk *walk = &channel.walk
    cdef const OpHeader *op
    if not walk.active and not _begin(core, channel, header):
        walk.lost = True                    # no memory for the answers; the caller sees that in `capacity`
        return True
    if header.start_version < core.store.tombstone_horizon:
        _refuse_rest(core, walk, core.store.tombstone_horizon)
        return True
    if header.start_version >= core.next_version and not is_due(core):
        _refuse_rest(core, walk, 0)         # nothing was written since, and nothing has expired
        return True
    if walk.seen != core.recent_next or walk.epoch != core.recent_epoch or walk.floor != core.range_history.floor:
        _catch_up(core, walk, request)
    while walk.done < walk.count and not walk.lost:
        op = <const OpHeader *>(request + walk.offset)
        if _is_checked(header, op):
            if walk.found[walk.done] == 0 and not _walk_one(core, walk, op, _read_time(header, op), &budget):
                if not walk.lost:
                    return False
                break
            walk.begun = False
            walk.done += 1
            budget -= budget != 0           # a seek is a step too
            if budget == 0 and walk.done < walk.count:
                walk.offset += _op_size(op)
                return False
        walk.offset += _op_size(op)
    if not walk.lost and walk.began_at != core.now and is_due(core):
        # Invariant 1: due keys are removed between two batches, and are in the list then.
        walk.waits += 1
        if walk.waits <= WAITS_MAX:
            return False
        walk.lost = True
    if walk.lost:
        _refuse_rest(core, walk, core.next_version)
    return True
