"""The client's end of a channel segment, and how both sides lay rings over it."""

from ._atomics cimport i64, u8, u32, u64
from ._doorbell cimport Waiter
from ._ring cimport Outgoing, Ring

cdef enum ClientState:
    CLIENT_IDLE = 0         # nothing outstanding
    CLIENT_WAITING = 1      # a request is published, its reply not yet received ("dirty")
    CLIENT_BROKEN = 2       # half a request is published, or the peer's counters are impossible
    CLIENT_CLOSED = 3

# Whether `ring_size` is valid, and a segment of `size` bytes has room for two such rings.
cdef bint channel_fits(u64 size, u64 ring_size) noexcept nogil

# Lays fresh rings over the channel segment at `base`. Both sides call it, and each uses its own end of each
# ring. REQUIRES: channel_fits. The `ring_size` is the caller's own knowledge: the coordinator never takes it
# from the segment.
cdef void channel_rings(u8 *base, u64 ring_size, Ring *request, Ring *reply) noexcept nogil

cdef struct Need:           # context of `bytes_ready`
    Ring *ring
    u64 size

# For doorbell_wait: `size` bytes wait in the ring, or its counter is so wrong that waiting is pointless.
cdef bint bytes_ready(void *context) noexcept nogil

cdef class ClientChannel:
    cdef Py_buffer channel_view
    cdef Py_buffer bell_view
    cdef u8 *base
    cdef u8 *bell
    cdef const void *may_spin_word
    cdef Ring request
    cdef Ring reply
    cdef Outgoing outgoing
    cdef Waiter waiter
    cdef Waiter room_waiter
    cdef int state
    cdef bint busy
    cdef u64 header_reply       # size of the reply whose header was read, or NO_HEADER

    cdef int may_spin(self) noexcept nogil
    cdef void wake_coordinator(self) noexcept nogil
    cdef int claim(self) except -1
    cdef int transmit(self, const u8 *data, u64 size, i64 deadline, object on_idle, double timeout,
                      object on_part) except -1
    cdef bytes collect(self, i64 deadline, object on_idle, double timeout)
    cdef bytes take_reply(self)
    cdef int await_room(self, i64 deadline) noexcept nogil
    cdef int await_reply(self, i64 deadline) noexcept nogil
