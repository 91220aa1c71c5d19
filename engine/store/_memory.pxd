"""Whether shared memory may grow; see _memory.pyx."""

from ...ipc._atomics cimport u32, u64

# What a store cannot grow for; crosses to the worker in a reply (shortage.py has the same numbers).
cdef enum:
    SHORT_OF_NOTHING = 0
    SHORT_OF_SHM = 1                # /dev/shm is full
    SHORT_OF_MEMORY = 2             # the machine's memory
    SHORT_OF_GROUP = 3              # the memory limit of a control group
    SHORT_OF_FILE_SIZE = 4          # RLIMIT_FSIZE

cdef u32 memory_shortage(u64 size) noexcept nogil
