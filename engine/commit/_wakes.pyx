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
"""

from ...ipc._atomics cimport fence_seq_cst, load_relaxed_u32
from ...ipc._doorbell cimport doorbell_ring
from ._core cimport Channel

cdef enum:
    HOT_NS = 25000              # a transaction of a few operations
    WOKEN_NS = 60000            # the same, after a wake-up
    DEFER_NS = 1500000          # longest delay of a wake-up: half a time slice of the scheduler


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
    # Orders the answer before the look at the flag, as doorbell_ring does: a worker that goes to sleep after
    # this sees the answer first.
    fence_seq_cst()
    if not load_relaxed_u32(channel.sleeping):
        channel.hot_until = now + HOT_NS
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
    doorbell_ring(channel.word, channel.sleeping)


cdef void release_wakes(Core *core, i64 now) noexcept nogil:
    """Wake the workers whose wake-up is due."""
    cdef u32 hot
    if core.wakes_count == 0:
        return
    hot = _hot_count(core, now)
    while core.wakes_count:
        if hot >= core.hot_max and now - core.channels[core.wakes[core.wakes_first]].wake_since < DEFER_NS:
            return
        _wake_first(core, now)
        hot += 1


cdef void flush_wakes(Core *core) noexcept nogil:
    """Wake every worker in the queue at once."""
    while core.wakes_count:
        _wake_first(core, 0)
