"""The commit core: one total order of commits, a batch at a time.

One batch is everything that lies complete in all request rings, at most one request a channel:

    take      copy each complete request to private memory, check its format
    validate  against the store as the batch so far has left it            (_validate)
    apply     install records above committed_version: unseen by readers   (_apply)
    log       one write, one fdatasync if any request asks for it          (_wal)
    publish   committed_version, release
    answer    every channel, ring the doorbells of those that sleep

Why a crash between any two lines is harmless: before `log` nothing survives the process; inside it the torn
transaction has no CommitTxn and recovery drops it; after it the commit is whole in the log, and its worker, not yet
answered, asks the next coordinator what became of its txn_id. Nothing is answered before its log write returned, and
nothing is published before it either, so no reader can see what a recovery would not bring back.

If `log` fails, the batch is undone newest first, its versions are given out again (nobody saw them), and every
worker in it is told LOG_WRITE_ERROR. If the log cannot even be cut back, what a recovery would find is unknown,
so nobody is answered: `fatal_errno` ends the process and the next coordinator finds out.

Threads: the commit thread runs `_run` without the GIL. The control plane (GIL) fills channel slots, changes their
state by the transitions in _core.pxd, reads counters (each is one word; a sum may be off by one batch) and sets
`stop_flag`. In memory there is no commit thread: `process` serves one request in the caller's, under a lock.
"""

import os

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport (
    NOWAIT_LOCK, PY_LOCK_ACQUIRED, PyLockStatus, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock,
    PyThread_release_lock, PyThread_type_lock,
)
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset
from posix.unistd cimport write as posix_write

from ...ipc._atomics cimport (
    cas_u32, clock_monotonic_ns, cpu_relax, fence_release, load_acquire_u32, load_acquire_u64,
    load_relaxed_u32, store_relaxed_u32, store_relaxed_u64, store_release_u32,
)
from ...ipc._doorbell cimport SPIN_ADAPTIVE, SPIN_LONG, doorbell_ring, doorbell_wait, waiter_init
from ...ipc._layout cimport BELL_RINGER_OFFSET, BELL_SLEEPING_OFFSET, BELL_WORD_OFFSET, RINGS_OFFSET
from ...ipc._ring cimport (
    INBOX_BAD, INBOX_PARTIAL, inbox_drop, inbox_poll, inbox_ready, inbox_take_done, outbox_send,
)
from ..disk._failpoints cimport (
    FP_COMMIT_AFTER_APPLY, FP_COMMIT_AFTER_PUBLISH, FP_COMMIT_AFTER_REPLY, FP_COMMIT_AFTER_VALIDATE,
    FP_COMMIT_BEFORE_PUBLISH, FP_COMMIT_BEFORE_REPLY, FP_COMMIT_BEFORE_VALIDATE, FP_COMMIT_RANGE_SLICE,
    FP_COMMIT_WALK_SLICE, failpoint_armed, failpoint_hit,
)
from ..log._replay cimport Loader
from ..store._layout cimport StoreHeader
from ..store._range_tombstones cimport ranges_convert
from ..store._store cimport (
    store_check, store_create, store_destroy, store_limit, store_pending_bytes, store_publish,
)
from ._apply cimport apply_request, compact_expiry, expire_due, load_expiry, undo_to
from ._channels cimport channel_free, channel_open, channel_outcome, channel_outcomes
from ._core cimport (
    ANSWER_COMMITTED, ANSWER_DEPENDENT, ANSWER_NONE, ANSWER_REFUSED, CHANNEL_ACTIVE, CHANNEL_BROKEN, CHANNEL_CLOSED,
    CHANNEL_CLOSING, CHANNEL_FREE, HISTOGRAM_COUNT, RECENT_COUNT, Recent, Undo,
)
from ._expiry cimport expiry_free, expiry_init
from ._expiry_time cimport is_due, publish_expiry_time, read_clock
from ._figures cimport channel_figures, core_stats
from ._pins cimport collect, make_room, pin_own, revoke_all, revoke_older, unpin_own
from ._placement cimport placement_init, woken_by
from ._range_check cimport ranges_to_check, walk_ranges
from ._range_history cimport history_free, history_undo
from ._validate cimport check_format, reserve_reply, validate_request
from ._wakes cimport answered, flush_wakes, release_wakes
from ._wire cimport (
    REPLY_HEADER_SIZE, REPLY_MAGIC, REQUEST_HEADER_SIZE, REQUEST_SYNC, STATUS_BAD_REQUEST, STATUS_COMMITTED,
    STATUS_CONFLICT, STATUS_LOG_FAILED, STATUS_LOG_WRITE_ERROR, STATUS_STOPPING, STATUS_STORE_FULL, ReplyHeader,
    RequestHeader,
)

cdef extern from "pythread.h" nogil:
    PyLockStatus PyThread_acquire_lock_timed(PyThread_type_lock lock, long long microseconds, int intr_flag)

# For the control plane, which is plain Python: offsets in the store header, channel states.
SUPERSEDED_OFFSET = 256
SPIN_HINT_OFFSET = 512
CLOCK_OFFSET_OFFSET = 80
CHANNEL_STATE_CLOSED = CHANNEL_CLOSED
CHANNEL_STATE_BROKEN = CHANNEL_BROKEN

cdef enum:
    SWEEP_NS = 250000000            # between two looks at how old the snapshots are
    COLLECT_EVERY = 64              # versions between two collects under load
    COLLECT_BUDGET = 512            # superseded records a collect looks at: keeps pauses in the microseconds
    COLLECT_BUDGET_IDLE = 65536
    COLLECT_BUDGET_STEP = 2048      # of the commit thread when it is idle: it looks for requests between two
    COLLECT_QUEUED = 2048           # a collect is due when this many entries have joined its queues
    RANGE_INLINE_MAX = 512          # live keys
    RANGE_SLICE = 256
    RANGE_SLICES_TICK = 4096        # in memory, where nobody else does it
    RANGE_RETRY_NS = 10000000       # after a conversion that found the store full
    WALK_SLICE = 2048
    EXPIRE_COUNT_MAX = 256          # expired keys removed by one commit
    IDLE_NS_MAX = 50000000          # an idle coordinator looks around this often, whatever its doorbell says
    WINDOW_NS = 2000000             # over which active channels are counted for spin_hint
    REPLY_SIZE_MIN = 1024
    EXPIRE_RETRY_NS = 200000000     # after a removal of expired keys that failed
    CLAIM_SLICE_NS = 1000000000
    RECEIVE_NS = 2000000000         # while others wait: in this time a request above 1 MiB has to be complete ...
    RECEIVE_STEP = 4194304          # ... or to have grown by this much

cdef i64 I64_MAX = 0x7FFFFFFFFFFFFFFF


cdef bint _work_ready(void *context) noexcept nogil:
    """Is there anything for the commit thread to do? Called with the doorbell's sleeping flag up."""
    cdef Core *core = <Core *>context
    cdef u32 index, state
    cdef Channel *channel
    if load_acquire_u32(&core.stop_flag):
        return True
    for index in range(load_acquire_u32(&core.channels_high)):
        channel = &core.channels[index]
        # Acquire: pairs with the control plane's release after it filled the slot in.
        state = load_acquire_u32(&channel.state)
        if state == CHANNEL_CLOSING:
            return True
        if state == CHANNEL_ACTIVE and inbox_ready(&channel.inbox, &channel.request):
            return True
    return False


cdef inline u32 _bucket_of(u64 value) noexcept nogil:
    cdef u32 bucket = 0
    while value and bucket < HISTOGRAM_COUNT - 1:
        value >>= 1
        bucket += 1
    return bucket


@cython.final
cdef class CommitCore:
    """The store's one writer.

    Args:
      store_buffer: writable, zero-filled buffer of the whole store segment; kept exported for life.
      fd: of the store segment, to preallocate it in steps; -1 for anonymous memory.
      database_id: 16 bytes.
      incarnation: grows with every coordinator start.
      bell_buffer: the doorbell segment, or None in memory.
      channel_count_max: channel slots.
      key_size_max, value_size_max, request_size_max: bytes; whole keys, msgpack values, whole requests.
      request_memory_max: bytes of private memory for requests above 1 MiB while they are received; one may always be.
      snapshot_age_max: seconds a snapshot may hold garbage back before it is revoked.
      wake_fd: eventfd written when a channel broke or was drained; -1 for none.

    Raises:
      OSError: ENOSPC (no shared memory for the first pages), ENOMEM, EINVAL (size).
    """

    def __cinit__(self, store_buffer, int fd, bytes database_id, u64 incarnation, *, bell_buffer=None,
                  u32 channel_count_max=1, u32 key_size_max=65535, u32 value_size_max=67108864,
                  u64 request_size_max=268435456, u64 request_memory_max=268435456, double snapshot_age_max=300.0,
                  int wake_fd=-1):
        cdef unsigned char[::1] store_view = store_buffer
        cdef unsigned char[::1] bell_view
        cdef int error
        cdef char *identity = database_id
        if len(database_id) != 16:
            raise ValueError("database_id must be 16 bytes")
        memset(&self.core, 0, sizeof(Core))
        self.mutex = PyThread_allocate_lock()
        if self.mutex == NULL:
            raise MemoryError("no lock for the commit core")
        self.store_buffer = memoryview(store_buffer)
        self.channel_buffers = [None] * channel_count_max
        self.wake_fd = wake_fd
        self.core.channel_capacity = channel_count_max
        self.core.key_size_max = key_size_max
        self.core.value_size_max = value_size_max
        self.core.request_size_max = request_size_max
        self.core.inboxes.size = request_memory_max
        self.snapshot_age_max = <i64>(snapshot_age_max * 1e9)
        self.core_count = len(os.sched_getaffinity(0))
        waiter_init(&self.waiter)
        placement_init(&self.placement)
        self.window = 1
        expiry_init(&self.core.expiry)
        self.core.range_inline_max = RANGE_INLINE_MAX
        self.core.range_slice = RANGE_SLICE
        self.core.walk_slice = WALK_SLICE
        self.core.undo_capacity = 1024
        self.core.undo = <Undo *>malloc(self.core.undo_capacity * sizeof(Undo))
        self.core.recent = <Recent *>malloc(RECENT_COUNT * sizeof(Recent))
        self.core.channels = <Channel *>calloc(channel_count_max, sizeof(Channel))
        self.core.wakes = <u32 *>calloc(channel_count_max, sizeof(u32))
        # One core is the commit thread's own.
        self.core.hot_max = max(1, self.core_count - 1)
        if (self.core.undo == NULL or self.core.recent == NULL or self.core.channels == NULL
                or self.core.wakes == NULL):
            raise MemoryError("no private memory for the commit core")
        self.core.own.state = CHANNEL_ACTIVE
        self.core.own.slots = <u8 *>self.core.own_slot
        self.core.own.slots_high = &self.core.own_slots_high
        self.core.own_slots_high = 1
        if bell_buffer is not None:
            bell_view = bell_buffer
            self.bell_buffer = memoryview(bell_buffer)
            self.bell = &bell_view[0]
        error = store_create(&self.core.store, &store_view[0], store_view.shape[0], fd, <const u8 *>identity, incarnation)
        if error:
            raise OSError(error, os.strerror(error))
        read_clock(&self.core)

    def __dealloc__(self):
        cdef u32 index
        if self.mutex != NULL:
            PyThread_free_lock(self.mutex)
        if self.core.channels != NULL:
            for index in range(self.core.channel_capacity):
                channel_free(&self.core.channels[index])
        expiry_free(&self.core.expiry)
        history_free(&self.core.range_history)
        if self.core.store.base != NULL:
            store_destroy(&self.core.store)
        free(self.core.undo)
        free(self.core.recent)
        free(self.core.channels)
        free(self.core.wakes)
        free(self.core.pins)

    # ---- set-up, before any commit -------------------------------------------------------------------------

    def attach_log(self, WalAppender log not None, bint sync_all):
        """Write every commit to `log` before it is published; with `sync_all` wait for the disk too."""
        self.log = log
        self.logged = True
        self.sync_all = sync_all

    def start_at(self, u64 version, u64 lost_version=0):
        """Go on after `version`: publishes the recovered store and rebuilds what is derived from it.

        Args:
          lost_version: commits up to it may be missing from the store (no log): a transaction older than that may not
            conclude anything from what is absent. What recovery itself forgot, the loader has told the store.
        """
        self.core.next_version = version
        self.core.recent_floor = version
        # What recovery replayed is not in the history of range deletes.
        self.core.range_history.floor = max(self.core.store.range_horizon, lost_version)
        if self.core.store.tombstone_horizon < lost_version:
            self.core.store.tombstone_horizon = lost_version
        # The clock goes on from the newest recovered commit at least, should the wall clock be behind it.
        self.continue_clock(load_expiry(&self.core) - clock_monotonic_ns())
        read_clock(&self.core)
        publish_expiry_time(&self.core)
        store_publish(&self.core.store, version)

    def continue_clock(self, i64 offset):
        """Let the clock of this store be no earlier than that of another with this `clock_offset`."""
        cdef StoreHeader *header = self.core.store.header
        if offset > header.clock_offset:
            header.clock_offset = offset

    def limit_store(self, u64 size):
        """Commits fill the store up to `size` bytes; what recovery needed beyond that stays in use."""
        store_limit(&self.core.store, size)

    def set_range_limits(self, u32 inline_max=RANGE_INLINE_MAX, u32 slice=RANGE_SLICE, u32 walk_slice=WALK_SLICE):
        """How much work on ranges is done at once; tests make it tiny.

        Args:
          inline_max: live keys that a range delete removes key by key; more become a range tombstone.
          slice: nodes of a range tombstone that are converted between two batches, at least 1.
          walk_slice: steps of one request's range checks in one batch, at least 1.
        """
        self.core.range_inline_max = inline_max
        self.core.range_slice = max(1, slice)
        self.core.walk_slice = max(1, walk_slice)

    # ---- channels: called by the control plane ----------------------------------------------------------------

    def open_channel(self, u64 session, channel_buffer, u64 ring_size, u64 last_sequence=0, u64 last_version=0):
        """Serve one more channel. Returns its index, or -1 when every slot is taken."""
        cdef unsigned char[::1] view = channel_buffer
        cdef i64 index
        if <u64>view.shape[0] < RINGS_OFFSET + 2 * ring_size:
            raise ValueError(f"channel segment has {view.shape[0]} bytes, needs {RINGS_OFFSET + 2 * ring_size}")
        index = channel_open(&self.core, session, &view[0], ring_size, last_sequence, last_version)
        if index >= 0:
            self.channel_buffers[index] = memoryview(channel_buffer)
        return index

    def close_channel(self, u32 index):
        """Stop serving a channel once its complete requests are served; `channel_state` becomes CLOSED."""
        if self.core.channels[index].state in (CHANNEL_ACTIVE, CHANNEL_BROKEN):
            store_release_u32(&self.core.channels[index].state, CHANNEL_CLOSING)
            self.wake()

    def channel_state(self, u32 index):
        return load_acquire_u32(&self.core.channels[index].state)

    def channel_outcome(self, u32 index):
        """(session, sequence, commit version) of the channel's last commit; sequence 0 for none."""
        cdef u64 sequence, version
        channel_outcome(&self.core.channels[index], &sequence, &version)
        return self.core.channels[index].session, sequence, version

    def release_channel(self, u32 index):
        """Free the slot of a CLOSED channel and let go of its buffer."""
        if load_acquire_u32(&self.core.channels[index].state) != CHANNEL_CLOSED:
            raise RuntimeError("the channel is still being served")
        channel_free(&self.core.channels[index])
        self.channel_buffers[index] = None
        store_release_u32(&self.core.channels[index].state, CHANNEL_FREE)

    # ---- the commit thread ------------------------------------------------------------------------------------

    def run(self):
        """Serve until `stop`. Returns 0, or the errno after which the process has to end (see the module docstring)."""
        with nogil:
            self._run()
        return self.fatal_errno

    def stop(self):
        """Let `run` return after the batch in hand. Any thread."""
        store_release_u32(&self.core.stop_flag, 1)
        self.wake()

    def wake(self):
        """Make the commit thread look around."""
        if self.bell != NULL:
            doorbell_ring(self.bell + BELL_WORD_OFFSET, self.bell + BELL_SLEEPING_OFFSET)

    cdef void _run(self) noexcept nogil:
        while not load_acquire_u32(&self.core.stop_flag) and not self.fatal_errno:
            if self.logged and not self.commits_over and load_acquire_u32(&self.log.file.poison_errno):
                self._note_failed_log()
            if self._turn() == 0:
                if self.core.wakes_count:
                    # Due within microseconds: look for requests until then rather than sleep.
                    cpu_relax()
                    release_wakes(&self.core, clock_monotonic_ns())
                    continue
                if not self._housekeeping(True) and self.core.parked == 0:
                    self._sleep()
        flush_wakes(&self.core)
        if not self.fatal_errno:
            self._refuse_rest()
        self._notify_control()

    cdef void _note_failed_log(self) noexcept nogil:
        """The log takes no commit any more: say so once nothing is under way that it may have taken before.

        Called between two batches. From here on every flush sees the log poisoned and refuses, so `committed_version`
        stays as it is.
        """
        # Release: whoever sees the word sees the last version that was published.
        store_release_u32(&self.commits_over, 1)
        self._notify_control()

    cdef void _sleep(self) noexcept nogil:
        """Wait for something to do."""
        cdef u64 wakes = self.waiter.wakes
        cdef i64 idle = self._idle_ns()
        if idle <= 0:
            return
        # Relaxed, both: a hint. Only one left from here on tells who wakes us.
        store_relaxed_u32(self.bell + BELL_RINGER_OFFSET, 0)
        doorbell_wait(&self.waiter, self.bell + BELL_WORD_OFFSET, self.bell + BELL_SLEEPING_OFFSET, _work_ready,
                      &self.core, idle, SPIN_LONG if self.alone else SPIN_ADAPTIVE)
        if self.waiter.wakes != wakes:
            if woken_by(&self.placement, load_relaxed_u32(self.bell + BELL_RINGER_OFFSET), clock_monotonic_ns()):
                # Two cores now: what was learnt about spinning on one does not hold.
                waiter_init(&self.waiter)

    cdef i64 _idle_ns(self) noexcept nogil:
        """How long nothing will be due."""
        cdef i64 now, due
        if self.core.expiry.count == 0:
            return IDLE_NS_MAX
        now = clock_monotonic_ns()
        due = self.core.expiry.entries[0].expires_at - self.core.store.header.clock_offset
        if due < self.expire_after:
            due = self.expire_after
        return min(due - now, IDLE_NS_MAX)

    cdef int _turn(self) noexcept nogil:
        """One batch; returns how many requests it had."""
        cdef bint any_sync = self.sync_all
        cdef i64 started
        cdef u32 count
        self._close_channels()
        started = read_clock(&self.core)
        if is_due(&self.core):
            self._expire()          # before the batch: then its ranges need not be searched for keys that are due
        if started >= self.window_end:
            self._roll_window(started)
        count = self._take_requests(&any_sync)
        if self.core.inboxes.first:
            self._share_inboxes(started)
        if count == 0:
            return 0
        if self._commit_batch(any_sync):
            self._answer()
        self._note_batch(count, started)
        self._housekeeping(False)
        return count

    cdef u32 _take_requests(self, bint *any_sync) noexcept nogil:
        """Validate and apply one complete request of each channel, in slot order from a rotating start."""
        cdef u32 high = load_acquire_u32(&self.core.channels_high)
        cdef u32 first = <u32>(self.core.counters.batches % high) if high else 0
        cdef u32 step, index, count = 0
        cdef Channel *channel
        self.core.parked = 0
        for step in range(high):
            index = first + step
            if index >= high:
                index -= high
            channel = &self.core.channels[index]
            if load_acquire_u32(&channel.state) != CHANNEL_ACTIVE or not self._take_from(channel):
                self.core.parked += channel.walk.active
                continue
            channel.hot_until = 0
            if channel.window != self.window:
                channel.window = self.window
                self.window_channels += 1
            if (<const RequestHeader *>channel.inbox.data).flags & REQUEST_SYNC:
                any_sync[0] = True
            count += 1
        return count

    cdef void _share_inboxes(self, i64 now) noexcept nogil:
        """Large requests wait for memory: find the one whose turn it is, and let nobody hold memory without sending.

        A worker that is stopped in the middle of a large request would keep all others' waiting. It is disconnected;
        its request was not taken whole, so nothing of it happened, and it sends it again when it goes on.
        """
        cdef u32 index
        cdef u64 first = 0
        cdef Channel *channel
        for index in range(self.core.channels_high):
            channel = &self.core.channels[index]
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
                self._break_channel(channel)
        self.core.inboxes.first = first

    cdef bint _take_from(self, Channel *channel) noexcept nogil:
        """Serve the channel's request if one is complete. False: nothing to answer yet."""
        cdef int polled = inbox_poll(&channel.inbox, &channel.request, self.core.request_size_max)
        if polled == 0:
            if channel.inbox.progressed:
                # A producer streaming a message larger than its ring waits for this room. (Once the message is whole
                # it waits for the answer: ringing then would wake it twice a commit.)
                doorbell_ring(channel.word, channel.sleeping)
            return False
        if polled < 0 or channel.inbox.size < REQUEST_HEADER_SIZE:
            self._break_channel(channel)
            return False
        self._serve(channel, channel.inbox.data, channel.inbox.size)
        # Parked: it stays in the inbox, complete, and comes round again.
        return not channel.walk.active

    cdef bint _accept(self, Channel *channel, const u8 *request, u64 size) noexcept nogil:
        """Is the request one to validate? If not, the reply says why."""
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
        status = check_format(&self.core, request, size, channel.reply_max)
        if status == STATUS_COMMITTED and header.sequence <= channel.last_sequence:
            status = STATUS_BAD_REQUEST         # a replayed txn_id: what it did the first time stands
        if status == STATUS_COMMITTED and self.logged:
            # Acquire, here and below: a sync in another thread may poison the log.
            detail = load_acquire_u32(&self.log.file.poison_errno)
            if detail:
                status = STATUS_LOG_FAILED
        if status != STATUS_COMMITTED:
            self._refuse(channel, status, detail)
            return False
        channel.walk.count = ranges_to_check(request)
        return True

    cdef bint _walk(self, Channel *channel, const u8 *request) noexcept nogil:
        """Have the request's ranges checked. False: not yet, it is parked until the next turn."""
        cdef u32 budget = self.core.walk_slice
        if channel.walk.count and not channel.walk.active and self.bell == NULL:
            budget = <u32>-1                # in memory nobody else is served meanwhile
        if channel.walk.active and failpoint_armed() and failpoint_hit(FP_COMMIT_WALK_SLICE):
            return False
        if channel.walk.count and not walk_ranges(&self.core, channel, request, budget):
            channel.answer = ANSWER_NONE
            return False
        channel.walk.active = False
        return True

    cdef void _serve(self, Channel *channel, const u8 *request, u64 size) noexcept nogil:
        """Validate and apply one request; leaves the reply in channel.out and `answer` saying what it is.

        With `channel.walk.active` it is parked instead: nothing is answered, and the next turn goes on with it.
        """
        cdef ReplyHeader *reply
        cdef u32 status, detail = 0
        cdef u64 version = self.core.next_version + 1, conflicts
        if not channel.walk.active and not self._accept(channel, request, size):
            return
        if not self._walk(channel, request):
            return
        channel.answer = ANSWER_REFUSED
        if channel.walk.count > channel.walk.capacity:
            self._refuse(channel, STATUS_STORE_FULL, 0)     # no private memory for the answers
            return
        if self.logged:
            # Once more: a parked request may have waited while a sync failed.
            detail = load_acquire_u32(&self.log.file.poison_errno)
            if detail:
                self._refuse(channel, STATUS_LOG_FAILED, detail)
                return
        conflicts = validate_request(&self.core, channel, request)
        if conflicts:
            # Validation may have moved the buffer.
            (<ReplyHeader *>channel.out).conflicts_found = conflicts
            self._refuse(channel, STATUS_CONFLICT, 0)
            channel.answer = self._refusal()
            return
        if failpoint_armed():
            failpoint_hit(FP_COMMIT_AFTER_VALIDATE)
        status = apply_request(&self.core, channel, request, version, self.log, self.logged, &detail)
        if status == STATUS_STORE_FULL and self._refusal() == ANSWER_REFUSED:
            # First of its batch: the nodes of deleted keys may go now, which inside a batch they must not.
            collect(&self.core, COLLECT_BUDGET_IDLE)
            channel.out_size = REPLY_HEADER_SIZE
            (<ReplyHeader *>channel.out).result_count = 0
            status = apply_request(&self.core, channel, request, version, self.log, self.logged, &detail)
        if status != STATUS_COMMITTED:
            channel.out_size = REPLY_HEADER_SIZE
            self._refuse(channel, status, detail)
            channel.answer = self._refusal()
            return
        self.core.next_version = version
        reply = <ReplyHeader *>channel.out
        reply.commit_version = version
        reply.committed_at = self.core.now
        channel.answer = ANSWER_COMMITTED
        channel.commits += 1

    cdef inline u32 _refusal(self) noexcept nogil:
        """What a refusal is that looked at the store: does it stand on its own, or on this batch's commits?"""
        return ANSWER_REFUSED if self.core.next_version == self.core.store.header.committed_version else ANSWER_DEPENDENT

    cdef void _refuse(self, Channel *channel, u32 status, u32 detail) noexcept nogil:
        cdef ReplyHeader *reply = <ReplyHeader *>channel.out
        reply.status = <unsigned short>status
        reply.detail = detail
        if status == STATUS_CONFLICT:
            channel.conflicts += 1
        else:
            reply.result_count = 0
            self.core.counters.refused += 1

    cdef bint _commit_batch(self, bint any_sync) noexcept nogil:
        """Log and publish what the batch applied. False: nobody may be answered (fatal_errno says why)."""
        cdef int error
        if self.core.undo_count == 0 and self.core.next_version == self.core.store.header.committed_version:
            return True
        if failpoint_armed():
            failpoint_hit(FP_COMMIT_AFTER_APPLY)
        if self.logged:
            if any_sync:
                # The disk has the next moment, so the cores are free: whoever was answered makes the next group commit.
                flush_wakes(&self.core)
            error = self.log.flush(any_sync)
            if error:
                self._fail_batch(error)
                return not self.fatal_errno
        if failpoint_armed():
            failpoint_hit(FP_COMMIT_BEFORE_PUBLISH)
        self._note_outcomes()
        publish_expiry_time(&self.core)
        # Release: whoever sees the version sees every record of the batch, and the outcomes noted before it.
        store_publish(&self.core.store, self.core.next_version)
        self.core.undo_count = 0
        if failpoint_armed():
            failpoint_hit(FP_COMMIT_AFTER_PUBLISH)
        return True

    cdef void _note_outcomes(self) noexcept nogil:
        """Remember each session's commit, before it is published: a checkpoint of that version must know of it."""
        cdef u32 index
        cdef Channel *channel
        for index in range(self.core.channels_high):
            channel = &self.core.channels[index]
            if channel.answer == ANSWER_COMMITTED:
                # A reader that sees an even, unchanged lock around its two reads has a true pair.
                store_release_u32(&channel.outcome_lock, channel.outcome_lock + 1)
                fence_release()
                store_relaxed_u64(&channel.last_sequence, channel.sequence)
                store_relaxed_u64(&channel.last_version, (<ReplyHeader *>channel.out).commit_version)
                store_release_u32(&channel.outcome_lock, channel.outcome_lock + 1)

    cdef void _fail_batch(self, u32 error) noexcept nogil:
        """The log refused the batch: leave no trace of it, and turn its acknowledgements into refusals.

        What was refused because of a commit of the same batch is told the same: that commit never was.
        """
        cdef u32 index
        cdef Channel *channel
        self.core.counters.log_errors += 1
        if self.log.file.uncertain:
            self.fatal_errno = error
            return
        undo_to(&self.core, 0)
        self.core.next_version = self.core.store.header.committed_version
        history_undo(&self.core.range_history, self.core.next_version + 1)
        self.core.recent_epoch += 1
        # The batch's writes are on the recent list, whose nodes may be freed now: forget the list.
        self.core.recent_next = 0
        self.core.recent_floor = self.core.next_version
        for index in range(self.core.channels_high):
            channel = &self.core.channels[index]
            if channel.answer == ANSWER_COMMITTED:
                channel.commits -= 1
            elif channel.answer != ANSWER_DEPENDENT:
                continue
            channel.answer = ANSWER_REFUSED
            memset(channel.out, 0, REPLY_HEADER_SIZE)
            channel.out_size = REPLY_HEADER_SIZE
            self._refuse(channel, STATUS_LOG_WRITE_ERROR, error)

    cdef void _answer(self) noexcept nogil:
        """Send each reply of the batch and take its request off the channel."""
        cdef u32 index
        cdef Channel *channel
        cdef ReplyHeader *reply
        cdef i64 now = clock_monotonic_ns()
        if failpoint_armed():
            failpoint_hit(FP_COMMIT_BEFORE_REPLY)
        for index in range(self.core.channels_high):
            channel = &self.core.channels[index]
            if channel.answer == ANSWER_NONE:
                continue
            reply = <ReplyHeader *>channel.out
            reply.magic = REPLY_MAGIC
            reply.sequence = channel.sequence
            reply.body_size = <u32>(channel.out_size - REPLY_HEADER_SIZE)
            if channel.answer == ANSWER_COMMITTED:
                self.core.counters.commits += 1
            channel.answer = ANSWER_NONE
            inbox_take_done(&channel.inbox)
            channel.receive_until = 0
            if reply.status == STATUS_BAD_REQUEST or outbox_send(&channel.reply, channel.out, <u32>channel.out_size) != 0:
                self._break_channel(channel)
                continue
            answered(&self.core, index, now)
        release_wakes(&self.core, now)
        if failpoint_armed():
            failpoint_hit(FP_COMMIT_AFTER_REPLY)

    cdef void _break_channel(self, Channel *channel) noexcept nogil:
        """Bad input: serve this channel no more; the control plane disconnects its worker."""
        inbox_drop(&channel.inbox)
        # Only from ACTIVE: the control plane may have set CLOSING meanwhile, and then nobody would close it again.
        cas_u32(&channel.state, CHANNEL_ACTIVE, CHANNEL_BROKEN)
        self._notify_control()

    cdef void _close_channels(self) noexcept nogil:
        """Drain channels whose worker is gone: a complete request is served, a half-written one is ignored."""
        cdef u32 index, high = load_acquire_u32(&self.core.channels_high)
        cdef Channel *channel
        cdef bint any_sync
        for index in range(high):
            channel = &self.core.channels[index]
            if load_acquire_u32(&channel.state) != CHANNEL_CLOSING:
                continue
            any_sync = self.sync_all
            read_clock(&self.core)
            if channel.inbox.state != INBOX_BAD and self._take_from(channel):
                any_sync = any_sync or (<const RequestHeader *>channel.inbox.data).flags & REQUEST_SYNC
                if self._commit_batch(any_sync):
                    self._answer()
            if channel.walk.active:
                continue                    # parked: once more in the next turn, until it is answered
            # What is left of a request is given up here, while its memory is still this thread's to count.
            inbox_drop(&channel.inbox)
            flush_wakes(&self.core)
            # The worker may live on (it detached, or was thrown out): from here on its pins protect nothing.
            revoke_all(channel)
            store_release_u32(&channel.state, CHANNEL_CLOSED)
            self._notify_control()

    cdef void _refuse_rest(self) noexcept nogil:
        """A clean stop: tell those whose requests were not taken so, and on each channel that none will be.

        A request published after this look at its ring finds no answer; its worker sees `drained` once the connection has
        ended. Neither was served, so both go to the next coordinator. REQUIRES: the control plane waits for this thread.
        """
        cdef u32 index
        cdef Channel *channel
        cdef ReplyHeader *reply
        self._close_channels()
        for index in range(load_acquire_u32(&self.core.channels_high)):
            channel = &self.core.channels[index]
            # A broken channel may lack the answer to a commit, so it never counts as drained.
            if load_acquire_u32(&channel.state) != CHANNEL_ACTIVE:
                continue
            if (inbox_poll(&channel.inbox, &channel.request, self.core.request_size_max) > 0
                    and channel.inbox.size >= REQUEST_HEADER_SIZE and reserve_reply(channel, REPLY_SIZE_MIN)):
                memset(channel.out, 0, REPLY_HEADER_SIZE)
                reply = <ReplyHeader *>channel.out
                reply.magic = REPLY_MAGIC
                reply.status = STATUS_STOPPING
                reply.sequence = (<const RequestHeader *>channel.inbox.data).sequence
                inbox_take_done(&channel.inbox)
                outbox_send(&channel.reply, channel.out, REPLY_HEADER_SIZE)
            # Release: every reply is in its ring before the word that says there will be no other.
            store_release_u32(channel.drained, 1)
            doorbell_ring(channel.word, channel.sleeping)

    # ---- between batches ----------------------------------------------------------------------------------------

    cdef bint _housekeeping(self, bint idle) noexcept nogil:
        """What is due between batches, a bounded piece of it. True: there is more that can be done at once."""
        cdef u64 committed = self.core.store.header.committed_version
        cdef bint more = self.core.store.range_active != 0 and self._convert_ranges()
        cdef i64 now
        if self.core.expiry.count >= self.core.expiry.compact_at:
            compact_expiry(&self.core)
        if is_due(&self.core):
            self._expire()
        if idle or self.core.full:
            if store_pending_bytes(&self.core.store) or self.core.collected_version != committed:
                more = self._collect_idle() or more
        elif committed - self.core.collected_version >= COLLECT_EVERY or self.core.store.queued >= COLLECT_QUEUED:
            collect(&self.core, COLLECT_BUDGET)
        else:
            return more
        now = clock_monotonic_ns()
        if now >= self.next_sweep:
            self.next_sweep = now + SWEEP_NS
            revoke_older(&self.core, now, self.snapshot_age_max)
        return more

    cdef bint _collect_idle(self) noexcept nogil:
        """A collect with nobody waiting. True: it freed something, and there is more to look at.

        Step by step, because a request may come at any moment: after a large range was deleted there are a million
        nodes to remove.
        """
        cdef bint step = self.bell != NULL and not self.core.full
        cdef u64 waiting = self._collectable()
        self.core.full = False
        collect(&self.core, COLLECT_BUDGET_STEP if step else COLLECT_BUDGET_IDLE)
        return step and 0 < self._collectable() < waiting

    cdef inline u64 _collectable(self) noexcept nogil:
        return self.core.store.superseded_count + self.core.store.tombstone_count + self.core.store.fresh_count

    cdef bint _convert_ranges(self) noexcept nogil:
        """Turn a piece of the oldest range tombstone into ordinary ones. True: another piece can follow.

        A store without room for a tombstone is asked again later. Garbage goes first, then the snapshots that hold it,
        as for any write; without this an entry could stay for as long as a snapshot does, and nothing would be wrong.
        """
        cdef i64 now = 0
        if self.core.range_retry_at:
            now = clock_monotonic_ns()
            if now < self.core.range_retry_at:
                return False
            self.core.range_retry_at = 0
        if (failpoint_armed() and failpoint_hit(FP_COMMIT_RANGE_SLICE)
                or not ranges_convert(&self.core.store, self.core.range_slice)):
            make_room(&self.core)
            self.core.range_retry_at = clock_monotonic_ns() + RANGE_RETRY_NS
            return False
        return self.core.store.range_active != 0

    cdef void _expire(self) noexcept nogil:
        """Remove expired keys through the log, as a commit of the coordinator's own."""
        cdef u64 committed = self.core.store.header.committed_version
        cdef i64 now = clock_monotonic_ns()
        cdef u32 removed
        # Also when nothing can be removed now: an expired key is absent at once.
        publish_expiry_time(&self.core)
        if now < self.expire_after:
            return
        if self.logged and load_acquire_u32(&self.log.file.poison_errno):
            self.expire_after = now + EXPIRE_RETRY_NS
            return
        if self.core.expiry_stale:
            load_expiry(&self.core)
        removed = expire_due(&self.core, self.core.now, EXPIRE_COUNT_MAX, self.log, self.logged)
        if removed:
            self.core.next_version += 1
            self._commit_batch(False)
            if self.core.store.header.committed_version != committed:
                self.core.counters.expired += removed
                publish_expiry_time(&self.core)     # the next key that is due is another one now
                return
            # The log refused: the keys are back in the store, their entries went from the heap.
            self.core.expiry_stale = True
        if is_due(&self.core):
            self.expire_after = now + EXPIRE_RETRY_NS       # no room in the store or on the disk

    cdef void _roll_window(self, i64 now) noexcept nogil:
        """Decide who may spin, by the channels that were active lately: workers if a core is free, we for longer if one
        worker is all there is (its commits then wait for nothing, and no other waits for this core)."""
        # One core is the commit thread's; workers may spin while they all have one each.
        store_relaxed_u32(&self.core.store.header.spin_hint, self.window_channels < self.core_count)
        self.alone = self.window_channels < 2 and self.core_count > 1
        self.window += 1
        self.window_end = now + WINDOW_NS
        self.window_channels = 0

    cdef void _note_batch(self, u32 size, i64 started) noexcept nogil:
        self.core.counters.batches += 1
        self.core.counters.batch_sizes[_bucket_of(size)] += 1
        self.core.counters.batch_ns[_bucket_of(<u64>(clock_monotonic_ns() - started))] += 1

    cdef void _notify_control(self) noexcept nogil:
        cdef u64 one = 1
        if self.wake_fd >= 0:
            posix_write(self.wake_fd, &one, 8)

    # ---- in memory ------------------------------------------------------------------------------------------------

    def process(self, bytearray request not None, double timeout=-1):
        """Serve one request in the calling thread, one thread at a time. Writes its sequence into it.

        The lock is taken, used and released in here, between two bytecodes: an exception of a signal handler cannot
        leave it locked, and a handler that commits itself never finds it held by the code it interrupted.

        Args:
          timeout: seconds to wait for other threads; negative: for ever.

        Returns:
          The reply; None when the time was up, with nothing done.

        REQUIRES: one channel was opened (its slots are the pins; its rings stay unused), and `run` is not in use.
        """
        cdef Channel *channel = &self.core.channels[0]
        cdef u8 *data = <u8 *>PyByteArray_AS_STRING(request)
        cdef u64 size = PyByteArray_GET_SIZE(request)
        if size < REQUEST_HEADER_SIZE:
            raise ValueError("a request has at least 64 bytes")
        if not reserve_reply(channel, REPLY_SIZE_MIN):
            raise MemoryError("no private memory for a reply")
        if not self._claim(timeout):
            return None
        try:
            self.sequence += 1
            (<RequestHeader *>data).sequence = self.sequence
            with nogil:
                read_clock(&self.core)
                self._housekeeping(False)
                self._serve(channel, data, size)
                self._commit_batch(False)
                self._settle(channel)
                self._housekeeping(False)
            return (<char *>channel.out)[:channel.out_size]
        finally:
            PyThread_release_lock(self.mutex)

    def expire(self):
        """Let what is due expire, in an in-memory database. Not while another thread commits: that one does it."""
        if not PyThread_acquire_lock(self.mutex, NOWAIT_LOCK):
            return
        try:
            with nogil:
                read_clock(&self.core)
                self._housekeeping(False)
        finally:
            PyThread_release_lock(self.mutex)

    def tick(self):
        """Background work of an in-memory database: expiry and reclamation. Any thread."""
        cdef u32 slices = 0
        self._claim(-1)
        try:
            with nogil:
                read_clock(&self.core)
                while self._housekeeping(True) and slices < RANGE_SLICES_TICK:
                    slices += 1
        finally:
            PyThread_release_lock(self.mutex)

    cdef bint _claim(self, double timeout) except -1:
        """Lock out the other threads; False when the time was up. Signal handlers run before it is held, never while."""
        cdef i64 deadline = clock_monotonic_ns() + <i64>(timeout * 1e9) if 0 <= timeout < 1e9 else I64_MAX
        cdef i64 left
        cdef PyLockStatus status
        if PyThread_acquire_lock(self.mutex, NOWAIT_LOCK):
            return True
        while True:
            left = deadline - clock_monotonic_ns()
            if left <= 0:
                return False
            with nogil:
                status = PyThread_acquire_lock_timed(self.mutex, min(left, CLAIM_SLICE_NS) // 1000 + 1, 1)
            if status == PY_LOCK_ACQUIRED:
                return True
            PyErr_CheckSignals()

    cdef void _settle(self, Channel *channel) noexcept nogil:
        cdef ReplyHeader *reply = <ReplyHeader *>channel.out
        reply.magic = REPLY_MAGIC
        reply.sequence = channel.sequence
        reply.body_size = <u32>(channel.out_size - REPLY_HEADER_SIZE)
        if channel.answer == ANSWER_COMMITTED:
            self.core.counters.commits += 1
        channel.answer = ANSWER_NONE

    # ---- figures ----------------------------------------------------------------------------------------------------

    @property
    def committed_version(self):
        return self.core.store.header.committed_version

    @property
    def log_poisoned(self):
        """Whether an earlier failure keeps the log from taking commits until a restart."""
        return bool(self.logged and load_acquire_u32(&self.log.file.poison_errno))

    @property
    def commits_over(self):
        """Whether the log failed and nothing is under way any more: `committed_version` read after this is the last."""
        return load_acquire_u32(&self.commits_over) != 0

    @property
    def log_bytes(self):
        """Bytes handed to the log since it was opened; 0 without one."""
        return self.log.total_bytes if self.logged else 0

    @property
    def log_errors(self):
        """Batches that the log refused."""
        return self.core.counters.log_errors

    def outcomes(self):
        """{session: (sequence, commit version)} of open channels' last commits.

        Whatever was published when this is called is in it: a checkpoint that pinned its version before may leave out
        those above that version, and the log after the checkpoint has them.
        """
        return channel_outcomes(&self.core)

    def pin(self):
        """Hold the newest version for a checkpoint; returns it. One pin at a time; any one control thread."""
        return pin_own(&self.core)

    def pin_revoked(self):
        """Whether a full store took the pin back: what was read may be a mixture."""
        return self.core.own_slot[0] != 0 and load_acquire_u64(&self.core.own_slot[1]) == self.core.own_slot[0]

    def unpin(self):
        """Let go of the pinned version."""
        unpin_own(&self.core)

    def loader(self):
        """What recovery fills this core's store through, before `start_at`."""
        return Loader.for_store(&self.core.store, self)

    def channel_figures(self, u32 index):
        """What one channel did and what its oldest snapshot holds back; racy, for display."""
        return channel_figures(&self.core, index)

    def stats(self):
        """Counters of the core, the store and the log; racy by a batch."""
        return core_stats(&self.core, self.log)

    def check(self):
        """Audit every invariant of the store. The commit thread must not be running. Returns None or what is wrong."""
        cdef char message[512]
        message[0] = 0
        self._claim(-1)
        try:
            if store_check(&self.core.store, message, sizeof(message)):
                return (<bytes>message).decode("utf-8", "replace")
        finally:
            PyThread_release_lock(self.mutex)
        return None
