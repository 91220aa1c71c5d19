"""The expiry time: the one clock by which every process judges whether a key has expired.

The commit thread alone reads clocks for this; workers read what it publishes in the store header.

1. `core.now` is CLOCK_MONOTONIC plus `header.clock_offset`. The offset makes it the wall clock and is only ever raised, so
   `core.now` follows a step forward and never goes back. A step back leaves it ahead of the wall clock.
2. `header.expiry_time` is an earlier `core.now`. It is raised between two batches, or inside one just before the batch is
   published, and only when a key is due: while none is, an older value says the same.
3. When version V is published, every key that expired by the `core.now` of V's batch expired by `expiry_time` too.

A snapshot is a version V and an expiry time T read between two equal readings of `committed_version`. By 3, T says expired
of whatever the commits up to V saw expired; by 2, T is no later than the `core.now` of any later commit. So the pair lies
between the commits V and V + 1 in the order, and the state it shows depends on nothing else.
"""

from ...ipc._atomics cimport (
    clock_monotonic_ns, clock_realtime_ns, i64, store_relaxed_u64, store_release_u64, u64,
)
from ..disk._failpoints cimport FP_CLOCK_READ, failpoint_armed, failpoint_hit_shift
from ..store._layout cimport StoreHeader
from ._core cimport Core

cdef enum:
    DUE_AGAIN_NS = 10000000         # after this, keys that are due but could not be removed yet are due again


cdef inline i64 read_clock(Core *core) noexcept nogil:
    """Set `core.now`; returns the monotonic clock. The wall clock is read first, so a pause between the two only
    makes the offset look smaller."""
    cdef StoreHeader *header = core.store.header
    cdef i64 offset = clock_realtime_ns()
    cdef i64 now
    if failpoint_armed():
        offset += failpoint_hit_shift(FP_CLOCK_READ)
    now = clock_monotonic_ns()
    offset -= now
    if offset > header.clock_offset:
        # Relaxed: a worker that still adds the older offset only sets an expiry time a little earlier.
        store_relaxed_u64(&header.clock_offset, <u64>offset)
    core.now = now + header.clock_offset
    return now


cdef inline bint is_due(const Core *core) noexcept nogil:
    """Whether some key that has not been removed yet may have expired by `core.now`."""
    return core.expiry_stale or (core.expiry.count != 0 and core.expiry.entries[0].expires_at <= core.now)


cdef inline void publish_expiry_time(Core *core) noexcept nogil:
    """Let readers see what has expired by `core.now`, and know when to look whether somebody still does this.

    REQUIRES: no batch is open, or everything in it was validated by `core.now` and it is published next.
    """
    cdef StoreHeader *header = core.store.header
    cdef i64 next_due = 0
    if is_due(core):
        # Release: whoever sees the time sees the versions published before it. The publication that follows orders it
        # before the version.
        store_release_u64(&header.expiry_time, <u64>core.now)
        next_due = core.now - header.clock_offset + DUE_AGAIN_NS
    elif core.expiry.count:
        next_due = core.expiry.entries[0].expires_at - header.clock_offset
    if next_due != header.next_due:
        store_relaxed_u64(&header.next_due, <u64>next_due)      # relaxed: a hint
