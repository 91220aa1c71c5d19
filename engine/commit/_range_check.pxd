"""What `_range_check.pyx` offers to the commit core (apart from the state in `_range_walk.pxd`, which `_core.pxd` needs)."""

from ...ipc._atomics cimport i64, u8, u32, u64
from ._core cimport Channel, Core

# The version of the last write by a transaction, range deletes included; 0 when there was none.
cdef u64 written_version(const Core *core, u32 node) noexcept nogil
# How many ranges a well-formed request wants checked.
cdef u32 ranges_to_check(const u8 *request) noexcept nogil
# Go on with the walk of the channel's request, `budget` steps at most. True: channel.walk.found has every answer.
cdef bint walk_ranges(Core *core, Channel *channel, const u8 *request, u32 budget) noexcept nogil
