"""Recovery's compiled part: a log segment in memory, checked entry by entry, and its transactions put into a
store.

`recovery.py` decides what a broken entry means, `_tail_scan` finds what lies behind one; `check.py` and the
dump use SegmentImage alone.

Invariants:
1. Nothing of a transaction is applied before its CommitTxn and all checksums before it have been read and
   found right, its entries counted, its versions compared and its place in the order (the version after the
   last one) checked.
2. No length from the file is used before it is known to lie inside the image.
3. The same bytes give the same store: no clock, no random number, no dict order takes part.
"""

from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy

from ..disk._crc_ranges cimport crc_ranges_free, crc_ranges_init
from ..disk._files cimport file_read, file_size
from ..store._layout cimport (
    KEY_SIZE_MAX, RECORD_BOUND, RECORD_EXPIRY, RECORD_TOMBSTONE, key_compare, key_hash, node_at, node_key, record_at,
    record_bind,
)
from ..store._store cimport (
    store_collect, store_ensure_node, store_force_collect, store_install, store_new_record, store_next,
    store_pending_bytes, store_publish, store_seek,
)
from ._entries cimport (
    BEGIN_LENGTH, COMMIT_LENGTH, ENTRY_BEGIN, ENTRY_BOUND_WRITE, ENTRY_COMMIT, ENTRY_DELETE, ENTRY_DELETE_RANGE,
    ENTRY_HEADER_SIZE, ENTRY_LAST, ENTRY_WRITE, BoundWriteBody, CommitBody, DeleteBody, RangeBody, WriteBody, entry_crc,
)
from ._segments cimport WAL_HEADER_SIZE

import os as _os

cdef enum:
    COLLECT_INTERVAL = 2048         # transactions or rows between two collections of what was replaced
    GARBAGE_MIN = 65536
    COLLECT_BUDGET = 1 << 20
    OUTCOMES_FIRST = 1024
    PLACE_COUNT = 1024              # transactions whose place is remembered; a power of two

STATES = ("whole", "end", "broken", "wrong")


cdef class SegmentImage:
    """A whole segment, read into memory. A file that is cut short meanwhile does no harm, as it would when
    mapped.
    """

    def __cinit__(self):
        self.data = NULL
        self.why = b""
        crc_ranges_init(&self.ranges, NULL, 0)

    def __init__(self, int fd, u32 seed):
        """Read the file. `seed` is the checksum of its header, which the caller has checked."""
        cdef i64 size = file_size(fd)
        if size >= 0:
            self.data = <u8 *>malloc(size + 1)
            if self.data == NULL:
                raise MemoryError(f"a log segment of {size} bytes")
            with nogil:
                size = file_read(fd, self.data, size, 0)
        if size < 0:
            raise OSError(<int>-size, _os.strerror(<int>-size))
        self.size = size
        crc_ranges_init(&self.ranges, self.data, self.size)
        self.seed = seed
        self.offset = WAL_HEADER_SIZE
        self.synced = WAL_HEADER_SIZE

    def __dealloc__(self):
        crc_ranges_free(&self.ranges)
        free(self.data)

    cdef int entry_at(self, u64 offset, LogEntry *out) noexcept nogil:
        """1: a valid entry; 0: not."""
        cdef u32 head[2]
        cdef u8 *entry = self.data + offset
        if offset + ENTRY_HEADER_SIZE + 1 > self.size:
            return 0
        memcpy(head, entry, 8)
        if head[0] == 0 or head[0] > self.size - offset - ENTRY_HEADER_SIZE:
            return 0
        if entry[ENTRY_HEADER_SIZE] < ENTRY_BEGIN or entry[ENTRY_HEADER_SIZE] > ENTRY_LAST:
            return 0
        if entry_crc(self.seed, offset, entry, head[0]) != head[1]:
            return 0
        out.type = entry[ENTRY_HEADER_SIZE]
        out.body = entry + ENTRY_HEADER_SIZE + 1
        out.body_size = head[0] - 1
        return 1

    cdef int _broken(self, u64 offset, const char *reason) noexcept nogil:
        self.error_offset = offset
        self.why = reason
        return TX_BROKEN

    cdef int _wrong(self, u64 offset, const char *reason) noexcept nogil:
        self.error_offset = offset
        self.why = reason
        return TX_WRONG

    cdef bint _zeros_from(self, u64 offset) noexcept nogil:
        if offset >= self.size:
            return True
        # Each byte equals the one before it, and the first is zero.
        return self.data[offset] == 0 and memcmp(
            self.data + offset, self.data + offset + 1, self.size - offset - 1) == 0

    cdef int _operation(self, const LogEntry *entry, u64 *version) noexcept nogil:
        """1: the sizes inside a Write, BoundWrite, Delete or DeleteRange agree with its length."""
        cdef WriteBody write
        cdef BoundWriteBody bound
        cdef DeleteBody delete
        cdef RangeBody ranged
        if entry.type == ENTRY_WRITE and entry.body_size >= sizeof(WriteBody):
            memcpy(&write, entry.body, sizeof(WriteBody))
            version[0] = write.version
            return (0 < write.key_size <= KEY_SIZE_MAX
                    and entry.body_size == sizeof(WriteBody) + <u64>write.key_size + write.value_size)
        if entry.type == ENTRY_BOUND_WRITE and entry.body_size >= sizeof(BoundWriteBody):
            memcpy(&bound, entry.body, sizeof(BoundWriteBody))
            version[0] = bound.write.version
            return (0 < bound.write.key_size <= KEY_SIZE_MAX and bound.session != 0
                    and entry.body_size == sizeof(BoundWriteBody) + <u64>bound.write.key_size + bound.write.value_size)
        if entry.type == ENTRY_DELETE and entry.body_size >= sizeof(DeleteBody):
            memcpy(&delete, entry.body, sizeof(DeleteBody))
            version[0] = delete.version
            return (0 < delete.key_size <= KEY_SIZE_MAX
                    and entry.body_size == sizeof(DeleteBody) + <u64>delete.key_size)
        if entry.type == ENTRY_DELETE_RANGE and entry.body_size >= sizeof(RangeBody):
            memcpy(&ranged, entry.body, sizeof(RangeBody))
            version[0] = ranged.version
            return entry.body_size == sizeof(RangeBody) + <u64>ranged.start_size + ranged.end_size
        return 0

    cdef int next_transaction(self, u64 previous_version, LogTransaction *out) noexcept nogil:
        """Check the transaction at `offset` and pass it. All states but TX_WHOLE leave `offset` as it is."""
        cdef LogEntry entry
        cdef CommitBody commit
        cdef u64 at = self.offset, version = 0
        out.start = at
        out.count = 0
        if at >= self.size:
            return TX_END
        if not self.entry_at(at, &entry):
            if self._zeros_from(at):
                return TX_END
            return self._broken(at, "no valid entry")
        if entry.type != ENTRY_BEGIN or entry.body_size != sizeof(BeginBody):
            return self._wrong(at, "not a BeginTxn between transactions")
        memcpy(&out.head, entry.body, sizeof(BeginBody))
        if out.head.synced > at:
            return self._wrong(at, "a BeginTxn that vouches for bytes behind itself")
        out.version = previous_version + 1
        at += ENTRY_HEADER_SIZE + 1 + entry.body_size
        out.first = at
        while True:
            if not self.entry_at(at, &entry):
                return self._broken(at, "a transaction without its end")
            if entry.type == ENTRY_COMMIT:
                break
            if not self._operation(&entry, &version):
                return self._wrong(at, "an entry whose sizes do not agree")
            if version != out.version:
                return self._wrong(at, "an entry of another version")
            out.count += 1
            at += ENTRY_HEADER_SIZE + 1 + entry.body_size
        if entry.body_size != sizeof(CommitBody):
            return self._wrong(at, "a CommitTxn of another size")
        memcpy(&commit, entry.body, sizeof(CommitBody))
        if commit.version != out.version:
            return self._wrong(at, "a CommitTxn that is not the version after the last")
        if (commit.session != out.head.session or commit.sequence != out.head.sequence
                or commit.count != out.count):
            return self._wrong(at, "a CommitTxn of another transaction")
        out.end = at + ENTRY_HEADER_SIZE + COMMIT_LENGTH
        self.offset = out.end
        self.synced = out.head.synced
        return TX_WHOLE

    # --- for Python -----------------------------------------------------------------------------------------

    @property
    def reason(self) -> str:
        """What is wrong at `error_offset`."""
        return self.why.decode()

    def advance(self, u64 previous_version):
        """Check the next transaction: (state name, version, start, end, entries)."""
        cdef LogTransaction transaction
        cdef int state
        with nogil:
            state = self.next_transaction(previous_version, &transaction)
        if state != TX_WHOLE:
            return STATES[state], 0, self.offset, self.offset, 0
        return STATES[state], transaction.version, transaction.start, transaction.end, transaction.count + 2

    def entry(self, u64 offset):
        """The entry at `offset`: (type, body, offset of the next), None when it is not valid."""
        cdef LogEntry entry
        if not self.entry_at(offset, &entry):
            return None
        return entry.type, entry.body[:entry.body_size], offset + ENTRY_HEADER_SIZE + 1 + entry.body_size

    def skip_to(self, u64 previous_version, u64 version):
        """Go past the transactions below `version`, without the GIL; the last version that was passed."""
        cdef u64 start, previous = previous_version
        cdef LogTransaction transaction
        with nogil:
            while True:
                start = self.offset
                if self.next_transaction(previous, &transaction) != TX_WHOLE:
                    break
                if transaction.version >= version:
                    self.offset = start
                    break
                previous = transaction.version
        return previous

    def part(self, u64 start, u64 end) -> bytes:
        """The bytes from `start` up to `end`."""
        if not start <= end <= self.size:
            raise IndexError(f"{start} to {end} of {self.size} bytes")
        return self.data[start:end]


cdef class Loader:
    """Puts checkpoints and log transactions into an empty store. See `for_store`; recovery.py drives it."""

    def __cinit__(self):
        self.outcome_capacity = OUTCOMES_FIRST
        self.outcomes = <Outcome *>calloc(self.outcome_capacity, sizeof(Outcome))
        self.recent = <Place *>calloc(PLACE_COUNT, sizeof(Place))
        if self.outcomes == NULL or self.recent == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.outcomes)
        free(self.recent)

    @staticmethod
    cdef Loader for_store(Store *store, object owner):
        """A loader for a store just made. `owner` is kept alive as long as the loader."""
        cdef Loader loader = Loader.__new__(Loader)
        loader.store = store
        loader.owner = owner
        return loader

    # --- outcomes -------------------------------------------------------------------------------------------

    cdef bint _grow_outcomes(self) noexcept nogil:
        cdef Outcome *old = self.outcomes
        cdef u64 capacity = self.outcome_capacity, i
        cdef Outcome *grown = <Outcome *>calloc(capacity * 2, sizeof(Outcome))
        if grown == NULL:
            return False
        self.outcomes = grown
        self.outcome_capacity = capacity * 2
        self.outcome_count = 0
        for i in range(capacity):
            if old[i].session:
                self.note_outcome(old[i].session, old[i].sequence, old[i].version)
        free(old)
        return True

    cdef bint note_outcome(self, u64 session, u64 sequence, u64 version) noexcept nogil:
        """Remember a session's latest commit. False: out of memory."""
        cdef u64 slot
        if session == 0:
            return True                 # the coordinator's own commits: nobody asks for them
        if self.outcome_count * 2 >= self.outcome_capacity and not self._grow_outcomes():
            return False
        # Session ids are random; the multiplication guards against those of tests.
        slot = ((session * 0x9E3779B97F4A7C15ULL) >> 20) & (self.outcome_capacity - 1)
        while self.outcomes[slot].session != 0 and self.outcomes[slot].session != session:
            slot = (slot + 1) & (self.outcome_capacity - 1)
        self.outcome_count += self.outcomes[slot].session == 0
        self.outcomes[slot].session = session
        self.outcomes[slot].sequence = sequence
        self.outcomes[slot].version = version
        return True

    # --- the store ------------------------------------------------------------------------------------------

    cdef void settle(self) noexcept nogil:
        """Publish what is loaded, and free what it replaced: nobody else looks at this store yet."""
        store_publish(self.store, self.version)
        store_collect(self.store, NULL, 0, COLLECT_BUDGET)
        # What was freed is given back now, not when the clock says so: then the same log gives the same
        # memory.
        store_force_collect(self.store, NULL, 0)
        self.since_collect = 0

    cdef u64 _garbage_max(self) noexcept nogil:
        """Garbage beyond this is freed early. Otherwise it would spread the store over more pages."""
        return GARBAGE_MIN + self.store.record_bytes // 32

    cdef void _make_room(self) noexcept nogil:
        """In the middle of a transaction: free what earlier ones replaced. Node refs stay valid."""
        store_publish(self.store, self.version)
        store_force_collect(self.store, NULL, 0)

    cdef bint _install(self, const u8 *key, u32 key_size, u64 version, i64 timestamp, i64 expires_at, u32 flags,
                       const u8 *value, u32 value_size, u64 session) noexcept nogil:
        """`session`: that the key is bound to, 0 for none."""
        cdef u64 hash = key_hash(key, key_size, self.store.hash_seed)
        cdef u32 node = store_ensure_node(self.store, key, key_size, hash)
        cdef u32 record = 0
        if session:
            flags |= RECORD_BOUND
        if node:
            record = store_new_record(self.store, version, timestamp, expires_at, flags, value, value_size)
        if record == 0:
            self._make_room()
            node = store_ensure_node(self.store, key, key_size, hash)
            if node:
                record = store_new_record(self.store, version, timestamp, expires_at, flags, value, value_size)
        if record == 0:
            self.full = True
            return False
        if session:
            record_bind(record_at(self.store.base, record), session)
        store_install(self.store, node, record)
        return True

    cdef bint load_row(self, const u8 *key, u32 key_size, const u8 *value, u32 value_size, u64 version,
                       i64 timestamp, i64 expires_at, u64 session) noexcept nogil:
        """One row of a checkpoint. False: the store is full."""
        self.keys_loaded += 1
        return self._install(key, key_size, version, timestamp, expires_at, 0, value, value_size, session)

    cdef bint _delete_range(self, const u8 *start, u32 start_size, const u8 *end, u32 end_size, u64 version,
                            i64 timestamp) noexcept nogil:
        """Tombstones for every key in the range that has a value, as the commit core made them."""
        cdef u32 node = store_seek(self.store, start, start_size)
        cdef u32 head, record
        while node and key_compare(node_key(node_at(self.store.base, node)), node_at(self.store.base, node).key_size,
                                   end, end_size) < 0:
            head = node_at(self.store.base, node).head
            if head and not record_at(self.store.base, head).flags & RECORD_TOMBSTONE:
                record = store_new_record(self.store, version, timestamp, 0, RECORD_TOMBSTONE, NULL, 0)
                if record == 0:
                    self._make_room()
                    record = store_new_record(self.store, version, timestamp, 0, RECORD_TOMBSTONE, NULL, 0)
                if record == 0:
                    self.full = True
                    return False
                store_install(self.store, node, record)
            node = store_next(self.store, node)
        return True

    cdef bint _apply(self, SegmentImage image, const LogTransaction *transaction) noexcept nogil:
        """Put one checked transaction into the store. False: the store is full."""
        cdef u64 at = transaction.first
        cdef u32 index
        cdef u32 head[2]
        cdef const u8 *body
        cdef u8 type
        cdef WriteBody write
        cdef BoundWriteBody bound
        cdef DeleteBody delete
        cdef RangeBody ranged
        cdef i64 timestamp = transaction.head.timestamp
        cdef bint fits = True
        for index in range(transaction.count):
            memcpy(head, image.data + at, 8)
            type = image.data[at + ENTRY_HEADER_SIZE]
            body = image.data + at + ENTRY_HEADER_SIZE + 1
            if type == ENTRY_WRITE:
                memcpy(&write, body, sizeof(WriteBody))
                body += sizeof(WriteBody)
                fits = self._install(body, write.key_size, write.version, timestamp, write.expires_at, 0,
                                     body + write.key_size, write.value_size, 0)
            elif type == ENTRY_BOUND_WRITE:
                memcpy(&bound, body, sizeof(BoundWriteBody))
                body += sizeof(BoundWriteBody)
                write = bound.write
                fits = self._install(body, write.key_size, write.version, timestamp, write.expires_at, 0,
                                     body + write.key_size, write.value_size, bound.session)
            elif type == ENTRY_DELETE:
                memcpy(&delete, body, sizeof(DeleteBody))
                fits = self._install(body + sizeof(DeleteBody), delete.key_size, delete.version, timestamp,
                                     <i64>delete.removed,
                                     RECORD_TOMBSTONE | (RECORD_EXPIRY if delete.removed else 0), NULL, 0, 0)
            else:
                memcpy(&ranged, body, sizeof(RangeBody))
                body += sizeof(RangeBody)
                self.store.range_horizon = ranged.version
                fits = self._delete_range(body, ranged.start_size, body + ranged.start_size, ranged.end_size,
                                          ranged.version, timestamp)
            if not fits:
                return False
            at += ENTRY_HEADER_SIZE + head[0]
        return self.note_outcome(transaction.head.session, transaction.head.sequence, transaction.version)

    cdef int _replay_some(self, SegmentImage image, u64 count_max, u64 *previous, u64 after) noexcept nogil:
        """Up to `count_max` transactions. TX_WHOLE: there may be more. Stops with `full` set when the store
        is.
        """
        cdef LogTransaction transaction
        cdef Place *place
        cdef u64 done = 0
        cdef int state
        while done < count_max:
            state = image.next_transaction(previous[0], &transaction)
            if state != TX_WHOLE:
                return state
            previous[0] = transaction.version
            place = &self.recent[transaction.version & (PLACE_COUNT - 1)]
            place.version, place.start, place.end = transaction.version, transaction.start, transaction.end
            done += 1
            if transaction.version <= after:
                continue                # in the checkpoint already
            if not self._apply(image, &transaction):
                return TX_WHOLE
            self.version = transaction.version
            self.entries += transaction.count + 2
            self.transactions += 1
            self.since_collect += 1
            if self.since_collect >= COLLECT_INTERVAL or (
                    self.since_collect & 63 == 0 and store_pending_bytes(self.store) > self._garbage_max()):
                self.settle()
        return TX_WHOLE

    # --- for Python -----------------------------------------------------------------------------------------

    def replay(self, SegmentImage image not None, u64 previous_version, u64 after, u64 count_max):
        """Replay up to `count_max` transactions of a segment.

        Args:
          previous_version: the last version before the image's position.
          after: transactions up to this version are checked but not applied.

        Returns:
          (state name, last version seen). "whole": call again. Check `is_full` after each call.
        """
        cdef u64 previous = previous_version
        cdef int state
        with nogil:
            state = self._replay_some(image, count_max, &previous, after)
        return STATES[state], previous

    def finish(self, u64 version, u64 tombstone_horizon):
        """Make everything that was loaded visible at `version`."""
        self.version = version
        if tombstone_horizon > self.store.tombstone_horizon:
            self.store.tombstone_horizon = tombstone_horizon
        with nogil:
            self.settle()

    def begin_log(self, u64 version):
        """The checkpoint is loaded, or there is none. The log after `version` follows."""
        self.version = version
        self.store.range_horizon = version          # a checkpoint does not contain deletes
        with nogil:
            self.settle()

    @property
    def is_full(self) -> bool:
        """The store ran out of room; the recovery cannot go on."""
        return self.full

    @property
    def store_size(self) -> int:
        """Bytes the store may take."""
        return self.store.size

    def outcome_table(self) -> dict:
        """session -> (sequence, version) of its last commit."""
        cdef u64 i
        return {
            self.outcomes[i].session: (self.outcomes[i].sequence, self.outcomes[i].version)
            for i in range(self.outcome_capacity)
            if self.outcomes[i].session
        }

    def places(self) -> dict:
        """version -> (start, end) in its segment, of the last transactions that were replayed."""
        cdef u64 i
        return {
            self.recent[i].version: (self.recent[i].start, self.recent[i].end)
            for i in range(PLACE_COUNT)
            if self.recent[i].version
        }
