"""Wakes answered workers, no more of them at a time than there are cores to run on.

A worker that spins sees its answer by itself and continues with warm caches. A worker that sleeps has to be
woken, and runs its next transaction with cold caches. With 16 workers on 2 cores, a transaction of a woken
worker took 30 us, and of a warm one 8 us. So while as many workers as there are spare cores are *hot*
(answered a moment ago and not back yet), the others are woken a little later: the first answered is woken
first, and none later than DEFER_NS.

1. Every answer is in its ring before this module is called. Only the wake-up waits, never the answer. A
   worker that wakes by itself meanwhile finds it.
2. The commit thread does not sleep while a wake-up is due (`wakes_count`), so none is forgotten.
3. A worker that computes or waits elsewhere for longer than HOT_NS is no longer hot, and delays nobody.
4. Only channels that are being served are in the queue: the owner calls `flush_wakes` before it closes one.
   Their eventfds are open for as long.
5. The links of one event loop share an eventfd, and one write of it stands for every answer that is in its
   ring by then. It is written after the batch. Its loop does not count as hot: what it runs next is one
   thread at most.
"""

from ...ipc._atomics cimport fence_seq_cst, load_relaxed_u32, u64
from ...ipc._doorbell cimport SLEEPING_BY_EVENT, doorbell_ring
from ._core cimport EVENT_FDS_MAX, Channel

cdef enum:
    HOT_NS = 25000              # a transaction of a few operations
    WOKEN_NS = 60000            # the same, after a wake-up
    DEFER_NS = 1500000          # longest delay of a wake-up: half a time slice of the scheduler


cdef extern from "unistd.h" nogil:
    ssize_t write(int fd, const void *data, size_t size)


cdef inline void _signal(int event_fd) noexcept nogil:
    """Make an eventfd readable."""
    cdef u64 one = 1
    # Not blocking: a counter that is full (EAGAIN) is readable already. The system call orders the answers before it.
    write(event_fd, &one, sizeof(one))


cdef void _note_event(Core *core, int event_fd) noexcept nogil:
    """Remember that an event loop has an answer."""
    cdef u32 index
    for index in range(core.event_fds_count):
        if core.event_fds[index] == event_fd:
            return
    if core.event_fds_count == EVENT_FDS_MAX:
        _signal_events(core)
    core.event_fds[core.event_fds_count] = event_fd
    core.event_fds_count += 1


cdef void _signal_events(Core *core) noexcept nogil:
    """Wake the event loops that have answers."""
    cdef u32 index
    for index in range(core.event_fds_count):
        _signal(core.event_fds[index])
    core.event_fds_count = 0


cdef void wake_worker(Channel *channel) noexcept nogil:
    """Wake a worker at once, by what it asks for."""
    # Orders what was published before the look at the flag, as in doorbell_ring.
    fence_seq_cst()
    # The word is the worker's: one that asks for an eventfd it has not given is woken by its doorbell.
    if channel.event_fd >= 0 and load_relaxed_u32(channel.sleeping) == SLEEPING_BY_EVENT:
        _signal(channel.event_fd)
    else:
        doorbell_ring(channel.word, channel.sleeping)


cdef u32 _hot_count(const Core *core, i64 now) noexcept nogil:
    """How many workers were answered or woken a moment ago and are not back yet."""
    cdef u32 index, count = 0
    for index in range(core.channels_high):
        if core.channels[index].hot_until > now:
            count += 1
    return count


cdef void answered(Core *core, u32 index, i64 now) noexcept nogil:
    """Queue the wake-up of an answered channel if its worker sleeps; see _wakes.pxd."""
    cdef Channel *channel = &core.channels[index]
    cdef u32 sleeping
    # Orders the answer before the look at the flag, as doorbell_ring does: a worker that goes to sleep after
    # this sees the answer first.
    fence_seq_cst()
    sleeping = load_relaxed_u32(channel.sleeping)
    if not sleeping:
        channel.hot_until = now + HOT_NS
    elif sleeping == SLEEPING_BY_EVENT and channel.event_fd >= 0:
        _note_event(core, channel.event_fd)
    elif channel.wake_since == 0:
        channel.wake_since = now
        core.wakes[(core.wakes_first + core.wakes_count) % core.channel_capacity] = index
        core.wakes_count += 1


cdef void _wake_first(Core *core, i64 now) noexcept nogil:
    """Take the first channel off the queue and ring its doorbell."""
    cdef Channel *channel = &core.channels[core.wakes[core.wakes_first]]
    core.wakes_first = (core.wakes_first + 1) % core.channel_capacity
    core.wakes_count -= 1
    channel.wake_since = 0
    channel.hot_until = now + WOKEN_NS
    doorbell_ring(channel.word, channel.sleeping)


cdef void wake_at_once(Channel *channel, i64 now) noexcept nogil:
    """Wake an answered worker without a look at how many are hot; see _wakes.pxd."""
    channel.hot_until = now + WOKEN_NS
    wake_worker(channel)


cdef void release_wakes(Core *core, i64 now) noexcept nogil:
    """Wake the workers whose wake-up is due."""
    cdef u32 hot
    if core.event_fds_count:
        _signal_events(core)
    if core.wakes_count == 0:
        return
    hot = _hot_count(core, now)
    while core.wakes_count:
        if hot >= core.hot_max and now - core.channels[core.wakes[core.wakes_first]].wake_since < DEFER_NS:
            return
        _wake_first(core, now)
        hot += 1


cdef void flush_wakes(Core *core) noexcept nogil:
    """Wake every worker in the queue at once, and every event loop."""
    _signal_events(core)
    while core.wakes_count:
        _wake_first(core, 0)
