"""The log appender: batches of whole transactions, written in one piece each, in segments.

One WalAppender belongs to the commit thread. `_entries` encodes the batch, `_segment_file` writes it,
`_segments` makes the next file; this module decides when. docs/log-format.md describes the bytes.

Invariants, beside those of the three:
1. After a refused batch was cut off, what comes next is written into a new segment. If that had the seed and
   place of the refused batch, a power loss could leave sectors of both that form a valid log of transactions
   which never followed each other.
2. A new segment gets its name only after everything in the old segment is on disk. So only the last segment
   can have a torn tail.
3. `batch_position` is `file.position` whenever the buffer is empty.
"""

from libc.errno cimport EBADF, EINVAL
from libc.string cimport memcpy

from ...ipc._atomics cimport i64, load_relaxed_u64, u8, u64
from ..disk._failpoints cimport FP_WAL_AFTER_ROTATE, FP_WAL_ROTATE, failpoint_armed, failpoint_hit
from ..disk._files cimport file_close
from ..disk._guarded_copy cimport guard_install
from ._segment_file cimport (
    segment_file_append, segment_file_enter, segment_file_leave, segment_file_lock, segment_file_needs_sync,
    segment_file_poison, segment_file_poisoned, segment_file_sync, segment_file_sync_aside, segment_file_sync_locked,
    segment_file_try_lock, segment_file_unlock,
)
from ._segments cimport WAL_HEADER_SIZE, NewSegment, segment_create

import os as _os

cdef enum:
    ALLOCATE_STEP = 4 << 20
    ROTATE_RETRY = 1 << 20          # bytes to append before a rotation that failed is tried again


cdef class WalAppender(EntryBuffer):
    """Appends batches of whole transactions to the log.

    Made by `wal_writer.open_appender` after recovery; the commit thread is then its only user, but for
    `sync_in_background`. The methods with Python names serve tests and tools.
    """

    def __cinit__(self):
        self.file.fd = -1
        self.directory_fd = -1

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
        self.file.allocate_step = min(self.segment_size, <u64>ALLOCATE_STEP)
        guard_install()
        with nogil:
            error = self._create_segment(previous_version)
        if error:
            raise OSError(error, f"{_os.strerror(error)} while making a log segment")

    def __dealloc__(self):
        segment_file_leave(&self.file, False)
        if self.directory_fd >= 0:
            file_close(self.directory_fd)

    # --- for the commit thread ------------------------------------------------------------------------------

    cdef int begin_transaction(self, u64 session, u64 sequence, const u8 *run_id, i64 timestamp) noexcept nogil:
        cdef int error = segment_file_poisoned(&self.file)
        if error:
            return error
        if self._transaction_open():
            return EINVAL
        # Only with an empty buffer: entries know their position, so a batch cannot move to another segment.
        if self.used == 0 and (self.file.cut or self.file.position >= self.rotate_at):
            error = self._rotate()
            # A segment that is merely too long is used further. One with a refused batch behind `position`
            # takes nothing more.
            if error and (self.file.cut or segment_file_poisoned(&self.file)):
                return error
        # Relaxed: sync_aside may raise it in this moment; an older value only vouches for less.
        return self._append_begin(session, sequence, run_id, timestamp, load_relaxed_u64(&self.file.synced))

    cdef int flush(self, bint sync) noexcept nogil:
        cdef u64 size = self.used
        cdef int error = segment_file_poisoned(&self.file)
        if error:
            self.discard_to(0)
            return error
        if self._transaction_open():
            return EINVAL
        if size == 0:
            return self.sync() if sync else 0
        error = segment_file_append(&self.file, self.buffer, size, sync)
        if error:
            self.discard_to(0)
            return error
        self.total_bytes += size
        self.flush_count += 1
        self._begin_batch(self.file.position)
        return 0

    cdef int sync(self) noexcept nogil:
        cdef int error = segment_file_poisoned(&self.file)
        if error or not segment_file_needs_sync(&self.file):
            return error
        return segment_file_sync(&self.file, self.file.position)

    cdef int sync_aside(self, bint wait) noexcept nogil:
        return segment_file_sync_aside(&self.file, wait)

    # --- segments -------------------------------------------------------------------------------------------

    cdef int _create_segment(self, u64 previous_version) noexcept nogil:
        """Go on in a new segment for `next_version`; on an error, in the old one.

        REQUIRES: the lock, if others may sync.
        """
        cdef NewSegment new
        cdef int error = segment_create(self.directory_fd, self.database_id, self.next_version, previous_version,
                                        self.incarnation, self.seed, &new)
        if new.sync_error:
            segment_file_poison(&self.file, new.sync_error)
        if error:
            return error
        # Gives back the preallocated space; if it fails, zeros stay behind the entries and are ignored.
        segment_file_leave(&self.file, True)
        segment_file_enter(&self.file, new.fd, WAL_HEADER_SIZE)
        self.seed = new.seed
        self.first_version = self.next_version
        self.previous_version = previous_version
        self.rotate_at = self.segment_size
        self._begin_batch(WAL_HEADER_SIZE)
        return 0

    cdef int _rotate(self) noexcept nogil:
        """Go on in a new segment. On an error other than a failed sync, stay in the old one and try later."""
        cdef int error
        self.rotate_at = self.file.position + ROTATE_RETRY
        if not segment_file_try_lock(&self.file):
            if not self.file.cut:
                self.rotate_at = self.file.position
                return 0
            # Nothing may be written before the rotation, so wait for the sync under way.
            segment_file_lock(&self.file)
        error = self._rotate_locked()
        segment_file_unlock(&self.file)
        return error

    cdef int _rotate_locked(self) noexcept nogil:
        """`_rotate` with the lock held.

        A segment without a transaction gives its name to the new one, which replaces it and follows what it
        followed.
        """
        cdef u64 previous = self.written_version
        cdef int error = segment_file_poisoned(&self.file)
        if self.file.position == WAL_HEADER_SIZE:
            previous = self.previous_version
        # All of the old segment is on disk before a later one exists: only the last may have a torn tail.
        if error == 0 and segment_file_needs_sync(&self.file):
            error = segment_file_sync_locked(&self.file, self.file.position)
        if error == 0 and failpoint_armed():
            error = failpoint_hit(FP_WAL_ROTATE)
        if error == 0:
            error = self._create_segment(previous)
        if error:
            return error
        self.rotate_count += 1
        if failpoint_armed():
            failpoint_hit(FP_WAL_AFTER_ROTATE)
        return 0

    # --- for Python -----------------------------------------------------------------------------------------

    cdef _raise(self, int error):
        if error:
            raise OSError(error, _os.strerror(error))

    def append_transaction(self, u64 session, u64 sequence, bytes run_id, i64 timestamp, u64 version, operations):
        """Encode one transaction: operations are ("write", key, value, expires_at), ("bound_write", key, value,
        expires_at, session), ("delete", key, removed) and ("delete_range", start, end)."""
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
            elif operation[0] == "bound_write":
                value = operation[2]
                error = self.add_bound_write(key, len(key), value, len(value), version, operation[3], operation[4])
            elif operation[0] == "delete":
                error = self._append_delete(key, len(key), version, operation[2])
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
        """fdatasync what is written, without the GIL, while the commit thread appends. Any thread. Raises
        OSError.

        Args:
          wait: wait for a sync or rotation under way. Then everything whose flush had returned before the
            call is on disk, in whatever segment it is. Without it, this may return before that one has ended.
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
        if self.file.fd < 0:
            return
        with nogil:
            error = self.sync()
            segment_file_leave(&self.file, not segment_file_poisoned(&self.file))
            file_close(self.directory_fd)
        self.directory_fd = -1
        segment_file_poison(&self.file, EBADF)
        self._raise(error)

    def abandon(self):
        """Close the files and leave the log as a killed process would."""
        segment_file_leave(&self.file, False)
        if self.directory_fd >= 0:
            file_close(self.directory_fd)
        self.directory_fd = -1
        segment_file_poison(&self.file, EBADF)

    def statistics(self) -> dict:
        """Counters for `db.stats()`: bytes and calls since the log was opened. Any thread; not a snapshot."""
        return {
            "log_bytes": self.total_bytes,
            "log_flushes": self.flush_count,
            "log_copies": self.file.copy_count,
            "log_copy_faults": self.file.fault_count,
            "log_syncs": self.file.sync_count,
            "log_rotations": self.rotate_count,
            "log_segment_first_version": self.first_version,
            "log_segment_bytes": self.file.position,
            "log_segment_synced": self.file.synced,
            "log_written_version": self.written_version,
            "log_poisoned": segment_file_poisoned(&self.file) != 0,
            "log_uncertain": bool(self.file.uncertain),
            "log_errno": segment_file_poisoned(&self.file),
        }
