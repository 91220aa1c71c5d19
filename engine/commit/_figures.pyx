"""Figures of the commit core for `db.stats()`, read by the control plane without a lock.

Each counter is one word that the commit thread alone writes. The only consequence of reading them meanwhile
is that two of them may be one batch apart.
"""

from ...ipc._atomics cimport clock_monotonic_ns, i64, load_relaxed_u64, u64
from ..store._layout cimport StoreHeader
from ._core cimport HISTOGRAM_COUNT, HOT_KEYS, Channel, Counters
from ._pins cimport oldest_pin


cdef dict channel_figures(Core *core, u32 index):
    """What one channel did and what its oldest snapshot holds back; racy, for display."""
    cdef Channel *channel = &core.channels[index]
    cdef u64 version
    cdef i64 since
    figures = {
        "session": channel.session, "commits": channel.commits, "conflicts": channel.conflicts,
        "snapshot_version": None, "snapshot_age": 0.0, "held_bytes": 0,
    }
    if oldest_pin(core, channel, &version, &since):
        figures["snapshot_version"] = version
        figures["snapshot_age"] = (clock_monotonic_ns() - since) / 1e9 if since else 0.0
        figures["held_bytes"] = load_relaxed_u64(&channel.held_bytes)
    return figures


cdef list histogram(const u64 *buckets):
    """A histogram as a list; bucket b counts values in [2**(b-1), 2**b)."""
    cdef u32 index
    cdef list copied = []
    for index in range(HISTOGRAM_COUNT):
        copied.append(buckets[index])
    return copied


cdef dict core_stats(Core *core, WalAppender log):
    """Counters of the core, the store and the log; they may be off by one batch."""
    cdef u32 index
    cdef Counters *counters = &core.counters
    cdef StoreHeader *header = core.store.header
    cdef list hot = []
    for index in range(HOT_KEYS):
        if core.hot[index].count:
            hot.append((core.hot[index].count, (<char *>core.hot[index].key)[:core.hot[index].size]))
    hot.sort(reverse=True)
    return {
        "version": header.committed_version,
        "commits": counters.commits,
        "batches": counters.batches,
        "conflicts": {
            "read": counters.conflicts_read, "range": counters.conflicts_range,
            "write": counters.conflicts_write, "cas": counters.conflicts_cas,
        },
        "refused": counters.refused,
        "expired": counters.expired,
        "session_keys_removed": counters.unbound,
        "snapshots_revoked": counters.revoked,
        "log_errors": counters.log_errors,
        "turns": {
            "granted": core.turns.granted, "waited": core.turns.waited, "expired": core.turns.expired,
        },
        "hot_keys": [(key, count) for count, key in hot],
        "batch_sizes": histogram(counters.batch_sizes),
        "batch_ns": histogram(counters.batch_ns),
        "keys": header.key_count,
        "records": header.record_count,
        "session_keys": core.store.bound_count,
        # The keys they cover count as keys until they are converted.
        "range_tombstones": core.store.range_active,
        "pending_expiries": core.expiry.count,
        "store": {
            "size": header.size, "backed": header.backed_bytes, "used": header.used_bytes,
            "nodes": header.node_bytes, "records": header.record_bytes, "superseded": header.superseded_bytes,
            "index": header.index_bytes, "quarantine": header.quarantine_bytes, "free": header.free_bytes,
        },
        "log": None if log is None else {
            "bytes": log.total_bytes, "flushes": log.flush_count, "syncs": log.file.sync_count,
            "rotations": log.rotate_count, "poisoned": log.file.poison_errno != 0,
        },
    }
