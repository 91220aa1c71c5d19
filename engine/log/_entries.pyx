"""Encoding transactions into the buffer of a batch. docs/log-format.md describes the bytes.

1. The buffer holds whole transactions, in the order of their versions without a gap, and behind them at most
   one open transaction.
2. A checksum is seeded with the segment and the position that the entry will have in it, so an entry that is
   zeroed, moved or doubled never passes. A batch therefore cannot be moved once it has begun.
"""

from libc.errno cimport EINVAL, ENOMEM
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

from ...ipc._atomics cimport i64, u8, u32, u64
from ..disk._crc32c cimport crc32c

cdef enum:
    BUFFER_SIZE = 1 << 20
    BUFFER_KEEP = 16 << 20          # a buffer that one huge batch grew beyond this is made small again

cdef u64 NOT_OPEN = <u64>-1


cdef u32 entry_crc(u32 seed, u64 position, const u8 *entry, u32 length) noexcept nogil:
    cdef u64 place[2]
    place[0] = position
    place[1] = length
    return crc32c(crc32c(seed, <const u8 *>place, 16), entry + ENTRY_HEADER_SIZE, length)


cdef class EntryBuffer:
    """Encodes transactions. The appender adds to it where the bytes go."""

    def __cinit__(self):
        self.transaction_start = NOT_OPEN
        self.capacity = BUFFER_SIZE
        self.buffer = <u8 *>malloc(self.capacity)
        if self.buffer == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.buffer)

    cdef void _begin_batch(self, u64 position) noexcept nogil:
        self.batch_position = position
        self.written_version = self.next_version - 1
        self.used = 0
        if self.capacity > BUFFER_KEEP:
            self._shrink_buffer()

    cdef void _shrink_buffer(self) noexcept nogil:
        cdef u8 *smaller = <u8 *>realloc(self.buffer, BUFFER_SIZE)
        if smaller != NULL:
            self.buffer = smaller
            self.capacity = BUFFER_SIZE

    cdef bint _transaction_open(self) noexcept nogil:
        return self.transaction_start != NOT_OPEN

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
            # Doubling, but not beyond the need by more than BUFFER_KEEP: a batch may be as large as memory
            # allows.
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
        crc = entry_crc(self.seed, self.batch_position + self.used, entry, length)
        memcpy(entry + 4, &crc, 4)
        self.used += ENTRY_HEADER_SIZE + length
        self.entry_count += 1

    cdef int _append_begin(self, u64 session, u64 sequence, const u8 *run_id, i64 timestamp,
                           u64 synced) noexcept nogil:
        cdef BeginBody head
        cdef u8 *body = self._entry(ENTRY_BEGIN, sizeof(BeginBody))
        if body == NULL:
            return ENOMEM
        head.session = session
        head.sequence = sequence
        memcpy(head.run_id, run_id, 16)
        head.timestamp = timestamp
        head.synced = synced
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

    cdef int add_bound_write(self, const u8 *key, u32 key_size, const u8 *value, u32 value_size, u64 version,
                             i64 expires_at, u64 session) noexcept nogil:
        cdef BoundWriteBody head
        cdef u8 *body = self._entry(ENTRY_BOUND_WRITE, sizeof(BoundWriteBody) + <u64>key_size + value_size)
        if body == NULL:
            return ENOMEM
        head.write.version = version
        head.write.expires_at = expires_at
        head.write.key_size = key_size
        head.write.value_size = value_size
        head.session = session
        memcpy(body, &head, sizeof(BoundWriteBody))
        memcpy(body + sizeof(BoundWriteBody), key, key_size)
        if value_size:
            memcpy(body + sizeof(BoundWriteBody) + key_size, value, value_size)
        self._seal(body)
        return 0

    cdef int _append_delete(self, const u8 *key, u32 key_size, u64 version, u64 removed) noexcept nogil:
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
        return self._append_delete(key, key_size, version, 0)

    cdef int add_expiry(self, const u8 *key, u32 key_size, u64 version, u64 removed) noexcept nogil:
        return self._append_delete(key, key_size, version, removed)

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
        self.used = mark
        self.transaction_start = NOT_OPEN
        if mark == 0:
            self.next_version = self.written_version + 1
