"""What a transaction has read and means to write; see _core.pyx."""

from cpython.object cimport PyObject

from ...ipc._atomics cimport i64, u8, u16, u32, u64
from ..store._reader cimport Found
from ._view cimport PinnedView

cdef enum:
    TAG_KV = 1                      # TypeTag.KV: of the keys that `db.get` and `db.put` work on
    STACK_KEY_SIZE = 512            # a key up to this long is copied to the C stack

    STATE_ACTIVE = 0
    STATE_VALIDATING = 1
    STATE_COMMITTED = 2
    STATE_ABORTED = 3

    # Where a read found its value.
    SEEN_ABSENT = 0
    SEEN_STORED = 1                 # in the snapshot
    SEEN_OWN = 2                    # put by this transaction
    SEEN_SUM = 3                    # an own add over the committed value
    SEEN_DELTA = 4                  # an own add to an absent key


cdef class RunGuard:                # which runs may be written to; see _guard.pyx
    cdef bytes base
    cdef readonly object rule


cdef class Effect:                  # immutable: a scan that captured it continues to see it
    cdef u8 code                    # OP_PUT, OP_DELETE, OP_ADD
    cdef bint wanted                # ask for its result
    cdef bytes value                # encoded, of a put; the bounds of an add
    cdef bint ephemeral             # a put whose key lives as long as the handle
    cdef i64 expires_at
    cdef i64 delta


cdef class ScanRange:               # how far a scan has walked; the transaction owns it, the iterator advances it
    cdef bytes start
    cdef bytes end
    cdef bint reverse
    cdef bint exhausted
    cdef const u8 *last             # key of the last row that was returned: in the store, while the pin holds, or in `owner`
    cdef u32 last_size
    cdef object owner
    cdef u64 rows
    cdef tuple bounds(self, u64 stored_size_max)


cdef class TransactionCore(PinnedView):
    cdef object handle
    cdef RunGuard guard             # None: writes to any run are let through
    cdef unsigned long owner        # the thread that may read and write; 0: any
    cdef u64 key_size_max
    cdef u64 value_size_max
    cdef u64 transaction_size_max
    cdef int state
    cdef bint tracking              # serializable and not read-only: reads and scans are checked at commit
    cdef bint read_only
    cdef bint blind
    cdef bint may_wait              # whoever began it runs it again when it waits
    cdef bint binds                 # it has put an ephemeral key
    cdef i64 deadline_ns            # monotonic, 0: none
    cdef dict reads                 # stored key -> version read (0 absent); None while empty, like the rest
    cdef dict effects               # stored key -> Effect
    cdef dict checks                # stored key -> expected version of its CAS
    cdef list scans                 # ScanRange
    cdef list cleared               # (start, end) of range deletes
    cdef list doomed                # CASConflicts that are already certain
    cdef bytes doomed_key           # of the first of them
    cdef list order                 # keys of `effects`, sorted, except those in `unordered`
    cdef list unordered
    cdef u64 size                   # of the effects, checks and range deletes on the wire
    cdef bytes prefix               # of the run that it was begun in, with the tag
    cdef u64 turn                   # a turn is asked for if it loses: names the transaction over its attempts; 0: no
    cdef bint patient               # it gets a turn only if it had to wait for one
    cdef bint turn_granted          # it has lost, and its next attempt has a turn
    cdef u64 attempts               # 1 for the first attempt, one more for each retry
    cdef object receipt             # CommitReceipt, None before the commit
    cdef tuple admitted             # what the guard went by, and what is written: see _commit.send_again
    cdef u32 turns                  # how often the guard looked
    cdef object pending             # PendingCommit while a commit is awaited; else None
    cdef u64 sequence               # of the commit request, 0 before
    cdef u64 session
    cdef u64 result                 # of the one op that wanted it
    cdef u32 result_kind

    cdef int require_active(self) except -1
    cdef int refuse(self) except -1
    cdef int refuse_thread(self) except -1
    cdef int require_writable(self) except -1
    cdef int finish(self, int state) except -1
    cdef int lookup(self, bytes key, bint track, Found *found) except -1
    cdef int look(self, bytes key, bint track, Found *found, PyObject **own) except -1
    cdef bint live_base(self, bytes key, Found *found) except -1
    cdef bint is_cleared(self, bytes key)
    cdef object own_value(self, bytes key, Effect own, const Found *base)
    cdef object own_record(self, bytes key, Effect own, const Found *base)
    cdef int put(self, bytes key, object value, i64 expires_at, bint ephemeral) except -1
    cdef int delete(self, bytes key) except -1
    cdef int drop(self, bytes key, bint wanted) except -1
    cdef int cas(self, bytes key, u64 expected, object value, i64 expires_at, bint ephemeral) except -1
    cdef int add(self, bytes key, i64 delta, bytes bounds, bint wanted) except -1
    cdef int clear_range(self, bytes start, bytes end) except -1
    cdef int set_effect(self, bytes key, Effect effect) except -1
    cdef int grow(self, u64 more, u64 less) except -1
    cdef list own_between(self, bytes start, bytes end)
    cdef doom(self, bytes key, u64 expected, u64 found)


cdef u64 op_cost(bytes key, bytes value)
cdef bytes join_key(bytes prefix, const u8 *key, Py_ssize_t size)
cdef i64 expiry_of(object ttl, i64 now) except -1
