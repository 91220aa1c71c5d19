"""The entries of the log: their bytes, and the buffer that a batch is encoded into. See `_entries.pyx`."""

from ...ipc._atomics cimport i64, u8, u32, u64

cdef enum:
    ENTRY_HEADER_SIZE = 8            # u32 length, u32 crc; `length` counts what follows, the type byte first
    ENTRY_BEGIN = 1
    ENTRY_WRITE = 2
    ENTRY_DELETE = 3
    ENTRY_DELETE_RANGE = 4
    ENTRY_COMMIT = 5
    ENTRY_ABORT = 6                  # reserved, never written
    ENTRY_BOUND_WRITE = 7            # a Write of a key that is bound to a session
    ENTRY_LAST = 7
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

cdef packed struct BoundWriteBody:
    WriteBody write
    u64 session                      # the handle that the key lives as long as; not 0

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

# The checksum of an entry: seeded with its segment and position, so an entry is valid nowhere else.
cdef u32 entry_crc(u32 seed, u64 position, const u8 *entry, u32 length) noexcept nogil

cdef class EntryBuffer:
    """A batch of encoded transactions. One thread, no GIL. Functions that return an int return 0 or an errno.

    After an errno the open transaction is incomplete: the caller must drop it with `discard_to`.
    """
    cdef u8 *buffer
    cdef u64 used
    cdef u64 capacity
    cdef u32 seed                    # of the checksums: the segment that the batch will be written to
    cdef u64 batch_position          # where the first byte of the buffer will lie in that segment
    cdef u64 transaction_start       # of the open transaction in `buffer`; NOT_OPEN: there is none
    cdef u64 session                 # of the open transaction
    cdef u64 sequence
    cdef u32 entry_count             # of the open transaction
    cdef u64 next_version            # of the next transaction to be encoded
    cdef u64 written_version         # of the last transaction before the buffer

    # REQUIRES for these: begin_transaction of the appender returned 0, end_transaction was not called yet.
    cdef int add_write(self, const u8 *key, u32 key_size, const u8 *value, u32 value_size, u64 version,
                       i64 expires_at) noexcept nogil
    # The same for a key that is bound to `session`, which is not 0.
    cdef int add_bound_write(self, const u8 *key, u32 key_size, const u8 *value, u32 value_size, u64 version,
                             i64 expires_at, u64 session) noexcept nogil
    cdef int add_delete(self, const u8 *key, u32 key_size, u64 version) noexcept nogil
    # A delete made by the expiry of the record with version `removed` (Record.flags EXPIRY). `removed` is not
    # 0.
    cdef int add_expiry(self, const u8 *key, u32 key_size, u64 version, u64 removed) noexcept nogil
    cdef int add_delete_range(self, const u8 *start, u32 start_size, const u8 *end, u32 end_size,
                              u64 version) noexcept nogil
    # EINVAL, with nothing encoded: no transaction is open, or `commit_version` is not the next version.
    cdef int end_transaction(self, u64 commit_version) noexcept nogil
    # The position in the buffer. REQUIRES: no transaction is open.
    cdef u64 mark(self) noexcept nogil
    # Drop what came after `mark`: one unfinished transaction, or the whole batch (mark 0).
    cdef void discard_to(self, u64 mark) noexcept nogil

    # For the appender. Begin an empty batch that will be written at `position`; the last one's version is
    # written.
    cdef void _begin_batch(self, u64 position) noexcept nogil
    cdef bint _transaction_open(self) noexcept nogil
    cdef int _append_begin(self, u64 session, u64 sequence, const u8 *run_id, i64 timestamp,
                           u64 synced) noexcept nogil
    cdef int _append_delete(self, const u8 *key, u32 key_size, u64 version, u64 removed) noexcept nogil
    cdef u8 *_entry(self, u8 type, u64 body_size) noexcept nogil
    cdef void _seal(self, u8 *body) noexcept nogil
    cdef void _shrink_buffer(self) noexcept nogil
