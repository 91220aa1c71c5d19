"""Keeping the commit thread off the core of its only worker; see _placement.pyx. The commit thread only."""

from ...ipc._atomics cimport i64, u32

cdef struct Placement:
    u32 shared              # wake-ups in a row by a worker on our own core
    i64 not_before          # monotonic ns: no move until then
    i64 pause               # ns between two moves
    i64 turn_not_before     # the same two while a turn runs
    i64 turn_pause
    u32 left                # the core, plus one, on which the last turn was granted; 0: its worker has come since
    bint makes_room         # workers with a turn wake on the core of the commit thread
    u32 moves               # statistics

cdef void placement_init(Placement *p) noexcept nogil

# A worker with a turn was just woken. True: the calling thread has moved out of its way.
cdef bint make_room(Placement *p) noexcept nogil

# It comes for the first time, on core `ringer` - 1.
cdef void turn_began(Placement *p, u32 ringer) noexcept nogil

# Notes that the calling thread was woken by a worker on core `ringer` - 1 (0: unknown). True: it moved to
# another core. turn: a turn runs, so those who wait for it sleep and there is one busy worker.
cdef bint woken_by(Placement *p, u32 ringer, i64 now, bint turn) noexcept nogil
