"""Keeping the commit thread off the core of its only worker; see _placement.pyx. The commit thread only."""

from ...ipc._atomics cimport i64, u32

cdef struct Placement:
    u32 shared              # wake-ups in a row by a worker on our own core
    i64 not_before          # monotonic ns: no move until then
    i64 pause               # ns between two moves
    u32 moves               # statistics

cdef void placement_init(Placement *p) noexcept nogil

# Notes that the calling thread was woken by a worker on core `ringer` - 1 (0: unknown). True: it moved to
# another core.
cdef bint woken_by(Placement *p, u32 ringer, i64 now) noexcept nogil
