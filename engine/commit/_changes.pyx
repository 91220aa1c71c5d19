"""What a commit changed, as it goes into the change ring.

1. One entry for each key that the commit gave another newest record: if it wrote a key twice, the last write counts.
2. A range tombstone is one entry. The keys it deleted are found by the follower (docs/guarantees.md).
3. The ring has whole commits only, in the order of their versions; `_change_ring.pyx` says when they are seen.
"""

from ...ipc._atomics cimport u8, u32
from ..store._change_ring cimport (
    CHANGE_DELETE, CHANGE_ELSEWHERE, CHANGE_ENTRY_SIZE, CHANGE_EXPIRE, CHANGE_PUT, CHANGE_RANGE, change_block,
    change_entry, change_inline_max,
)
from ..store._layout cimport (
    RECORD_EXPIRY, RECORD_TOMBSTONE, Node, RangeBlock, Record, node_at, node_key, range_at, range_end, range_start,
    record_at, record_value,
)
from ._core cimport Undo


cdef inline const RangeBlock *_range_of(Core *core, const Undo *entry) noexcept nogil:
    return range_at(core.store.base, core.store.header.ranges[entry.record])


cdef inline bint _counts(Core *core, const Undo *entry) noexcept nogil:
    """Whether an install is what the commit left of its key."""
    return node_at(core.store.base, entry.node).head == entry.record


cdef u64 _measure(Core *core, u64 mark, u32 *count) noexcept nogil:
    """The bytes and the number of the entries."""
    cdef u64 at, bytes_ = 0, inline_max = change_inline_max(&core.store.changes)
    cdef const Undo *entry
    cdef const RangeBlock *block
    cdef const Record *record
    count[0] = 0
    for at in range(mark, core.undo_count):
        entry = &core.undo[at]
        if entry.node == 0:
            block = _range_of(core, entry)
            bytes_ += CHANGE_ENTRY_SIZE + <u64>block.start_size + block.end_size
        elif _counts(core, entry):
            record = record_at(core.store.base, entry.record)
            bytes_ += CHANGE_ENTRY_SIZE + <u64>node_at(core.store.base, entry.node).key_size
            if record.value_size <= inline_max:
                bytes_ += record.value_size
        else:
            continue
        count[0] += 1
    return bytes_


cdef u8 *_note_record(Core *core, u8 *into, const Undo *entry, u64 inline_max) noexcept nogil:
    """The entry of one key."""
    cdef const Node *node = node_at(core.store.base, entry.node)
    cdef const Record *record = record_at(core.store.base, entry.record)
    cdef u8 kind = CHANGE_PUT
    if record.flags & RECORD_TOMBSTONE:
        kind = CHANGE_EXPIRE if record.flags & RECORD_EXPIRY else CHANGE_DELETE
    if record.value_size > inline_max:
        return change_entry(into, kind, CHANGE_ELSEWHERE, node_key(node), node.key_size, NULL, 0)
    return change_entry(into, kind, 0, node_key(node), node.key_size, record_value(record), record.value_size)


cdef void note_changes(Core *core, u64 mark, u64 version) noexcept nogil:
    """Put one commit into the ring; see _changes.pxd."""
    cdef u64 at, size, inline_max
    cdef u32 count
    cdef u8 *into
    cdef const Undo *entry
    cdef const RangeBlock *block
    if core.store.changes.data == NULL or mark == core.undo_count:
        return
    size = _measure(core, mark, &count)
    into = change_block(&core.store.changes, version, core.now, count, size)
    if into == NULL:
        return
    inline_max = change_inline_max(&core.store.changes)
    for at in range(mark, core.undo_count):
        entry = &core.undo[at]
        if entry.node == 0:
            block = _range_of(core, entry)
            into = change_entry(into, CHANGE_RANGE, 0, range_start(block), block.start_size, range_end(block),
                                block.end_size)
        elif _counts(core, entry):
            into = _note_record(core, into, entry, inline_max)
