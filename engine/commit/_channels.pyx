"""The channel table: the control plane fills in, reads and empties its slots beside the commit thread.

1. A slot is filled in while it is FREE, and emptied while it is CLOSED. The commit thread looks at neither.
2. The commit thread writes the sequence and version of a channel's last commit while `outcome_lock` is odd.
   Any thread reads the pair with `channel_outcome`, which retries until the lock was even and did not change.
"""

from libc.stdlib cimport free
from libc.string cimport memset

from ...ipc._atomics cimport (
    fence_acquire, load_acquire_u32, load_relaxed_u32, load_relaxed_u64, store_seq_cst_u32, u32,
)
from ...ipc._channel cimport channel_rings
from ...ipc._layout cimport (
    CLOSED_OFFSET, DRAINED_OFFSET, PACE_OFFSET, SLOTS_HIGH_OFFSET, SLOTS_OFFSET, WATCH_BELL_OFFSET, WATCH_HIGH_OFFSET,
    WATCH_SLEEPING_OFFSET, WATCH_SLOTS_OFFSET, WORKER_BELL_OFFSET, WORKER_SLEEPING_OFFSET,
)
from ...ipc._ring cimport inbox_destroy, inbox_init
from ._core cimport CHANNEL_ACTIVE, CHANNEL_FREE, REPLY_SIZE_MIN
from ._range_walk cimport walk_free


cdef i64 channel_open(Core *core, u64 session, u64 owner, u8 *base, u64 ring_size, u64 last_sequence,
                      u64 last_version, int event_fd) noexcept nogil:
    """Serve the channel segment at `base`, whose size the caller has checked; see _channels.pxd."""
    cdef u32 index = 0
    cdef Channel *channel
    while index < core.channel_capacity and core.channels[index].state != CHANNEL_FREE:
        index += 1
    if index == core.channel_capacity:
        return -1
    channel = &core.channels[index]
    memset(channel, 0, sizeof(Channel))
    channel.session = session
    channel.owner = owner
    channel.last_sequence = last_sequence
    channel.last_version = last_version
    channel_rings(base, ring_size, &channel.request, &channel.reply)
    inbox_init(&channel.inbox)
    channel.inbox.budget = &core.inboxes
    channel.word = base + WORKER_BELL_OFFSET
    channel.sleeping = base + WORKER_SLEEPING_OFFSET
    channel.event_fd = event_fd
    channel.slots = base + SLOTS_OFFSET
    channel.slots_high = base + SLOTS_HIGH_OFFSET
    channel.closed = base + CLOSED_OFFSET
    channel.drained = base + DRAINED_OFFSET
    channel.pace = base + PACE_OFFSET
    channel.watch_word = base + WATCH_BELL_OFFSET
    channel.watch_sleeping = base + WATCH_SLEEPING_OFFSET
    channel.watch_high = base + WATCH_HIGH_OFFSET
    channel.watch_slots = base + WATCH_SLOTS_OFFSET
    # At most one reply is outstanding, so half the ring always has room for it.
    channel.reply_max = ring_size // 2 if ring_size // 2 > REPLY_SIZE_MIN else REPLY_SIZE_MIN
    # Both stores are seq_cst, which includes release: the commit thread sees a filled slot once it sees the
    # state. Its scan for pins reads both words after it has raised gc_horizon. They are stored before the
    # worker hears of its channel. So if a scan misses them, the worker's look at gc_horizon, behind its first
    # pin, comes later and finds the raised value.
    store_seq_cst_u32(&channel.state, CHANNEL_ACTIVE)
    if index >= core.channels_high:
        store_seq_cst_u32(&core.channels_high, index + 1)
    return index


cdef void channel_free(Channel *channel) noexcept nogil:
    """Free the private memory of a channel that is no longer served."""
    inbox_destroy(&channel.inbox)
    free(channel.out)
    free(channel.seen)
    walk_free(&channel.walk)
    channel.out = NULL
    channel.out_capacity = 0
    channel.seen = NULL
    channel.slots = NULL
    channel.watch_slots = NULL


cdef void channel_outcome(Channel *channel, u64 *sequence, u64 *version) noexcept nogil:
    """The channel's last commit, as one pair; any thread."""
    cdef u32 before
    while True:
        before = load_acquire_u32(&channel.outcome_lock)
        sequence[0] = load_relaxed_u64(&channel.last_sequence)
        version[0] = load_relaxed_u64(&channel.last_version)
        fence_acquire()
        if not before & 1 and load_relaxed_u32(&channel.outcome_lock) == before:
            return


cdef dict channel_outcomes(Core *core):
    """{session: (sequence, commit version)} of the last commits of all channels in use."""
    cdef u32 index
    cdef u64 sequence, version
    cdef dict found = {}
    for index in range(load_acquire_u32(&core.channels_high)):
        if load_acquire_u32(&core.channels[index].state) != CHANNEL_FREE:
            channel_outcome(&core.channels[index], &sequence, &version)
            if sequence:
                found[core.channels[index].session] = (sequence, version)
    return found
