"""Checks of one commit request against the store as the batch so far has left it; see _validate.pyx.

All of these belong to the commit thread (in memory: to the holder of the core's mutex).
"""

from ...ipc._atomics cimport i64, u8, u32, u64
from ._core cimport Channel, Core

# STATUS_COMMITTED if the bytes are a well-formed request whose reply fits `reply_max`, otherwise the status
# to refuse it with. Trusts nothing in the `size` bytes. REQUIRES: size >= REQUEST_HEADER_SIZE, private
# memory.
cdef u32 check_format(Core *core, const u8 *request, u64 size, u64 reply_max) noexcept nogil
# How many conflicts the request has; 0: it may be applied. Lists those that fit in the reply, whose buffer
# may move. REQUIRES: check_format accepted the request and its range walk is finished.
cdef u64 validate_request(Core *core, Channel *channel, const u8 *request) noexcept nogil
# The version that a read of the node finds; 0 if absent, deleted, or expired at `read_time`.
cdef u64 visible_version(Core *core, u32 node, i64 read_time) noexcept nogil
# Makes `channel.out` at least `size` bytes large; it may move. False: no private memory.
cdef bint reserve_reply(Channel *channel, u64 size) noexcept nogil
