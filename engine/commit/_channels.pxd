"""The channel table of the commit core; see _channels.pyx."""

from ...ipc._atomics cimport i64, u8, u64
from ._core cimport Channel, Core

# Control plane: fills in a free slot for a worker's segment at `base`. Returns its index, or -1 if none is
# free. `event_fd`: see `Channel`; the caller keeps it open until the channel is CLOSED.
cdef i64 channel_open(Core *core, u64 session, u64 owner, u8 *base, u64 ring_size, u64 last_sequence,
                      u64 last_version, int event_fd) noexcept nogil
# Frees private memory of a channel. REQUIRES: the commit thread no longer serves it.
cdef void channel_free(Channel *channel) noexcept nogil
# A consistent pair of sequence and version of the channel's last commit. Any thread.
cdef void channel_outcome(Channel *channel, u64 *sequence, u64 *version) noexcept nogil
# The same of all open channels, by session. Control plane, with the GIL.
cdef dict channel_outcomes(Core *core)
