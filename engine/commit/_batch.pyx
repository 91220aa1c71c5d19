"""One batch of the commit core: serve each request, log, publish, answer.

A batch is everything that lies complete in the request rings, at most one request from each channel:

    take      copy each complete request to private memory                      (_loop)
    validate  check the format, and the reads against the store as the batch has left it   (_validate)
    apply     install records above committed_version, where readers do not see them                (_apply)
    log       one write, and one fdatasync if any request asks for it           (WalAppender.flush)
    publish   committed_version, with release order
    answer    put every reply into its ring, then wake the workers that sleep   (_wakes)

A crash between any two of these steps is harmless. Before `log`, nothing survives the process. During `log`,
the torn transaction has no CommitTxn entry, so recovery drops it. After `log`, the commit is whole in the
log, and a worker without an answer asks the next coordinator what became of its request. No request is
answered and no version is published before the log write has returned, so no reader sees what a recovery
would not bring back.

If `log` fails, the batch is undone newest first. Its versions are used again, because no reader saw them, and
every request in it is told LOG_WRITE_ERROR. If the log cannot be cut back either, nobody knows what a
recovery will find: no request is answered, `fatal_errno` ends the process, and the next coordinator reads
what is there.
"""

from libc.string cimport memset
from posix.unistd cimport write as posix_write

from ...ipc._atomics cimport (
    cas_u32, clock_monotonic_ns, fence_release, load_acquire_u32, store_relaxed_u64, store_release_u32,
)
from ...ipc._ring cimport inbox_drop, inbox_take_done, outbox_send
from ..disk._failpoints cimport (
    FP_COMMIT_AFTER_APPLY, FP_COMMIT_AFTER_PUBLISH, FP_COMMIT_AFTER_REPLY, FP_COMMIT_AFTER_VALIDATE,
    FP_COMMIT_BEFORE_PUBLISH, FP_COMMIT_BEFORE_REPLY, FP_COMMIT_BEFORE_VALIDATE, FP_COMMIT_WALK_SLICE, failpoint_armed,
    failpoint_hit,
)
from ..store._change_ring cimport change_discard
from ..store._store cimport store_publish
from ._apply cimport apply_request, undo_to
from ._core cimport (
    ANSWER_COMMITTED, ANSWER_DEPENDENT, ANSWER_NONE, ANSWER_REFUSED, CHANNEL_ACTIVE, CHANNEL_BROKEN,
    COLLECT_BUDGET_IDLE, REPLY_SIZE_MIN,
)
from ._expiry_time cimport publish_expiry_time
from ._pins cimport collect
from ._range_check cimport ranges_to_check, walk_ranges
from ._range_history cimport history_undo
from ._turns cimport (
    TURN_GRANTED, TURN_WAIT, TurnVerdict, turns_ask, turns_hold, turns_judged, turns_leave, turns_sent, turns_undo,
)
from ._validate cimport check_format, reserve_reply, validate_request
from ._watchers cimport mark_watchers
from ._wakes cimport answered, flush_wakes, release_wakes, wake_at_once
from ._wire cimport (
    REPLY_HEADER_SIZE, REPLY_MAGIC, REPLY_TURN, REQUEST_JUDGE_ONLY, STATUS_BAD_REQUEST, STATUS_BOUND_REACHED,
    STATUS_COMMITTED, STATUS_CONFLICT, STATUS_LOG_FAILED, STATUS_LOG_WRITE_ERROR, STATUS_STORE_FULL, ReplyHeader,
    RequestHeader,
)


# ---- one request -------------------------------------------------------------------------------------------

cdef void _refuse(Core *core, Channel *channel, u32 status, u32 detail) noexcept nogil:
    """Write a refusal into the reply header and count it."""
    cdef ReplyHeader *reply = <ReplyHeader *>channel.out
    reply.status = <unsigned short>status
    reply.detail = detail
    if status == STATUS_CONFLICT:
        channel.conflicts += 1
    else:
        if status != STATUS_BOUND_REACHED:
            reply.result_count = 0
        core.counters.refused += 1


cdef inline u32 _refusal(const Core *core) noexcept nogil:
    """The kind of a refusal that looked at the store: it depends on this batch's commits if there are any."""
    return ANSWER_REFUSED if core.next_version == core.store.header.committed_version else ANSWER_DEPENDENT


cdef inline u32 _log_error(WalAppender log) noexcept nogil:
    """The errno that keeps the log from taking commits, or 0."""
    # Acquire: a sync in another thread may set it.
    return 0 if log is None else load_acquire_u32(&log.file.poison_errno)


cdef bint _accept(Core *core, Channel *channel, const u8 *request, u64 size, WalAppender log) noexcept nogil:
    """Prepare the reply and check the request's format. False: refused, and the reply says why."""
    cdef const RequestHeader *header = <const RequestHeader *>request
    cdef u32 status, detail = 0
    channel.answer = ANSWER_REFUSED
    channel.sequence = header.sequence
    if not reserve_reply(channel, REPLY_SIZE_MIN):
        channel.answer = ANSWER_NONE
        return False
    memset(channel.out, 0, REPLY_HEADER_SIZE)
    channel.out_size = REPLY_HEADER_SIZE
    if failpoint_armed():
        failpoint_hit(FP_COMMIT_BEFORE_VALIDATE)
    status = check_format(core, request, size, channel.reply_max)
    if status == STATUS_COMMITTED and header.sequence <= channel.last_sequence:
        status = STATUS_BAD_REQUEST         # sent before: the first outcome stands
    if status == STATUS_COMMITTED:
        detail = _log_error(log)
        if detail:
            status = STATUS_LOG_FAILED
    if status != STATUS_COMMITTED:
        _refuse(core, channel, status, detail)
        return False
    channel.walk.count = ranges_to_check(request)
    return True


cdef bint _walk(Core *core, Channel *channel, const u8 *request) noexcept nogil:
    """Check the request's ranges, at most `walk_slice` steps. False: not finished, the request is parked."""
    cdef u32 budget = core.walk_slice
    if channel.walk.count and not channel.walk.active and core.bell == NULL:
        budget = <u32>-1                # in memory no other request is served meanwhile
    if channel.walk.active and failpoint_armed() and failpoint_hit(FP_COMMIT_WALK_SLICE):
        return False
    if channel.walk.count and not walk_ranges(core, channel, request, budget):
        channel.answer = ANSWER_NONE
        return False
    channel.walk.active = False
    return True


cdef u32 _apply(Core *core, Channel *channel, const u8 *request, u64 version, u32 *detail, WalAppender log) noexcept nogil:
    """Apply a validated request. Unless it returns STATUS_COMMITTED, store and log buffer are as before."""
    cdef u32 status = apply_request(core, channel, request, version, detail, log)
    if status == STATUS_STORE_FULL and _refusal(core) == ANSWER_REFUSED:
        # The batch has no commit yet, so the nodes of deleted keys may be freed. Later in a batch they may
        # not, because the undo list may refer to them.
        collect(core, COLLECT_BUDGET_IDLE)
        channel.out_size = REPLY_HEADER_SIZE
        (<ReplyHeader *>channel.out).result_count = 0
        status = apply_request(core, channel, request, version, detail, log)
    return status


cdef void batch_serve(Core *core, Channel *channel, const u8 *request, u64 size, WalAppender log) noexcept nogil:
    """Validate and apply one request; see _batch.pxd."""
    if channel.walk.active or _accept(core, channel, request, size, log):
        if not _walk(core, channel, request):
            return
        # Behind the walk: the same batch judges the request, or the walk is done again when it has waited.
        if core.turns.count and turns_hold(core, channel, request):
            channel.answer = ANSWER_NONE
            return
        _judge(core, channel, request, log)
    if channel.place and channel.answer != ANSWER_NONE:
        turns_leave(core, channel)


cdef void _conflict(Core *core, Channel *channel, const u8 *request, u64 conflicts) noexcept nogil:
    """Answer a request that lost, or one that only asked whether it would."""
    # Validation may have moved the reply buffer, so take its address anew.
    cdef ReplyHeader *reply = <ReplyHeader *>channel.out
    cdef bint judged
    cdef TurnVerdict verdict
    reply.conflicts_found = conflicts
    if (<const RequestHeader *>request).flags & REQUEST_JUDGE_ONLY:
        reply.status = STATUS_CONFLICT if conflicts else STATUS_COMMITTED
        channel.answer = _refusal(core)
        return
    judged = turns_judged(core, channel)
    if (<const RequestHeader *>request).turn:
        verdict = turns_ask(core, channel, request)
        if verdict == TURN_GRANTED:
            reply.flags = REPLY_TURN
        channel.answer = ANSWER_NONE if verdict == TURN_WAIT else _refusal(core)
    else:
        channel.answer = _refusal(core)
    _refuse(core, channel, STATUS_CONFLICT, 0)
    channel.conflicts -= judged         # it was counted when it lost first


cdef void _judge(Core *core, Channel *channel, const u8 *request, WalAppender log) noexcept nogil:
    """Decide a request whose ranges were checked in this batch, and apply it if it wins."""
    cdef ReplyHeader *reply
    cdef u32 status, detail = 0
    cdef u64 version = core.next_version + 1, conflicts
    channel.answer = ANSWER_REFUSED
    if channel.walk.count > channel.walk.capacity:
        _refuse(core, channel, STATUS_STORE_FULL, 0)    # no private memory for the range checks
        return
    # A second look: the log may have failed while the request was parked.
    detail = _log_error(log)
    if detail:
        _refuse(core, channel, STATUS_LOG_FAILED, detail)
        return
    conflicts = validate_request(core, channel, request)
    if conflicts or (<const RequestHeader *>request).flags & REQUEST_JUDGE_ONLY:
        _conflict(core, channel, request, conflicts)
        return
    if failpoint_armed():
        failpoint_hit(FP_COMMIT_AFTER_VALIDATE)
    status = _apply(core, channel, request, version, &detail, log)
    if status != STATUS_COMMITTED:
        if status != STATUS_BOUND_REACHED:      # its reply has a result
            channel.out_size = REPLY_HEADER_SIZE
        _refuse(core, channel, status, detail)
        channel.answer = _refusal(core)
        return
    core.next_version = version
    reply = <ReplyHeader *>channel.out
    reply.commit_version = version
    reply.committed_at = core.now
    channel.answer = ANSWER_COMMITTED
    channel.commits += 1


# ---- the batch ---------------------------------------------------------------------------------------------

cdef bint batch_commit(Core *core, bint any_sync, WalAppender log) noexcept nogil:
    """Log and publish what the batch applied; see _batch.pxd."""
    cdef int error
    if core.undo_count == 0 and core.next_version == core.store.header.committed_version:
        return True
    if failpoint_armed():
        failpoint_hit(FP_COMMIT_AFTER_APPLY)
    if log is not None:
        if any_sync:
            # We are about to block in fdatasync, so wake every answered worker now: their next requests form
            # the next group commit.
            flush_wakes(core)
        error = log.flush(any_sync)
        if error:
            _fail_batch(core, error, log)
            return not core.fatal_errno
    if failpoint_armed():
        failpoint_hit(FP_COMMIT_BEFORE_PUBLISH)
    _note_outcomes(core)
    publish_expiry_time(core)
    # Release: a reader that sees the version sees every record of the batch and the outcomes noted before it.
    store_publish(&core.store, core.next_version)
    mark_watchers(core)
    core.undo_count = 0
    if failpoint_armed():
        failpoint_hit(FP_COMMIT_AFTER_PUBLISH)
    return True


cdef void _note_outcomes(Core *core) noexcept nogil:
    """Record each session's commit before it is published: a checkpoint of that version must include it."""
    cdef u32 index
    cdef Channel *channel
    for index in range(core.channels_high):
        channel = &core.channels[index]
        if channel.answer == ANSWER_COMMITTED:
            # A reader that finds the lock even and unchanged around its two reads has a true pair.
            store_release_u32(&channel.outcome_lock, channel.outcome_lock + 1)
            fence_release()
            store_relaxed_u64(&channel.last_sequence, channel.sequence)
            store_relaxed_u64(&channel.last_version, (<ReplyHeader *>channel.out).commit_version)
            store_release_u32(&channel.outcome_lock, channel.outcome_lock + 1)


cdef void _fail_batch(Core *core, u32 error, WalAppender log) noexcept nogil:
    """Undo a batch that the log refused, and turn its commits into refusals.

    A request that was refused because of a commit in this batch gets the same error, since that commit is
    undone.
    """
    cdef u32 index
    cdef Channel *channel
    core.counters.log_errors += 1
    if log.file.uncertain:
        core.fatal_errno = error
        return
    undo_to(core, 0)
    core.next_version = core.store.header.committed_version
    history_undo(&core.range_history, core.next_version + 1)
    change_discard(&core.store.changes, core.next_version)
    if core.turns.fresh:
        turns_undo(core)
    core.recent_epoch += 1
    # The list of recent writes has nodes of this batch, which may be freed from now on: forget the whole
    # list.
    core.recent_next = 0
    core.recent_floor = core.next_version
    for index in range(core.channels_high):
        channel = &core.channels[index]
        if channel.answer == ANSWER_COMMITTED:
            channel.commits -= 1
        elif channel.answer != ANSWER_DEPENDENT:
            continue
        channel.answer = ANSWER_REFUSED
        memset(channel.out, 0, REPLY_HEADER_SIZE)
        channel.out_size = REPLY_HEADER_SIZE
        _refuse(core, channel, STATUS_LOG_WRITE_ERROR, error)


cdef void batch_seal(Core *core, Channel *channel) noexcept nogil:
    """Complete a reply; see _batch.pxd."""
    cdef ReplyHeader *reply = <ReplyHeader *>channel.out
    reply.magic = REPLY_MAGIC
    reply.sequence = channel.sequence
    reply.body_size = <u32>(channel.out_size - REPLY_HEADER_SIZE)
    if channel.answer == ANSWER_COMMITTED:
        core.counters.commits += 1
    channel.answer = ANSWER_NONE


cdef void batch_answer(Core *core) noexcept nogil:
    """Send each reply of the batch; see _batch.pxd."""
    cdef u32 index
    cdef Channel *channel
    cdef i64 now = clock_monotonic_ns()
    if failpoint_armed():
        failpoint_hit(FP_COMMIT_BEFORE_REPLY)
    for index in range(core.channels_high):
        channel = &core.channels[index]
        if channel.answer == ANSWER_NONE:
            continue
        batch_seal(core, channel)
        inbox_take_done(&channel.inbox)
        channel.receive_until = 0
        if ((<ReplyHeader *>channel.out).status == STATUS_BAD_REQUEST
                or outbox_send(&channel.reply, channel.out, <u32>channel.out_size) != 0):
            break_channel(core, channel)
            continue
        if (<ReplyHeader *>channel.out).flags & REPLY_TURN:
            wake_at_once(channel, now)      # others wait for it
        else:
            answered(core, index, now)
    if core.turns.fresh:
        turns_sent(core, clock_monotonic_ns())
    release_wakes(core, now)
    if failpoint_armed():
        failpoint_hit(FP_COMMIT_AFTER_REPLY)


# ---- broken channels ---------------------------------------------------------------------------------------

cdef void break_channel(Core *core, Channel *channel) noexcept nogil:
    """Stop serving a channel after bad input; see _batch.pxd."""
    inbox_drop(&channel.inbox)
    # Compare-and-swap from ACTIVE: the control plane may have set CLOSING meanwhile. If BROKEN replaced that,
    # the channel would never be closed.
    cas_u32(&channel.state, CHANNEL_ACTIVE, CHANNEL_BROKEN)
    notify_control(core)


cdef void notify_control(Core *core) noexcept nogil:
    """Wake the control plane; see _batch.pxd."""
    cdef u64 one = 1
    if core.wake_fd >= 0:
        posix_write(core.wake_fd, &one, 8)
