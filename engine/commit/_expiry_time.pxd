"""The expiry time: the one clock by which every process judges whether a key has expired.

Only the commit thread reads clocks for this. Workers read what it publishes in the store header.

1. `core.now` is CLOCK_MONOTONIC plus `header.clock_offset`. The offset makes it the wall clock, and is only
   ever raised. So `core.now` follows the wall clock when that is set forward, and never goes back: when the
   wall clock is set back, `core.now` stays ahead of it.
2. `header.expiry_time` is an earlier `core.now`. It is raised only when a key is due: between two batches, or
   inside one just before the batch is published. While no key is due, an older value gives the same answers.
3. When version V is published, every key that had expired by the `core.now` of V's batch has also expired by
   `expiry_time`.

A snapshot is a version V and an expiry time T, read between two equal readings of `committed_version`. By 3,
every key that the commits up to V saw as expired has expired by T. By 2, T is no later than the `core.now` of
any later commit. So the pair lies between the commits V and V + 1 in the order, and the state that it shows
depends on nothing else.
"""

from ...ipc._atomics cimport (
    clock_monotonic_ns, clock_realtime_ns, i64, store_relaxed_u64, store_release_u64, u64,
)
from ..disk._failpoints cimport FP_CLOCK_READ, failpoint_armed, failpoint_hit_shift
from ..store._layout cimport StoreHeader
from ._core cimport Core

cdef enum:
    DUE_AGAIN_NS = 10000000         # pause until keys that are due, but could not be removed, are due again


cdef inline i64 read_clock(Core *core) noexcept nogil:
    """Set `core.now`, and return the monotonic clock.

    The wall clock is read first, so a pause between the two readings only makes the offset smaller.
    """
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
    """Let readers see what has expired by `core.now`, and when the next key is due.

    A reader that finds the next key due looks whether somebody still publishes this.

    REQUIRES: no batch is open, or everything in it was validated by `core.now` and it is published next.
    """
    cdef StoreHeader *header = core.store.header
    cdef i64 next_due = 0
    if is_due(core):
        # Release: a reader that sees the time sees the versions published before it. The publication that
        # follows orders the time before the version.
        store_release_u64(&header.expiry_time, <u64>core.now)
        next_due = core.now - header.clock_offset + DUE_AGAIN_NS
    elif core.expiry.count:
        next_due = core.expiry.entries[0].expires_at - header.clock_offset
    if next_due != header.next_due:
        store_relaxed_u64(&header.next_due, <u64>next_due)      # relaxed: a hint
