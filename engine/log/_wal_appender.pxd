"""The log appender for compiled code. See `_wal_appender.pyx`."""

from ...ipc._atomics cimport i64, u8, u32, u64
from ._entries cimport EntryBuffer
from ._segment_file cimport SegmentFile

cdef class WalAppender(EntryBuffer):
    """Every `cdef` method: the commit thread only, no GIL, 0 or an errno. `sync_aside`: any thread."""
    cdef SegmentFile file            # the current segment
    cdef int directory_fd            # of wal/
    cdef u8 database_id[16]
    cdef u64 incarnation
    cdef u64 first_version           # in the name of the current segment
    cdef u64 previous_version        # in its header
    cdef u64 segment_size            # rotation is due when a segment has grown to this
    cdef u64 rotate_at               # position at which the next rotation is tried
    cdef u64 total_bytes             # written by this appender, all segments
    cdef u64 flush_count
    cdef u64 rotate_count

    # Open a transaction; at the first one of a batch, rotate when the segment is full. REQUIRES: `run_id` has
    # 16 bytes. EINVAL: one is open. An errno leaves none open. Its operations follow by the `add_` methods of
    # EntryBuffer.
    cdef int begin_transaction(self, u64 session, u64 sequence, const u8 *run_id, i64 timestamp) noexcept nogil
    # One write of the buffer, then fdatasync if `sync`. 0, or errno with nothing of this batch left in the
    # log (`file.uncertain` says when that could not be made sure). An empty buffer with `sync` is `sync()`.
    # EINVAL, with nothing done: a transaction is open.
    cdef int flush(self, bint sync) noexcept nogil
    # fdatasync of what was written. A failed one poisons the appender for good.
    cdef int sync(self) noexcept nogil
    # The same from another thread while the commit thread appends: the timer of durability "standard", or a
    # checkpoint, which must not be ahead of the log and therefore waits for a sync under way.
    cdef int sync_aside(self, bint wait) noexcept nogil

    cdef _raise(self, int error)
    cdef int _create_segment(self, u64 previous_version) noexcept nogil
    cdef int _rotate(self) noexcept nogil
    cdef int _rotate_locked(self) noexcept nogil
