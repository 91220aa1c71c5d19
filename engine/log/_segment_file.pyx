"""Writing batches into the file of the current segment, through a mapped window where that is cheaper.

A batch that need not be synced is not written by a system call but copied into a *window*: a mapping of the
part of the segment that is allocated ahead. That puts the same bytes into the same page cache, so they
survive the death of every process just as well, and the next fdatasync covers them. It costs a third of a
write (on ext4 0.17 us for 200 bytes, page faults included, against 0.76 us). The copy goes front to back, so
a process killed in the middle of it leaves a prefix, as a write does. Only allocated bytes are ever touched,
so a full disk is met by the allocation, and by the write that then takes the copy's place. On btrfs, and in a
reflinked segment on xfs, even allocated bytes may find no room. There the copy fails instead of ending the
process (`_guarded_copy`): the batch is written by a call, whose error tells what the disk says, and this
segment gets no window again.

Invariants:
1. `position` is past the last byte of the last batch that was written whole. What a failed write left behind
   it is cut off, and the cut synced, before anybody is told; if that fails, the file is poisoned.
2. `synced` is at most `position`, except between the fdatasync of a batch that waits for it and the store
   that takes this batch into `position`. It grows only after fdatasync succeeded. A failed sync poisons the
   file for good and is never repeated: the kernel may have dropped the dirty pages it could not write.
3. The window lies within the first `allocated` bytes of the file: it is closed before these become fewer.
4. There is a window only while the guard against SIGBUS is in place.
5. Three words cross threads. `poison_errno`, set by the thread that syncs (release), is flag and reason in
   one word, so no thread can see the flag without the reason. `position` is raised by the commit thread
   (release) after the batch's bytes are in the file or its mapping, so a sync in another thread (acquire)
   vouches for no byte that it does not see. `synced` is raised under `lock`; a reader that sees an older
   value only takes less for synced. Everything else belongs to the commit thread.
"""

from libc.errno cimport EFAULT, EIO

from ...ipc._atomics cimport (
    cas_u32, i64, load_acquire_u32, load_acquire_u64, load_relaxed_u64, store_relaxed_u64, store_release_u32,
    store_release_u64, u8, u32, u64,
)
from ..disk._failpoints cimport (
    FP_WAL_AFTER_SYNC, FP_WAL_AFTER_WRITE, FP_WAL_BEFORE_SYNC, FP_WAL_BEFORE_WRITE, failpoint_armed, failpoint_hit,
)
from ..disk._files cimport (
    file_allocate, file_close, file_datasync, file_map, file_store, file_truncate, file_unmap, file_write,
)
from ..disk._guarded_copy cimport guard_in_place

cdef extern from "<unistd.h>" nogil:
    int usleep(unsigned int microseconds)

cdef enum:
    WINDOW_MAX = 8 << 20


cdef void segment_file_enter(SegmentFile *f, int fd, u64 size) noexcept nogil:
    f.fd = fd
    # Relaxed, both: other threads read them only under the lock, which the caller holds.
    store_relaxed_u64(&f.position, size)
    store_relaxed_u64(&f.synced, size)
    f.cut = False
    f.allocated = size
    f.unmappable = False


cdef void segment_file_leave(SegmentFile *f, bint cut) noexcept nogil:
    _close_window(f)
    if f.fd < 0:
        return
    if cut:
        file_truncate(f.fd, f.position)
    file_close(f.fd)
    f.fd = -1


# --- writing ------------------------------------------------------------------------------------------------

cdef int segment_file_poisoned(const SegmentFile *f) noexcept nogil:
    # Acquire: pairs with the release in `segment_file_poison`.
    return <int>load_acquire_u32(&f.poison_errno)


cdef int segment_file_poison(SegmentFile *f, int error) noexcept nogil:
    if error == 0:
        error = EIO                 # 0 would say that all is well
    # Release: what led to it comes before it.
    store_release_u32(&f.poison_errno, <u32>error)
    return error


cdef void _open_window(SegmentFile *f) noexcept nogil:
    """Map what was allocated ahead. A failure costs only speed."""
    _close_window(f)
    if f.unmappable or not guard_in_place():
        return
    f.window_start = f.position
    f.window_size = min(f.allocated - f.position, <u64>WINDOW_MAX)
    f.window = file_map(f.fd, &f.window_start, &f.window_size)


cdef void _close_window(SegmentFile *f) noexcept nogil:
    if f.window != NULL:
        file_unmap(f.window, f.window_size)
        f.window = NULL


cdef void _preallocate(SegmentFile *f, u64 size) noexcept nogil:
    """Keep the file longer than its content, so that fdatasync has no file size to record.

    A failure costs only speed: the write itself will say when there is no room.
    """
    if f.position + size <= f.allocated:
        return
    if file_allocate(f.fd, f.position, size + f.allocate_step) == 0:
        f.allocated = f.position + size + f.allocate_step
        _open_window(f)


cdef i64 _put(SegmentFile *f, const u8 *data, u64 size, bint sync) noexcept nogil:
    """Put the batch at `position`."""
    cdef u64 end = f.position + size
    cdef i64 result
    # A sync takes the page's write access away, and the next copy would fault. So a batch that is synced is
    # written by a call.
    if sync or f.window == NULL or f.position < f.window_start or end > f.window_start + f.window_size:
        return file_write(f.fd, data, size, f.position)
    result = file_store(f.fd, f.window + (f.position - f.window_start), data, size, f.position)
    if result != -EFAULT:
        f.copy_count += 1
        return result
    # The part that was copied is written over with the same bytes, or cut off with the batch.
    _close_window(f)
    f.unmappable = True
    f.fault_count += 1
    return file_write(f.fd, data, size, f.position)


cdef void _cut_back(SegmentFile *f) noexcept nogil:
    """Cut off what a failed batch may have left behind `position`."""
    _close_window(f)
    if file_truncate(f.fd, f.position) < 0:
        # A recovery may find what is there now, so nobody may be told that the batch was refused.
        f.uncertain = True
        segment_file_poison(f, EIO)
        return
    f.allocated = f.position
    f.cut = True
    # A refusal is final only when a power loss cannot bring the batch back. If this sync fails, the log is
    # poisoned and a power loss can: that is the state which every failed sync leaves.
    if not segment_file_poisoned(f):
        segment_file_sync(f, f.position)


cdef int segment_file_append(SegmentFile *f, const u8 *data, u64 size, bint sync) noexcept nogil:
    cdef i64 result = 0
    if failpoint_armed():
        result = -failpoint_hit(FP_WAL_BEFORE_WRITE)
    if result == 0:
        _preallocate(f, size)
        result = _put(f, data, size, sync)
    if result >= 0 and failpoint_armed():
        result = -failpoint_hit(FP_WAL_AFTER_WRITE)
    if result >= 0 and sync:
        result = -segment_file_sync(f, f.position + size)
    if result < 0:
        _cut_back(f)
        return <int>-result
    # Release: the copy into the window comes first. A sync aside takes all below `position` for written.
    store_release_u64(&f.position, f.position + size)
    return 0


# --- syncing ------------------------------------------------------------------------------------------------

cdef bint segment_file_try_lock(SegmentFile *f) noexcept nogil:
    return cas_u32(&f.lock, 0, 1)


cdef void segment_file_lock(SegmentFile *f) noexcept nogil:
    while not cas_u32(&f.lock, 0, 1):
        # The other fdatasync works on the same pages, so spinning would gain nothing.
        usleep(20)


cdef void segment_file_unlock(SegmentFile *f) noexcept nogil:
    # Release: `poison_errno`, `synced` and `fd` are settled before the next thread takes the lock.
    store_release_u32(&f.lock, 0)


cdef bint segment_file_needs_sync(const SegmentFile *f) noexcept nogil:
    # Relaxed: an older value only means a sync that was not needed.
    return load_relaxed_u64(&f.synced) < f.position


cdef int segment_file_sync_locked(SegmentFile *f, u64 position) noexcept nogil:
    cdef i64 result = 0
    if failpoint_armed():
        result = -failpoint_hit(FP_WAL_BEFORE_SYNC)
    if result == 0:
        # Commits up to here are acknowledged as surviving a power loss once this returns.
        result = file_datasync(f.fd)
    if result < 0:
        return segment_file_poison(f, <int>-result)
    # Relaxed: only the holder of the lock writes it, and each vouches for its own bytes.
    if load_relaxed_u64(&f.synced) < position:
        store_relaxed_u64(&f.synced, position)
    f.sync_count += 1
    if failpoint_armed():
        failpoint_hit(FP_WAL_AFTER_SYNC)
    return 0


cdef int segment_file_sync(SegmentFile *f, u64 position) noexcept nogil:
    """Never two syncs at the same time.

    The kernel reports a failed write-back once for each open file: of two syncs at the same time one may
    succeed although the other learns that pages were lost. So the second starts only when it can see that.
    """
    cdef int error
    segment_file_lock(f)
    error = segment_file_poisoned(f)
    if error == 0:
        error = segment_file_sync_locked(f, position)
    segment_file_unlock(f)
    return error


cdef int segment_file_sync_aside(SegmentFile *f, bint wait) noexcept nogil:
    cdef int error
    cdef u64 covered
    # Held by a sync under way, which may have begun before the caller's bytes were written, or by a rotation,
    # which syncs the old segment itself.
    if not segment_file_try_lock(f):
        if not wait:
            return 0
        segment_file_lock(f)
    # Acquire: the bytes below it are in the page cache, copied ones too. Those written after this load may be
    # synced as well, but are not vouched for.
    covered = load_acquire_u64(&f.position)
    error = segment_file_poisoned(f)
    if error == 0 and load_relaxed_u64(&f.synced) < covered:
        error = segment_file_sync_locked(f, covered)
    segment_file_unlock(f)
    return error
