"""What is done between two batches: expiry, the ends of sessions, reclamation, range tombstones and old snapshots.

Each piece of work is bounded, because a request may arrive at any moment.
"""

from ...ipc._atomics cimport clock_monotonic_ns, load_acquire_u32, u32, u64
from ..disk._failpoints cimport FP_COMMIT_RANGE_SLICE, failpoint_armed, failpoint_hit
from ..store._range_tombstones cimport ranges_convert
from ..store._store cimport store_pending_bytes
from ._apply cimport compact_expiry, expire_due, load_expiry
from ._batch cimport batch_commit
from ._core cimport COLLECT_BUDGET_IDLE, sessions_waiting
from ._expiry_time cimport is_due, publish_expiry_time
from ._pins cimport collect, make_room, revoke_older
from ._session_end cimport tend_sessions
from ._watchers cimport wake_marked

cdef enum:
    SWEEP_NS = 250000000            # between two checks of the age of snapshots
    COLLECT_EVERY = 64              # versions between two collects under load
    COLLECT_BUDGET = 512            # records that such a collect looks at: a pause of microseconds
    COLLECT_BUDGET_STEP = 2048      # the same when idle: requests are looked for after each step
    COLLECT_QUEUED = 2048           # a collect is also due when its queues have grown by this many entries
    RANGE_RETRY_NS = 10000000       # pause after a conversion for which the store had no room
    EXPIRE_COUNT_MAX = 256          # expired keys removed by one commit
    EXPIRE_RETRY_NS = 200000000     # pause after a removal of expired keys that failed


cdef bint housekeeping(Core *core, bint idle, WalAppender log) noexcept nogil:
    """Do a bounded piece of what is due between batches. True: there is more that can be done at once.

    This function decides when memory comes back. Superseded records and the nodes of deleted keys are
    collected

    - under load, every COLLECT_EVERY versions or COLLECT_QUEUED new entries, COLLECT_BUDGET records at a
      time;
    - when idle, or after an allocation failed, until nothing that could be freed is left.

    Records that a snapshot can see stay. At most once in SWEEP_NS, and only when a collect is due or the
    thread is idle, snapshots older than `snapshot_age_max` that hold memory back are revoked. A full store
    revokes sooner (`make_room`).
    """
    cdef u64 committed = core.store.header.committed_version
    cdef bint more = core.store.range_active != 0 and _convert_ranges(core)
    cdef i64 now
    if core.interest.due_count:
        wake_marked(core, core.bell == NULL)    # in memory nobody comes back for those that are left
    if core.expiry.count >= core.expiry.compact_at:
        compact_expiry(core)
    if is_due(core):
        expire_keys(core, log)
    if core.sessions.crowded or sessions_waiting(core):
        more = tend_sessions(core, log) or more
    if idle or core.full:
        if store_pending_bytes(&core.store) or core.collected_version != committed:
            more = _collect_idle(core) or more
    elif committed - core.collected_version >= COLLECT_EVERY or core.store.queued >= COLLECT_QUEUED:
        collect(core, COLLECT_BUDGET)
    else:
        return more
    now = clock_monotonic_ns()
    if now >= core.next_sweep:
        core.next_sweep = now + SWEEP_NS
        revoke_older(core, now, core.snapshot_age_max)
    return more


cdef bint _collect_idle(Core *core) noexcept nogil:
    """Collect while no request waits. True: it freed something, and there is more to look at.

    With workers attached it goes step by step, because a request may arrive meanwhile: the delete of a large
    range can leave a million nodes to remove.
    """
    cdef bint step = core.bell != NULL and not core.full
    cdef u64 waiting = _collectable(core)
    core.full = False
    collect(core, COLLECT_BUDGET_STEP if step else COLLECT_BUDGET_IDLE)
    return step and 0 < _collectable(core) < waiting


cdef inline u64 _collectable(const Core *core) noexcept nogil:
    """How many entries the collect queues have."""
    return core.store.superseded_count + core.store.tombstone_count + core.store.fresh_count


cdef bint _convert_ranges(Core *core) noexcept nogil:
    """Turn a piece of the oldest range tombstone into ordinary tombstones. True: another piece can follow.

    If the store has no room for a tombstone, make room as for any write and try again after RANGE_RETRY_NS.
    Until then the range tombstone stays active, which is correct but slower to read.
    """
    cdef i64 now
    if core.range_retry_at:
        now = clock_monotonic_ns()
        if now < core.range_retry_at:
            return False
        core.range_retry_at = 0
    if (failpoint_armed() and failpoint_hit(FP_COMMIT_RANGE_SLICE)
            or not ranges_convert(&core.store, core.range_slice)):
        make_room(core)
        core.range_retry_at = clock_monotonic_ns() + RANGE_RETRY_NS
        return False
    return core.store.range_active != 0


cdef void expire_keys(Core *core, WalAppender log) noexcept nogil:
    """Remove expired keys through the log, as a commit of the coordinator's own."""
    cdef u64 committed = core.store.header.committed_version
    cdef i64 now = clock_monotonic_ns()
    cdef u32 removed
    # Readers treat an expired key as absent from this moment, even if it cannot be removed now.
    publish_expiry_time(core)
    if now < core.expire_after:
        return
    if log is not None and load_acquire_u32(&log.file.poison_errno):
        core.expire_after = now + EXPIRE_RETRY_NS
        return
    if core.expiry_stale:
        load_expiry(core)
    removed = expire_due(core, core.now, EXPIRE_COUNT_MAX, log)
    if removed:
        core.next_version += 1
        batch_commit(core, False, log)
        if core.store.header.committed_version != committed:
            core.counters.expired += removed
            publish_expiry_time(core)       # the next due key is another one now
            return
        # The log refused the commit. The keys are back in the store, but their entries are gone from the
        # heap.
        core.expiry_stale = True
    if is_due(core):
        core.expire_after = now + EXPIRE_RETRY_NS       # there was no room in the store or on the disk


cdef i64 expiry_wait(const Core *core, i64 longest) noexcept nogil:
    """Nanoseconds until the next key expires; see _housekeeping.pxd."""
    cdef i64 due
    if core.expiry.count == 0:
        return longest
    due = max(core.expiry.entries[0].expires_at - core.store.header.clock_offset, core.expire_after)
    return min(due - clock_monotonic_ns(), longest)
