"""The memory behind shared memory: what the kernel can still give without killing somebody.

/dev/shm may be as large as the memory, or larger. Then a preallocation that does not fit succeeds, and the out-of-memory
killer ends some process. So whoever grows a segment asks here first, and a store that cannot grow is full, not dead.

1. Asked once a growth step (a megabyte and more), never on the path of a commit: reading /proc/meminfo takes 30 us.
2. A figure that cannot be read allows everything: then the kernel's answer to the preallocation is all there is.
3. Others may take the memory between the question and its use; RESERVE is kept for them and for ourselves.

Limits of a control group are not seen here.
"""

from libc.stdlib cimport strtoull
from libc.string cimport strlen, strstr
from posix.fcntl cimport O_RDONLY, open
from posix.unistd cimport close, read

from occamdb.engine._failpoints cimport FP_SHM_GROW, failpoint_armed, failpoint_hit

cdef extern from "fcntl.h" nogil:
    int O_CLOEXEC

cdef enum:
    MEMINFO_SIZE = 4096
    RESERVE = 32 << 20

cdef u64 ANY_AMOUNT = <u64>-1


cdef u64 _field(const char *text, const char *name) noexcept nogil:
    """Bytes of a line of /proc/meminfo; ANY_AMOUNT when it is not there."""
    cdef const char *found = strstr(text, name)
    if found == NULL:
        return ANY_AMOUNT
    return <u64>strtoull(found + strlen(name), NULL, 10) * 1024


cdef u64 _available() noexcept nogil:
    cdef char[MEMINFO_SIZE] text
    cdef ssize_t size
    cdef u64 memory, swap
    cdef int fd = open("/proc/meminfo", O_RDONLY | O_CLOEXEC)
    if fd < 0:
        return ANY_AMOUNT
    size = read(fd, text, MEMINFO_SIZE - 1)
    close(fd)
    if size <= 0:
        return ANY_AMOUNT
    text[size] = 0
    memory = _field(text, "MemAvailable:")
    swap = _field(text, "SwapFree:")
    if memory == ANY_AMOUNT or swap == ANY_AMOUNT:
        return memory
    return memory + swap


cdef bint memory_allows(u64 size) noexcept nogil:
    """Whether `size` more bytes may be taken from the machine's memory."""
    if failpoint_armed() and failpoint_hit(FP_SHM_GROW):
        return False
    return size + RESERVE <= _available()


def available():
    """Bytes the kernel can still provide, swap included."""
    return _available()


def allows(u64 size):
    """`memory_allows`, for tests."""
    return memory_allows(size)
