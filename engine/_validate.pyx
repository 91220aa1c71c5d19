"""Validation: is a request well formed, and does anything committed since it began conflict with it?

Checked in one total order, the order in which the commit thread takes requests. T is the request's `read_time`, the
expiry time its snapshot was judged by; now is `core.now`, which is not earlier (_expiry_time.pxd).

1. read: the key's version now is the one that was read (0 = absent, deleted, or expired by now);
2. range: no key in it was written after `start_version`, and none expired between T and now;
3. write: the key was not written after `start_version`, unless the request is BLIND or the effect belongs to a CAS;
4. CAS: the key's version now is the expected one, and nothing else.

The request bytes come from another process, but lie in private memory by now: `check_format` has verified every
size, so the later passes follow them freely. A false `read_time` makes only the ranges of its own request pass or fail.

The background removal of an expired key is no write: an EXPIRY tombstone counts with the version of the record that it
removed, and for a range with that record's expiry time.

A node may be missing because its delete was forgotten (no pin below it was left). `tombstone_horizon` is the highest
such version; a request older than that is refused for every absent key it writes, which can only happen to a
transaction whose pin was revoked or that outlived a restart.
"""

from libc.stdlib cimport realloc
from libc.string cimport memcpy, memset

from occamdb.engine._core cimport HOT_KEYS, RECENT_COUNT, Recent
from occamdb.engine._expiry_time cimport is_due
from occamdb.engine._hot_keys cimport note_hot_key
from occamdb.engine._layout cimport (
    RECORD_EXPIRY, RECORD_TOMBSTONE, Node, Record, key_compare, key_hash, node_at, node_key, record_at,
)
from occamdb.engine._store cimport store_find, store_next, store_seek
from occamdb.engine._wire cimport (
    CONFLICT_CAS, CONFLICT_HEADER_SIZE, CONFLICT_RANGE, CONFLICT_READ, CONFLICT_WRITE, CONFLICTS_LISTED_MAX,
    KIND_COMMIT, OP_ADD, OP_CAS, OP_DELETE, OP_DELETE_RANGE, OP_HEADER_SIZE, OP_PUT, OP_RANGE, OP_READ,
    OP_UNCHECKED, OP_WANT_RESULT, REPLY_HEADER_SIZE, REQUEST_BLIND, REQUEST_HEADER_SIZE, REQUEST_MAGIC, REQUEST_SYNC, RESULT_SIZE,
    STATUS_BAD_REQUEST, STATUS_COMMITTED, STATUS_TOO_LARGE, ConflictHeader, OpHeader, ReplyHeader, RequestHeader,
    op_is_check, op_is_effect,
)
from occamdb.ipc._atomics cimport u16

cdef i64 I64_MAX = 0x7FFFFFFFFFFFFFFF


cdef u32 _check_op(Core *core, const OpHeader *op) noexcept nogil:
    if op.key_size == 0 or op.flags & ~<u32>(OP_UNCHECKED | OP_WANT_RESULT):
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
        return STATUS_BAD_REQUEST
    return STATUS_COMMITTED


cdef u32 check_format(Core *core, const u8 *request, u64 size, u64 reply_max) noexcept nogil:
    """STATUS_COMMITTED if every size in the request is right and within limits, else the status to answer with."""
    cdef const RequestHeader *header = <const RequestHeader *>request
    cdef const OpHeader *op
    cdef u64 position = REQUEST_HEADER_SIZE, body, results = 0
    cdef bint effects_seen = False
    cdef u32 index, status
    if size < REQUEST_HEADER_SIZE or header.magic != REQUEST_MAGIC or header.kind != KIND_COMMIT:
        return STATUS_BAD_REQUEST
    if header.body_size != size - REQUEST_HEADER_SIZE or header.reserved != 0:
        return STATUS_BAD_REQUEST
    if header.flags & ~<u32>(REQUEST_BLIND | REQUEST_SYNC):
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
    return record.version


cdef inline u64 _written_version(Core *core, u32 node) noexcept nogil:
    """The version of the last write by a transaction; 0 when there was none."""
    cdef u32 head = node_at(core.store.base, node).head
    cdef const Record *record
    if head == 0:
        return 0
    record = record_at(core.store.base, head)
    return <u64>record.expires_at if record.flags & RECORD_EXPIRY else record.version


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
    """Append one conflict to the reply while there is room; the total is counted by the caller."""
    cdef ReplyHeader *reply
    cdef const u8 *bytes = <const u8 *>op + OP_HEADER_SIZE
    cdef u64 size = CONFLICT_HEADER_SIZE + <u64>op.key_size + (op.value_size if kind == CONFLICT_RANGE else 0)
    cdef ConflictHeader *entry
    note_hot_key(core.hot, HOT_KEYS, bytes, op.key_size)
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


cdef u64 _changed_version(Core *core, u32 node, u64 start_version, i64 read_time) noexcept nogil:
    """What makes the key look otherwise than at (`start_version`, `read_time`): the version that was written since, or
    that has expired since; 0 when there is neither."""
    cdef u32 head = node_at(core.store.base, node).head
    cdef const Record *record
    cdef const Record *removed
    cdef i64 expires_at
    cdef u64 version
    if head == 0:
        return 0
    record = record_at(core.store.base, head)
    if record.version > start_version and not record.flags & RECORD_EXPIRY:
        return record.version
    if record.flags & RECORD_EXPIRY:
        version = <u64>record.expires_at
        if version > start_version:
            return version
        if record.version <= start_version:
            return 0                    # removed before the snapshot
        # A snapshot between the two versions keeps the removed record. Where it is gone, because the pin was revoked,
        # the time of its removal is the latest at which it can have expired.
        expires_at = record.timestamp
        if record.prev:
            removed = record_at(core.store.base, record.prev)
            if removed.version == version:
                expires_at = removed.expires_at
        return version if read_time < expires_at else 0
    if record.flags & RECORD_TOMBSTONE or record.expires_at == 0:
        return 0
    return record.version if read_time < record.expires_at <= core.now else 0


cdef u64 _changed_in_range(Core *core, const u8 *start, u32 start_size, const u8 *end, u32 end_size,
                           u64 start_version, i64 read_time) noexcept nogil:
    """A version in [start, end) that was written after `start_version` or expired after `read_time`, or 0.

    Walks the recent writes back and the range forward in turn and stops with whichever ends first, so the cost is
    the smaller of the two. The recent list may only be believed back to `recent_floor`; a node freed
    since then has no write above `tombstone_horizon`, hence the second condition. The removals of expired keys are on the
    list; keys that are due, but were not removed yet, are found in the nodes only: hence the third.
    """
    cdef bint list_usable = (start_version >= core.recent_floor and start_version >= core.store.tombstone_horizon
                             and not is_due(core))
    cdef u64 position = core.recent_next
    cdef u32 node = store_seek(&core.store, start, start_size)
    cdef const Node *entry
    cdef const Recent *recent
    cdef u64 written
    cdef u32 step
    while True:
        if node == 0:
            return 0
        entry = node_at(core.store.base, node)
        if key_compare(node_key(entry), entry.key_size, end, end_size) >= 0:
            return 0
        written = _changed_version(core, node, start_version, read_time)
        if written:
            return written
        node = store_next(&core.store, node)
        if not list_usable:
            continue
        for step in range(4):
            if position == 0 or core.recent_next - position >= RECENT_COUNT:
                return 0                    # all that is newer than recent_floor was looked at
            position -= 1
            recent = &core.recent[position & (RECENT_COUNT - 1)]
            if recent.version <= start_version:
                return 0
            entry = node_at(core.store.base, recent.node)
            if (key_compare(node_key(entry), entry.key_size, start, start_size) >= 0
                    and key_compare(node_key(entry), entry.key_size, end, end_size) < 0):
                written = _changed_version(core, recent.node, start_version, read_time)
                if written:
                    return written


cdef u64 _check_range(Core *core, Channel *channel, const OpHeader *op, u64 start_version, i64 read_time) noexcept nogil:
    cdef const u8 *start = <const u8 *>op + OP_HEADER_SIZE
    cdef u64 written
    if start_version < core.store.tombstone_horizon:
        written = core.store.tombstone_horizon
    else:
        written = _changed_in_range(core, start, op.key_size, start + op.key_size, op.value_size, start_version, read_time)
    if written == 0:
        return 0
    _report(core, channel, CONFLICT_RANGE, op, start_version, written)
    return 1


cdef u64 _check_write(Core *core, Channel *channel, const OpHeader *op, u64 start_version) noexcept nogil:
    cdef const u8 *key = <const u8 *>op + OP_HEADER_SIZE
    cdef u32 node = store_find(&core.store, key, op.key_size, key_hash(key, op.key_size, core.store.hash_seed))
    cdef u64 written = 0
    if node != 0:
        written = _written_version(core, node)
    if written == 0 and start_version < core.store.tombstone_horizon:
        written = core.store.tombstone_horizon
    if written <= start_version:
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
    """All conflicts of a well-formed request, listed into the reply; returns how many there are.

    REQUIRES: check_format passed; channel.out holds a reply header.
    """
    cdef const RequestHeader *header = <const RequestHeader *>request
    cdef const OpHeader *op
    cdef u64 position = REQUEST_HEADER_SIZE, found = 0, one
    cdef bint blind = (header.flags & REQUEST_BLIND) != 0
    cdef u64 start_version = header.start_version
    cdef u32 index
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
        elif op.code == OP_RANGE:
            counter = &core.counters.conflicts_range
            one = _check_range(core, channel, op, start_version, header.read_time)
        elif blind or op.flags & OP_UNCHECKED or op.code == OP_ADD:
            continue
        elif op.code == OP_DELETE_RANGE:
            counter = &core.counters.conflicts_write
            # What expired meanwhile is as gone as what is deleted: only writes matter.
            one = _check_range(core, channel, op, start_version, I64_MAX)
        else:
            counter = &core.counters.conflicts_write
            one = _check_write(core, channel, op, start_version)
        if one:
            if found == 0:
                counter[0] += 1
            found += 1
    return found
