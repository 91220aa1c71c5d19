"""Range checks of a request, for the commit core; see _range_check.pyx. Their state is in _range_walk.pxd."""

from ...ipc._atomics cimport i64, u8, u32, u64
from ._core cimport Channel, Core

# The version of the last write by a transaction, range deletes included; 0 when there was none.
cdef u64 written_version(const Core *core, u32 node) noexcept nogil
# How many ranges a well-formed request wants checked.
cdef u32 ranges_to_check(const u8 *request) noexcept nogil
# Continues the walk of the channel's request by at most `budget` steps. True: channel.walk.found has every
# answer.
cdef bint walk_ranges(Core *core, Channel *channel, const u8 *request, u32 budget) noexcept nogil
