"""Checkpoints: the compiled writer, which scans a pinned snapshot, and the compiled loader.

docs/log-format.md draws the file: a header, blocks of rows in key order, blocks of session outcomes, a
footer. `checkpoint.py` makes the file durable and names it; `recovery.py` picks one and loads it.

Invariants:
1. The writer only reads the store, through `_reader`, at a version that its caller keeps pinned; so commits
   go on.
2. Rows are strictly ascending by key. Every block's checksum is seeded with file and position, and the footer
   counts rows, outcomes and blocks and is the end of the file: nothing can be missing, doubled or moved
   unnoticed.
3. No length from a file is used before it is known to lie inside the block, and no block is larger than the
   file.
"""

from libc.errno cimport EIO, ENOMEM
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

from ...ipc._atomics cimport i64, u8, u32, u64
from ..disk._crc32c cimport crc32c
from ..disk._failpoints cimport FP_CHECKPOINT_BLOCK, failpoint_armed, failpoint_hit
from ..disk._files cimport file_datasync, file_read, file_size, file_write
from ..store._layout cimport KEY_SIZE_MAX, key_compare
from ..store._reader cimport Found, Reader, reader_open, reader_scan
from ._replay cimport Loader, Outcome

import os as _os

cdef enum:
    PAGE_ROWS = 128
    BLOCK_SIZE = 256 << 10          # a block is closed when it has grown to this
    SYNC_STEP = 8 << 20             # bytes between two fdatasyncs: small ones delay the log's least
    BLOCK_ROWS = 1
    BLOCK_OUTCOMES = 2
    BLOCK_FOOTER = 3
    BLOCK_HEADER = 16
    ROW_BOUND = 1 << 31             # in a row's key size: the session it is bound to follows its sizes
    SESSION_SIZE = 8
    FILE_HEADER = 80                # sizeof(FileHeader), asserted below; not the log's WAL_HEADER_SIZE
    OK = 0
    DAMAGED = 1
    OUT_OF_ROOM = 2
    SYSTEM = 3

FORMAT_VERSION = 2
FORMATS_READ = (1, 2)      # 1 has no bound rows
MAGIC = b"OCCAMCKP"
HEADER_SIZE = FILE_HEADER

cdef packed struct FileHeader:
    u8 magic[8]
    u32 format_version
    u32 header_size
    u8 database_id[16]
    u64 version
    u64 incarnation
    i64 created_at
    u64 reserved[2]
    u32 zero
    u32 crc

cdef packed struct BlockHead:
    u32 kind
    u32 size                        # of the payload
    u32 count
    u32 crc

cdef packed struct Row:
    u64 version
    i64 timestamp
    i64 expires_at
    u32 key_size                    # and ROW_BOUND
    u32 value_size

cdef packed struct Footer:
    u64 rows
    u64 outcomes
    u64 blocks                      # before this one
    u64 position                    # of this block
    u64 version
    u64 tombstone_horizon

assert sizeof(FileHeader) == FILE_HEADER and sizeof(BlockHead) == BLOCK_HEADER


cdef u32 block_crc(u32 seed, u64 position, const BlockHead *head, const u8 *payload) noexcept nogil:
    cdef u32 crc = crc32c(seed, <const u8 *>&position, 8)
    crc = crc32c(crc, <const u8 *>head, BLOCK_HEADER - 4)
    return crc32c(crc, payload, head.size)


cdef class CheckpointWriter:
    """Writes one checkpoint file, piece by piece. One thread; the caller keeps `version` pinned."""
    cdef Reader reader
    cdef object mapping
    cdef int fd
    cdef u32 seed
    cdef readonly u64 position
    cdef u64 synced
    cdef readonly u64 version
    cdef readonly u64 rows
    cdef u64 outcomes
    cdef u64 blocks
    cdef u8 *block                  # header and payload of the block being filled
    cdef u64 used
    cdef u64 capacity
    cdef u32 count
    cdef Found page[PAGE_ROWS]
    cdef u32 page_count
    cdef u32 page_next
    cdef bint scanned               # no page follows
    cdef u8 resume_key[KEY_SIZE_MAX + 1]
    cdef u32 resume_size
    cdef bint resumed

    def __init__(self, int fd, bytes database_id, u64 incarnation, u64 version, i64 created_at, const u8[::1] mapping):
        """Write the header.

        Args:
          fd: an empty file, open for writing; stays the caller's.
          mapping: the store segment.
        """
        cdef FileHeader header
        if len(database_id) != 16:
            raise ValueError("a database id has 16 bytes")
        self.mapping = mapping
        if reader_open(&self.reader, &mapping[0], mapping.shape[0]):
            raise ValueError("the mapping is not a store segment")
        self.capacity = BLOCK_SIZE + (64 << 10)
        self.block = <u8 *>malloc(self.capacity)
        if self.block == NULL:
            raise MemoryError
        self.used = BLOCK_HEADER
        self.fd = fd
        self.version = version
        memset(&header, 0, sizeof(header))
        memcpy(header.magic, b"OCCAMCKP", 8)
        header.format_version = FORMAT_VERSION
        header.header_size = FILE_HEADER
        memcpy(header.database_id, <const u8 *>database_id, 16)
        header.version = version
        header.incarnation = incarnation
        header.created_at = created_at
        header.crc = crc32c(0, <const u8 *>&header, sizeof(header) - 4)
        self.seed = header.crc
        self._check(file_write(fd, <const u8 *>&header, sizeof(header), 0))
        self.position = sizeof(header)

    def __dealloc__(self):
        free(self.block)

    cdef _check(self, i64 result):
        if result < 0:
            raise OSError(<int>-result, _os.strerror(<int>-result))

    cdef u8 *_room(self, u64 size) noexcept nogil:
        """Room at the end of the block; NULL: out of memory."""
        cdef u64 capacity = self.capacity
        cdef u8 *grown
        if self.used + size > capacity:
            while capacity < self.used + size:
                capacity *= 2
            grown = <u8 *>realloc(self.block, capacity)
            if grown == NULL:
                return NULL
            self.block = grown
            self.capacity = capacity
        return self.block + self.used

    cdef i64 _close_block(self, u32 kind) noexcept nogil:
        """Write the block that was filled, and begin an empty one."""
        cdef BlockHead *head = <BlockHead *>self.block
        cdef i64 result = 0
        head.kind = kind
        head.size = <u32>(self.used - BLOCK_HEADER)
        head.count = self.count
        head.crc = block_crc(self.seed, self.position, head, self.block + BLOCK_HEADER)
        if failpoint_armed():
            result = -failpoint_hit(FP_CHECKPOINT_BLOCK)
        if result == 0:
            result = file_write(self.fd, self.block, self.used, self.position)
        if result < 0:
            return result
        self.position += self.used
        self.blocks += 1
        self.used = BLOCK_HEADER
        self.count = 0
        if self.position - self.synced >= SYNC_STEP:
            # Not for durability, which the final fsync gives: one huge fsync would hold up the log's own.
            result = file_datasync(self.fd)
            self.synced = self.position
        return result

    cdef int _next_page(self) noexcept nogil:
        """Fetch the next rows of the snapshot. 1, or -1 when the store is damaged."""
        cdef bint done = False
        cdef int count
        self.page_next = 0
        self.page_count = 0
        count = reader_scan(&self.reader, self.resume_key, self.resume_size, self.resumed, NULL, 0, False,
                            self.version, self.page, PAGE_ROWS, self.resume_key, &self.resume_size, &done)
        if count < 0:
            return -1
        self.page_count = count
        self.resumed = True
        self.scanned = done
        return 1

    cdef bint _add_row(self, const Found *found) noexcept nogil:
        cdef Row row
        cdef u64 size = sizeof(Row) + (SESSION_SIZE if found.session else 0)
        cdef u8 *into = self._room(size + found.key_size + found.value_size)
        if into == NULL:
            return False
        row.version = found.version
        row.timestamp = found.timestamp
        row.expires_at = found.expires_at
        row.key_size = found.key_size | (<u32>ROW_BOUND if found.session else 0)
        row.value_size = found.value_size
        memcpy(into, &row, sizeof(Row))
        if found.session:
            memcpy(into + sizeof(Row), &found.session, SESSION_SIZE)
        memcpy(into + size, found.key, found.key_size)
        memcpy(into + size + found.key_size, found.value, found.value_size)
        self.used += size + found.key_size + found.value_size
        self.count += 1
        self.rows += 1
        return True

    cdef i64 _write_rows(self, bint *more) noexcept nogil:
        """Fill and write one block of rows. 0 or -errno."""
        more[0] = True
        while self.used < BLOCK_SIZE:
            if self.page_next == self.page_count:
                if self.scanned:
                    more[0] = False
                    break
                if self._next_page() < 0:
                    return -EIO
                continue
            if not self._add_row(&self.page[self.page_next]):
                return -ENOMEM
            self.page_next += 1
        return self._close_block(BLOCK_ROWS) if self.count else 0

    def write_rows(self) -> bool:
        """Write one block of rows, without the GIL. False: there are no more.

        Raises:
          OSError: the disk (or a damaged store, as EIO); give the file up.
        """
        cdef bint more
        cdef i64 result
        with nogil:
            result = self._write_rows(&more)
        self._check(result)
        return bool(more)

    def write_outcomes(self, outcomes):
        """Write the outcomes: (session, sequence, version) of each session's last commit."""
        cdef Outcome outcome
        cdef u8 *into
        for outcome.session, outcome.sequence, outcome.version in outcomes:
            into = self._room(sizeof(Outcome))
            if into == NULL:
                raise MemoryError
            memcpy(into, &outcome, sizeof(Outcome))
            self.used += sizeof(Outcome)
            self.count += 1
            self.outcomes += 1
            if self.used >= BLOCK_SIZE:
                self._check(self._close_block(BLOCK_OUTCOMES))
        if self.count:
            self._check(self._close_block(BLOCK_OUTCOMES))

    def finish(self, u64 tombstone_horizon):
        """Write the footer. The caller syncs the file."""
        cdef Footer footer
        footer.rows = self.rows
        footer.outcomes = self.outcomes
        footer.blocks = self.blocks
        footer.position = self.position
        footer.version = self.version
        footer.tombstone_horizon = tombstone_horizon
        memcpy(self._room(sizeof(Footer)), &footer, sizeof(Footer))
        self.used += sizeof(Footer)
        self.count = 1
        self._check(self._close_block(BLOCK_FOOTER))


cdef class CheckpointReader:
    """Reads one checkpoint file block by block: once to check it, once more to load it."""
    cdef int fd
    cdef u32 seed
    cdef u64 version
    cdef readonly u64 size
    cdef readonly u64 position      # of the next block, or of the damage
    cdef u8 *payload
    cdef u64 capacity
    cdef u64 rows
    cdef u64 outcomes
    cdef u64 blocks
    cdef readonly u64 tombstone_horizon
    cdef readonly bint complete     # the footer was read and agrees
    cdef const char *why
    cdef int error
    cdef u8 last_key[KEY_SIZE_MAX + 1]
    cdef u32 last_size

    def __init__(self, int fd, u32 seed, u64 version):
        """`seed` and `version`: from the header, which the caller has checked. `fd` stays the caller's."""
        cdef i64 size = file_size(fd)
        if size < 0:
            raise OSError(<int>-size, _os.strerror(<int>-size))
        self.fd = fd
        self.size = size
        self.seed = seed
        self.version = version
        self.why = b""
        self.rewind()

    def __dealloc__(self):
        free(self.payload)

    def rewind(self):
        """Go back to the first block."""
        self.position = FILE_HEADER
        self.rows = self.outcomes = self.blocks = 0
        self.complete = False
        self.last_size = 0

    @property
    def reason(self) -> str:
        """What is wrong at `position`."""
        return self.why.decode()

    @property
    def row_count(self) -> int:
        """Rows read so far; of the whole file once `complete`."""
        return self.rows

    @property
    def outcome_count(self) -> int:
        """Outcomes read so far."""
        return self.outcomes

    cdef int _damaged(self, const char *why) noexcept nogil:
        self.why = why
        return DAMAGED

    cdef int _read(self, u8 *into, u64 size, u64 offset) noexcept nogil:
        cdef i64 result = file_read(self.fd, into, size, offset)
        if result < 0:
            self.error = <int>-result
            return SYSTEM
        if <u64>result < size:
            return self._damaged("the file is cut short")
        return OK

    cdef int _read_block(self, BlockHead *head) noexcept nogil:
        """Read the block at `position` into `payload` and check its checksum."""
        cdef u8 *grown
        cdef int state = self._read(<u8 *>head, BLOCK_HEADER, self.position)
        if state != OK:
            return state
        if head.size > self.size - self.position - BLOCK_HEADER:
            return self._damaged("a block that is longer than the file")
        if head.size > self.capacity:
            grown = <u8 *>realloc(self.payload, head.size)
            if grown == NULL:
                self.error = ENOMEM
                return SYSTEM
            self.payload = grown
            self.capacity = head.size
        state = self._read(self.payload, head.size, self.position + BLOCK_HEADER)
        if state != OK:
            return state
        if block_crc(self.seed, self.position, head, self.payload) != head.crc:
            return self._damaged("a block with a wrong checksum")
        return OK

    cdef int _rows(self, const BlockHead *head, Loader loader) noexcept nogil:
        """Check the rows of the block in `payload`, and load them unless `loader` is None."""
        cdef u64 at = 0, session
        cdef u32 index
        cdef Row row
        cdef const u8 *key
        cdef const u8 *last = self.last_key
        cdef u32 last_size = self.last_size
        for index in range(head.count):
            if head.size - at < sizeof(Row):
                return self._damaged("a row that leaves its block")
            memcpy(&row, self.payload + at, sizeof(Row))
            at += sizeof(Row)
            session = 0
            if row.key_size & <u32>ROW_BOUND:
                row.key_size &= ~<u32>ROW_BOUND
                if head.size - at < SESSION_SIZE:
                    return self._damaged("a row that leaves its block")
                memcpy(&session, self.payload + at, SESSION_SIZE)
                at += SESSION_SIZE
                if session == 0:
                    return self._damaged("a row that is bound to no session")
            key = self.payload + at
            if row.key_size == 0 or row.key_size > KEY_SIZE_MAX or row.version == 0 or row.version > self.version:
                return self._damaged("a row with an impossible key or version")
            if head.size - at < <u64>row.key_size + row.value_size:
                return self._damaged("a row that leaves its block")
            if self.rows and key_compare(last, last_size, key, row.key_size) >= 0:
                return self._damaged("rows that are not in key order")
            if loader is not None and not loader.load_row(key, row.key_size, key + row.key_size, row.value_size,
                                                          row.version, row.timestamp, row.expires_at,
                                                          session):
                return OUT_OF_ROOM
            last = key
            last_size = row.key_size
            at += <u64>row.key_size + row.value_size
            self.rows += 1
        if at != head.size:
            return self._damaged("bytes behind the last row of a block")
        if head.count:
            memcpy(self.last_key, last, last_size)
            self.last_size = last_size
        return OK

    cdef int _outcomes(self, const BlockHead *head, Loader loader) noexcept nogil:
        cdef Outcome outcome
        cdef u32 index
        if head.size != <u64>head.count * sizeof(Outcome):
            return self._damaged("a block of outcomes of an impossible size")
        for index in range(head.count):
            memcpy(&outcome, self.payload + index * sizeof(Outcome), sizeof(Outcome))
            if outcome.version > self.version:
                return self._damaged("an outcome after the checkpoint's version")
            if loader is not None and not loader.note_outcome(outcome.session, outcome.sequence, outcome.version):
                self.error = ENOMEM
                return SYSTEM
        self.outcomes += head.count
        return OK

    cdef int _footer(self, const BlockHead *head) noexcept nogil:
        cdef Footer footer
        if head.size != sizeof(Footer):
            return self._damaged("a footer of another size")
        memcpy(&footer, self.payload, sizeof(Footer))
        if (footer.rows != self.rows or footer.outcomes != self.outcomes or footer.blocks != self.blocks
                or footer.position != self.position or footer.version != self.version):
            return self._damaged("a footer that counts something else than the file holds")
        if self.position + BLOCK_HEADER + head.size != self.size:
            return self._damaged("bytes behind the footer")
        self.tombstone_horizon = footer.tombstone_horizon
        self.complete = True
        return OK

    cdef int _block(self, Loader loader) noexcept nogil:
        cdef BlockHead head
        cdef int state = self._read_block(&head)
        if state != OK:
            return state
        if head.kind == BLOCK_ROWS:
            state = self._rows(&head, loader)
        elif head.kind == BLOCK_OUTCOMES:
            state = self._outcomes(&head, loader)
        elif head.kind == BLOCK_FOOTER:
            state = self._footer(&head)
        else:
            state = self._damaged("a block of an unknown kind")
        if state != OK:
            return state
        self.position += BLOCK_HEADER + head.size
        self.blocks += 1
        return OK

    def read_blocks(self, Loader loader, u32 count_max):
        """Check up to `count_max` blocks, and load them when a loader is given.

        Returns:
          "more", "complete", "damaged" (see `position` and `reason`) or "full" (the store is).

        Raises:
          OSError: the disk.
        """
        cdef int state = OK
        cdef u32 done = 0
        with nogil:
            while state == OK and not self.complete and done < count_max:
                state = self._block(loader)
                done += 1
            if loader is not None and state == OK:
                # The versions are those of keys, not of commits: nothing is visible before `finish`.
                loader.settle()
        if state == SYSTEM:
            raise OSError(self.error, _os.strerror(self.error))
        if state == DAMAGED:
            return "damaged"
        if state == OUT_OF_ROOM:
            return "full"
        return "complete" if self.complete else "more"
