"""Reading the log, and loading a store from it, for compiled code. See `_replay.pyx`."""

from ...ipc._atomics cimport i64, u8, u32, u64
from ..disk._crc_ranges cimport CrcRanges
from ..store._store cimport Store
from ._entries cimport BeginBody

cdef enum TransactionState:
    TX_WHOLE = 0
    TX_END = 1                    # only zeros, or nothing, from here on
    TX_BROKEN = 2                 # an entry that is not valid: cut short, or damaged
    TX_WRONG = 3                  # valid entries in an impossible order: never the work of a crash

cdef struct LogTransaction:
    BeginBody head
    u64 version
    u32 count
    u64 start                     # of its BeginTxn
    u64 first                     # of the entry after that
    u64 end                       # past its CommitTxn

cdef struct LogEntry:
    u8 type
    u32 body_size
    const u8 *body

cdef struct Outcome:              # the last commit of one session
    u64 session
    u64 sequence
    u64 version

cdef struct Place:                # where a transaction lies in its segment
    u64 version                   # 0: none
    u64 start
    u64 end

cdef class SegmentImage:
    """One segment in memory."""
    cdef u8 *data
    cdef readonly u64 size
    cdef readonly u32 seed
    cdef readonly u64 offset          # of the next transaction
    cdef readonly u64 synced          # bytes that an fdatasync had reached, by the last whole transaction
    cdef readonly u64 error_offset    # after TX_BROKEN and TX_WRONG
    cdef const char *why
    cdef CrcRanges ranges             # for `_tail_scan`

    cdef int entry_at(self, u64 offset, LogEntry *out) noexcept nogil
    cdef int next_transaction(self, u64 previous_version, LogTransaction *out) noexcept nogil
    cdef int _operation(self, const LogEntry *entry, u64 *version) noexcept nogil
    cdef bint _zeros_from(self, u64 offset) noexcept nogil
    cdef int _broken(self, u64 offset, const char *reason) noexcept nogil
    cdef int _wrong(self, u64 offset, const char *reason) noexcept nogil

cdef class Loader:
    """Fills an empty store. The thread that recovers stands in for the commit thread."""
    cdef Store *store
    cdef readonly u64 version         # everything up to it is in the store
    cdef readonly u64 entries
    cdef readonly u64 transactions
    cdef readonly u64 keys_loaded
    cdef bint full
    cdef object owner                 # of `store`
    cdef Outcome *outcomes            # open addressing, a power of two; session 0: empty
    cdef u64 outcome_capacity
    cdef u64 outcome_count
    cdef u32 since_collect
    cdef Place *recent                # of the last transactions, by version modulo PLACE_COUNT

    @staticmethod
    cdef Loader for_store(Store *store, object owner)

    cdef bint note_outcome(self, u64 session, u64 sequence, u64 version) noexcept nogil
    cdef bint load_row(self, const u8 *key, u32 key_size, const u8 *value, u32 value_size, u64 version,
                       i64 timestamp, i64 expires_at, u64 session) noexcept nogil
    cdef void settle(self) noexcept nogil
    cdef bint _grow_outcomes(self) noexcept nogil
    cdef u64 _garbage_max(self) noexcept nogil
    cdef void _make_room(self) noexcept nogil
    cdef bint _install(self, const u8 *key, u32 key_size, u64 version, i64 timestamp, i64 expires_at, u32 flags,
                       const u8 *value, u32 value_size, u64 session) noexcept nogil
    cdef bint _delete_range(self, const u8 *start, u32 start_size, const u8 *end, u32 end_size, u64 version,
                            i64 timestamp) noexcept nogil
    cdef bint _apply(self, SegmentImage image, const LogTransaction *transaction) noexcept nogil
    cdef int _replay_some(self, SegmentImage image, u64 count_max, u64 *previous, u64 after) noexcept nogil
