"""The file of the segment that is appended to, with its mapped window. See `_segment_file.pyx`."""

from ...ipc._atomics cimport i64, u8, u32, u64

cdef struct SegmentFile:
    int fd                           # -1: closed
    u64 position                     # bytes of the file that hold whole transactions
    u64 allocated                    # the file is this long (zeros behind position)
    u64 synced                       # bytes known to be on disk
    u64 allocate_step                # bytes to allocate ahead
    u8 *window                       # a part of the file, mapped; NULL when there is none
    u64 window_start                 # its first byte
    u64 window_size
    bint unmappable                  # a copy into this file failed: no further window
    bint cut                         # a refused batch was cut off: the next one goes into a new segment
    bint uncertain                   # a failed batch could not be cut off: it may be there after a recovery
    u32 poison_errno                 # not 0: no append until the next opening. Acquire and release
    u32 lock                         # 1: held by the thread that syncs or changes `fd`
    u64 copy_count                   # batches that were copied into the window
    u64 fault_count                  # copies that the file system had no room for
    u64 sync_count

# "The commit thread" is the thread that appends. Functions that return an int return 0 or an errno.

# Go on with a new file whose header has `size` bytes, all on disk. The commit thread; holds the lock unless
# no other thread knows the file yet.
cdef void segment_file_enter(SegmentFile *f, int fd, u64 size) noexcept nogil
# Unmap the window and close the file. With `cut`, first give back what was allocated ahead; a failure of that
# leaves zeros, which recovery ignores. The commit thread, or any thread after it has ended. Holds the lock if
# others may sync.
cdef void segment_file_leave(SegmentFile *f, bint cut) noexcept nogil
# Put `size` bytes at `position`, then fdatasync if `sync`. On an errno the batch was cut off again
# (`uncertain` says when that could not be made sure). The commit thread.
cdef int segment_file_append(SegmentFile *f, const u8 *data, u64 size, bint sync) noexcept nogil
# The errno that ended the appending; 0: the log is sound. Any thread.
cdef int segment_file_poisoned(const SegmentFile *f) noexcept nogil
# End the appending for good; returns the errno. Any thread that syncs.
cdef int segment_file_poison(SegmentFile *f, int error) noexcept nogil
# Take or give back the right to sync and to change `fd`. try_lock returns whether it was taken.
cdef bint segment_file_try_lock(SegmentFile *f) noexcept nogil
cdef void segment_file_lock(SegmentFile *f) noexcept nogil
cdef void segment_file_unlock(SegmentFile *f) noexcept nogil
# Whether bytes below `position` may not be on disk. The commit thread, or with the lock held.
cdef bint segment_file_needs_sync(const SegmentFile *f) noexcept nogil
# fdatasync the file, of which `position` bytes are written. A failure poisons it. REQUIRES: the lock is held.
cdef int segment_file_sync_locked(SegmentFile *f, u64 position) noexcept nogil
# The same, taking the lock. The commit thread.
cdef int segment_file_sync(SegmentFile *f, u64 position) noexcept nogil
# fdatasync what is written while the commit thread appends. Any thread. With `wait`, waits for a sync or a
# rotation under way; without it, relies on that one.
cdef int segment_file_sync_aside(SegmentFile *f, bint wait) noexcept nogil
