"""Pins: which snapshots are open, what memory they hold back, and how they are revoked.

A pin slot is two words in memory that its worker can write: `value` (snapshot version + 1, or 0 if free) and
`mark`. The commit thread does not depend on their truth: a false value can only keep garbage alive, or cost
that worker its own snapshot.

1. gc_horizon is raised (seq_cst) before the slots are read. A worker stores its value (seq_cst) before it
   re-reads gc_horizon. So either this scan sees the value, or the worker sees the raised horizon and takes a
   newer version:

       worker                               commit thread
       V = committed_version                gc_horizon = H          (seq_cst)
       slot.value = V + 1   (seq_cst)       read slot.value         (seq_cst)
       gc_horizon > V ?     (seq_cst)       free what no value seen needs, below H

2. A pin is revoked by storing mark = value. The reader compares the two after every copy. Memory is reused
   only after `reclaim_sequence` was raised, which happens after the mark was stored. So a reader that copied
   reused memory also sees the mark.
3. Every later begin gets a version of at least committed_version. So a lower value that stays in its slot is
   always the same snapshot, and its age is counted from the first sweep that saw it there.
4. While a worker watches, a large range delete holds the horizon below its version for HOLD_NS, unless the
   store is full. The watcher, which is woken at once, can pin the snapshot from before the delete and read
   there what was deleted.
"""

from libc.stdlib cimport calloc, qsort, realloc

from ...ipc._atomics cimport (
    clock_monotonic_ns, i64, load_acquire_u32, load_acquire_u64, load_relaxed_u32, load_seq_cst_u32, load_seq_cst_u64,
    store_relaxed_u64, store_release_u64, store_seq_cst_u32, store_seq_cst_u64, u8, u64,
)
from ...ipc._layout cimport SLOT_COUNT, SLOT_SIZE
from ..store._store cimport store_collect, store_force_collect, store_held_by, store_pending_bytes
from ._core cimport CHANNEL_ACTIVE, CHANNEL_CLOSED, CHANNEL_CLOSING, CHANNEL_FREE, Channel, PinSeen

cdef enum:
    HOLD_NS = 500000000


cdef int _ascending(const void *a, const void *b) noexcept nogil:
    """The order of two u64 for qsort."""
    cdef u64 left = (<const u64 *>a)[0]
    cdef u64 right = (<const u64 *>b)[0]
    return (left > right) - (left < right)


cdef inline void _raise_horizon(Core *core) noexcept nogil:
    """Announce that records replaced up to the committed version may be freed, before the pins are read."""
    cdef u64 horizon = core.store.header.committed_version
    if core.hold_until != 0:
        if core.full or clock_monotonic_ns() >= core.hold_until:
            core.hold_until = 0
        elif core.hold_version < horizon:
            # Not below where it was: when the hold began, this version was the newest or not published yet.
            horizon = max(core.hold_version, core.store.header.gc_horizon)
    # seq_cst: before every slot is read (invariant 1).
    store_seq_cst_u64(&core.store.header.gc_horizon, horizon)


cdef void hold_back(Core *core, u64 version) noexcept nogil:
    """Reclaim nothing that a snapshot of `version` sees for a moment; see _pins.pxd."""
    cdef const void *word = core.interest.register_word
    if word == NULL or core.hold_until != 0:
        return
    # Relaxed: who registers this late may lag. The table is made anew after the batch only.
    if core.interest.count == 0 and load_relaxed_u32(word) == core.interest.registered:
        return
    core.hold_version = version
    core.hold_until = clock_monotonic_ns() + HOLD_NS


cdef inline u32 _slots_in_use(const Channel *channel) noexcept nogil:
    """How many slots to look at: the worker's word, limited to the slots that exist."""
    # seq_cst, after gc_horizon was raised: if this does not see the channel open, its worker will see the
    # raised horizon.
    cdef u32 state = load_seq_cst_u32(&channel.state)
    cdef u32 high
    # A CLOSED channel belongs to the control plane again, which may unmap it at any moment.
    if state == CHANNEL_FREE or state == CHANNEL_CLOSED or channel.slots == NULL:
        return 0
    # seq_cst, after gc_horizon was raised: the worker stores slots_high before the slot's value. If the scan
    # misses the slot, the worker will see the raised horizon.
    high = load_seq_cst_u32(channel.slots_high)
    return high if high <= SLOT_COUNT else SLOT_COUNT


cdef inline u64 _pinned_value(const Channel *channel, u32 slot) noexcept nogil:
    """The value in a slot; 0 when free or revoked."""
    cdef u8 *words = channel.slots + slot * SLOT_SIZE
    cdef u64 value = load_seq_cst_u64(words)
    return 0 if value == load_seq_cst_u64(words + 8) else value


cdef inline Channel *_pinning(Core *core, u32 index) noexcept nogil:
    """The coordinator's own pin at 0, then the channels.

    In this order because the control plane may add a channel during the scan.
    """
    return &core.own if index == 0 else &core.channels[index - 1]


cdef bint _reserve_pins(Core *core, u64 count) noexcept nogil:
    """Make `core.pins` hold `count` versions. False: no private memory."""
    cdef u64 *grown
    if count <= core.pins_capacity:
        return True
    grown = <u64 *>realloc(core.pins, 2 * count * sizeof(u64))
    if grown == NULL:
        return False
    core.pins = grown
    core.pins_capacity = 2 * count
    return True


cdef i64 gather_pins(Core *core) noexcept nogil:
    """Fill core.pins with the distinct pinned versions, ascending, and return their count.

    -1: private memory ran out, so the scan is incomplete and nothing may be freed by it.
    """
    cdef u64 committed = core.store.header.committed_version, value
    cdef u32 count = 0, kept, index, slot, high
    cdef Channel *channel
    # seq_cst, after gc_horizon was raised: the control plane stores it (seq_cst) before it answers the
    # worker. If the scan misses the channel, the worker will see the raised horizon.
    for index in range(load_seq_cst_u32(&core.channels_high) + 1):
        channel = _pinning(core, index)
        high = _slots_in_use(channel)
        if not _reserve_pins(core, <u64>count + high):
            return -1
        for slot in range(high):
            value = _pinned_value(channel, slot)
            # A value above committed_version + 1 is false. It holds nothing back.
            if value != 0 and value - 1 <= committed:
                core.pins[count] = value - 1
                count += 1
    if count > 1:
        qsort(core.pins, count, sizeof(u64), _ascending)
        kept = 1
        for index in range(1, count):
            if core.pins[index] != core.pins[kept - 1]:
                core.pins[kept] = core.pins[index]
                kept += 1
        count = kept
    return count


cdef void collect(Core *core, u32 budget) noexcept nogil:
    """Free records that no snapshot can see, up to `budget` of them."""
    cdef i64 count
    _raise_horizon(core)
    count = gather_pins(core)
    if count >= 0:
        store_collect(&core.store, core.pins, <u32>count, budget)
        core.collected_version = core.store.header.committed_version


cdef u32 _revoke_version(Core *core, u64 version) noexcept nogil:
    """Revoke every pin at `version`."""
    cdef u32 index, slot, revoked = 0
    cdef Channel *channel
    for index in range(core.channels_high + 1):
        channel = _pinning(core, index)
        for slot in range(_slots_in_use(channel)):
            if _pinned_value(channel, slot) == version + 1:
                # seq_cst: the mark is in place before any block that this pin protected is unlinked, let
                # alone reused.
                store_seq_cst_u64(channel.slots + slot * SLOT_SIZE + 8, version + 1)
                revoked += 1
    core.counters.revoked += revoked
    return revoked


cdef bint make_room(Core *core) noexcept nogil:
    """Free garbage at once, because the store is full. If there is none, revoke the pins that hold memory
    back.

    The checkpoint's pin is spared: without checkpoints the log would grow until the disk is full.
    `revoke_checkpoint` is the last resort.

    Returns True when memory was freed and the allocation may be tried again. Nodes cannot be removed inside a
    batch; setting `full` has that done right after it.
    """
    cdef i64 count
    cdef u32 index = 0
    cdef u64 before = store_pending_bytes(&core.store)
    cdef u64 spared = _pinned_value(&core.own, 0)
    core.full = True
    if before == 0:
        return False
    _raise_horizon(core)
    count = gather_pins(core)
    if count < 0:
        return False
    store_force_collect(&core.store, core.pins, <u32>count)
    if store_pending_bytes(&core.store) < before:
        return True
    while index < <u32>count:
        if core.pins[index] + 1 == spared or store_held_by(&core.store, core.pins[index]) == 0:
            index += 1
            continue
        # The next pin may hold the same records as the oldest: continue until something is freed.
        _revoke_version(core, core.pins[index])
        count = gather_pins(core)
        if count < 0:
            return False
        store_force_collect(&core.store, core.pins, <u32>count)
        if store_pending_bytes(&core.store) < before:
            return True
    return False


cdef bint checkpoint_pinned(Core *core) noexcept nogil:
    """Whether a checkpoint is being written."""
    return _pinned_value(&core.own, 0) != 0


cdef bint revoke_checkpoint(Core *core) noexcept nogil:
    """Revoke the checkpoint's pin: the last resort of a full store, after `make_room`. True: memory was
    freed.
    """
    cdef u64 value = _pinned_value(&core.own, 0)
    cdef u64 before = store_pending_bytes(&core.store)
    cdef i64 count
    if value == 0 or store_held_by(&core.store, value - 1) == 0:
        return False
    _raise_horizon(core)
    _revoke_version(core, value - 1)
    count = gather_pins(core)
    if count < 0:
        return False
    store_force_collect(&core.store, core.pins, <u32>count)
    return store_pending_bytes(&core.store) < before


cdef u32 _sweep_channel(Core *core, Channel *channel, u64 committed, i64 now, i64 age_max) noexcept nogil:
    """Revoke the channel's snapshots that are too old, and note what its oldest one holds back."""
    cdef u32 slot, revoked = 0
    cdef u64 value, oldest = 0
    if channel.seen == NULL:
        channel.seen = <PinSeen *>calloc(SLOT_COUNT, sizeof(PinSeen))
        if channel.seen == NULL:
            return 0
    for slot in range(_slots_in_use(channel)):
        value = _pinned_value(channel, slot)
        if value == 0 or value - 1 >= committed:
            channel.seen[slot].value = 0
        elif channel.seen[slot].value != value:
            channel.seen[slot].value = value
            channel.seen[slot].since = now
        elif now - channel.seen[slot].since > age_max:
            store_seq_cst_u64(channel.slots + slot * SLOT_SIZE + 8, value)
            revoked += 1
            continue
        if value != 0 and (oldest == 0 or value < oldest):
            oldest = value
    # Relaxed: for display by the control plane, which must not walk the store's private tables itself.
    store_relaxed_u64(&channel.held_bytes, store_held_by(&core.store, oldest - 1) if oldest else 0)
    return revoked


cdef u32 revoke_older(Core *core, i64 now, i64 age_max) noexcept nogil:
    """Revoke snapshots that have held something back for longer than `age_max` ns; returns how many."""
    cdef u64 committed = core.store.header.committed_version
    cdef u32 index, state, revoked = 0
    for index in range(core.channels_high):
        state = load_acquire_u32(&core.channels[index].state)
        if state == CHANNEL_ACTIVE or state == CHANNEL_CLOSING:
            revoked += _sweep_channel(core, &core.channels[index], committed, now, age_max)
    core.counters.revoked += revoked
    return revoked


cdef void revoke_all(Channel *channel) noexcept nogil:
    """Revoke every snapshot of a channel that is being closed, and those that its worker may still begin."""
    cdef u32 slot
    cdef u64 value
    # seq_cst, before the slots are read: a worker that pins stores its value, then looks at this word. So
    # either we see the value here, or the worker sees the word and revokes the pin itself.
    store_seq_cst_u32(channel.closed, 1)
    for slot in range(_slots_in_use(channel)):
        value = _pinned_value(channel, slot)
        if value != 0:
            # seq_cst: before the next scan, which no longer sees this channel.
            store_seq_cst_u64(channel.slots + slot * SLOT_SIZE + 8, value)


cdef bint oldest_pin(Core *core, Channel *channel, u64 *version, i64 *since) noexcept nogil:
    """The channel's oldest snapshot, for display; see _pins.pxd. The ages may be one sweep old."""
    cdef u64 committed = core.store.header.committed_version, value, lowest = 0
    cdef u32 slot
    since[0] = 0
    for slot in range(_slots_in_use(channel)):
        value = _pinned_value(channel, slot)
        if value != 0 and value - 1 <= committed and (lowest == 0 or value < lowest):
            lowest = value
            since[0] = channel.seen[slot].since if channel.seen != NULL and channel.seen[slot].value == value else 0
    version[0] = lowest - 1
    return lowest != 0


cdef u64 pin_own(Core *core) noexcept nogil:
    """Pin the newest version for a checkpoint; see _pins.pxd."""
    cdef u64 version
    store_release_u64(&core.own_slot[1], 0)
    while True:
        version = load_acquire_u64(&core.store.header.committed_version)
        # The worker's side of invariant 1.
        store_seq_cst_u64(&core.own_slot[0], version + 1)
        if load_seq_cst_u64(&core.store.header.gc_horizon) <= version:
            return version


cdef void unpin_own(Core *core) noexcept nogil:
    # Release: the reads under the pin come before what it protected may be freed.
    store_release_u64(&core.own_slot[0], 0)
