"""System calls on files for compiled code. See `_files.pyx`. Results below zero are -errno."""

from ...ipc._atomics cimport i64, u8, u64

cdef i64 file_open(int directory_fd, const char *name, int flags) noexcept nogil
cdef i64 file_close(int fd) noexcept nogil
cdef i64 file_size(int fd) noexcept nogil
# Read up to `size` bytes; fewer only at the end of the file.
cdef i64 file_read(int fd, u8 *into, u64 size, u64 offset) noexcept nogil
# Write all or fail: short writes are continued, EINTR is repeated. After a failure part of it may be in the
# file.
cdef i64 file_write(int fd, const u8 *data, u64 size, u64 offset) noexcept nogil
# Map `size` bytes of a file from `offset` for file_store; both are widened to whole pages. NULL: not
# possible.
cdef u8 *file_map(int fd, u64 *offset, u64 *size) noexcept nogil
cdef void file_unmap(u8 *map, u64 size) noexcept nogil
# file_write without a system call, front to back. `map`: where the file's `offset` lies; all of it must be
# allocated. -EFAULT: the file system had no room for a page of it all the same (_guarded_copy); a prefix may
# be in the file.
cdef i64 file_store(int fd, u8 *map, const u8 *data, u64 size, u64 offset) noexcept nogil
cdef i64 file_sync(int fd) noexcept nogil
cdef i64 file_datasync(int fd) noexcept nogil
cdef i64 file_sync_directory(int fd) noexcept nogil
cdef i64 file_truncate(int fd, u64 size) noexcept nogil
cdef i64 file_allocate(int fd, u64 offset, u64 size) noexcept nogil
cdef i64 file_rename(int directory_fd, const char *old, const char *new) noexcept nogil
cdef i64 file_unlink(int directory_fd, const char *name) noexcept nogil
cdef i64 file_mkdir(int directory_fd, const char *name) noexcept nogil
