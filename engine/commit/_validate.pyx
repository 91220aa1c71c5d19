"""Validation: is a request well formed, and does anything committed since it began conflict with it?

Requests are checked in one total order, the order in which the commit thread takes them. T is the request's
`read_time`, the expiry time of its snapshot. Now is `core.now`, which is never earlier (_expiry_time.pxd). A
request has no conflict if all of these hold:

1. read: the key's version now is the one that was read (0 = absent, deleted, or expired by now);
2. range: no key in it was written after `start_version`, and none expired between T and now;
3. write: the key was not written after `start_version`, unless the request is BLIND or the effect belongs to
   a CAS;
4. CAS: the key's version now is the expected one, and nothing else is asked;
5. no key to be written lies in a range that was deleted after `start_version`. This includes increments and a
   CAS that expects absence, because deleting a range counts as a write of every possible key in it. A BLIND
   request has no start version, so this does not apply to it.

The request comes from another process, but was copied into private memory. `check_format` verifies every
size, so the later passes may follow the sizes. A false `read_time` affects only the range checks of its own
request.

The background removal of an expired key is not a write. An EXPIRY tombstone counts with the version of the
record that it removed, and in a range also with that record's expiry time.

A node may be missing because its delete was forgotten, when no pin below it was left. `tombstone_horizon` is
the highest version of a forgotten delete. A request with an older start version is refused for every absent
key that it writes. That happens only to a transaction whose pin was revoked, or that outlived a restart.
"""

from libc.stdlib cimport realloc
from libc.string cimport memcpy, memset

from ...ipc._atomics cimport u16
from ..store._layout cimport RECORD_TOMBSTONE, Record, key_hash, node_at, record_at
from ..store._range_tombstones cimport ranges_cover
from ..store._store cimport store_find
from ._core cimport HOT_KEYS
from ._hot_keys cimport note_hot_key
from ._range_check cimport written_version
from ._range_history cimport history_cover, history_overlap
from ._turns cimport turns_judged
from ._wire cimport (
    BOUND_LEAST, BOUND_LEAST_NEGATIVE, BOUND_MOST, BOUND_MOST_NEGATIVE, BOUNDS_SIZE, CONFLICT_CAS, CONFLICT_HEADER_SIZE, CONFLICT_RANGE, CONFLICT_READ, CONFLICT_WRITE, CONFLICTS_LISTED_MAX,
    KIND_COMMIT, OP_ADD, OP_CAS, OP_DELETE, OP_DELETE_RANGE, OP_EPHEMERAL, OP_HEADER_SIZE, OP_PUT, OP_RANGE, OP_READ,
    OP_UNCHECKED, OP_WANT_RESULT, REPLY_HEADER_SIZE, REQUEST_BLIND, REQUEST_HEADER_SIZE, REQUEST_JUDGE_ONLY,
    REQUEST_MAGIC, REQUEST_PATIENT, REQUEST_SYNC, RESULT_SIZE,
    STATUS_BAD_REQUEST, STATUS_COMMITTED, STATUS_TOO_LARGE, Bounds, ConflictHeader, OpHeader, ReplyHeader,
    RequestHeader,
    op_is_check, op_is_effect,
)

cdef i64 I64_MIN = -<i64>0x7FFFFFFFFFFFFFFF - 1


cdef bint _good_bounds(const Bounds *bounds) noexcept nogil:
    cdef u32 flags = bounds.flags, index
    if flags & ~<u32>(BOUND_MOST | BOUND_LEAST | BOUND_MOST_NEGATIVE | BOUND_LEAST_NEGATIVE):
        return False
    for index in range(7):
        if bounds.reserved[index] != 0:
            return False
    return flags & (BOUND_MOST | BOUND_LEAST) != 0


cdef u32 _check_op(Core *core, const OpHeader *op) noexcept nogil:
    if op.key_size == 0 or op.flags & ~<u32>(OP_UNCHECKED | OP_WANT_RESULT | OP_EPHEMERAL):
        return STATUS_BAD_REQUEST
    if op.flags & OP_EPHEMERAL and op.code != OP_PUT:
        return STATUS_BAD_REQUEST
    if op.key_size > core.key_size_max:
        return STATUS_TOO_LARGE
    if op.code == OP_RANGE or op.code == OP_DELETE_RANGE:
        if op.value_size == 0 or op.value_size > core.key_size_max:
            return STATUS_BAD_REQUEST
    elif op.code == OP_PUT:
        if op.value_size == 0:
            return STATUS_BAD_REQUEST
        if op.value_size > core.value_size_max:
            return STATUS_TOO_LARGE
    elif op.value_size != 0:
        # REQUIRES of the caller: the value lies within the request.
        if op.code != OP_ADD or op.value_size != BOUNDS_SIZE:
            return STATUS_BAD_REQUEST
        if not _good_bounds(<const Bounds *>(<const u8 *>op + OP_HEADER_SIZE + op.key_size)):
            return STATUS_BAD_REQUEST
    return STATUS_COMMITTED


cdef u32 check_format(Core *core, const u8 *request, u64 size, u64 reply_max) noexcept nogil:
    """Check every size in the request and its limits; see _validate.pxd."""
    cdef const RequestHeader *header = <const RequestHeader *>request
    cdef const OpHeader *op
    cdef u64 position = REQUEST_HEADER_SIZE, body, results = 0
    cdef bint effects_seen = False
    cdef u32 index, status
    if size < REQUEST_HEADER_SIZE or header.magic != REQUEST_MAGIC or header.kind != KIND_COMMIT:
        return STATUS_BAD_REQUEST
    if header.body_size != size - REQUEST_HEADER_SIZE:
        return STATUS_BAD_REQUEST
    if header.flags & ~<u32>(REQUEST_BLIND | REQUEST_SYNC | REQUEST_JUDGE_ONLY | REQUEST_PATIENT):
        return STATUS_BAD_REQUEST
    for index in range(header.op_count):
        if size - position < OP_HEADER_SIZE:
            return STATUS_BAD_REQUEST
        op = <const OpHeader *>(request + position)
        position += OP_HEADER_SIZE
        body = <u64>op.key_size + op.value_size
        if body > size - position:
            return STATUS_BAD_REQUEST
        position += body
        if op_is_effect(op.code):
            effects_seen = True
        elif effects_seen or not op_is_check(op.code):
            return STATUS_BAD_REQUEST
        if op.flags & OP_WANT_RESULT:
            results += RESULT_SIZE
        status = _check_op(core, op)
        if status != STATUS_COMMITTED:
            return status
    if position != size:
        return STATUS_BAD_REQUEST
    if REPLY_HEADER_SIZE + results > reply_max:
        return STATUS_TOO_LARGE
    return STATUS_COMMITTED


cdef u64 visible_version(Core *core, u32 node, i64 read_time) noexcept nogil:
    """The version a CAS or a read would find now; 0 when absent, deleted, or expired at `read_time`."""
    cdef const Record *record
    cdef u32 head
    if node == 0:
        return 0
    head = node_at(core.store.base, node).head
    if head == 0:
        return 0
    record = record_at(core.store.base, head)
    if record.flags & RECORD_TOMBSTONE:
        return 0
    if record.expires_at != 0 and record.expires_at <= read_time:
        return 0
    if ranges_cover(&core.store, node) != NULL:
        return 0
    return record.version


cdef bint reserve_reply(Channel *channel, u64 size) noexcept nogil:
    """Make the reply buffer hold `size` bytes. False: private memory ran out."""
    cdef u64 capacity = channel.out_capacity if channel.out_capacity else 1024
    cdef u8 *grown
    if size <= channel.out_capacity:
        return True
    while capacity < size:
        capacity *= 2
    grown = <u8 *>realloc(channel.out, capacity)
    if grown == NULL:
        return False
    channel.out = grown
    channel.out_capacity = capacity
    return True


cdef void _report(Core *core, Channel *channel, u8 kind, const OpHeader *op, u64 expected, u64 found) noexcept nogil:
    """Append one conflict to the reply while there is room. The caller counts all of them."""
    cdef ReplyHeader *reply
    cdef const u8 *bytes = <const u8 *>op + OP_HEADER_SIZE
    cdef u64 size = CONFLICT_HEADER_SIZE + <u64>op.key_size + (op.value_size if kind == CONFLICT_RANGE else 0)
    cdef ConflictHeader *entry
    reply = <ReplyHeader *>channel.out
    if reply.conflict_count >= CONFLICTS_LISTED_MAX or channel.out_size + size > channel.reply_max:
        return
    if not reserve_reply(channel, channel.out_size + size):
        return
    reply = <ReplyHeader *>channel.out
    entry = <ConflictHeader *>(channel.out + channel.out_size)
    memset(entry, 0, CONFLICT_HEADER_SIZE)
    entry.kind = kind
    entry.key_size = op.key_size
    entry.end_size = op.value_size if kind == CONFLICT_RANGE else 0
    entry.expected = expected
    entry.found = found
    memcpy(channel.out + channel.out_size + CONFLICT_HEADER_SIZE, bytes, size - CONFLICT_HEADER_SIZE)
    channel.out_size += size
    reply.conflict_count += 1


cdef u64 _check_range(Core *core, Channel *channel, const OpHeader *op, u64 start_version, u64 *found,
                      bint large_only) noexcept nogil:
    """Report a conflict if the range was changed. `found` is what the walk found in it.

    The walk does not see large range deletes, so the history is asked for those. Without `large_only` (for a
    range delete) every range delete that meets this range conflicts, whether it deleted a key or not.
    """
    cdef const u8 *start = <const u8 *>op + OP_HEADER_SIZE
    cdef u64 written = found[0]
    if written == 0:
        written = history_overlap(&core.range_history, start, op.key_size, start + op.key_size, op.value_size,
                                  start_version, large_only)
    if written == 0:
        return 0
    _report(core, channel, CONFLICT_RANGE, op, start_version, written)
    return 1


cdef u64 _erased_since(Core *core, const OpHeader *op, u32 node, u64 start_version) noexcept nogil:
    """A version above `start_version` at which a range with this key in it was deleted; 0: there was none.

    If the history does not reach back to `start_version`, a key whose value is no newer than that proves that
    there was none. Any other key may have been deleted, so the answer errs on the safe side. An increment of
    a key that is present is let through: it adds to what was written after any such deletion, and brings
    nothing back.
    """
    cdef u64 erased = history_cover(&core.range_history, <const u8 *>op + OP_HEADER_SIZE, op.key_size, start_version)
    cdef u64 version
    if erased or start_version >= core.range_history.floor:
        return erased
    version = visible_version(core, node, I64_MIN)
    if version != 0 and (version <= start_version or op.code == OP_ADD):
        return 0
    return core.range_history.floor


cdef u64 _check_write(Core *core, Channel *channel, const OpHeader *op, u64 start_version) noexcept nogil:
    """An increment and a CAS may meet another writer's value, but may not write into a range that was
    deleted.
    """
    cdef const u8 *key = <const u8 *>op + OP_HEADER_SIZE
    cdef u32 node = store_find(&core.store, key, op.key_size, key_hash(key, op.key_size, core.store.hash_seed))
    cdef u64 written = 0
    if node != 0 and op.code != OP_ADD and op.code != OP_CAS:
        written = written_version(core, node)
    if written == 0 and start_version < core.store.tombstone_horizon and op.code != OP_ADD and op.code != OP_CAS:
        written = core.store.tombstone_horizon
    if written <= start_version:
        written = _erased_since(core, op, node, start_version)
    if written == 0:
        return 0
    _report(core, channel, CONFLICT_WRITE, op, start_version, written)
    return 1


cdef u64 _check_version(Core *core, Channel *channel, const OpHeader *op, u8 kind) noexcept nogil:
    cdef const u8 *key = <const u8 *>op + OP_HEADER_SIZE
    cdef u32 node = store_find(&core.store, key, op.key_size, key_hash(key, op.key_size, core.store.hash_seed))
    cdef u64 found = visible_version(core, node, core.now)
    if found == op.argument:
        return 0
    _report(core, channel, kind, op, op.argument, found)
    return 1


cdef u64 validate_request(Core *core, Channel *channel, const u8 *request) noexcept nogil:
    """List the conflicts of a well-formed request in the reply; see _validate.pxd.

    REQUIRES: channel.out holds a reply header, and walk_ranges gave every answer in this batch.
    """
    cdef const RequestHeader *header = <const RequestHeader *>request
    cdef const OpHeader *op
    cdef u64 position = REQUEST_HEADER_SIZE, found = 0, one
    cdef bint blind = (header.flags & REQUEST_BLIND) != 0
    # A question about conflicts is not a conflict, and a request that is judged again was counted before.
    cdef bint counted = not header.flags & REQUEST_JUDGE_ONLY and not turns_judged(core, channel)
    cdef u64 start_version = header.start_version
    cdef u32 index, ranges = 0
    cdef u64 *counter
    for index in range(header.op_count):
        op = <const OpHeader *>(request + position)
        position += OP_HEADER_SIZE + <u64>op.key_size + op.value_size
        counter = NULL
        one = 0
        if op.code == OP_READ:
            counter = &core.counters.conflicts_read
            one = _check_version(core, channel, op, CONFLICT_READ)
        elif op.code == OP_CAS:
            counter = &core.counters.conflicts_cas
            one = _check_version(core, channel, op, CONFLICT_CAS)
            if one == 0 and op.argument == 0 and not blind:
                one = _check_write(core, channel, op, start_version)
        elif op.code == OP_RANGE:
            counter = &core.counters.conflicts_range
            one = _check_range(core, channel, op, start_version, &channel.walk.found[ranges], True)
            ranges += 1
        elif blind or op.flags & OP_UNCHECKED:
            continue
        elif op.code == OP_DELETE_RANGE:
            counter = &core.counters.conflicts_write
            one = _check_range(core, channel, op, start_version, &channel.walk.found[ranges], False)
            ranges += 1
        else:
            counter = &core.counters.conflicts_write
            one = _check_write(core, channel, op, start_version)
        if one:
            if counted:
                note_hot_key(core.hot, HOT_KEYS, <const u8 *>op + OP_HEADER_SIZE, op.key_size)
                counter[0] += found == 0
            found += 1
    return found
