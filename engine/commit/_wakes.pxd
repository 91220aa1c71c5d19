"""Whom to wake, and when; see _wakes.pyx."""

from ...ipc._atomics cimport i64, u32
from ._core cimport Core

cdef void answered(Core *core, u32 index, i64 now) noexcept nogil
cdef void release_wakes(Core *core, i64 now) noexcept nogil
cdef void flush_wakes(Core *core) noexcept nogil
