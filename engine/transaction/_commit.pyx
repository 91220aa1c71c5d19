"""Committing a transaction: fail early, encode one request, submit it, read the one reply.

Called by the thread that owns the transaction, with the GIL; only the handle's `submit` may let go of it, and during
that the state VALIDATING keeps other threads out.

1. Nothing is sent that is certain to be refused: doomed checks and reads already stale end here, without a round trip.
   What is found early is found by `validation.py`; the commit core finds the same, and what only it can know.
2. A transaction without writes is done at once: it read one snapshot, so it stands at that version in the order.
3. The pin is given back only when the answer is there, so the tombstones validation needs are still in the store.
4. After `submit` was called, an OccamError other than CommitOutcomeUnknown says that nothing was committed: ABORTED. Any
   other exception (a signal handler's, whatever its class) leaves the outcome open and the state VALIDATING.
"""

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_Next
from cpython.long cimport PyLong_AsUnsignedLongLong
from cpython.object cimport PyObject
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from ...ipc._atomics cimport i64, load_acquire_u32, load_acquire_u64, u8, u16, u32, u64
from ..commit._wire cimport (
    KIND_COMMIT, OP_ADD, OP_CAS, OP_DELETE_RANGE, OP_HEADER_SIZE, OP_RANGE, OP_READ, OP_UNCHECKED, OP_WANT_RESULT,
    REPLY_HEADER_SIZE, REPLY_MAGIC, REQUEST_BLIND, REQUEST_HEADER_SIZE, REQUEST_MAGIC, REQUEST_SYNC, RESULT_SIZE,
    STATUS_COMMITTED, ReplyHeader, RequestHeader, ResultEntry, put_op,
)
from ..model._values cimport make_receipt
from ..store._reader cimport Found, Reader, key_hash, reader_get, reader_scan
from ._answer cimport Answer
from ._core cimport (
    STATE_ABORTED, STATE_ACTIVE, STATE_COMMITTED, STATE_VALIDATING, Effect, ScanRange, TransactionCore, op_cost,
)

from ..commit.messages import decode_reply, decode_request
from ..commit.validation import CommitSets, Newest, Validation, validate_transaction
from ..model.errors import (
    CommitOutcomeUnknown, ConflictError, CorruptionError, InvalidArgumentError, OccamError, ProtocolError,
    TransactionTooLarge,
)
from ..model.limits import PREFIX_SIZE_MAX as _PREFIX_SIZE_MAX

cdef u64 PREFIX_SIZE_MAX = _PREFIX_SIZE_MAX
cdef object U64_MAX = (1 << 64) - 1       # results travel as the two's complement of 64 bits

cdef enum:
    KEY_BUFFER_SIZE = 65536         # KEY_SIZE_MAX + 1: where a page of a scan says how far it came
    PAGE_ROWS = 64


# ---- failing early ------------------------------------------------------------------------------------------------


cdef bytes changed_key(TransactionCore txn, dict versions, u64 newest):
    """A key that has a live value of another version now, or has expired; None when none has.

    No pin holds the newest state: the walk itself is safe without one, and only versions are taken from it, no bytes.
    Absent keys are left to the commit core, which can tell a delete from an expiry.
    """
    cdef Reader *reader = &txn.attachment.reader
    cdef Py_ssize_t position = 0
    cdef PyObject *key
    cdef PyObject *version
    cdef const u8 *data
    cdef u32 size
    cdef Found found
    cdef u64 current
    cdef i64 expiry_time = <i64>load_acquire_u64(&txn.attachment.header.expiry_time)
    while PyDict_Next(versions, &position, &key, &version):
        data = <const u8 *>PyBytes_AS_STRING(<object>key)
        size = <u32>PyBytes_GET_SIZE(<object>key)
        if reader_get(reader, data, size, key_hash(data, size, reader.hash_seed), newest, &found) != 1:
            continue
        current = 0 if found.expires_at != 0 and found.expires_at <= expiry_time else found.version
        if current != PyLong_AsUnsignedLongLong(<object>version):
            return <bytes>key
    return None


cdef void refuse_stale(TransactionCore txn) except *:
    """Abort with every conflict that can be seen from here, if a version that the transaction relies on is certainly gone."""
    cdef u64 newest = load_acquire_u64(&txn.attachment.header.committed_version)
    cdef bytes stale = None
    cdef bint cas = False
    # A newer coordinator's commits are not in this store: a version learnt from them would look wrong here. Acquire: the
    # mark was set before anything that the caller can have learnt was acknowledged.
    if newest == txn.version or load_acquire_u32(&txn.attachment.header.superseded):
        return
    if txn.reads is not None:
        stale = changed_key(txn, txn.reads, newest)
    if stale is None and txn.checks is not None:
        cas = True
        stale = changed_key(txn, txn.checks, newest)
    if stale is None:
        return
    validation = find_conflicts(txn)
    if validation.ok:
        return
    txn.attachment.note_conflict(cas, stale)
    txn.finish(STATE_ABORTED)
    raise validation.error()


@cython.final
@cython.auto_pickle(False)
cdef class NewestState:
    """The `VersionSource` of validation.py over what a reader can see: newest values, and the transaction's snapshot.

    A delete leaves nothing to see; it shows as a key that the snapshot has and the newest state has not. A key both
    made and deleted since the snapshot stays unseen: the commit core knows of it.
    """
    cdef TransactionCore txn
    cdef u64 version
    cdef i64 expiry_time

    def __cinit__(self, TransactionCore txn not None):
        if txn.attachment is None:
            raise TypeError("a transaction without a snapshot has no newest state to look at")
        self.txn = txn
        self.expiry_time = <i64>load_acquire_u64(&txn.attachment.header.expiry_time)
        self.version = load_acquire_u64(&txn.attachment.header.committed_version)

    cdef int get(self, bytes key, u64 version, Found *found) except -1:
        cdef Reader *reader = &self.txn.attachment.reader
        cdef const u8 *data = <const u8 *>PyBytes_AS_STRING(key)
        cdef u32 size = <u32>PyBytes_GET_SIZE(key)
        cdef int status = reader_get(reader, data, size, key_hash(data, size, reader.hash_seed), version, found)
        if status < 0:
            raise CorruptionError("the store in shared memory is damaged", expected="intact links between its blocks")
        return status

    cdef object deleted_at(self, bytes key, Found *before):
        """When a key of the snapshot was deleted: a version above the snapshot's."""
        cdef u64 low = self.txn.version, high = self.version, middle
        cdef Found found
        # Present at `low`, absent at `high`: halve until a delete is between neighbours.
        while high - low > 1:
            middle = low + (high - low) // 2
            if self.get(key, middle, &found):
                low = middle
            else:
                high = middle
        return high

    def newest(self, bytes key):
        cdef Found found
        if self.get(key, self.version, &found):
            return Newest(found.version, found.version, found.expires_at)
        if self.txn.version and self.get(key, self.txn.version, &found):
            if found.expires_at != 0 and found.expires_at <= self.expiry_time:
                # Expired and removed, for all that can be seen: nobody's write.
                return Newest(found.version, found.version, found.expires_at)
            return Newest(0, self.deleted_at(key, &found))
        return None

    def newest_in_range(self, bytes start, bytes end):
        rows = self.rows(start, end, self.txn.version)
        gone = rows.keys() - (now := self.rows(start, end, self.version)).keys()
        for key in gone:
            now[key] = self.newest(key)
        return sorted(now.items())

    def rows(self, bytes start, bytes end, u64 version):
        """{stored key: Newest} of what is in a range at a version."""
        cdef dict rows = {}
        cdef bint done = False, exclusive = False
        cdef int count = 0
        cdef u32 index, resume_size = 0
        cdef bytes high = end
        cdef Found *page = <Found *>malloc(PAGE_ROWS * sizeof(Found) + KEY_BUFFER_SIZE)
        if page == NULL:
            raise MemoryError()
        cdef u8 *resume = <u8 *>(page + PAGE_ROWS)
        cdef const u8 *low = <const u8 *>PyBytes_AS_STRING(start)
        cdef u32 low_size = <u32>PyBytes_GET_SIZE(start)
        try:
            while not done:
                count = reader_scan(&self.txn.attachment.reader, low, low_size, exclusive, <const u8 *>PyBytes_AS_STRING(high),
                                    <u32>PyBytes_GET_SIZE(high), False, version, page, PAGE_ROWS, resume, &resume_size, &done)
                if count < 0:
                    raise CorruptionError("the store in shared memory is damaged", expected="intact links")
                for index in range(<u32>count):
                    rows[(<const char *>page[index].key)[:page[index].key_size]] = Newest(
                        page[index].version, page[index].version, page[index].expires_at
                    )
                low = resume
                low_size = resume_size
                exclusive = True
        finally:
            free(page)
        return rows


cdef object find_conflicts(TransactionCore txn):
    """Every conflict that can be seen from here, as `validation.Validation`; none on a superseded store."""
    cdef NewestState source
    if load_acquire_u32(&txn.attachment.header.superseded):
        return Validation()
    source = NewestState(txn)
    sets = CommitSets(
        start_version=None if txn.blind else txn.version,
        read_time=txn.expiry_time,
        commit_time=source.expiry_time,
        reads=txn.reads or {},
        ranges=[(start, end) for start, end, _ in walked_ranges(txn)],
        deleted_ranges=txn.cleared or (),
        cas=txn.checks or {},
        writes=frozenset(
            key for key, effect in (txn.effects or {}).items()
            if (<Effect>effect).code != OP_ADD and not (txn.checks and key in txn.checks)
        ),
    )
    return validate_transaction(source, sets)


# ---- the request ----------------------------------------------------------------------------------------------------


cdef list walked_ranges(TransactionCore txn):
    """What scans have walked as disjoint (start, end, rows), in order."""
    cdef list merged = []
    if txn.scans is None:
        return merged
    bounds = []
    for scan in txn.scans:
        walked = (<ScanRange>scan).bounds(PREFIX_SIZE_MAX + txn.key_size_max)
        if walked is not None:
            bounds.append((walked[0], walked[1], (<ScanRange>scan).rows))
    if txn.attachment is not None and bounds:
        # The last keys were copied from the store.
        txn.require_alive()
    low = high = None
    count = 0
    for start, end, rows in sorted(bounds):
        if low is not None and start <= high:
            high = max(high, end)
            count += rows
            continue
        if low is not None:
            merged.append((low, high, count))
        low, high, count = start, end, rows
    if low is not None:
        merged.append((low, high, count))
    return merged


cdef u64 versions_size(dict versions):
    cdef u64 size = 0
    for key in versions:
        size += OP_HEADER_SIZE + <u64>PyBytes_GET_SIZE(key)
    return size


cdef u8 *put_versions(u8 *p, u8 code, dict versions):
    cdef Py_ssize_t position = 0
    cdef PyObject *key
    cdef PyObject *version
    while PyDict_Next(versions, &position, &key, &version):
        p = put_op(p, code, 0, <const u8 *>PyBytes_AS_STRING(<object>key), <u16>PyBytes_GET_SIZE(<object>key), NULL, 0,
                   PyLong_AsUnsignedLongLong(<object>version), 0)
    return p


cdef u8 *put_range(u8 *p, u8 code, bytes start, bytes end, u64 rows):
    return put_op(p, code, 0, <const u8 *>PyBytes_AS_STRING(start), <u16>PyBytes_GET_SIZE(start),
                  <const u8 *>PyBytes_AS_STRING(end), <u32>PyBytes_GET_SIZE(end), rows, 0)


cdef u8 *put_effects(u8 *p, dict effects, dict checks):
    cdef Py_ssize_t position = 0
    cdef PyObject *key
    cdef PyObject *item
    cdef Effect effect
    cdef u8 flags
    cdef const u8 *value
    cdef u32 value_size
    while PyDict_Next(effects, &position, &key, &item):
        effect = <Effect>item
        flags = OP_WANT_RESULT if effect.wanted else 0
        if checks is not None and <object>key in checks:
            flags |= OP_UNCHECKED
        value = NULL
        value_size = 0
        if effect.value is not None:
            value = <const u8 *>PyBytes_AS_STRING(effect.value)
            value_size = <u32>PyBytes_GET_SIZE(effect.value)
        p = put_op(p, effect.code, flags, <const u8 *>PyBytes_AS_STRING(<object>key),
                   <u16>PyBytes_GET_SIZE(<object>key), value, value_size, <u64>effect.delta, effect.expires_at)
    return p


cdef bytearray encode_request(TransactionCore txn, bint durable):
    """The request, its sequence still 0.

    Raises:
      TransactionTooLarge: with everything that was read it is larger than `transaction_size_max`.
    """
    cdef list ranges = walked_ranges(txn)
    cdef u64 size = REQUEST_HEADER_SIZE + txn.size, count = len(ranges)
    cdef u8 *p
    cdef u8 *start
    cdef RequestHeader *header
    if txn.reads is not None:
        size += versions_size(txn.reads)
        count += len(txn.reads)
    for low, high, _ in ranges:
        size += op_cost(low, high)
    count += len(txn.checks) if txn.checks is not None else 0
    count += len(txn.effects) if txn.effects is not None else 0
    count += len(txn.cleared) if txn.cleared is not None else 0
    if size > txn.transaction_size_max:
        raise TransactionTooLarge(size=size, limit=txn.transaction_size_max)
    cdef bytearray request = bytearray(size)
    start = <u8 *>PyByteArray_AS_STRING(request)
    header = <RequestHeader *>start
    header.magic = REQUEST_MAGIC
    header.kind = KIND_COMMIT
    header.flags = (REQUEST_BLIND if txn.blind else 0) | (REQUEST_SYNC if durable else 0)
    header.start_version = txn.version
    header.read_time = txn.expiry_time
    header.op_count = <u32>count
    header.body_size = <u32>(size - REQUEST_HEADER_SIZE)
    # A prefix ends in 16 bytes of run id and one of tag.
    memcpy(header.run_id, PyBytes_AS_STRING(txn.prefix) + PyBytes_GET_SIZE(txn.prefix) - 17, 16)
    p = start + REQUEST_HEADER_SIZE
    if txn.reads is not None:
        p = put_versions(p, OP_READ, txn.reads)
    for low, high, rows in ranges:
        p = put_range(p, OP_RANGE, low, high, rows)
    if txn.checks is not None:
        p = put_versions(p, OP_CAS, txn.checks)
    if txn.cleared is not None:
        for low, high in txn.cleared:
            p = put_range(p, OP_DELETE_RANGE, low, high, 0)
    if txn.effects is not None:
        p = put_effects(p, txn.effects, txn.checks)
    assert p == start + size
    return request


# ---- submitting -----------------------------------------------------------------------------------------------------


cdef object require_log(TransactionCore txn):
    """`durable=True` cannot be kept without a log. Called before anything is sent; the transaction stays active."""
    if txn.state == STATE_ACTIVE and txn.handle.log_mode == "none":
        raise InvalidArgumentError(
            "commit(durable=True) needs a log, and this database keeps none (durability 'none')",
            hint="commit() without durable, or open a directory with durability 'standard' or 'always'",
            details={"durability": txn.handle.log_mode},
        )


cdef object commit_transaction(TransactionCore txn, bint durable):
    """Validate and apply everything; a CommitReceipt.

    Raises:
      ConflictError: somebody else was first; nothing was applied.
      StoreFullError, LogWriteError, NotAnIntegerError, IntegerOverflowError, TransactionTooLarge: nothing was applied.
      TransactionTimeout, CoordinatorUnavailable: nothing was applied.
      CommitOutcomeUnknown: no coordinator came back in time to tell.
    """
    cdef bytearray request = prepare_commit(txn, durable)
    cdef Answer answer
    if request is None:
        return txn.receipt
    try:
        answer = txn.handle.submit(request, txn.deadline_ns * 1e-9 if txn.deadline_ns else None)
    except BaseException as error:
        give_up(txn, error)
        raise
    return accept_answer(txn, request, answer)


cdef bytearray prepare_commit(TransactionCore txn, bint durable):
    """The request to be sent, the state VALIDATING; None when there is nothing to send and the transaction is done."""
    cdef bytearray request
    txn.require_active()
    if txn.doomed is not None:
        if txn.attachment is not None:
            txn.attachment.note_conflict(True, txn.doomed_key)
        conflicts = txn.doomed
        txn.finish(STATE_ABORTED)
        raise ConflictError(conflicts=conflicts)
    if not txn.effects and not txn.cleared and not txn.checks:
        txn.finish(STATE_COMMITTED)
        # Nothing was written; what it has read is as safe as the engine makes every commit.
        txn.receipt = make_receipt(txn.version, txn.now(), txn.handle.log_mode, txn.attempts)
        return None
    if not txn.blind:
        refuse_stale(txn)
    try:
        request = encode_request(txn, durable)
    except BaseException:
        txn.finish(STATE_ABORTED)
        raise
    txn.state = STATE_VALIDATING
    return request


cdef int give_up(TransactionCore txn, object error) except -1:
    """Submitting raised: ABORTED if the error says that nothing was committed; else the outcome is not known here."""
    if isinstance(error, OccamError) and not isinstance(error, CommitOutcomeUnknown):
        txn.finish(STATE_ABORTED)
    else:           # also a signal handler's exception, or no memory
        txn.release()
    return 0


cdef object accept_answer(TransactionCore txn, bytearray request, Answer answer):
    """Take over the outcome of a commit that was submitted."""
    txn.session = answer.session
    txn.sequence = answer.sequence
    if type(answer.reply) is bytes:
        return accept_reply(txn, request, answer, <bytes>answer.reply)
    return accept_outcome(txn, request, answer)


cdef object accept_reply(TransactionCore txn, bytearray request, Answer answer, bytes reply):
    """Take over a reply message: every commit that was not interrupted comes here."""
    cdef const ReplyHeader *header = <const ReplyHeader *>PyBytes_AS_STRING(reply)
    cdef const ResultEntry *result = <const ResultEntry *>(PyBytes_AS_STRING(reply) + REPLY_HEADER_SIZE)
    cdef u64 size = PyBytes_GET_SIZE(reply)
    if size < REPLY_HEADER_SIZE or header.magic != REPLY_MAGIC or header.sequence != txn.sequence:
        txn.release()
        raise ProtocolError(f"the reply of {size} bytes does not answer commit {txn.sequence}")
    if header.status != STATUS_COMMITTED:
        txn.finish(STATE_ABORTED)
        raise refusal(txn, request, decode_reply(reply))
    if header.result_count and size >= REPLY_HEADER_SIZE + RESULT_SIZE:
        txn.result_kind = result.kind
        txn.result = result.value
    txn.finish(STATE_COMMITTED)
    txn.receipt = make_receipt(header.commit_version, header.committed_at, answer.durability, txn.attempts)
    return txn.receipt


cdef object accept_outcome(TransactionCore txn, bytearray request, Answer answer):
    """Take over an outcome without a message: the reply was lost, and the handle recovered the outcome."""
    outcome = answer.reply
    if outcome.status != STATUS_COMMITTED:
        txn.finish(STATE_ABORTED)
        raise refusal(txn, request, outcome)
    if outcome.results:
        txn.result_kind = outcome.results[0].kind
        txn.result = outcome.results[0].value & U64_MAX
    txn.finish(STATE_COMMITTED)
    txn.receipt = make_receipt(outcome.commit_version, outcome.committed_at, answer.durability, txn.attempts)
    return txn.receipt


cdef object refusal(TransactionCore txn, bytearray request, object outcome):
    """The error that a refused commit raises."""
    return outcome.error(
        decode_request(bytes(request)), size=len(request), store_size_max=txn.handle.settings.max_store_size
    )
