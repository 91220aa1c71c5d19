"""The log appender: entries are encoded into a private buffer and written in one piece a batch.

One WalAppender belongs to the commit thread. docs/log-format.md describes the bytes.

A batch that need not be synced is not written by a system call but copied into a *window*: a mapping of the part of
the segment that is allocated ahead. That puts the same bytes into the same page cache, so they survive the death of
every process just as well and the next fdatasync covers them, for a third of what a write costs (on ext4 0.76 us
for 200 bytes, 0.17 copied, page faults included). The copy goes front to back, so that a process killed in the middle
of it leaves a prefix, as a write does. Only allocated bytes are ever touched, so a full disk is met by the allocation
and the write that then takes the copy's place. Where even allocated bytes may find no room (btrfs, a reflinked segment
on xfs) the copy fails instead of ending the process (`_guarded_copy`): the batch is written by a call, whose error is
the disk's true word, and this segment gets no window again.

Invariants:
1. `position` is past the last byte of the last batch that was written whole; whatever a failed write left
   behind it is cut off, and the cut synced, before anybody is told, or the appender is poisoned. What comes
   next is written into a new segment: had it the same seed and place as the refused batch, a power loss could
   leave sectors of both that form a valid log of transactions which never followed each other.
2. `synced` is at most `position`, but between the fdatasync of a batch that waits for it and the store that
   takes this batch into `position`. It grows only after fdatasync succeeded. A failed sync poisons the
   appender for good and is never repeated: the kernel may have dropped the dirty pages it could not write.
3. A new segment gets its final name only when its header is on disk, and only after everything in the old
   segment is on disk. So a named segment always has a valid header, and only the last one can have a torn tail.
4. Entries' checksums are seeded with segment and position: a zeroed, moved or doubled entry never passes.
5. The window lies within the first `allocated` bytes of the current segment: it is closed before these become fewer.
6. There is a window only while the guard against SIGBUS is in place.
7. Three words cross threads. `poison_errno`, set by whichever thread syncs (release), is flag and reason in
   one word, so no thread can see the flag without the reason. `position` is raised by the commit thread
   (release) after the batch's bytes are in the file or its mapping, so a sync in another thread (acquire)
   vouches for no byte that it does not see. `synced` is raised under `lock`; a reader who sees an older value
   only takes less for synced. Everything else belongs to the commit thread.
"""

from libc.errno cimport EFAULT, EINVAL, EIO, ENOMEM
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset
from posix.fcntl cimport O_CREAT, O_RDWR, O_TRUNC

from ...ipc._atomics cimport (
    cas_u32, clock_realtime_ns, i64, load_acquire_u32, load_acquire_u64, load_relaxed_u64, store_relaxed_u64,
    store_release_u32, store_release_u64, u8, u32, u64,
)
from ..disk._crc32c cimport crc32c
from ..disk._failpoints cimport (
    FP_WAL_AFTER_ROTATE, FP_WAL_AFTER_SYNC, FP_WAL_AFTER_WRITE, FP_WAL_BEFORE_SYNC, FP_WAL_BEFORE_WRITE,
    FP_WAL_ROTATE, FP_WAL_ROTATE_RENAME, failpoint_armed, failpoint_hit,
)
from ..disk._files cimport (
    file_allocate, file_close, file_datasync, file_map, file_open, file_rename, file_store, file_sync,
    file_sync_directory, file_truncate, file_unlink, file_unmap, file_write,
)
from ..disk._guarded_copy cimport guard_in_place, guard_install

import os as _os

cdef extern from "<unistd.h>" nogil:
    int usleep(unsigned int microseconds)

cdef enum:
    BUFFER_SIZE = 1 << 20
    BUFFER_KEEP = 16 << 20          # a buffer grown beyond this by one huge batch is given back
    ALLOCATE_STEP = 4 << 20
    WINDOW_MAX = 2 * ALLOCATE_STEP
    ROTATE_RETRY = 1 << 20          # bytes to append before a rotation that failed is tried again

cdef u64 NOT_OPEN = <u64>-1

FORMAT_VERSION = 1
MAGIC = b"OCCAMLOG"
HEADER_SIZE = WAL_HEADER_SIZE


cdef u32 entry_crc(u32 seed, u64 position, const u8 *entry, u32 length) noexcept nogil:
    cdef u64 place[2]
    place[0] = position
    place[1] = length
    return crc32c(crc32c(seed, <const u8 *>place, 16), entry + ENTRY_HEADER_SIZE, length)


cdef class WalAppender:
    """Appends batches of whole transactions to the log.

    Made by `wal_writer.open_appender` after recovery; the commit thread is then its only user, but for
    `sync_in_background`. The methods with Python names serve tests and tools.
    """

    def __cinit__(self):
        self.fd = -1
        self.directory_fd = -1
        self.transaction_start = NOT_OPEN

    def __init__(self, int directory_fd, bytes database_id, u64 incarnation, u64 version, u64 previous_version,
                 u64 segment_size):
        """Start a new segment. Takes over `directory_fd` (of wal/).

        Args:
          version: the version the database stands at; the next transaction is version + 1.
          previous_version: the last version in the log so far (`version`, unless versions were skipped).

        Raises:
          OSError: the segment could not be made; nothing was left under a segment's name.
        """
        cdef int error
        if len(database_id) != 16:
            raise ValueError("a database id has 16 bytes")
        self.directory_fd = directory_fd
        memcpy(self.database_id, <const u8 *>database_id, 16)
        self.incarnation = incarnation
        self.next_version = version + 1
        self.written_version = version
        self.segment_size = max(segment_size, <u64>4096)
        self.capacity = BUFFER_SIZE
        self.buffer = <u8 *>malloc(self.capacity)
        if self.buffer == NULL:
            raise MemoryError
        guard_install()
        with nogil:
            error = self._create_segment(previous_version, &self.fd, &self.seed)
        if error:
            raise OSError(error, f"{_os.strerror(error)} while making a log segment")
        self._enter_segment()

    def __dealloc__(self):
        free(self.buffer)
        self._close_window()
        if self.fd >= 0:
            file_close(self.fd)
        if self.directory_fd >= 0:
            file_close(self.directory_fd)

    cdef void _enter_segment(self) noexcept nogil:
        self.first_version = self.next_version
        # Relaxed, both: only `sync_aside` reads them elsewhere, under the lock that is held here but at the start.
        store_relaxed_u64(&self.position, WAL_HEADER_SIZE)
        store_relaxed_u64(&self.synced, WAL_HEADER_SIZE)
        self.cut = False
        self.allocated = WAL_HEADER_SIZE
        self.unmappable = False
        self.rotate_at = self.segment_size

    # --- encoding -------------------------------------------------------------------------------------------

    cdef u8 *_entry(self, u8 type, u64 body_size) noexcept nogil:
        """Room for one entry; returns where its body goes, NULL when memory is out."""
        cdef u64 need = self.used + ENTRY_HEADER_SIZE + 1 + body_size
        cdef u64 capacity = self.capacity
        cdef u8 *grown
        cdef u8 *entry
        cdef u32 length
        if body_size > <u64>0xFFFFFFF0U:
            return NULL
        if need > capacity:
            # Doubling, but not beyond the need by more than BUFFER_KEEP: a batch may be as large as memory allows.
            while capacity < need:
                capacity += min(capacity, <u64>BUFFER_KEEP)
            grown = <u8 *>realloc(self.buffer, capacity)
            if grown == NULL:
                return NULL
            self.buffer = grown
            self.capacity = capacity
        entry = self.buffer + self.used
        length = <u32>(body_size + 1)
        memcpy(entry, &length, 4)
        entry[ENTRY_HEADER_SIZE] = type
        return entry + ENTRY_HEADER_SIZE + 1

    cdef void _seal(self, u8 *body) noexcept nogil:
        """Fill in the checksum of the entry at the end of the buffer and take it in."""
        cdef u8 *entry = body - ENTRY_HEADER_SIZE - 1
        cdef u32 length, crc
        memcpy(&length, entry, 4)
        crc = entry_crc(self.seed, self.position + self.used, entry, length)
        memcpy(entry + 4, &crc, 4)
        self.used += ENTRY_HEADER_SIZE + length
        self.entry_count += 1

    cdef int begin_transaction(self, u64 session, u64 sequence, const u8 *run_id, i64 timestamp) noexcept nogil:
        cdef BeginBody head
        cdef u8 *body
        cdef int error = self._poison_now()
        if error:
            return error
        if self.transaction_start != NOT_OPEN:
            return EINVAL
        # Only with an empty buffer: entries know their position, so a batch cannot move to another segment.
        if self.used == 0 and (self.cut or self.position >= self.rotate_at):
            error = self._rotate()
            # A segment that is only long serves on; one with a refused batch behind `position` takes nothing more.
            if error and (self.cut or self._poison_now()):
                return error
        head.session = session
        head.sequence = sequence
        memcpy(head.run_id, run_id, 16)
        head.timestamp = timestamp
        # Relaxed: sync_aside may raise it in this moment; an older value only vouches for less.
        head.synced = load_relaxed_u64(&self.synced)
        body = self._entry(ENTRY_BEGIN, sizeof(BeginBody))
        if body == NULL:
            return ENOMEM
        memcpy(body, &head, sizeof(BeginBody))
        self.transaction_start = self.used
        self.session = session
        self.sequence = sequence
        self._seal(body)
        self.entry_count = 0
        return 0

    cdef int add_write(self, const u8 *key, u32 key_size, const u8 *value, u32 value_size, u64 version,
                       i64 expires_at) noexcept nogil:
        cdef WriteBody head
        cdef u8 *body = self._entry(ENTRY_WRITE, sizeof(WriteBody) + <u64>key_size + value_size)
        if body == NULL:
            return ENOMEM
        head.version = version
        head.expires_at = expires_at
        head.key_size = key_size
        head.value_size = value_size
        memcpy(body, &head, sizeof(WriteBody))
        memcpy(body + sizeof(WriteBody), key, key_size)
        if value_size:
            memcpy(body + sizeof(WriteBody) + key_size, value, value_size)
        self._seal(body)
        return 0

    cdef int add_expiry(self, const u8 *key, u32 key_size, u64 version, u64 removed) noexcept nogil:
        cdef DeleteBody head
        cdef u8 *body = self._entry(ENTRY_DELETE, sizeof(DeleteBody) + <u64>key_size)
        if body == NULL:
            return ENOMEM
        head.version = version
        head.removed = removed
        head.key_size = key_size
        memcpy(body, &head, sizeof(DeleteBody))
        memcpy(body + sizeof(DeleteBody), key, key_size)
        self._seal(body)
        return 0

    cdef int add_delete(self, const u8 *key, u32 key_size, u64 version) noexcept nogil:
        return self.add_expiry(key, key_size, version, 0)

    cdef int add_delete_range(self, const u8 *start, u32 start_size, const u8 *end, u32 end_size,
                              u64 version) noexcept nogil:
        cdef RangeBody head
        cdef u8 *body = self._entry(ENTRY_DELETE_RANGE, sizeof(RangeBody) + <u64>start_size + end_size)
        if body == NULL:
            return ENOMEM
        head.version = version
        head.start_size = start_size
        head.end_size = end_size
        memcpy(body, &head, sizeof(RangeBody))
        if start_size:
            memcpy(body + sizeof(RangeBody), start, start_size)
        if end_size:
            memcpy(body + sizeof(RangeBody) + start_size, end, end_size)
        self._seal(body)
        return 0

    cdef int end_transaction(self, u64 commit_version) noexcept nogil:
        cdef CommitBody head
        cdef u8 *body
        # The reader refuses any other order; refused here before anything is acknowledged.
        if self.transaction_start == NOT_OPEN or commit_version != self.next_version:
            return EINVAL
        body = self._entry(ENTRY_COMMIT, sizeof(CommitBody))
        if body == NULL:
            return ENOMEM
        head.session = self.session
        head.sequence = self.sequence
        head.version = commit_version
        head.count = self.entry_count
        memcpy(body, &head, sizeof(CommitBody))
        self._seal(body)
        self.transaction_start = NOT_OPEN
        self.next_version = commit_version + 1
        return 0

    cdef u64 mark(self) noexcept nogil:
        return self.used

    cdef void discard_to(self, u64 mark) noexcept nogil:
        """Drop what came after `mark`: one unfinished transaction, or all of the batch (mark 0)."""
        self.used = mark
        self.transaction_start = NOT_OPEN
        if mark == 0:
            self.next_version = self.written_version + 1

    cdef void _drop_batch(self) noexcept nogil:
        self.discard_to(0)

    # --- writing --------------------------------------------------------------------------------------------

    cdef int _poison_now(self) noexcept nogil:
        """The errno that ended the appending; 0: the log is sound."""
        # Acquire: pairs with the release in `_poison`.
        return <int>load_acquire_u32(&self.poison_errno)

    cdef int _poison(self, int error) noexcept nogil:
        """End the appending for good. Any thread that syncs."""
        if error == 0:
            error = EIO                 # 0 would say that all is well
        # Release: what led to it comes before it.
        store_release_u32(&self.poison_errno, <u32>error)
        return error

    cdef void _preallocate(self, u64 size) noexcept nogil:
        """Keep the file longer than its content, so that fdatasync has no file size to record.

        A failure costs only speed: the write itself will say when there is no room.
        """
        cdef u64 step
        if self.position + size <= self.allocated:
            return
        step = self.segment_size if self.segment_size < ALLOCATE_STEP else ALLOCATE_STEP
        if file_allocate(self.fd, self.position, size + step) == 0:
            self.allocated = self.position + size + step
            self._open_window()

    cdef void _open_window(self) noexcept nogil:
        """Map what was allocated ahead. A failure costs only speed."""
        self._close_window()
        if self.unmappable or not guard_in_place():
            return
        self.window_start = self.position
        self.window_size = min(self.allocated - self.position, <u64>WINDOW_MAX)
        self.window = file_map(self.fd, &self.window_start, &self.window_size)

    cdef void _close_window(self) noexcept nogil:
        if self.window != NULL:
            file_unmap(self.window, self.window_size)
            self.window = NULL

    cdef i64 _write(self, bint sync) noexcept nogil:
        """Put the buffer at `position`."""
        cdef u64 end = self.position + self.used
        cdef i64 result
        # A sync right after it takes the page's write access away, and the next copy would fault: then a write is cheaper.
        if sync or self.window == NULL or self.position < self.window_start or end > self.window_start + self.window_size:
            return file_write(self.fd, self.buffer, self.used, self.position)
        result = file_store(self.fd, self.window + (self.position - self.window_start), self.buffer, self.used, self.position)
        if result != -EFAULT:
            self.copy_count += 1
            return result
        # Whatever part of it was copied is written over with the same bytes, or cut off with the batch.
        self._close_window()
        self.unmappable = True
        self.fault_count += 1
        return file_write(self.fd, self.buffer, self.used, self.position)

    cdef int _cut_back(self) noexcept nogil:
        """Cut off what a failed batch may have left behind `position`."""
        self._close_window()
        if file_truncate(self.fd, self.position) < 0:
            # What is there now may be found by a recovery: nobody may say "refused".
            self.uncertain = True
            return self._poison(EIO)
        self.allocated = self.position
        self.cut = True
        # A refusal is final only when a power loss cannot bring the batch back. If this sync fails, the log is poisoned
        # and a power loss can: that is the state which every failed sync leaves.
        if not self._poison_now():
            self._sync_alone(self.position)
        return 0

    cdef int _sync_to(self, u64 position) noexcept nogil:
        """fdatasync the current segment, of which `position` bytes are written."""
        cdef i64 result = 0
        if failpoint_armed():
            result = -failpoint_hit(FP_WAL_BEFORE_SYNC)
        if result == 0:
            # Commits up to here are acknowledged as surviving a power loss once this returns.
            result = file_datasync(self.fd)
        if result < 0:
            return self._poison(<int>-result)
        # Relaxed: only the commit thread or sync_aside writes it here, and each vouches for its own bytes.
        if load_relaxed_u64(&self.synced) < position:
            store_relaxed_u64(&self.synced, position)
        self.sync_count += 1
        if failpoint_armed():
            failpoint_hit(FP_WAL_AFTER_SYNC)
        return 0

    cdef int flush(self, bint sync) noexcept nogil:
        cdef i64 result = self._poison_now()
        if result:
            self._drop_batch()
            return <int>result
        if self.transaction_start != NOT_OPEN:
            return EINVAL
        if self.used == 0:
            return self.sync() if sync else 0
        if failpoint_armed():
            result = -failpoint_hit(FP_WAL_BEFORE_WRITE)
        if result == 0:
            self._preallocate(self.used)
            result = self._write(sync)
        if result >= 0 and failpoint_armed():
            result = -failpoint_hit(FP_WAL_AFTER_WRITE)
        if result >= 0 and sync:
            result = -self._sync_alone(self.position + self.used)
        if result < 0:
            self._cut_back()
            self._drop_batch()
            return <int>-result
        # Release: the copy into the window comes first. sync_aside takes all below `position` for written.
        store_release_u64(&self.position, self.position + self.used)
        self.total_bytes += self.used
        self.flush_count += 1
        self.written_version = self.next_version - 1
        self.used = 0
        if self.capacity > BUFFER_KEEP:
            self._shrink_buffer()
        return 0

    cdef void _shrink_buffer(self) noexcept nogil:
        cdef u8 *smaller = <u8 *>realloc(self.buffer, BUFFER_SIZE)
        if smaller != NULL:
            self.buffer = smaller
            self.capacity = BUFFER_SIZE

    cdef bint needs_sync(self) noexcept nogil:
        return load_relaxed_u64(&self.synced) < self.position

    cdef int sync(self) noexcept nogil:
        cdef int error = self._poison_now()
        if error or not self.needs_sync():
            return error
        return self._sync_alone(self.position)

    cdef int _sync_alone(self, u64 position) noexcept nogil:
        """`_sync_to` while no sync_aside is under way.

        The kernel reports a failed write-back once for each open file: of two syncs at the same time one may
        succeed although the other learns that pages were lost. So the second starts only when it can see that.
        """
        cdef int error
        while not cas_u32(&self.lock, 0, 1):
            usleep(20)      # the other fdatasync is at work on the same pages; there is nothing to win by spinning
        error = self._poison_now()
        if error == 0:
            error = self._sync_to(position)
        # Release: `poison_errno` is settled before the next sync starts.
        store_release_u32(&self.lock, 0)
        return error

    cdef int sync_aside(self, bint wait) noexcept nogil:
        cdef int error
        cdef u64 covered
        # Held by a sync under way, which may have begun before the caller's bytes were written, or by a rotation,
        # which syncs the old segment itself.
        while not cas_u32(&self.lock, 0, 1):
            if not wait:
                return 0
            usleep(20)
        # Acquire: the bytes below it are in the page cache, copied ones too. Those written after this load may be
        # synced as well, but are not vouched for.
        covered = load_acquire_u64(&self.position)
        error = self._poison_now()
        if error == 0 and load_relaxed_u64(&self.synced) < covered:
            error = self._sync_to(covered)
        # Release: `fd` is no longer used when the commit thread can take the lock.
        store_release_u32(&self.lock, 0)
        return error

    # --- segments -------------------------------------------------------------------------------------------

    cdef int _create_segment(self, u64 previous_version, int *fd, u32 *seed) noexcept nogil:
        """Make the segment for `next_version`: 0, or errno with nothing under its final name."""
        cdef SegmentHeader header
        cdef char name[32]
        cdef char temporary[40]
        cdef i64 result
        snprintf(name, sizeof(name), "%020llu.log", <unsigned long long>self.next_version)
        snprintf(temporary, sizeof(temporary), "%s.new", name)
        memset(&header, 0, sizeof(header))
        memcpy(header.magic, b"OCCAMLOG", 8)
        header.format_version = 1
        header.header_size = WAL_HEADER_SIZE
        memcpy(header.database_id, self.database_id, 16)
        header.first_version = self.next_version
        header.previous_version = previous_version
        header.incarnation = self.incarnation
        header.created_at = clock_realtime_ns()
        header.crc = crc32c(0, <const u8 *>&header, sizeof(header) - 4)
        while header.crc == self.seed:
            # The clock may stand still and checksums may collide, but the last segment's entries must not be valid here.
            header.created_at += 1
            header.crc = crc32c(0, <const u8 *>&header, sizeof(header) - 4)
        result = file_open(self.directory_fd, temporary, O_RDWR | O_CREAT | O_TRUNC)
        if result < 0:
            return <int>-result
        fd[0] = <int>result
        result = file_write(fd[0], <const u8 *>&header, sizeof(header), 0)
        if result >= 0:
            # The name must never appear before the header is on disk: a named segment is a valid one.
            result = file_sync(fd[0])
            if result < 0:
                self._poison(<int>-result)
        if result >= 0 and failpoint_armed():
            result = -failpoint_hit(FP_WAL_ROTATE_RENAME)
        if result >= 0:
            result = file_rename(self.directory_fd, temporary, name)
        if result < 0:
            file_unlink(self.directory_fd, temporary)
        else:
            # Commits synced in this segment are lost with its name if the directory is not on disk too.
            result = file_sync_directory(self.directory_fd)
            if result < 0:
                self._poison(<int>-result)
        if result < 0:
            file_close(fd[0])
            fd[0] = -1
            return <int>-result
        seed[0] = header.crc
        self.previous_version = previous_version
        return 0

    cdef int _rotate(self) noexcept nogil:
        """Go on in a new segment. On an error other than a failed sync, stay in the old one and try later.

        A segment without a transaction gives its name to the new one, which replaces it and follows what it followed.
        """
        cdef int error = 0, fd = -1
        cdef u32 seed = 0
        cdef u64 previous = self.previous_version if self.position == WAL_HEADER_SIZE else self.written_version
        self.rotate_at = self.position + ROTATE_RETRY
        while not cas_u32(&self.lock, 0, 1):
            if not self.cut:
                self.rotate_at = self.position
                return 0
            usleep(20)      # nothing may be written before, so wait for the sync under way
        # All of the old segment is on disk before a later one exists: only the last may have a torn tail.
        error = self._poison_now()
        if error == 0 and self.needs_sync():
            error = self._sync_to(self.position)
        if error == 0 and failpoint_armed():
            error = failpoint_hit(FP_WAL_ROTATE)
        if error == 0:
            error = self._create_segment(previous, &fd, &seed)
        if error == 0:
            self._close_window()
            # Gives back the preallocated space; if it fails, zeros stay behind the entries and are ignored.
            file_truncate(self.fd, self.position)
            file_close(self.fd)
            self.fd = fd
            self.seed = seed
            self._enter_segment()
            self.rotate_count += 1
            if failpoint_armed():
                failpoint_hit(FP_WAL_AFTER_ROTATE)
        # Release: `fd` is settled before sync_aside may use it.
        store_release_u32(&self.lock, 0)
        return error

    # --- for Python -----------------------------------------------------------------------------------------

    cdef _raise(self, int error):
        if error:
            raise OSError(error, _os.strerror(error))

    def append_transaction(self, u64 session, u64 sequence, bytes run_id, i64 timestamp, u64 version, operations):
        """Encode one transaction: operations are ("write", key, value, expires_at), ("delete", key, removed) and
        ("delete_range", start, end)."""
        cdef u64 mark = self.used
        cdef bytes key, value
        if len(run_id) != 16:
            raise ValueError("a run id has 16 bytes")
        self._raise(self.begin_transaction(session, sequence, run_id, timestamp))
        for operation in operations:
            key = operation[1]
            if operation[0] == "write":
                value = operation[2]
                error = self.add_write(key, len(key), value, len(value), version, operation[3])
            elif operation[0] == "delete":
                error = self.add_expiry(key, len(key), version, operation[2])
            else:
                value = operation[2]
                error = self.add_delete_range(key, len(key), value, len(value), version)
            if error:
                self.discard_to(mark)
                self._raise(error)
        error = self.end_transaction(version)
        if error:
            self.discard_to(mark)
        self._raise(error)

    def flush_batch(self, bint sync):
        """`flush` for Python; raises OSError with nothing of the batch left in the log."""
        cdef int error
        with nogil:
            error = self.flush(sync)
        self._raise(error)

    def sync_in_background(self, bint wait=False):
        """fdatasync what is written, without the GIL, while the commit thread appends. Any thread. Raises OSError.

        Args:
          wait: for a sync or rotation under way; else that is taken to do, and this may return before it has. With it,
            everything whose flush had returned before the call is on disk, whatever segment it is in.
        """
        cdef int error
        with nogil:
            error = self.sync_aside(wait)
        self._raise(error)

    def close(self):
        """Sync and close the log. Call it after the commit thread has ended.

        Raises:
          OSError: the last sync failed: commits of durability "standard" may not survive a power loss.
        """
        cdef int error
        if self.fd < 0:
            return
        with nogil:
            self._close_window()
            error = self.sync()
            if not self._poison_now():
                # Gives back the preallocated space; zeros that stay are ignored by recovery.
                file_truncate(self.fd, self.position)
            file_close(self.fd)
            file_close(self.directory_fd)
        self.fd = -1
        self.directory_fd = -1
        self._poison(9)
        self._raise(error)

    def abandon(self):
        """Close the files and leave the log as a killed process would."""
        self._close_window()
        if self.fd >= 0:
            file_close(self.fd)
            file_close(self.directory_fd)
        self.fd = -1
        self.directory_fd = -1
        self._poison(9)

    def statistics(self) -> dict:
        """Counters for `db.stats()`: bytes and calls since the log was opened. Any thread; not a snapshot."""
        return {
            "log_bytes": self.total_bytes,
            "log_flushes": self.flush_count,
            "log_copies": self.copy_count,
            "log_copy_faults": self.fault_count,
            "log_syncs": self.sync_count,
            "log_rotations": self.rotate_count,
            "log_segment_first_version": self.first_version,
            "log_segment_bytes": self.position,
            "log_segment_synced": self.synced,
            "log_written_version": self.written_version,
            "log_poisoned": self._poison_now() != 0,
            "log_uncertain": bool(self.uncertain),
            "log_errno": self._poison_now(),
        }
