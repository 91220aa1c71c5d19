"""May shared memory grow? See _memory.pyx."""

from occamdb.ipc._atomics cimport u64

cdef bint memory_allows(u64 size) noexcept nogil
