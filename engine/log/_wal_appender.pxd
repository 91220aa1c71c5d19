"""The interface of the log appender for compiled code. See `_wal_appender.pyx`."""

from ...ipc._atomics cimport i64, u8, u32, u64

cdef enum:
    WAL_HEADER_SIZE = 80
    ENTRY_HEADER_SIZE = 8            # u32 length, u32 crc; `length` counts what follows, the type byte first
    ENTRY_BEGIN = 1
    ENTRY_WRITE = 2
    ENTRY_DELETE = 3
    ENTRY_DELETE_RANGE = 4
    ENTRY_COMMIT = 5
    ENTRY_ABORT = 6                  # reserved, never written
    BEGIN_LENGTH = 49
    COMMIT_LENGTH = 29

cdef packed struct BeginBody:
    u64 session
    u64 sequence
    u8 run_id[16]
    i64 timestamp
    u64 synced                       # bytes of this segment known to be on disk when this was encoded

cdef packed struct WriteBody:
    u64 version
    i64 expires_at
    u32 key_size
    u32 value_size

cdef packed struct DeleteBody:
    u64 version
    u64 removed                      # version of the record whose expiry this is; 0: deleted by a user
    u32 key_size

cdef packed struct RangeBody:
    u64 version
    u32 start_size
    u32 end_size

cdef packed struct CommitBody:
    u64 session
    u64 sequence
    u64 version
    u32 count                        # entries between BeginTxn and CommitTxn

cdef packed struct SegmentHeader:
    u8 magic[8]
    u32 format_version
    u32 header_size
    u8 database_id[16]
    u64 first_version                # of the first transaction in it
    u64 previous_version             # the database's version before it: first_version - 1 but after a version jump
    u64 incarnation
    i64 created_at
    u64 reserved
    u32 zero
    u32 crc                          # of all before it; also the seed of the entries' checksums

# The checksum of an entry: seeded with its segment and position, so no entry is valid anywhere else.
cdef u32 entry_crc(u32 seed, u64 position, const u8 *entry, u32 length) noexcept nogil

cdef class WalAppender:
    """Every `cdef` method: the commit thread only, no GIL, 0 or an errno. `sync_aside` may run in other threads."""
    cdef u8 *buffer                  # entries of the batch being built
    cdef u64 used
    cdef u64 capacity
    cdef u64 transaction_start       # position in `buffer` of the open transaction; NOT_OPEN when there is none
    cdef u64 session                 # of the open transaction
    cdef u64 sequence
    cdef int fd                      # the current segment
    cdef int directory_fd            # of wal/
    cdef u64 first_version           # in the name of the current segment
    cdef u64 next_version            # of the next transaction to be encoded
    cdef u64 written_version         # last version handed to the kernel
    cdef u64 incarnation
    cdef u32 seed                    # of the entries' checksums in this segment
    cdef u32 entry_count             # of the open transaction
    cdef u64 position                # bytes of the current segment that hold whole transactions
    cdef u64 allocated               # the segment's file is this long (zeros behind position)
    cdef u64 synced                  # bytes of the current segment known to be on disk
    cdef u8 *window                  # a part of the file, mapped; NULL when there is none
    cdef u64 window_start            # its first byte
    cdef u64 window_size
    cdef bint unmappable             # a copy into this segment failed: no further window
    cdef u64 segment_size            # rotation is due when a segment has grown to this
    cdef u64 rotate_at               # position at which the next rotation is tried
    cdef u64 total_bytes             # written by this appender, all segments
    cdef u64 flush_count
    cdef u64 copy_count              # of these: copied into the window
    cdef u64 fault_count             # copies that the file system had no room for
    cdef u64 sync_count
    cdef u64 rotate_count
    cdef u32 lock                    # held by whoever syncs: rotation, sync_aside, a synced flush
    cdef bint cut                    # a refused batch was cut off: the next transaction goes into a new segment
    cdef bint uncertain              # a failed batch could not be cut off: it may be there after a recovery
    cdef u32 poison_errno            # not 0: no append until the database is opened again. Other threads set it: acquire
    cdef u64 previous_version        # in the current segment's header
    cdef u8 database_id[16]

    cdef int begin_transaction(self, u64 session, u64 sequence, const u8 *run_id, i64 timestamp) noexcept nogil
    cdef int add_write(self, const u8 *key, u32 key_size, const u8 *value, u32 value_size, u64 version,
                       i64 expires_at) noexcept nogil
    cdef int add_delete(self, const u8 *key, u32 key_size, u64 version) noexcept nogil
    # A delete made by the expiry of the record with version `removed` (Record.flags EXPIRY).
    cdef int add_expiry(self, const u8 *key, u32 key_size, u64 version, u64 removed) noexcept nogil
    cdef int add_delete_range(self, const u8 *start, u32 start_size, const u8 *end, u32 end_size,
                              u64 version) noexcept nogil
    cdef int end_transaction(self, u64 commit_version) noexcept nogil
    # Position in the buffer (take it between transactions); `discard_to(mark)` drops what came after it.
    cdef u64 mark(self) noexcept nogil
    cdef void discard_to(self, u64 mark) noexcept nogil
    # One write of the buffer, then fdatasync if `sync`. 0, or errno with nothing of this batch left in the log
    # (`uncertain` says when that could not be made sure). An empty buffer with `sync` is `sync()`.
    cdef int flush(self, bint sync) noexcept nogil
    # fdatasync of what was written. A failed one poisons the appender for good.
    cdef int sync(self) noexcept nogil
    cdef bint needs_sync(self) noexcept nogil
    # The same from another thread while the commit thread appends: the timer of durability "standard", and, waiting for
    # whoever is at it, a checkpoint, which must not be ahead of the log.
    cdef int sync_aside(self, bint wait) noexcept nogil

    cdef void _enter_segment(self) noexcept nogil
    cdef void _shrink_buffer(self) noexcept nogil
    cdef _raise(self, int error)
    cdef u8 *_entry(self, u8 type, u64 body_size) noexcept nogil
    cdef void _seal(self, u8 *body) noexcept nogil
    cdef int _cut_back(self) noexcept nogil
    cdef void _preallocate(self, u64 size) noexcept nogil
    cdef void _open_window(self) noexcept nogil
    cdef void _close_window(self) noexcept nogil
    cdef i64 _write(self, bint sync) noexcept nogil
    cdef int _rotate(self) noexcept nogil
    cdef int _create_segment(self, u64 previous_version, int *fd, u32 *seed) noexcept nogil
    cdef int _sync_to(self, u64 position) noexcept nogil
    cdef int _sync_alone(self, u64 position) noexcept nogil
    cdef int _poison_now(self) noexcept nogil
    cdef int _poison(self, int error) noexcept nogil
    cdef void _drop_batch(self) noexcept nogil
