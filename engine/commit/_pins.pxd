"""Pins as the commit thread sees them: scan, collect, revoke; see _pins.pyx."""

from ...ipc._atomics cimport i64, u32, u64
from ._core cimport Channel, Core

cdef i64 gather_pins(Core *core) noexcept nogil
cdef void collect(Core *core, u32 budget) noexcept nogil
cdef bint make_room(Core *core) noexcept nogil
cdef bint checkpoint_pinned(Core *core) noexcept nogil
cdef bint revoke_checkpoint(Core *core) noexcept nogil
cdef u32 revoke_older(Core *core, i64 now, i64 age_max) noexcept nogil
cdef void revoke_all(Channel *channel) noexcept nogil
cdef bint oldest_pin(Core *core, Channel *channel, u64 *version, i64 *since) noexcept nogil
cdef u64 pin_own(Core *core) noexcept nogil
cdef void unpin_own(Core *core) noexcept nogil
