"""Checks of one commit request against the store as the batch so far has left it; see _validate.pyx."""

from ...ipc._atomics cimport i64, u8, u32, u64
from ._core cimport Channel, Core

cdef u32 check_format(Core *core, const u8 *request, u64 size, u64 reply_max) noexcept nogil
cdef u64 validate_request(Core *core, Channel *channel, const u8 *request) noexcept nogil
cdef u64 visible_version(Core *core, u32 node, i64 read_time) noexcept nogil
cdef bint reserve_reply(Channel *channel, u64 size) noexcept nogil
