"""The memory behind shared memory: what the kernel can still give without killing a process.

/dev/shm may be as large as the memory, or larger. Then a preallocation that does not fit succeeds, and the
out-of-memory killer ends some process. So the store asks here before its segment grows. A store that cannot
grow is full, and nobody is killed.

1. Asked once for each growth step (a megabyte and more), never on the path of a commit: reading the files
   takes 30 us and more.
2. A figure that cannot be read forbids nothing. Only the kernel's answer to the preallocation counts then.
3. Other processes may take the memory between the question and its use. RESERVE is kept for them and for
   ourselves.
4. Shared memory counts against the limits of the control groups of a process, above all in a container. The
   files to read are named once, by `watch`, before anything grows. A limit that is changed later is seen.
"""

import os

from libc.stdlib cimport strtoull
from libc.string cimport memcpy, strlen, strncmp, strstr
from posix.fcntl cimport O_RDONLY, open
from posix.unistd cimport close, read

from ...ipc._atomics cimport u32
from ..disk._failpoints cimport FP_SHM_GROW, failpoint_armed, failpoint_hit

cdef extern from "fcntl.h" nogil:
    int O_CLOEXEC

cdef enum:
    FILE_SIZE = 8192
    RESERVE = 32 << 20
    GROUPS_MAX = 16
    PATH_SIZE = 512

cdef struct Group:
    char limit[PATH_SIZE]
    char usage[PATH_SIZE]
    char statistics[PATH_SIZE]
    char reclaimable[32]

cdef u64 ANY_AMOUNT = <u64>-1
cdef Group groups[GROUPS_MAX]
cdef u32 group_count = 0


cdef bint _read(const char *path, char *text) noexcept nogil:
    """The beginning of a file as text of at most FILE_SIZE."""
    cdef ssize_t size
    cdef int fd = open(path, O_RDONLY | O_CLOEXEC)
    if fd < 0:
        return False
    size = read(fd, text, FILE_SIZE - 1)
    close(fd)
    if size <= 0:
        return False
    text[size] = 0
    return True


cdef u64 _field(const char *text, const char *name) noexcept nogil:
    """The number behind a name at the beginning of a line; ANY_AMOUNT when it is not there."""
    cdef u64 length = strlen(name)
    cdef const char *line = text
    while line != NULL:
        if strncmp(line, name, length) == 0:
            return <u64>strtoull(line + length, NULL, 10)
        line = strstr(line, "\n")
        if line != NULL:
            line += 1
    return ANY_AMOUNT


cdef u64 _number(const char *path) noexcept nogil:
    """The number a file holds; ANY_AMOUNT when it holds none ("max")."""
    cdef char[FILE_SIZE] text
    if not _read(path, text) or not c'0' <= text[0] <= c'9':
        return ANY_AMOUNT
    return <u64>strtoull(text, NULL, 10)


cdef u64 _machine_available() noexcept nogil:
    cdef char[FILE_SIZE] text
    cdef u64 memory, swap
    if not _read("/proc/meminfo", text):
        return ANY_AMOUNT
    memory = _field(text, "MemAvailable:")
    swap = _field(text, "SwapFree:")
    if memory == ANY_AMOUNT or swap == ANY_AMOUNT:
        return memory if memory == ANY_AMOUNT else memory * 1024
    return (memory + swap) * 1024


cdef u64 _group_available(const Group *group) noexcept nogil:
    """What a group may still take. Its cached file pages count as free, because the kernel drops them first.
    """
    cdef char[FILE_SIZE] text
    cdef u64 limit = _number(group.limit)
    cdef u64 usage, cached = 0
    if limit == ANY_AMOUNT:
        return ANY_AMOUNT
    usage = _number(group.usage)
    if usage == ANY_AMOUNT:
        return ANY_AMOUNT
    if _read(group.statistics, text):
        cached = _field(text, group.reclaimable)
        if cached == ANY_AMOUNT:
            cached = 0
    usage -= min(usage, cached)
    return limit - usage if limit > usage else 0


cdef u64 _groups_available() noexcept nogil:
    cdef u64 least = ANY_AMOUNT
    cdef u32 index
    for index in range(group_count):
        least = min(least, _group_available(&groups[index]))
    return least


cdef bint _name(char *to, str text, Py_ssize_t size) except -1:
    cdef bytes raw = os.fsencode(text)
    if len(raw) >= size:
        return False
    memcpy(to, <const char *>raw, len(raw) + 1)
    return True


def watch(found):
    """Respect the limits of these control groups from here on. Call it before anything grows."""
    global group_count
    cdef Group *group
    group_count = 0
    for limit, usage, statistics, reclaimable in found[:GROUPS_MAX]:
        group = &groups[group_count]
        # A limit whose path is too long to keep is not respected.
        if (_name(group.limit, limit, PATH_SIZE) and _name(group.usage, usage, PATH_SIZE)
                and _name(group.statistics, statistics, PATH_SIZE) and _name(group.reclaimable, reclaimable + " ", 32)):
            group_count += 1


cdef u32 memory_shortage(u64 size) noexcept nogil:
    """What is short for `size` more bytes; SHORT_OF_NOTHING if they may be taken."""
    if failpoint_armed() and failpoint_hit(FP_SHM_GROW):
        return SHORT_OF_SHM
    if size + RESERVE > _machine_available():
        return SHORT_OF_MEMORY
    return SHORT_OF_GROUP if size + RESERVE > _groups_available() else SHORT_OF_NOTHING


def available():
    """Bytes the kernel can still provide: of the machine with swap, and of our control groups."""
    return min(_machine_available(), _groups_available())


def allows(u64 size):
    """Whether `size` more bytes may be taken, for tests."""
    return memory_shortage(size) == SHORT_OF_NOTHING
