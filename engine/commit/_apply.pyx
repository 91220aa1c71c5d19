"""Effects: put, delete, add, delete a range, and the background removal of expired keys.

1. Every install is recorded in the undo list. A request that fails half-way (store full, not an integer,
   overflow) and a batch that cannot be logged therefore leave the store as it was.
2. All records of a request carry its commit version, which is above `committed_version` until the batch is
   published. No reader sees them before that.
3. Log entries are appended in the order of the installs. A request that fails takes its entries out again.
4. `recent` and the change ring get a request's writes only when the request can no longer fail.
5. Expiry is judged by `core.now` (see _expiry_time.pxd), not by the worker's clock.
"""

from libc.stdlib cimport free, realloc

from ..store._arena cimport arena_rounded
from ..store._layout cimport (
    BINDING_SIZE, RECORD_BOUND, RECORD_EXPIRY, RECORD_SIZE, RECORD_TOMBSTONE, Node, RangeBlock, Record, key_compare,
    key_hash, node_at, node_key, record_at, record_bind, record_session, record_value,
)
from ..store._memory cimport SHORT_OF_NOTHING
from ..store._range_tombstones cimport ranges_add, ranges_cover, ranges_drop
from ..store._store cimport (
    Store, store_ensure_node, store_find, store_install, store_new_record, store_next, store_seek, store_uninstall,
)
from ._changes cimport note_changes
from ._core cimport RECENT_COUNT, Recent, Undo
from ._expiry cimport ExpiryEntry, expiry_free, expiry_pop, expiry_push, expiry_rebuild
from ._integer cimport Integer, integer_add, integer_decode, integer_encode, integer_less
from ._pins cimport checkpoint_pinned, hold_back, make_room, revoke_checkpoint
from ._range_history cimport history_push, history_undo
from ._sessions cimport sessions_push
from ._validate cimport reserve_reply, visible_version
from ._wire cimport (
    BOUND_LEAST, BOUND_LEAST_NEGATIVE, BOUND_MOST, BOUND_MOST_NEGATIVE, OP_ADD, OP_DELETE, OP_DELETE_RANGE, OP_EPHEMERAL, OP_HEADER_SIZE, OP_PUT, OP_WANT_RESULT, REPLY_HEADER_SIZE,
    REQUEST_HEADER_SIZE, RESULT_EXISTED, RESULT_SIGNED, RESULT_SIZE, RESULT_UNSIGNED, STATUS_COMMITTED,
    STATUS_BOUND_REACHED, STATUS_INTEGER_OVERFLOW, STATUS_LOG_WRITE_ERROR, STATUS_NOT_AN_INTEGER, STATUS_STORE_FULL, Bounds, OpHeader, ReplyHeader,
    RequestHeader, ResultEntry, op_is_check,
)

cdef enum:
    INTEGER_SIZE_MAX = 9
    LENT_SHARE = 3                  # quarters of the room beyond the limit that overwrites may borrow


cdef struct Effect:
    # What serving one op needs, gathered to keep signatures short.
    Core *core
    Channel *channel
    u64 version
    u32 errno_                      # of a failed log append (private memory ran out)
    bint wrote                      # the request put a value, which a range tombstone cannot cover
    u32 walk_left                   # how many more nodes the range deletes of this request may look at


cdef bint _note_undo(Core *core, u32 node, u32 record) noexcept nogil:
    cdef u64 capacity
    cdef Undo *grown
    if core.undo_count == core.undo_capacity:
        capacity = core.undo_capacity * 2
        grown = <Undo *>realloc(core.undo, capacity * sizeof(Undo))
        if grown == NULL:
            return False
        core.undo = grown
        core.undo_capacity = capacity
    core.undo[core.undo_count].node = node
    core.undo[core.undo_count].record = record
    core.undo_count += 1
    return True


cdef void undo_to(Core *core, u64 mark) noexcept nogil:
    """Take back installs, newest first; see _apply.pxd."""
    while core.undo_count > mark:
        core.undo_count -= 1
        if core.undo[core.undo_count].node == 0:
            ranges_drop(&core.store, core.undo[core.undo_count].record)
            continue
        store_uninstall(&core.store, core.undo[core.undo_count].node, core.undo[core.undo_count].record)


cdef bint _replaces(Core *core, u32 node, u32 flags, u32 value_size) noexcept nogil:
    """Whether a value takes the place of a live one that is at least as large. Bindings count as part of the value."""
    cdef u32 head = node_at(core.store.base, node).head
    cdef Record *old
    if head == 0 or flags & RECORD_TOMBSTONE:
        return False
    old = record_at(core.store.base, head)
    return (not old.flags & RECORD_TOMBSTONE
            and arena_rounded(RECORD_SIZE + <u64>value_size + (BINDING_SIZE if flags & RECORD_BOUND else 0))
            <= arena_rounded(RECORD_SIZE + <u64>old.value_size + (BINDING_SIZE if old.flags & RECORD_BOUND else 0)))


cdef u32 _new_record(Core *core, u32 node, u64 version, i64 expires_at, u32 flags, const u8 *value,
                     u32 value_size) noexcept nogil:
    """A record for `node`; 0 when the store is full and nothing can be freed.

    While a checkpoint is being written, replaced values must stay, because it may not have read them yet. An
    overwrite may then use part of the room that the segment has beyond `max_store_size`. That room is meant
    for recovery, which will still have it: an overwrite adds no live data, and recovery restores live data
    only.
    """
    cdef Store *store = &core.store
    cdef u32 limit = store.arena.page_limit
    cdef u32 record = store_new_record(store, version, core.now, expires_at, flags, value, value_size)
    if record == 0 and checkpoint_pinned(core) and _replaces(core, node, flags, value_size):
        store.arena.page_limit += <u32>(<u64>(store.arena.page_count - limit) * LENT_SHARE // 4)
        record = store_new_record(store, version, core.now, expires_at, flags, value, value_size)
        store.arena.page_limit = limit
        core.full = True
    if record == 0 and make_room(core):
        record = store_new_record(store, version, core.now, expires_at, flags, value, value_size)
    if record == 0 and revoke_checkpoint(core):
        record = store_new_record(store, version, core.now, expires_at, flags, value, value_size)
    return record


cdef u32 _install(Core *core, u32 node, u64 version, i64 expires_at, u32 flags, const u8 *value,
                  u32 value_size, u64 session) noexcept nogil:
    """A new newest record on `node`. STATUS_COMMITTED, or STATUS_STORE_FULL with nothing changed.

    With RECORD_BOUND in `flags` the record is bound to `session`.
    """
    cdef u32 record = _new_record(core, node, version, expires_at, flags, value, value_size)
    if record == 0:
        return STATUS_STORE_FULL
    if flags & RECORD_BOUND:
        record_bind(record_at(core.store.base, record), session)
    store_install(&core.store, node, record)
    if not _note_undo(core, node, record):
        store_uninstall(&core.store, node, record)
        return STATUS_STORE_FULL
    return STATUS_COMMITTED


cdef u32 install_tombstone(Core *core, u32 node, u64 version) noexcept nogil:
    return _install(core, node, version, 0, RECORD_TOMBSTONE, NULL, 0, 0)


cdef u32 _write(Core *core, const u8 *key, u32 key_size, u64 hash, u64 version, i64 expires_at, const u8 *value,
                u32 value_size, u64 session) noexcept nogil:
    """A value for a key, bound to `session` unless that is 0."""
    cdef u32 node = store_ensure_node(&core.store, key, key_size, hash)
    cdef const RangeBlock *covered
    cdef u32 status
    if node == 0 and make_room(core):
        node = store_ensure_node(&core.store, key, key_size, hash)
    if node == 0 and revoke_checkpoint(core):
        node = store_ensure_node(&core.store, key, key_size, hash)
    if node == 0:
        return STATUS_STORE_FULL
    covered = ranges_cover(&core.store, node)
    if covered != NULL:
        # A range tombstone deleted the key. The key's own tombstone has to come first (`_range_tombstones`,
        # invariant 2).
        status = _install(core, node, covered.version, 0, RECORD_TOMBSTONE, NULL, 0, 0)
        if status != STATUS_COMMITTED:
            return status
    status = _install(core, node, version, expires_at, RECORD_BOUND if session else 0, value, value_size, session)
    if status == STATUS_COMMITTED and expires_at != 0 and expiry_push(&core.expiry, expires_at, version, key, key_size):
        core.expiry_stale = True        # no memory for the entry: rebuild the heap later
    if session and status == STATUS_COMMITTED and sessions_push(&core.sessions, session, version, key, key_size):
        core.sessions.stale = True      # likewise
    return status


cdef u32 _log_write(WalAppender log, const u8 *key, u32 key_size, const u8 *value, u32 value_size, u64 version,
                    i64 expires_at, u64 session) noexcept nogil:
    """The log entry of `_write`. 0 or an errno."""
    if session:
        return log.add_bound_write(key, key_size, value, value_size, version, expires_at, session)
    return log.add_write(key, key_size, value, value_size, version, expires_at)


cdef void _add_result(Channel *channel, u32 op_index, u32 kind, u64 value) noexcept nogil:
    """Append a result to the reply. check_format has bounded the number of results."""
    cdef ResultEntry *entry
    if not reserve_reply(channel, channel.out_size + RESULT_SIZE):
        return
    entry = <ResultEntry *>(channel.out + channel.out_size)
    entry.op_index = op_index
    entry.kind = kind
    entry.value = value
    entry.reserved = 0
    channel.out_size += RESULT_SIZE
    (<ReplyHeader *>channel.out).result_count += 1


cdef u32 _put(Effect *effect, const OpHeader *op, const u8 *key, WalAppender log) noexcept nogil:
    cdef Core *core = effect.core
    cdef const u8 *value = key + op.key_size
    # Never from the request: a worker can bind keys to the session of its own handle alone.
    cdef u64 session = effect.channel.owner if op.flags & OP_EPHEMERAL else 0
    cdef u32 status = _write(core, key, op.key_size, key_hash(key, op.key_size, core.store.hash_seed), effect.version,
                             op.expires_at, value, op.value_size, session)
    if status == STATUS_COMMITTED and log is not None:
        effect.errno_ = _log_write(log, key, op.key_size, value, op.value_size, effect.version, op.expires_at, session)
    return status


cdef u32 _delete(Effect *effect, const OpHeader *op, const u8 *key, u32 index, WalAppender log) noexcept nogil:
    """A tombstone where there is something to delete; nothing is written for an absent key."""
    cdef Core *core = effect.core
    cdef u32 node = store_find(&core.store, key, op.key_size, key_hash(key, op.key_size, core.store.hash_seed))
    cdef bint existed = visible_version(core, node, core.now) != 0
    cdef u32 status = STATUS_COMMITTED
    if existed:
        status = _install(core, node, effect.version, 0, RECORD_TOMBSTONE, NULL, 0, 0)
        if status == STATUS_COMMITTED and log is not None:
            effect.errno_ = log.add_delete(key, op.key_size, effect.version)
    if status == STATUS_COMMITTED and op.flags & OP_WANT_RESULT:
        _add_result(effect.channel, index, RESULT_EXISTED, existed)
    return status


cdef bint _within(const Integer *total, const Bounds *bounds) noexcept nogil:
    cdef Integer bound
    if bounds.flags & BOUND_MOST:
        bound.negative = bounds.flags & BOUND_MOST_NEGATIVE != 0
        bound.bits = bounds.at_most
        if integer_less(&bound, total):
            return False
    if bounds.flags & BOUND_LEAST:
        bound.negative = bounds.flags & BOUND_LEAST_NEGATIVE != 0
        bound.bits = bounds.at_least
        if integer_less(total, &bound):
            return False
    return True


cdef u32 _out_of_bounds(Channel *channel, u32 index, const Integer *held) noexcept nogil:
    """Refuse an add. The reply's only result is what the key holds: the results of earlier ops are void."""
    channel.out_size = REPLY_HEADER_SIZE
    (<ReplyHeader *>channel.out).result_count = 0
    _add_result(channel, index, RESULT_SIGNED if held.negative else RESULT_UNSIGNED, held.bits)
    return STATUS_BOUND_REACHED


cdef u32 _add(Effect *effect, const OpHeader *op, const u8 *key, u32 index, WalAppender log) noexcept nogil:
    """Add to the integer that is there when the commit is applied; absent counts as 0. Keeps the key's
    expiry and binding.
    """
    cdef Core *core = effect.core
    cdef u64 hash = key_hash(key, op.key_size, core.store.hash_seed)
    cdef u32 node = store_find(&core.store, key, op.key_size, hash)
    cdef const Record *record
    cdef i64 expires_at = 0
    cdef u64 session = 0
    cdef Integer total, held
    cdef u8 value[INTEGER_SIZE_MAX]
    cdef u32 size, status
    total.negative = False
    total.bits = 0
    if visible_version(core, node, core.now) != 0:
        record = record_at(core.store.base, node_at(core.store.base, node).head)
        if not integer_decode(record_value(record), record.value_size, &total):
            return STATUS_NOT_AN_INTEGER
        expires_at = record.expires_at
        session = record_session(record)
    held = total
    if not integer_add(&total, <i64>op.argument):
        return STATUS_INTEGER_OVERFLOW
    if op.value_size and not _within(&total, <const Bounds *>(key + op.key_size)):
        return _out_of_bounds(effect.channel, index, &held)
    size = integer_encode(&total, value)
    status = _write(core, key, op.key_size, hash, effect.version, expires_at, value, size, session)
    if status != STATUS_COMMITTED:
        return status
    if log is not None:
        effect.errno_ = _log_write(log, key, op.key_size, value, size, effect.version, expires_at, session)
    if op.flags & OP_WANT_RESULT:
        _add_result(effect.channel, index, RESULT_SIGNED if total.negative else RESULT_UNSIGNED, total.bits)
    return STATUS_COMMITTED


cdef inline bint _before(const Node *node, const u8 *end, u32 end_size) noexcept nogil:
    return key_compare(node_key(node), node.key_size, end, end_size) < 0


cdef inline bint _is_live(Core *core, u32 node) noexcept nogil:
    """Whether the key has a value, expired or not."""
    cdef u32 head = node_at(core.store.base, node).head
    return (head != 0 and not record_at(core.store.base, head).flags & RECORD_TOMBSTONE
            and ranges_cover(&core.store, node) == NULL)


cdef bint _is_large(Effect *effect, const u8 *start, u32 start_size, const u8 *end, u32 end_size) noexcept nogil:
    """Whether the range is too large to delete key by key in one batch. Looks at a bounded number of nodes.
    """
    cdef Core *core = effect.core
    cdef u32 node = store_seek(&core.store, start, start_size), live = 0
    while node != 0 and _before(node_at(core.store.base, node), end, end_size):
        live += _is_live(core, node)
        if live > core.range_inline_max or effect.walk_left == 0:
            return True
        effect.walk_left -= 1
        node = store_next(&core.store, node)
    return False


cdef u32 _delete_keys(Effect *effect, const u8 *start, u32 start_size, const u8 *end, u32 end_size) noexcept nogil:
    """A tombstone for every live key in [start, end)."""
    cdef Core *core = effect.core
    cdef u32 node = store_seek(&core.store, start, start_size), status
    while node != 0 and _before(node_at(core.store.base, node), end, end_size):
        if _is_live(core, node):
            status = _install(core, node, effect.version, 0, RECORD_TOMBSTONE, NULL, 0, 0)
            if status != STATUS_COMMITTED:
                return status
        node = store_next(&core.store, node)
    return STATUS_COMMITTED


cdef u32 _delete_range(Effect *effect, const OpHeader *op, const u8 *start, WalAppender log) noexcept nogil:
    """Delete every key in [start, end) at one version, with one log entry however many there are.

    A large range becomes a range tombstone, whose cost does not depend on the number of keys. The keys are
    deleted one by one if the range is small, if a put came before in the same request (our workers never send
    that), or if no slot is free. In the last case the other requests wait for as long as it takes.
    """
    cdef Core *core = effect.core
    cdef const u8 *end = start + op.key_size
    cdef u32 status = STATUS_COMMITTED
    cdef int slot = -1
    if not effect.wrote and _is_large(effect, start, op.key_size, end, op.value_size):
        slot = ranges_add(&core.store, start, op.key_size, end, op.value_size, effect.version, core.now)
        if slot >= 0 and not _note_undo(core, 0, <u32>slot):
            ranges_drop(&core.store, <u32>slot)
            return STATUS_STORE_FULL
    if slot >= 0:
        hold_back(core, effect.version - 1)
    else:
        status = _delete_keys(effect, start, op.key_size, end, op.value_size)
        if status != STATUS_COMMITTED:
            return status
    history_push(&core.range_history, start, op.key_size, end, op.value_size, effect.version, slot >= 0)
    if log is not None:
        effect.errno_ = log.add_delete_range(start, op.key_size, end, op.value_size, effect.version)
    return STATUS_COMMITTED


cdef void _push_recent(Core *core, u32 node, u64 version) noexcept nogil:
    cdef Recent *entry = &core.recent[core.recent_next & (RECENT_COUNT - 1)]
    if core.recent_next >= RECENT_COUNT:
        core.recent_floor = entry.version
    entry.version = version
    entry.node = node
    core.recent_next += 1


cdef void note_writes(Core *core, u64 mark, u64 version) noexcept nogil:
    cdef u64 entry
    for entry in range(mark, core.undo_count):
        if core.undo[entry].node != 0:
            _push_recent(core, core.undo[entry].node, version)
    note_changes(core, mark, version)


cdef u32 _apply_op(Effect *effect, const OpHeader *op, u32 index, WalAppender log) noexcept nogil:
    cdef const u8 *key = <const u8 *>op + OP_HEADER_SIZE
    effect.wrote = effect.wrote or op.code == OP_PUT or op.code == OP_ADD
    if op.code == OP_PUT:
        return _put(effect, op, key, log)
    if op.code == OP_DELETE:
        return _delete(effect, op, key, index, log)
    if op.code == OP_ADD:
        return _add(effect, op, key, index, log)
    return _delete_range(effect, op, key, log)


cdef u32 apply_request(Core *core, Channel *channel, const u8 *request, u64 version, u32 *detail,
                       WalAppender log) noexcept nogil:
    """Apply every effect of a validated request at `version`, and append its log entries; see _apply.pxd."""
    cdef const RequestHeader *header = <const RequestHeader *>request
    cdef const OpHeader *op
    cdef u64 position = REQUEST_HEADER_SIZE, mark = core.undo_count, log_mark = 0
    cdef u32 index, status = STATUS_COMMITTED
    cdef Effect effect
    effect.core = core
    effect.channel = channel
    effect.version = version
    effect.errno_ = 0
    core.store.arena.short_of = SHORT_OF_NOTHING
    effect.wrote = False
    effect.walk_left = 4 * core.range_inline_max + 4
    if log is not None:
        log_mark = log.mark()
        effect.errno_ = log.begin_transaction(channel.session, header.sequence, header.run_id, core.now)
    for index in range(header.op_count):
        if effect.errno_:
            break
        op = <const OpHeader *>(request + position)
        position += OP_HEADER_SIZE + <u64>op.key_size + op.value_size
        if op_is_check(op.code):
            continue
        detail[0] = index
        status = _apply_op(&effect, op, index, log)
        if status != STATUS_COMMITTED:
            break
    if status == STATUS_COMMITTED and log is not None and not effect.errno_:
        effect.errno_ = log.end_transaction(version)
    if effect.errno_:
        detail[0] = effect.errno_
        status = STATUS_LOG_WRITE_ERROR
    if status == STATUS_STORE_FULL:
        detail[0] = core.store.arena.short_of
    if status != STATUS_COMMITTED:
        undo_to(core, mark)
        history_undo(&core.range_history, version)
        if log is not None:
            log.discard_to(log_mark)
        return status
    note_writes(core, mark, version)
    return STATUS_COMMITTED


cdef u32 _live_expiring_node(Core *core, const ExpiryEntry *entry) noexcept nogil:
    """The node that an expiry entry refers to; 0 if the key was written again or removed since."""
    cdef u32 node = store_find(&core.store, entry.key, entry.key_size, key_hash(entry.key, entry.key_size, core.store.hash_seed))
    cdef const Record *record
    if node == 0 or node_at(core.store.base, node).head == 0:
        return 0
    record = record_at(core.store.base, node_at(core.store.base, node).head)
    if record.flags & RECORD_TOMBSTONE or record.version != entry.version or record.expires_at != entry.expires_at:
        return 0
    if ranges_cover(&core.store, node) != NULL:
        return 0
    return node


cdef u32 expire_due(Core *core, i64 now, u32 count_max, WalAppender log) noexcept nogil:
    """Delete keys whose time has passed, as one commit of the coordinator's own (session 0) at next_version +
    1.

    Returns how many were deleted. If that is not 0, the caller gives out the version. If something fails,
    nothing is half done, and the keys stay in the heap or `expiry_stale` is set.
    """
    cdef u64 version = core.next_version + 1, mark = core.undo_count, log_mark = 0
    cdef u8 run_id[16]
    cdef const ExpiryEntry *entry
    cdef u32 node, removed = 0, index
    cdef int error = 0
    if core.expiry.count == 0 or core.expiry.entries[0].expires_at > now:
        return 0
    for index in range(16):
        run_id[index] = 0
    if log is not None:
        log_mark = log.mark()
        error = log.begin_transaction(0, 0, run_id, core.now)
    while not error and removed < count_max and core.expiry.count and core.expiry.entries[0].expires_at <= now:
        entry = &core.expiry.entries[0]
        node = _live_expiring_node(core, entry)
        if node != 0:
            # In an EXPIRY tombstone, `expires_at` holds the removed record's version: validation asks for the
            # version of the last write.
            if _install(core, node, version, <i64>entry.version, RECORD_TOMBSTONE | RECORD_EXPIRY, NULL, 0, 0):
                break
            removed += 1
            if log is not None:
                error = log.add_expiry(entry.key, entry.key_size, version, entry.version)
        expiry_pop(&core.expiry)
    if not error and removed and log is not None:
        error = log.end_transaction(version)
    if error or removed == 0:
        core.expiry_stale = core.expiry_stale or core.undo_count > mark
        undo_to(core, mark)
        if log is not None:
            log.discard_to(log_mark)
        return 0
    note_writes(core, mark, version)
    return removed


cdef void compact_expiry(Core *core) noexcept nogil:
    """Drop stale entries, so that the size of the heap follows the number of live keys that expire.

    Between batches only: an entry made stale by an unpublished record becomes valid again if that record is
    undone.
    """
    cdef u64 index, kept = 0
    for index in range(core.expiry.count):
        if _live_expiring_node(core, &core.expiry.entries[index]) != 0:
            core.expiry.entries[kept] = core.expiry.entries[index]
            kept += 1
        else:
            free(core.expiry.entries[index].key)
    core.expiry.count = kept
    expiry_rebuild(&core.expiry)


cdef i64 load_expiry(Core *core) noexcept nogil:
    """Fill the heap from the store, after recovery or when entries were lost; see _apply.pxd."""
    cdef u32 node = store_seek(&core.store, <const u8 *>b"", 0)
    cdef const Node *entry
    cdef const Record *record
    cdef i64 newest = 0
    expiry_free(&core.expiry)
    core.expiry_stale = False
    while node != 0:
        entry = node_at(core.store.base, node)
        if entry.head != 0:
            record = record_at(core.store.base, entry.head)
            if record.timestamp > newest:
                newest = record.timestamp
            if record.expires_at != 0 and not record.flags & RECORD_TOMBSTONE:
                if expiry_push(&core.expiry, record.expires_at, record.version, node_key(entry), entry.key_size):
                    core.expiry_stale = True
        node = store_next(&core.store, node)
    return newest
