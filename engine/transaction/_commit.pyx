"""Committing a transaction: fail early, encode one request, submit it, read the one reply.

The thread that owns the transaction calls this with the GIL. Only the handle's `submit` may release the GIL,
and the state VALIDATING keeps other threads out meanwhile.

1. The commit core is the only judge of conflicts. A commit that it would certainly refuse is not sent: two
   expectations that cannot both hold, and versions that are certainly gone, end the transaction here without
   a round trip.
2. A transaction without writes commits without a request. It read one snapshot, so that version is its place
   in the order.
3. The pin is released only after the answer has arrived. Until then the tombstones that validation needs stay
   in the store.
4. After `submit` was called, an OccamError other than CommitOutcomeUnknown means that nothing was committed:
   the state becomes ABORTED. Any other exception, such as one that a signal handler raises, leaves the
   outcome open and the state VALIDATING.
"""

import sys

from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_Next
from cpython.long cimport PyLong_AsUnsignedLongLong
from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_get_thread_ident
from libc.string cimport memcpy

from ...ipc._atomics cimport clock_monotonic_ns, i64, load_acquire_u64, u8, u16, u32, u64
from ..commit._turn_table cimport TURN_NS
from ..commit._wire cimport (
    CONFLICT_CAS, CONFLICT_READ, CONFLICTS_LISTED_MAX, KIND_COMMIT, OP_ADD, OP_CAS, OP_DELETE_RANGE, OP_EPHEMERAL, OP_HEADER_SIZE, OP_RANGE,
    OP_READ, OP_UNCHECKED, OP_WANT_RESULT, REPLY_HEADER_SIZE, REPLY_MAGIC, REPLY_TURN, REQUEST_BLIND, REQUEST_HEADER_SIZE,
    REQUEST_JUDGE_ONLY, REQUEST_MAGIC, REQUEST_PATIENT, REQUEST_SYNC, RESULT_SIZE, STATUS_COMMITTED, STATUS_CONFLICT, ReplyHeader,
    RequestHeader, ResultEntry, put_op,
)
from ..model._records cimport make_receipt
from ..store._reader cimport Found, Reader, key_hash, reader_get
from ._answer cimport Answer
from ._core cimport (
    STATE_ABORTED, STATE_ACTIVE, STATE_COMMITTED, STATE_VALIDATING, Effect, ScanRange, TransactionCore, op_cost,
)
from ._guard cimport admit, records_moved
from ._view cimport SnapshotSource, StoreAttachment, fork_generation

from ..commit.messages import decode_reply, decode_request
from ..model.conflict_records import cas_conflict, read_conflict, write_conflict
from ..model.errors import (
    CommitOutcomeUnknown, ConflictError, CoordinatorUnavailable, InvalidArgumentError, OccamError, ProtocolError,
    TransactionTooLarge,
)
from ..model.limits import PREFIX_SIZE_MAX as _PREFIX_SIZE_MAX

cdef u64 PREFIX_SIZE_MAX = _PREFIX_SIZE_MAX
cdef object U64_MAX = (1 << 64) - 1       # a result travels as 64 bits in two's complement

cdef enum:
    OWN_COMMITS_KEPT = 64
    GUARD_TURNS_MAX = 1000          # looks at a run's record by one blind commit: each but the first follows a change of it


# ---- failing early ------------------------------------------------------------------------------------------------


cdef bint has_live(TransactionCore txn, bytes key, u64 newest, Found *found):
    """Whether a key has a value in the newest state, expired or not.

    No pin holds the newest state. The walk is safe without one, and only the version is taken from it, no
    bytes. That a key has no value is not certain; the commit core can tell, and it can tell a delete from an
    expiry.
    """
    cdef Reader *reader = &(<StoreAttachment>txn.attachment).reader
    cdef const u8 *data = <const u8 *>PyBytes_AS_STRING(key)
    cdef u32 size = <u32>PyBytes_GET_SIZE(key)
    return reader_get(reader, data, size, key_hash(data, size, reader.hash_seed), newest, found) == 1


cdef bint has_changed(TransactionCore txn, bytes key, u64 version, u64 newest, u64 *current):
    """Whether a key certainly no longer has this version; `current` is the version it has, 0 if its value has
    expired."""
    cdef i64 expiry_time = <i64>load_acquire_u64(&(<StoreAttachment>txn.attachment).header.expiry_time)
    cdef Found found
    if not has_live(txn, key, newest, &found):
        return False
    current[0] = 0 if found.expires_at != 0 and found.expires_at <= expiry_time else found.version
    return current[0] != version


cdef bytes changed_key(TransactionCore txn, dict versions, u64 newest):
    """The first key that certainly no longer has its version; None when there is none."""
    cdef Py_ssize_t position = 0
    cdef PyObject *key
    cdef PyObject *version
    cdef u64 current = 0
    if versions is not None:
        while PyDict_Next(versions, &position, &key, &version):
            if has_changed(txn, <bytes>key, PyLong_AsUnsignedLongLong(<object>version), newest, &current):
                return <bytes>key
    return None


cdef list certain_conflicts(TransactionCore txn, u64 newest):
    """A record for each key of which comparing versions shows that somebody else wrote it."""
    cdef list conflicts = []
    cdef u64 current = 0
    cdef Found found
    # Over copies: making a record runs Python code, which may let another thread in.
    for versions, record in ((txn.reads, read_conflict), (txn.checks, cas_conflict)):
        for key, version in list((versions or {}).items()):
            if has_changed(txn, key, version, newest, &current):
                conflicts.append(record(key, version, current))
    for key, effect in list((txn.effects or {}).items()):
        if (<Effect>effect).code == OP_ADD or (txn.checks is not None and key in txn.checks):
            continue
        if has_live(txn, key, newest, &found) and found.version > txn.version:
            conflicts.append(write_conflict(key, txn.version, found.version))
    return conflicts


cdef void refuse_stale(TransactionCore txn) except *:
    """Abort if a version that the transaction relies on is certainly gone.

    REQUIRES of the rest of this section: a source that names a newest version of its own is the store of this machine.

    This is not a second validation: it compares the versions of single keys, and it can only refuse. A
    transaction that walked or deletes a range is left to the commit core, which has to judge the range and
    then names all conflicts.
    """
    cdef u64 newest = txn.attachment.newest(txn.version)
    cdef bytes stale
    cdef bint cas = False
    if newest == txn.version:
        return
    if txn.scans is not None or txn.cleared is not None:
        return
    stale = changed_key(txn, txn.reads, newest)
    if stale is None:
        cas = True
        stale = changed_key(txn, txn.checks, newest)
    if stale is None:
        return
    conflicts = certain_conflicts(txn, newest)
    if not conflicts:
        return          # the value was deleted between the two looks: the commit core tells what became of it
    txn.attachment.note_conflict(cas, stale)
    keep_stale(txn, stale, cas, newest)
    txn.finish(STATE_ABORTED)
    raise explained(txn, ConflictError(conflicts=conflicts[:CONFLICTS_LISTED_MAX], conflicts_found=len(conflicts)))


cdef void keep_stale(TransactionCore txn, bytes key, bint cas, u64 newest) except *:
    """Remember that this key, of the reads or of the checks, has another version than the transaction relies on."""
    cdef u64 expected = PyLong_AsUnsignedLongLong((txn.checks if cas else txn.reads)[key])
    cdef u64 found = 0
    has_changed(txn, key, expected, newest, &found)
    txn.attachment.keep_conflict(CONFLICT_CAS if cas else CONFLICT_READ, key, expected, found, txn.attempts)


# ---- conflicts with oneself ------------------------------------------------------------------------------------------


cdef struct OwnCommit:
    u64 version
    size_t handle
    unsigned long thread


# The last commits of this process, whichever thread's; the GIL guards them.
cdef OwnCommit own_commits[OWN_COMMITS_KEPT]
cdef u64 own_commit_count = 0


cdef void note_own_commit(TransactionCore txn, u64 version) noexcept:
    global own_commit_count
    cdef OwnCommit *own = &own_commits[own_commit_count % OWN_COMMITS_KEPT]
    own_commit_count += 1
    own.version = version
    own.handle = <size_t><PyObject *>txn.handle
    own.thread = PyThread_get_thread_ident()


cdef bint is_own_commit(TransactionCore txn, u64 version) noexcept:
    """Whether this thread committed `version` on the same engine, as far as we remember."""
    cdef unsigned long thread = PyThread_get_thread_ident()
    cdef OwnCommit *own
    for own in own_commits[:OWN_COMMITS_KEPT]:
        if own.version == version and own.thread == thread and own.handle == <size_t><PyObject *>txn.handle:
            return True
    return False


cdef object explained(TransactionCore txn, object error):
    """The same error; one that another commit of the same thread caused, during this transaction, says so in its hint.

    Tasks of an event loop share a thread, and one of them losing to another is an ordinary conflict: nothing is said there.
    """
    if txn.blind or not isinstance(error, ConflictError):
        return error
    events = sys.modules.get("asyncio.events")      # importing it is dear, and without it no loop can run
    if events is not None and events._get_running_loop() is not None:
        return error
    for conflict in error.conflicts:
        if conflict.found_version > txn.version and is_own_commit(txn, conflict.found_version):
            error.hint = (
                f"this thread committed version {conflict.found_version} itself while the transaction was open, and would do so "
                "again at each attempt: inside a transaction use it for every access, txn.put and not db.put"
            )
            error.details["own_commit"] = conflict.found_version
            break
    return error


# ---- the request ----------------------------------------------------------------------------------------------------


cdef list walked_ranges(TransactionCore txn):
    """The ranges that scans have walked, merged where they meet: (start, end, rows), in key order."""
    cdef list merged = []
    if txn.scans is None:
        return merged
    bounds = []
    for scan in txn.scans:
        walked = (<ScanRange>scan).bounds(PREFIX_SIZE_MAX + txn.key_size_max)
        if walked is not None:
            bounds.append((walked[0], walked[1], (<ScanRange>scan).rows))
    if txn.attachment is not None and bounds:
        # `bounds` copied the last keys from the store, so the pin must still have held.
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
        if effect.ephemeral:
            flags |= OP_EPHEMERAL
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
    """The request, with a sequence of 0: the handle fills that in.

    Raises:
      TransactionTooLarge: with everything that was read, it is larger than `transaction_size_max`.
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
    header.flags = (REQUEST_BLIND if txn.blind else 0) | (REQUEST_SYNC if durable else 0) | (REQUEST_PATIENT if txn.patient else 0)
    header.start_version = txn.version
    header.read_time = txn.expiry_time
    header.turn = txn.turn
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
    """Refuse `durable=True` where there is no log. Called before anything is sent, so the transaction stays
    active."""
    if txn.state == STATE_ACTIVE and txn.handle.log_mode == "none":
        raise InvalidArgumentError(
            "commit(durable=True) needs a log, and this database keeps none (durability 'none')",
            hint="commit() without durable, or open a directory with durability 'standard' or 'always'",
            details={"durability": txn.handle.log_mode},
        )


cdef tuple find_conflicts(TransactionCore txn):
    """What a commit would conflict with as of now. The commit core judges the request and applies nothing.

    The transaction stays active whatever happens here, because nothing of it was applied.
    """
    cdef bytearray request
    cdef Answer answer
    if not (txn.reads or txn.scans or txn.checks or txn.effects or txn.cleared):
        return ()
    request = encode_request(txn, False)
    (<RequestHeader *>PyByteArray_AS_STRING(request)).flags |= REQUEST_JUDGE_ONLY
    txn.state = STATE_VALIDATING            # keeps other threads out while `submit` lets go of the GIL
    try:
        answer = txn.handle.submit(request, txn.deadline_ns * 1e-9 if txn.deadline_ns else None)
    except CommitOutcomeUnknown:
        raise CoordinatorUnavailable(
            "no coordinator answered in time; nothing was committed, and the transaction is still active", hint="try again"
        ) from None
    finally:
        txn.state = STATE_ACTIVE
    outcome = decode_reply(answer.reply) if type(answer.reply) is bytes else answer.reply
    if outcome.sequence != answer.sequence:
        raise ProtocolError(f"the reply names request {outcome.sequence}, not {answer.sequence}")
    if outcome.status == STATUS_COMMITTED:
        return ()
    error = refusal(txn, request, outcome)
    if outcome.status == STATUS_CONFLICT:
        return error.conflicts
    raise error


cdef object commit_transaction(TransactionCore txn, bint durable):
    """Validate and apply everything; a CommitReceipt.

    Raises:
      ConflictError: another transaction committed first; nothing was applied.
      StoreFullError, LogWriteError, NotAnIntegerError, IntegerOverflowError, TransactionTooLarge: nothing was
        applied.
      TransactionTimeout, CoordinatorUnavailable: nothing was applied.
      CommitOutcomeUnknown: no coordinator came back in time to say what became of it.
    """
    cdef bytearray request
    cdef Answer answer
    cdef object receipt = None
    while receipt is None:
        request = prepare_commit(txn, durable)
        if request is None:
            return txn.receipt
        try:
            answer = txn.handle.submit(request, txn.deadline_ns * 1e-9 if txn.deadline_ns else None)
        except BaseException as error:
            give_up(txn, error)
            raise
        receipt = accept_answer(txn, request, answer)
    return receipt


cdef bytearray prepare_commit(TransactionCore txn, bint durable):
    """The request to be sent, the state VALIDATING; None if there is nothing to send and the transaction is done.
    """
    cdef bytearray request
    if txn.state != STATE_ACTIVE or txn.generation != fork_generation or txn.deadline_ns != 0:
        txn.refuse()
    if txn.doomed is not None:
        if txn.attachment is not None:
            txn.attachment.note_conflict(True, txn.doomed_key)
            txn.attachment.keep_conflict(
                CONFLICT_CAS, txn.doomed_key, txn.doomed[0].expected_version, txn.doomed[0].found_version, txn.attempts
            )
        conflicts = txn.doomed
        txn.finish(STATE_ABORTED)
        raise ConflictError(conflicts=conflicts)
    if not txn.effects and not txn.cleared and not txn.checks:
        txn.begin_now()
        txn.finish(STATE_COMMITTED)
        # It wrote nothing. What it read is as durable as the engine makes every commit.
        txn.receipt = make_receipt(txn.version, txn.now(), txn.handle.log_mode, txn.attempts)
        return None
    if txn.guard is not None:
        ask_guard(txn)
    # One that asks for a turn is sent even if it has certainly lost: only the commit core grants turns.
    if not txn.blind and (txn.turn == 0 or txn.patient):
        try:
            refuse_stale(txn)
        except ConflictError as error:
            send_again(txn, error)      # never, as it is not blind; raises the guard's own error if it has one
            raise
    try:
        if txn.binds:
            txn.handle.keep_session()
        request = encode_request(txn, durable)
    except BaseException:
        txn.finish(STATE_ABORTED)
        raise
    txn.state = STATE_VALIDATING
    return request


cdef int ask_guard(TransactionCore txn) except -1:
    """Have the guard judge the runs that are written to.

    What it read of them is part of the commit's validation, whatever the isolation.
    """
    try:
        if txn.blind:
            txn.open(txn.handle.attachment())
        # With what `finish` lets go of, so that the commit can be sent again.
        txn.admitted = (admit(txn), txn.effects, txn.checks, txn.cleared)
    except BaseException:
        txn.finish(STATE_ABORTED)
        raise
    return 0


cdef bint send_again(TransactionCore txn, object conflict) except -1:
    """Whether a commit that conflicted is to be prepared and sent again; it is active then.

    A blind commit begins in the coordinator's order and cannot conflict with another write. So if the record of a
    run changed after the guard had looked at it, the guard only has to look again.

    Raises:
      Whatever the guard raises, if a run is no longer open.
    """
    cdef dict records
    cdef tuple admitted = txn.admitted
    txn.admitted = None
    if admitted is None:
        return False
    records = admitted[0]
    txn.turns += 1
    if not records_moved(txn, records, conflict) or not txn.blind or txn.turns == GUARD_TURNS_MAX:
        return False
    txn.state = STATE_ACTIVE
    txn.reads = None
    txn.effects, txn.checks, txn.cleared = admitted[1], admitted[2], admitted[3]
    return True


cdef int give_up(TransactionCore txn, object error) except -1:
    """Submitting raised: ABORTED if the error says that nothing was committed; else the outcome is not known here."""
    if isinstance(error, OccamError) and not isinstance(error, CommitOutcomeUnknown):
        txn.finish(STATE_ABORTED)
    else:           # also from a signal handler, or out of memory: the outcome is not known here
        txn.release()
    return 0


cdef object accept_answer(TransactionCore txn, bytearray request, Answer answer):
    """Take over the outcome of a commit that was submitted; see _commit.pxd."""
    txn.session = answer.session
    txn.sequence = answer.sequence
    try:
        if type(answer.reply) is bytes:
            return accept_reply(txn, request, answer, <bytes>answer.reply)
        return accept_outcome(txn, request, answer)
    except ConflictError as error:
        if not send_again(txn, error):
            raise
    return None


cdef object accept_reply(TransactionCore txn, bytearray request, Answer answer, bytes reply):
    """Finish the transaction as a reply message says. Every commit that was not interrupted comes here."""
    cdef const ReplyHeader *header = <const ReplyHeader *>PyBytes_AS_STRING(reply)
    cdef const ResultEntry *result = <const ResultEntry *>(PyBytes_AS_STRING(reply) + REPLY_HEADER_SIZE)
    cdef u64 size = PyBytes_GET_SIZE(reply)
    if size < REPLY_HEADER_SIZE or header.magic != REPLY_MAGIC or header.sequence != txn.sequence:
        txn.release()
        raise ProtocolError(f"the reply of {size} bytes does not answer commit {txn.sequence}")
    if header.status != STATUS_COMMITTED:
        txn.turn_granted = header.flags & REPLY_TURN
        source = txn.attachment
        txn.finish(STATE_ABORTED)
        raise explained(txn, refused(txn, source, request, decode_reply(reply)))
    if header.result_count and size >= REPLY_HEADER_SIZE + RESULT_SIZE:
        txn.result_kind = result.kind
        txn.result = result.value
    txn.finish(STATE_COMMITTED)
    note_own_commit(txn, header.commit_version)
    txn.receipt = make_receipt(header.commit_version, header.committed_at, answer.durability, txn.attempts)
    return txn.receipt


cdef object accept_outcome(TransactionCore txn, bytearray request, Answer answer):
    """Finish the transaction by an outcome that the handle recovered, because the reply message was lost."""
    outcome = answer.reply
    if outcome.status != STATUS_COMMITTED:
        source = txn.attachment
        txn.finish(STATE_ABORTED)
        raise explained(txn, refused(txn, source, request, outcome))
    if outcome.results:
        txn.result_kind = outcome.results[0].kind
        txn.result = outcome.results[0].value & U64_MAX
    txn.finish(STATE_COMMITTED)
    note_own_commit(txn, outcome.commit_version)
    txn.receipt = make_receipt(outcome.commit_version, outcome.committed_at, answer.durability, txn.attempts)
    return txn.receipt


cdef int leave_turn(TransactionCore txn) except -1:
    """Let the others go on if the turn of a transaction is not used.

    This is only a courtesy, so it does not wait for longer than a turn, and a failure does not matter.
    """
    cdef bytearray request = bytearray(REQUEST_HEADER_SIZE)
    cdef RequestHeader *header = <RequestHeader *>PyByteArray_AS_STRING(request)
    header.magic = REQUEST_MAGIC
    header.kind = KIND_COMMIT
    header.flags = REQUEST_JUDGE_ONLY
    header.turn = txn.turn
    try:
        txn.handle.submit(request, (clock_monotonic_ns() + TURN_NS) * 1e-9)
    except OccamError:
        pass
    return 0


cdef object refused(TransactionCore txn, SnapshotSource source, bytearray request, object outcome):
    """`refusal`, of a commit that was not only asked about: its first conflict is remembered."""
    if source is not None and outcome.status == STATUS_CONFLICT and outcome.conflicts:
        first = outcome.conflicts[0]
        source.keep_conflict(first.kind, first.key, first.expected, first.found, txn.attempts)
    return refusal(txn, request, outcome)


cdef object refusal(TransactionCore txn, bytearray request, object outcome):
    """The error that a refused commit raises."""
    if outcome.status == STATUS_CONFLICT:
        return outcome.error()          # by far the usual one, and it needs no more
    return outcome.error(
        decode_request(bytes(request)), size=len(request), store_size_max=txn.handle.settings.max_store_size
    )
