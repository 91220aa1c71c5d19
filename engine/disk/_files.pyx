"""Every system call that changes or reads a database file, in one place, for compiled and Python code alike.

Called by the log appender and the checkpoint kernels (no GIL) and, through `files.py`, by all Python code.
Each call passes `file.any` and its own failpoint, so a test can fail, shorten or tear any of them, and is
recorded when a trace is on, so a test can rebuild what a power cut may leave behind.

Invariants:
1. No write is taken for done before all of its bytes are (short writes are continued).
2. fsync and fdatasync are called once: EINTR is the only error that is repeated, never EIO.
3. A call is recorded after it succeeded and before it returns; `trace_mark` puts the test's own notes in
   order with the calls. The trace's own file is written directly, with no hooks.
"""

from libc.errno cimport EFAULT, EINTR, EIO, ENOSPC, errno
from libc.signal cimport SIGKILL
from libc.string cimport memcpy, strlen

from ...ipc._atomics cimport cas_u32, cpu_relax, i64, store_release_u32, u8, u32, u64
from ._failpoints cimport (
    ACTION_KILL, ACTION_SHORT, ACTION_TORN, FP_FILE_ALLOCATE, FP_FILE_ANY, FP_FILE_DIRECTORY_SYNC,
    FP_FILE_MKDIR, FP_FILE_OPEN, FP_FILE_READ, FP_FILE_RENAME, FP_FILE_SYNC, FP_FILE_TRUNCATE, FP_FILE_UNLINK,
    FP_FILE_WRITE, failpoint_armed, failpoint_perform, failpoint_take,
)
from ._guarded_copy cimport guarded_copy

import os as _os

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <fcntl.h>
    #include <stdio.h>
    #include <sys/mman.h>
    #include <sys/stat.h>
    #include <unistd.h>
    static inline long long occ_file_size(int fd) { struct stat st; return fstat(fd, &st) ? -1 : (long long)st.st_size; }
    static inline void *occ_map(int fd, long long offset, size_t size) {
        void *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);
        return map == MAP_FAILED ? NULL : map;
    }
    static inline int occ_openat(int dir, const char *name, int flags) { return openat(dir, name, flags | O_CLOEXEC, 0600); }
    """
    i64 occ_file_size(int fd) nogil
    int occ_openat(int directory, const char *name, int flags) nogil
    void *occ_map(int fd, i64 offset, size_t size) nogil
    int c_munmap "munmap"(void *map, size_t size) nogil
    int c_getpagesize "getpagesize"() nogil

cdef extern from "<fcntl.h>" nogil:
    int c_fallocate "fallocate"(int fd, int mode, i64 offset, i64 size)

cdef extern from "<unistd.h>" nogil:
    i64 c_pread "pread"(int fd, void *into, size_t size, i64 offset)
    i64 c_pwrite "pwrite"(int fd, const void *data, size_t size, i64 offset)
    i64 c_write "write"(int fd, const void *data, size_t size)
    int c_close "close"(int fd)
    int c_fsync "fsync"(int fd)
    int c_fdatasync "fdatasync"(int fd)
    int c_ftruncate "ftruncate"(int fd, i64 size)
    int c_unlinkat "unlinkat"(int directory, const char *name, int flags)

cdef extern from "<stdio.h>" nogil:
    int c_renameat "renameat"(int directory, const char *old, int directory2, const char *new)

cdef extern from "<sys/stat.h>" nogil:
    int c_mkdirat "mkdirat"(int directory, const char *name, unsigned int mode)

cdef enum TraceOp:
    TRACE_OPEN = 1
    TRACE_CLOSE = 2
    TRACE_WRITE = 3
    TRACE_SYNC = 4
    TRACE_DIRECTORY_SYNC = 5
    TRACE_TRUNCATE = 6
    TRACE_ALLOCATE = 7
    TRACE_RENAME = 8
    TRACE_UNLINK = 9
    TRACE_MKDIR = 10
    TRACE_MARK = 11

cdef packed struct TraceHeader:
    u32 magic
    u32 op
    i64 fd
    i64 a            # offset, size or flags
    u64 first_size
    u64 second_size

cdef int trace_fd = -1
cdef u32 trace_lock = 0
cdef i64 NO_LIMIT = 1 << 62


cdef void _trace(int op, i64 fd, i64 a, const void *first, u64 first_size, const void *second,
                 u64 second_size) noexcept nogil:
    """Append one record to the trace. A spin lock keeps records of different threads whole and in order."""
    cdef TraceHeader header
    if trace_fd < 0:
        return
    header.magic = 0x5452414F
    header.op = op
    header.fd = fd
    header.a = a
    header.first_size = first_size
    header.second_size = second_size
    while not cas_u32(&trace_lock, 0, 1):
        cpu_relax()
    c_write(trace_fd, &header, sizeof(header))
    if first_size:
        c_write(trace_fd, first, first_size)
    if second_size:
        c_write(trace_fd, second, second_size)
    # Release: the next holder appends after this record.
    store_release_u32(&trace_lock, 0)


cdef int _take(int which, i64 *limit, bint *torn) noexcept nogil:
    cdef i64 argument
    cdef int action = failpoint_take(which, &argument)
    if action == ACTION_SHORT or action == ACTION_TORN:
        limit[0] = argument
        if action == ACTION_TORN:
            torn[0] = True
        return 0
    return failpoint_perform(action, argument)


cdef int _enter(int which, i64 *limit, bint *torn) noexcept nogil:
    """Pass the failpoints of one call: the errno it fails with, and for a write the bytes it may transfer."""
    cdef int error, specific
    limit[0] = NO_LIMIT
    torn[0] = False
    if not failpoint_armed():
        return 0
    error = _take(FP_FILE_ANY, limit, torn)
    specific = _take(which, limit, torn)
    return specific if specific else error


cdef int _pass(int which) noexcept nogil:
    cdef i64 limit
    cdef bint torn
    return _enter(which, &limit, &torn)


cdef i64 file_open(int directory_fd, const char *name, int flags) noexcept nogil:
    cdef int error = _pass(FP_FILE_OPEN)
    cdef int fd
    if error:
        return -error
    while True:
        fd = occ_openat(directory_fd, name, flags)
        if fd >= 0:
            break
        if errno != EINTR:
            return -errno
    _trace(TRACE_OPEN, fd, flags, name, strlen(name), &directory_fd, sizeof(int))
    return fd


cdef i64 file_close(int fd) noexcept nogil:
    _trace(TRACE_CLOSE, fd, 0, NULL, 0, NULL, 0)
    # Never repeated: after any result, EINTR included, Linux has released the descriptor.
    return -errno if c_close(fd) else 0


cdef i64 file_size(int fd) noexcept nogil:
    cdef i64 size = occ_file_size(fd)
    return -errno if size < 0 else size


cdef i64 file_read(int fd, u8 *into, u64 size, u64 offset) noexcept nogil:
    cdef int error = _pass(FP_FILE_READ)
    cdef i64 count, done = 0
    if error:
        return -error
    while <u64>done < size:
        count = c_pread(fd, into + done, size - done, offset + done)
        if count < 0:
            if errno == EINTR:
                continue
            return -errno
        if count == 0:
            break
        done += count
    return done


cdef i64 _transfer(int fd, u8 *map, const u8 *data, u64 size, u64 offset) noexcept nogil:
    """Write all of `data`: with pwrite if `map` is NULL, else by a guarded copy to `map`."""
    cdef u64 done = 0
    cdef i64 count, limit
    cdef bint torn, copied = True
    cdef int error
    while done < size:
        error = _enter(FP_FILE_WRITE, &limit, &torn)
        if error:
            return -error
        count = size - done
        if count > limit:
            count = limit
        if map != NULL:
            copied = guarded_copy(map + done, data + done, count)
        else:
            count = c_pwrite(fd, data + done, count, offset + done)
            if count < 0:
                if errno == EINTR:
                    continue
                return -errno
        if torn:
            failpoint_perform(ACTION_KILL, 0)
        if not copied:
            return -EFAULT
        if count == 0:
            return -ENOSPC      # a file that takes no byte will not take one the next time either
        _trace(TRACE_WRITE, fd, offset + done, data + done, count, NULL, 0)
        done += count
    return done


cdef i64 file_write(int fd, const u8 *data, u64 size, u64 offset) noexcept nogil:
    return _transfer(fd, NULL, data, size, offset)


cdef i64 file_store(int fd, u8 *map, const u8 *data, u64 size, u64 offset) noexcept nogil:
    return _transfer(fd, map, data, size, offset)


cdef u8 *file_map(int fd, u64 *offset, u64 *size) noexcept nogil:
    cdef u64 rest = offset[0] & <u64>(c_getpagesize() - 1)
    offset[0] -= rest
    size[0] += rest
    return <u8 *>occ_map(fd, offset[0], size[0])


cdef void file_unmap(u8 *map, u64 size) noexcept nogil:
    c_munmap(map, size)


cdef i64 _sync(int fd, int failpoint, bint data_only, int traced) noexcept nogil:
    cdef int error = _pass(failpoint)
    if error:
        return -error
    while c_fdatasync(fd) if data_only else c_fsync(fd):
        if errno != EINTR:
            return -errno
    _trace(traced, fd, data_only, NULL, 0, NULL, 0)
    return 0


cdef i64 file_sync(int fd) noexcept nogil:
    return _sync(fd, FP_FILE_SYNC, False, TRACE_SYNC)


cdef i64 file_datasync(int fd) noexcept nogil:
    return _sync(fd, FP_FILE_SYNC, True, TRACE_SYNC)


cdef i64 file_sync_directory(int fd) noexcept nogil:
    return _sync(fd, FP_FILE_DIRECTORY_SYNC, False, TRACE_DIRECTORY_SYNC)


cdef i64 file_truncate(int fd, u64 size) noexcept nogil:
    cdef int error = _pass(FP_FILE_TRUNCATE)
    if error:
        return -error
    while c_ftruncate(fd, size):
        if errno != EINTR:
            return -errno
    _trace(TRACE_TRUNCATE, fd, size, NULL, 0, NULL, 0)
    return 0


cdef i64 file_allocate(int fd, u64 offset, u64 size) noexcept nogil:
    cdef int error = _pass(FP_FILE_ALLOCATE)
    if error:
        return -error
    while c_fallocate(fd, 0, offset, size):
        if errno != EINTR:
            return -errno
    _trace(TRACE_ALLOCATE, fd, offset + size, NULL, 0, NULL, 0)
    return 0


cdef i64 file_rename(int directory_fd, const char *old, const char *new) noexcept nogil:
    cdef int error = _pass(FP_FILE_RENAME)
    if error:
        return -error
    if c_renameat(directory_fd, old, directory_fd, new):
        return -errno
    _trace(TRACE_RENAME, directory_fd, 0, old, strlen(old), new, strlen(new))
    return 0


cdef i64 file_unlink(int directory_fd, const char *name) noexcept nogil:
    cdef int error = _pass(FP_FILE_UNLINK)
    if error:
        return -error
    if c_unlinkat(directory_fd, name, 0):
        return -errno
    _trace(TRACE_UNLINK, directory_fd, 0, name, strlen(name), NULL, 0)
    return 0


cdef i64 file_mkdir(int directory_fd, const char *name) noexcept nogil:
    cdef int error = _pass(FP_FILE_MKDIR)
    if error:
        return -error
    if c_mkdirat(directory_fd, name, 0o700):
        return -errno
    _trace(TRACE_MKDIR, directory_fd, 0, name, strlen(name), NULL, 0)
    return 0


# --- the same for Python: `files.py` is the only caller ---------------------------------------------------

cdef i64 _checked(i64 result, object name=None) except -1:
    if result < 0:
        if name is None:
            raise OSError(<int>-result, _os.strerror(<int>-result))
        raise OSError(<int>-result, _os.strerror(<int>-result), _os.fsdecode(name))
    return result


def open_at(int directory_fd, bytes name, int flags) -> int:
    """openat with O_CLOEXEC and mode 0600."""
    cdef const char *text = name
    cdef i64 result
    with nogil:
        result = file_open(directory_fd, text, flags)
    return _checked(result, name)


def close(int fd) -> None:
    file_close(fd)


def size(int fd) -> int:
    return _checked(file_size(fd))


def read_at(int fd, Py_ssize_t count, i64 offset) -> bytes:
    """Up to `count` bytes; fewer only at the end of the file."""
    cdef bytes result
    cdef i64 done
    cdef i64 present = _checked(file_size(fd)) - offset
    cdef u8 *into
    if count < 0 or offset < 0:
        raise ValueError("negative count or offset")
    count = max(min(<i64>count, present), 0)
    buffer = bytearray(count)
    cdef u8[::1] view
    if count == 0:
        return b""
    view = buffer
    into = &view[0]
    with nogil:
        done = file_read(fd, into, count, offset)
    _checked(done)
    return bytes(buffer[:done])


def write_at(int fd, const u8[::1] data, i64 offset) -> None:
    """All of `data`, or OSError with perhaps a part of it written."""
    cdef i64 result
    cdef const u8 *start
    cdef u64 count = data.shape[0]
    if count == 0:
        return
    start = &data[0]
    with nogil:
        result = file_write(fd, start, count, offset)
    _checked(result)


def sync(int fd) -> None:
    cdef i64 result
    with nogil:
        result = file_sync(fd)
    _checked(result)


def sync_directory(int fd) -> None:
    cdef i64 result
    with nogil:
        result = file_sync_directory(fd)
    _checked(result)


def truncate(int fd, u64 size) -> None:
    cdef i64 result
    with nogil:
        result = file_truncate(fd, size)
    _checked(result)


def rename(int directory_fd, bytes old, bytes new) -> None:
    _checked(file_rename(directory_fd, old, new), old)


def unlink(int directory_fd, bytes name) -> None:
    _checked(file_unlink(directory_fd, name), name)


def mkdir(int directory_fd, bytes name) -> None:
    _checked(file_mkdir(directory_fd, name), name)


def trace_start(path) -> None:
    """Record every call from here on, appended to the file at `path` (which is outside the database)."""
    global trace_fd
    trace_stop()
    trace_fd = _os.open(path, _os.O_WRONLY | _os.O_CREAT | _os.O_APPEND | _os.O_CLOEXEC, 0o600)


def trace_stop() -> None:
    global trace_fd
    if trace_fd >= 0:
        _os.close(trace_fd)
    trace_fd = -1


def trace_mark(bytes note) -> None:
    """Put a note among the recorded calls, such as "version 7 is acknowledged"."""
    cdef const char *text = note
    _trace(TRACE_MARK, -1, 0, text, len(note), NULL, 0)


if _os.environ.get("OCCAMDB_FILE_TRACE"):
    trace_start(_os.environ["OCCAMDB_FILE_TRACE"])
