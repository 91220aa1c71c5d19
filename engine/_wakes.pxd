"""Whom to wake, and when; see _wakes.pyx."""

from occamdb.engine._core cimport Core
from occamdb.ipc._atomics cimport i64, u32

cdef void answered(Core *core, u32 index, i64 now) noexcept nogil
cdef void release_wakes(Core *core, i64 now) noexcept nogil
cdef void flush_wakes(Core *core) noexcept nogil
