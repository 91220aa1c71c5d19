"""Keeping the commit thread off the core of the only worker that is busy.

A worker and the commit thread that wake each other in turn never run at the same time. To the scheduler, one
core is enough for both. On a small machine it leaves them on one core for seconds while other cores are idle:
each wakes where its waker runs, and the search for an idle core ends early when there are few. A commit then
costs two task switches, while on two cores both would spin and see each other's messages at once.

So a worker stores the number of its core beside the doorbell that it rings. A commit thread that is woken
from its own core many times in a row moves once: it excludes this core from its affinity, which moves it at
once, and then restores the affinity. The affinity that the user chose is unchanged, and the scheduler may put
the thread back. If it does, the next move waits longer.
"""

from ...ipc._atomics cimport current_cpu

cdef extern from *:
    """
    #include <sched.h>
    /* 1: the calling thread left `cpu` for another it may run on. */
    static inline int occ_leave_cpu(int cpu) {
        cpu_set_t allowed, others;
        if (cpu < 0 || cpu >= CPU_SETSIZE || sched_getaffinity(0, sizeof(allowed), &allowed)) return 0;
        if (!CPU_ISSET(cpu, &allowed) || CPU_COUNT(&allowed) < 2) return 0;
        others = allowed;
        CPU_CLR(cpu, &others);
        if (sched_setaffinity(0, sizeof(others), &others)) return 0;
        /* If this fails, we stay confined to the other cores, which is correct. */
        (void)sched_setaffinity(0, sizeof(allowed), &allowed);
        return 1;
    }
    """
    int leave_cpu "occ_leave_cpu"(int cpu) noexcept nogil

cdef enum:
    SHARED_MAX = 64             # wake-ups in a row; several workers on two cores do not reach this
    PAUSE_MIN = 10000000        # a move costs about 20 us
    PAUSE_MAX = 1000000000
    TURN_SHARED_MAX = 2         # in a turn there is no other worker, and little time
    TURN_PAUSE_MIN = 300000
    TURN_PAUSE_MAX = 64000000


cdef void placement_init(Placement *p) noexcept nogil:
    p.shared = 0
    p.not_before = 0
    p.pause = PAUSE_MIN
    p.turn_not_before = 0
    p.turn_pause = TURN_PAUSE_MIN
    p.left = 0
    p.makes_room = False
    p.moves = 0


cdef bint make_room(Placement *p) noexcept nogil:
    """Leave the core if the last worker with a turn woke on it; see _placement.pxd.

    On a machine whose cores are all busy a thread wakes where its waker runs. That is the commit thread, and the core
    of the worker whose turn is over is the one that becomes idle.
    """
    cdef int cpu = current_cpu()
    p.left = <u32>(cpu + 1)
    if not p.makes_room or not leave_cpu(cpu):
        return False
    p.moves += 1
    p.shared = 0
    return True


cdef void turn_began(Placement *p, u32 ringer) noexcept nogil:
    """Note whether the worker woke on the core on which we were then; see _placement.pxd."""
    if p.left:
        p.makes_room = ringer == p.left
        p.left = 0


cdef bint woken_by(Placement *p, u32 ringer, i64 now, bint turn) noexcept nogil:
    """Note who woke us, and leave the core if it is always the worker on it; see _placement.pxd."""
    cdef int cpu = current_cpu()
    # The number comes from shared memory: a forged one only makes us move needlessly, now and then.
    if ringer != <u32>(cpu + 1):
        p.shared = 0
        return False
    p.shared += 1
    # If the thread was put back soon, moving did not help: wait longer until the next move.
    if turn and p.shared >= TURN_SHARED_MAX and now >= p.turn_not_before:
        p.turn_pause = TURN_PAUSE_MIN if now > p.turn_not_before + p.turn_pause else min(<i64>TURN_PAUSE_MAX, 2 * p.turn_pause)
        p.turn_not_before = now + p.turn_pause
    elif p.shared >= SHARED_MAX and now >= p.not_before:
        p.pause = PAUSE_MIN if now > p.not_before + 8 * p.pause else min(<i64>PAUSE_MAX, 2 * p.pause)
        p.not_before = now + p.pause
    else:
        return False
    p.shared = 0
    if not leave_cpu(cpu):
        return False
    p.moves += 1
    return True
