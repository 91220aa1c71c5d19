"""The commit thread: its loop, its sleep, and the closing of channels.

The thread never holds the GIL. The control plane, which does, works beside it: it fills in channel slots,
changes their state by the transitions in _core.pxd, reads counters (each is one word, so a sum may be off by
one batch) and sets `stop_flag`. Nothing in a turn waits for a worker.
"""

from libc.string cimport memset

from ...ipc._atomics cimport (
    clock_monotonic_ns, cpu_relax, current_cpu, i64, load_acquire_u32, load_relaxed_u32, store_relaxed_u32, store_release_u32, u32,
    u64,
)
from ...ipc._doorbell cimport SPIN_ADAPTIVE, SPIN_LONG, SPIN_NEVER, SPIN_SERVE, doorbell_wait, waiter_init
from ...ipc._layout cimport BELL_RINGER_OFFSET, BELL_SERVER_OFFSET, BELL_SLEEPING_OFFSET, BELL_WORD_OFFSET
from ...ipc._ring cimport (
    INBOX_BAD, INBOX_PARTIAL, inbox_drop, inbox_poll, inbox_ready, inbox_take_done, outbox_send,
)
from ._batch cimport batch_answer, batch_commit, batch_serve, break_channel, notify_control
from ._core cimport (
    ANSWER_NONE, CHANNEL_ACTIVE, CHANNEL_CLOSED, CHANNEL_CLOSING, HISTOGRAM_COUNT, REPLY_SIZE_MIN, Channel,
    sessions_waiting,
)
from ._expiry_time cimport is_due, read_clock
from ._housekeeping cimport expire_keys, expiry_wait, housekeeping
from ._pins cimport revoke_all
from ._placement cimport make_room, turn_began, woken_by
from ._session_end cimport sessions_due
from ._turns cimport turns_abandon, turns_clear, turns_end, turns_expire, turns_next, turns_settle
from ._validate cimport reserve_reply
from ._wakes cimport flush_wakes, release_wakes, wake_worker
from ._watchers cimport wake_marked
from ._wire cimport (
    REPLY_HEADER_SIZE, REPLY_MAGIC, REQUEST_HEADER_SIZE, REQUEST_SYNC, STATUS_STOPPING, ReplyHeader, RequestHeader,
)

cdef enum:
    IDLE_NS_MAX = 50000000          # the longest sleep, whatever the doorbell says
    WINDOW_NS = 2000000             # active channels are counted over this long
    RECEIVE_NS = 2000000000         # while others wait, a request above 1 MiB must arrive in this time ...
    RECEIVE_STEP = 4194304          # ... or at least grow by this many bytes


# ---- the loop ----------------------------------------------------------------------------------------------

cdef void commit_loop(Core *core, WalAppender log) noexcept nogil:
    """Serve until the stop flag or a fatal error of the log; see _loop.pxd."""
    while not load_acquire_u32(&core.stop_flag) and not core.fatal_errno:
        if log is not None and not core.commits_over and load_acquire_u32(&log.file.poison_errno):
            _note_failed_log(core)
        if _turn(core, log) == 0:
            if core.wakes_count:
                # A wake-up is due within microseconds. Look for requests until then instead of sleeping.
                cpu_relax()
                release_wakes(core, clock_monotonic_ns())
                continue
            if not housekeeping(core, True, log) and core.parked == 0 and core.interest.due_count == 0:
                _sleep(core)
    flush_wakes(core)
    wake_marked(core, True)
    if not core.fatal_errno:
        _refuse_rest(core, log)
    notify_control(core)


cdef int _turn(Core *core, WalAppender log) noexcept nogil:
    """Serve one batch. Returns how many requests it answered."""
    cdef bint any_sync = core.sync_all
    cdef i64 started
    cdef u32 count
    cdef u64 commits, turns
    _close_channels(core, log)
    commits = core.counters.commits
    turns = core.turns.granted
    started = read_clock(core)
    if is_due(core):
        # Before the batch, so that its range checks need not look for keys that are due.
        expire_keys(core, log)
    if started >= core.window_end:
        _roll_window(core, started)
    count = _take_requests(core, &any_sync, log)
    if core.turns.count:
        turns_expire(core, started)
        core.parked += core.turns.changed           # what waited is looked at in the next batch, without a sleep
    if core.inboxes.first:
        _share_inboxes(core, started)
    if core.turns.came_back:
        _note_cores(core, started)
    if count == 0:
        return 0
    if batch_commit(core, any_sync, log):
        batch_answer(core)
    if core.turns.granted != turns and make_room(&core.placement):
        waiter_init(&core.waiter)
    _note_batch(core, core.counters.commits - commits, started)
    housekeeping(core, False, log)
    return count


cdef u32 _take_requests(Core *core, bint *any_sync, WalAppender log) noexcept nogil:
    """Validate and apply one complete request of each channel, in slot order from a rotating start.

    Returns how many requests have an answer, and sets `any_sync` if one of them waits for the disk.
    """
    cdef u32 high = load_acquire_u32(&core.channels_high)
    cdef u32 first = <u32>(core.counters.batches % high) if high else 0
    cdef u32 step, index, count = 0
    cdef Channel *channel
    core.parked = 0
    if core.turns.changed:
        core.turns.changed = False
        count = _take_waiting(core, any_sync, False, log)
        count += _take_waiting(core, any_sync, True, log)
        turns_settle(core)
    for step in range(high):
        index = first + step
        if index >= high:
            index -= high
        channel = &core.channels[index]
        if channel.place or channel.answer != ANSWER_NONE:
            continue                    # in the line of turns, or served there just now
        if load_acquire_u32(&channel.state) != CHANNEL_ACTIVE or not _take_from(core, channel, log):
            core.parked += channel.walk.active
            continue
        _note_taken(core, channel, any_sync)
        count += 1
    return count


cdef inline void _note_taken(Core *core, Channel *channel, bint *any_sync) noexcept nogil:
    """A request of this channel has an answer."""
    channel.hot_until = 0
    if channel.window != core.window:
        channel.window = core.window
        core.window_channels += 1
    if (<const RequestHeader *>channel.inbox.data).flags & REQUEST_SYNC:
        any_sync[0] = True


cdef u32 _take_waiting(Core *core, bint *any_sync, bint asks, WalAppender log) noexcept nogil:
    """Serve the requests in the line of turns whose wait may be over, in the order of their arrival.

    Returns how many of them have an answer.
    """
    cdef u32 index = 0, count = 0
    cdef u64 came = turns_next(core, 0, asks, &index)
    while came:
        if _take_from(core, &core.channels[index], log):
            _note_taken(core, &core.channels[index], any_sync)
            count += 1
        elif core.channels[index].walk.active:
            core.parked += 1
            core.turns.changed = True   # its ranges are checked further in the next batch
        came = turns_next(core, came, asks, &index)
    return count


cdef bint _take_from(Core *core, Channel *channel, WalAppender log) noexcept nogil:
    """Serve the channel's request if one is complete. False: there is nothing to answer yet."""
    cdef int polled = inbox_poll(&channel.inbox, &channel.request, core.request_size_max)
    if polled == 0:
        if channel.inbox.progressed:
            # The producer of a message larger than its ring waits for the room we just made. A whole message
            # does not need this: its producer waits for the answer, and would be woken twice for one commit.
            wake_worker(channel)
        return False
    if polled < 0 or channel.inbox.size < REQUEST_HEADER_SIZE:
        break_channel(core, channel)
        return False
    batch_serve(core, channel, channel.inbox.data, channel.inbox.size, log)
    # A parked request stays complete in the inbox and is served again in a later batch.
    return not channel.walk.active and not channel.place


cdef void _share_inboxes(Core *core, i64 now) noexcept nogil:
    """Choose the large request that receives memory next, and take memory from workers that stopped sending.

    A worker that is stopped in the middle of a large request would keep all other large requests waiting, so
    it is disconnected. Its request had not arrived completely and had no effect; the worker sends it again
    when it goes on.
    """
    cdef u32 index
    cdef u64 first = 0
    cdef Channel *channel
    for index in range(core.channels_high):
        channel = &core.channels[index]
        if load_acquire_u32(&channel.state) != CHANNEL_ACTIVE:
            continue
        if channel.inbox.ticket and (first == 0 or channel.inbox.ticket < first):
            first = channel.inbox.ticket
        if channel.inbox.reserved == 0 or channel.inbox.state != INBOX_PARTIAL:
            continue
        if channel.receive_until == 0 or channel.inbox.filled - channel.receive_mark >= RECEIVE_STEP:
            channel.receive_mark = channel.inbox.filled
            channel.receive_until = now + RECEIVE_NS
        elif now > channel.receive_until:
            break_channel(core, channel)
    core.inboxes.first = first


cdef inline u32 _bucket_of(u64 value) noexcept nogil:
    """The histogram bucket of a value: bucket b counts values in [2**(b-1), 2**b)."""
    cdef u32 bucket = 0
    while value and bucket < HISTOGRAM_COUNT - 1:
        value >>= 1
        bucket += 1
    return bucket


cdef void _note_batch(Core *core, u64 commits, i64 started) noexcept nogil:
    """Count a batch, its commits and its duration. One that committed nothing has no size."""
    core.counters.batches += 1
    if commits:
        core.counters.batch_sizes[_bucket_of(commits)] += 1
    core.counters.batch_ns[_bucket_of(<u64>(clock_monotonic_ns() - started))] += 1


cdef void _roll_window(Core *core, i64 now) noexcept nogil:
    """Decide from the number of recently active channels who may spin.

    Workers may spin while each has a core of its own beside the commit thread's. The commit thread spins for
    longer (`alone`) when it has a core of its own and at most one worker, since no other process then needs
    its core.
    """
    store_relaxed_u32(&core.store.header.spin_hint, core.window_channels < core.core_count)
    core.alone = core.window_channels < 2 and core.core_count > 1
    core.window += 1
    core.window_end = now + WINDOW_NS
    core.window_channels = 0


cdef void _note_failed_log(Core *core) noexcept nogil:
    """Tell the control plane that the log has failed and that no commit follows.

    Called between two batches, so no commit is under way. From here on every flush finds the log poisoned and
    refuses, and `committed_version` does not change.
    """
    # Release: a thread that sees the word also sees the last version that was published.
    store_release_u32(&core.commits_over, 1)
    notify_control(core)


# ---- sleeping ----------------------------------------------------------------------------------------------

cdef bint _work_ready(void *context) noexcept nogil:
    """Whether the commit thread has something to do. Called while the doorbell's sleeping flag is set."""
    cdef Core *core = <Core *>context
    cdef u32 index, state
    cdef Channel *channel
    if load_acquire_u32(&core.stop_flag) or (sessions_waiting(core) and sessions_due(core)):
        return True
    for index in range(load_acquire_u32(&core.channels_high)):
        channel = &core.channels[index]
        # Acquire: pairs with the control plane's release after it filled in the slot.
        state = load_acquire_u32(&channel.state)
        if state == CHANNEL_CLOSING:
            return True
        if state == CHANNEL_ACTIVE and channel.place == 0 and inbox_ready(&channel.inbox, &channel.request):
            return True
    return False


cdef void _note_cores(Core *core, i64 now) noexcept nogil:
    """The worker that has a turn and this thread run at the same time, so they should not share a core."""
    cdef u32 own = <u32>(current_cpu() + 1)
    core.turns.came_back = False
    turn_began(&core.placement, load_relaxed_u32(core.bell + BELL_RINGER_OFFSET))
    if woken_by(&core.placement, load_relaxed_u32(core.bell + BELL_RINGER_OFFSET), now, True):
        waiter_init(&core.waiter)
        own = <u32>(current_cpu() + 1)
    # Relaxed: a hint. Seldom stored, because each worker in its turn reads it.
    if load_relaxed_u32(core.bell + BELL_SERVER_OFFSET) != own:
        store_relaxed_u32(core.bell + BELL_SERVER_OFFSET, own)


cdef inline int _spin_mode(const Core *core) noexcept nogil:
    """How to wait for requests."""
    if core.turns.running and core.core_count > 1:
        # The worker that was just woken needs longer than a spin, and perhaps our core. One that has come back comes
        # again soon, and those who wait for it need no core. Relaxed: a hint.
        if core.placement.left or load_relaxed_u32(core.bell + BELL_RINGER_OFFSET) == <u32>(current_cpu() + 1):
            return SPIN_NEVER
        return SPIN_SERVE
    return SPIN_LONG if core.alone else SPIN_ADAPTIVE


cdef void _sleep(Core *core) noexcept nogil:
    """Wait until a request arrives, a key expires, a turn is over or IDLE_NS_MAX has passed."""
    cdef u64 wakes = core.waiter.wakes
    cdef i64 idle = expiry_wait(core, IDLE_NS_MAX)
    cdef i64 now
    cdef int spin = _spin_mode(core)
    if core.turns.count:
        now = clock_monotonic_ns()
        idle = turns_end(core, now + idle) - now
    if idle <= 0:
        return
    # Relaxed: only a hint. Clear the ringer's core number, so that what we read after waking was stored by
    # this wake-up.
    store_relaxed_u32(core.bell + BELL_RINGER_OFFSET, 0)
    doorbell_wait(&core.waiter, core.bell + BELL_WORD_OFFSET, core.bell + BELL_SLEEPING_OFFSET, _work_ready,
                  core, idle, spin)
    if core.waiter.wakes != wakes:
        if woken_by(&core.placement, load_relaxed_u32(core.bell + BELL_RINGER_OFFSET), clock_monotonic_ns(),
                    False):
            # We moved to another core. What was learnt about spinning on the worker's core no longer holds.
            waiter_init(&core.waiter)


# ---- closing channels --------------------------------------------------------------------------------------

cdef void _close_channels(Core *core, WalAppender log) noexcept nogil:
    """Close the channels in state CLOSING. A complete request is served, an incomplete one is dropped."""
    cdef u32 index, high = load_acquire_u32(&core.channels_high)
    cdef Channel *channel
    cdef bint any_sync
    for index in range(high):
        channel = &core.channels[index]
        if load_acquire_u32(&channel.state) != CHANNEL_CLOSING:
            continue
        if core.turns.count:
            turns_abandon(core, index)
        if channel.place:
            continue                    # its request is served in its order
        any_sync = core.sync_all
        read_clock(core)
        if channel.inbox.state != INBOX_BAD and _take_from(core, channel, log):
            any_sync = any_sync or (<const RequestHeader *>channel.inbox.data).flags & REQUEST_SYNC
            if batch_commit(core, any_sync, log):
                batch_answer(core)
        if channel.walk.active or channel.place:
            continue                    # parked: the channel closes later, when it is answered
        # Only this thread may change the budget that an incomplete request's memory counts against.
        inbox_drop(&channel.inbox)
        flush_wakes(core)
        # The worker may still be alive (it detached, or was disconnected). Its pins no longer protect
        # anything.
        revoke_all(channel)
        wake_marked(core, True)
        core.interest.stale = True
        store_release_u32(&channel.state, CHANNEL_CLOSED)
        notify_control(core)


cdef void _refuse_rest(Core *core, WalAppender log) noexcept nogil:
    """End a clean stop: refuse the requests that wait, and mark every channel as drained.

    A request that is published after we looked at its ring gets no answer; its worker sees `drained` when the
    connection has ended. Neither kind of request was served, so the workers send both to the next
    coordinator. REQUIRES: the control plane waits for this thread.
    """
    cdef u32 index
    cdef Channel *channel
    cdef ReplyHeader *reply
    turns_clear(core)
    _close_channels(core, log)
    for index in range(load_acquire_u32(&core.channels_high)):
        channel = &core.channels[index]
        # The answer to a commit may not have reached a broken channel, so that one never counts as drained.
        if load_acquire_u32(&channel.state) != CHANNEL_ACTIVE:
            continue
        if (inbox_poll(&channel.inbox, &channel.request, core.request_size_max) > 0
                and channel.inbox.size >= REQUEST_HEADER_SIZE and reserve_reply(channel, REPLY_SIZE_MIN)):
            memset(channel.out, 0, REPLY_HEADER_SIZE)
            reply = <ReplyHeader *>channel.out
            reply.magic = REPLY_MAGIC
            reply.status = STATUS_STOPPING
            reply.sequence = (<const RequestHeader *>channel.inbox.data).sequence
            inbox_take_done(&channel.inbox)
            outbox_send(&channel.reply, channel.out, REPLY_HEADER_SIZE)
        # Release: a worker that sees the word sees every reply in its ring.
        store_release_u32(channel.drained, 1)
        wake_worker(channel)
