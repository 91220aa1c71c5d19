"""The channel table of the commit core; see _channels.pyx."""

from ...ipc._atomics cimport i64, u8, u64
from ._core cimport Channel, Core

cdef i64 channel_open(Core *core, u64 session, u8 *base, u64 ring_size, u64 last_sequence, u64 last_version) noexcept nogil
cdef void channel_free(Channel *channel) noexcept nogil
cdef void channel_outcome(Channel *channel, u64 *sequence, u64 *version) noexcept nogil
cdef dict channel_outcomes(Core *core)
