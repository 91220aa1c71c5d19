"""Effects of one commit request on the store, and their undo; see _apply.pyx."""

from ...ipc._atomics cimport i64, u8, u32, u64
from ..log._wal_appender cimport WalAppender
from ._core cimport Channel, Core

cdef u32 apply_request(Core *core, Channel *channel, const u8 *request, u64 version, u32 *detail,
                       WalAppender log) noexcept nogil
cdef u32 expire_due(Core *core, i64 now, u32 count_max, WalAppender log) noexcept nogil
cdef void undo_to(Core *core, u64 mark) noexcept nogil
cdef void compact_expiry(Core *core) noexcept nogil
cdef i64 load_expiry(Core *core) noexcept nogil
