"""`CommitCore`: the commit core as Python sees it.

The work is done over the struct `Core` by the compiled modules beside this one: `_loop` runs the loop of the
commit thread, `_batch` serves, logs, publishes and answers one batch, `_housekeeping` does what is due
between batches. This class owns the memory of the struct and offers set-up, channels, figures, and the path
of an in-memory database.

Threads: `run` is the commit thread and releases the GIL. Every other method belongs to the control plane.
Unless it says otherwise, it may be called while `run` works. An in-memory database has no commit thread:
`process` serves one request in the thread of its caller, under a lock.
"""

import os

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport (
    NOWAIT_LOCK, PY_LOCK_ACQUIRED, WAIT_LOCK, PyLockStatus, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock,
    PyThread_release_lock, PyThread_type_lock,
)
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from ...ipc._atomics cimport (
    clock_monotonic_ns, futex_wait, i64, load_acquire_u32, load_acquire_u64, store_release_u32, u8, u32, u64,
)
from ...ipc._doorbell cimport doorbell_ring, waiter_init
from ...ipc._layout cimport (
    BELL_REGISTER_OFFSET, BELL_SLEEPING_OFFSET, BELL_WORD_OFFSET, RINGS_OFFSET, WATCH_REGISTER_OFFSET,
)
from ..log._replay cimport Loader
from ..store._change_ring cimport change_start
from ..store._layout cimport StoreHeader
from ..store._store cimport store_check, store_create, store_destroy, store_limit, store_publish
from ._apply cimport load_expiry
from ._batch cimport batch_commit, batch_seal, batch_serve
from ._channels cimport channel_free, channel_open, channel_outcome, channel_outcomes
from ._core cimport (
    CHANNEL_ACTIVE, CHANNEL_BROKEN, CHANNEL_CLOSED, CHANNEL_CLOSING, CHANNEL_FREE, RECENT_COUNT, REPLY_SIZE_MIN,
    Channel, Counters, Recent, Undo, sessions_waiting,
)
from ._expiry cimport expiry_free, expiry_init
from ._expiry_time cimport publish_expiry_time, read_clock
from ._figures cimport channel_figures, core_stats
from ._housekeeping cimport housekeeping
from ._pins cimport pin_own, unpin_own
from ._placement cimport placement_init
from ._range_history cimport history_free
from ._loop cimport commit_loop
from ._session_end cimport load_sessions, session_ended
from ._sessions cimport SESSION_CHAINS, SessionKeys, sessions_find, sessions_free
from ._turn_table cimport BACK_NS, QUANTUM_NS, REST_NS, TURN_NS
from ._turns cimport turns_end, turns_expire, turns_free, turns_leave, turns_sent
from ._validate cimport reserve_reply
from ._watchers cimport interest_free
from ._wire cimport REQUEST_HEADER_SIZE, RequestHeader

cdef extern from "pythread.h" nogil:
    PyLockStatus PyThread_acquire_lock_timed(PyThread_type_lock lock, long long microseconds, int intr_flag)

# For the control plane, which is plain Python: offsets in the store header, channel states.
SUPERSEDED_OFFSET = <size_t>&(<StoreHeader *>NULL).superseded
SPIN_HINT_OFFSET = <size_t>&(<StoreHeader *>NULL).spin_hint
CLOCK_OFFSET_OFFSET = <size_t>&(<StoreHeader *>NULL).clock_offset
CHANNEL_STATE_CLOSED = CHANNEL_CLOSED
CHANNEL_STATE_BROKEN = CHANNEL_BROKEN

cdef enum:
    RANGE_INLINE_MAX = 512          # defaults of set_range_limits
    RANGE_SLICE = 256
    WALK_SLICE = 2048
    RANGE_SLICES_TICK = 4096        # in memory: the most steps of background work in one `tick`
    CLAIM_SLICE_NS = 1000000000     # longest wait for the lock between two looks at signals

cdef i64 I64_MAX = 0x7FFFFFFFFFFFFFFF


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
      request_memory_max: bytes of private memory for requests above 1 MiB that are being received. One of
        them is always admitted, whatever its size.
      snapshot_age_max: seconds a snapshot may hold garbage back before it is revoked.
      wake_fd: eventfd written when a channel broke or was drained; -1 for none.
      watch_history: bytes of the change ring, at the end of the store's buffer: 0 or a power of two from 64 KiB.

    Raises:
      OSError: ENOSPC (no shared memory for the first pages), ENOMEM, EINVAL (size).
    """

    def __cinit__(self, store_buffer, int fd, bytes database_id, u64 incarnation, *, bell_buffer=None,
                  u32 channel_count_max=1, u32 key_size_max=65535, u32 value_size_max=67108864,
                  u64 request_size_max=268435456, u64 request_memory_max=268435456, double snapshot_age_max=300.0,
                  int wake_fd=-1, u64 watch_history=0):
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
        self.core.wake_fd = wake_fd
        self.core.channel_capacity = channel_count_max
        self.core.key_size_max = key_size_max
        self.core.value_size_max = value_size_max
        self.core.request_size_max = request_size_max
        self.core.inboxes.size = request_memory_max
        self.core.snapshot_age_max = <i64>(snapshot_age_max * 1e9)
        self.core.core_count = len(os.sched_getaffinity(0))
        waiter_init(&self.core.waiter)
        placement_init(&self.core.placement)
        self.core.window = 1
        expiry_init(&self.core.expiry)
        self.core.range_inline_max = RANGE_INLINE_MAX
        self.core.range_slice = RANGE_SLICE
        self.core.walk_slice = WALK_SLICE
        self.core.turns.turn_ns = TURN_NS
        self.core.turns.rest_ns = REST_NS
        self.core.turns.quantum_ns = QUANTUM_NS
        self.core.turns.back_ns = BACK_NS
        self.core.undo_capacity = 1024
        self.core.undo = <Undo *>malloc(self.core.undo_capacity * sizeof(Undo))
        self.core.recent = <Recent *>malloc(RECENT_COUNT * sizeof(Recent))
        self.core.channels = <Channel *>calloc(channel_count_max, sizeof(Channel))
        self.core.wakes = <u32 *>calloc(channel_count_max, sizeof(u32))
        # One core is the commit thread's own.
        self.core.hot_max = max(1, self.core.core_count - 1)
        self.core.interest.due = <u32 *>calloc(channel_count_max, sizeof(u32))
        if (self.core.undo == NULL or self.core.recent == NULL or self.core.channels == NULL
                or self.core.wakes == NULL or self.core.interest.due == NULL):
            raise MemoryError("no private memory for the commit core")
        self.core.own.state = CHANNEL_ACTIVE
        self.core.own.slots = <u8 *>self.core.own_slot
        self.core.own.slots_high = &self.core.own_slots_high
        self.core.own_slots_high = 1
        if bell_buffer is not None:
            bell_view = bell_buffer
            self.bell_buffer = memoryview(bell_buffer)
            self.core.bell = &bell_view[0]
            self.core.interest.register_word = self.core.bell + BELL_REGISTER_OFFSET
        error = store_create(&self.core.store, &store_view[0], store_view.shape[0], fd, <const u8 *>identity, incarnation,
                             watch_history)
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
        turns_free(&self.core)
        sessions_free(&self.core.sessions)
        history_free(&self.core.range_history)
        if self.core.store.base != NULL:
            store_destroy(&self.core.store)
        free(self.core.undo)
        free(self.core.recent)
        free(self.core.channels)
        free(self.core.wakes)
        interest_free(&self.core.interest)
        free(self.core.pins)

    # ---- set-up, before any commit -----------------------------------------------------------------------

    def attach_log(self, WalAppender log not None, bint sync_all):
        """Write every commit to `log` before it is published; with `sync_all` wait for the disk too."""
        self.log = log
        self.core.sync_all = sync_all

    def start_at(self, u64 version, u64 lost_version=0):
        """Continue after `version`: publish the recovered store and rebuild what is derived from it.

        Args:
          version: the newest recovered commit.
          lost_version: commits up to this version may be missing from the store, because there was no log. An
            older transaction may not conclude anything from the absence of a key. The loader has already told
            the store what recovery itself forgot.
        """
        self.core.next_version = version
        self.core.recent_floor = version
        # What recovery replayed is not in the history of range deletes.
        self.core.range_history.floor = max(self.core.store.range_horizon, lost_version)
        if self.core.store.tombstone_horizon < lost_version:
            self.core.store.tombstone_horizon = lost_version
        # If the wall clock is behind the newest recovered commit, continue from the time of that commit.
        self.continue_clock(load_expiry(&self.core) - clock_monotonic_ns())
        load_sessions(&self.core)
        read_clock(&self.core)
        publish_expiry_time(&self.core)
        change_start(&self.core.store.changes, version)
        store_publish(&self.core.store, version)

    def continue_clock(self, i64 offset):
        """Set the clock of this store forward, if necessary, to that of a store with this `clock_offset`."""
        cdef StoreHeader *header = self.core.store.header
        if offset > header.clock_offset:
            header.clock_offset = offset

    def limit_store(self, u64 size):
        """Let commits fill the store up to `size` bytes. If recovery needed more, that stays in use."""
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

    def set_turn_times(self, double longest, double rest, double quantum=0, double back=0):
        """How long a turn lasts at most, and how long the rest after it is at least; tests make them long or short.

        Args:
          longest, rest: seconds. A negative rest: there is none at all.
        """
        self.core.turns.turn_ns = <i64>(longest * 1e9)
        self.core.turns.rest_ns = <i64>(rest * 1e9)
        self.core.turns.quantum_ns = <i64>(quantum * 1e9)
        self.core.turns.back_ns = <i64>(back * 1e9)

    # ---- channels: called by the control plane -----------------------------------------------------------

    def open_channel(self, u64 session, channel_buffer, u64 ring_size, u64 last_sequence=0, u64 last_version=0,
                     u64 owner=0, *, int event_fd=-1):
        """Serve one more channel. Returns its index, or -1 when every slot is taken.

        Args:
          owner: the session of its handle, to which ephemeral puts bind their keys; 0: `session` itself.
          event_fd: a non-blocking eventfd through which the worker may ask to be woken, open until
            `channel_state` is CLOSED; -1: none.
        """
        cdef unsigned char[::1] view = channel_buffer
        cdef i64 index
        if <u64>view.shape[0] < RINGS_OFFSET + 2 * ring_size:
            raise ValueError(f"channel segment has {view.shape[0]} bytes, needs {RINGS_OFFSET + 2 * ring_size}")
        index = channel_open(&self.core, session, owner or session, &view[0], ring_size, last_sequence, last_version,
                             event_fd)
        if index >= 0:
            self.channel_buffers[index] = memoryview(channel_buffer)
            if self.core.bell == NULL:
                self.core.interest.register_word = &view[WATCH_REGISTER_OFFSET]
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

    # ---- sessions: called by the control plane -----------------------------------------------------------

    def bound_sessions(self):
        """The sessions that have bound keys. Before the commit thread runs only: it owns the table."""
        cdef u32 chain
        cdef SessionKeys *keys
        found = []
        for chain in range(SESSION_CHAINS):
            keys = self.core.sessions.chains[chain]
            while keys != NULL:
                found.append(keys.session)
                keys = keys.next
        return found

    @property
    def ending(self):
        """Whether an ended session still has its keys, or has not been looked at yet."""
        return sessions_waiting(&self.core)

    def bound_entries(self, u64 session):
        """Entries for a session, stale ones among them; racy, for tests."""
        cdef SessionKeys *keys = sessions_find(&self.core.sessions, session)
        return 0 if keys == NULL else keys.count

    def end_session(self, u64 session):
        """Have the keys removed that are bound to a session. False: too many wait, ask again later.

        REQUIRES: no channel of this owner is open, and none will be. One control thread.
        """
        if not session_ended(&self.core, session):
            return False
        self.wake()
        return True

    # ---- the commit thread -------------------------------------------------------------------------------

    def run(self):
        """Serve until `stop`. Returns 0, or the errno after which the process has to end (see _batch.pyx)."""
        with nogil:
            commit_loop(&self.core, self.log)
        return self.core.fatal_errno

    def stop(self):
        """Let `run` return after the current batch. Any thread."""
        store_release_u32(&self.core.stop_flag, 1)
        self.wake()

    def wake(self):
        """Wake the commit thread, so that it looks for work."""
        if self.core.bell != NULL:
            doorbell_ring(self.core.bell + BELL_WORD_OFFSET, self.core.bell + BELL_SLEEPING_OFFSET)

    # ---- in memory ---------------------------------------------------------------------------------------

    def process(self, bytearray request not None, double timeout=-1, bint patient=True):
        """Serve one request in the calling thread, and write its sequence into it. One thread at a time.

        The lock is taken and released within this call, between two bytecodes. An exception of a signal
        handler therefore cannot leave it locked, and a handler that commits never finds it held by the code
        that it interrupted. A request that waits for the turn of another thread waits without the lock.

        Args:
          timeout: seconds to wait for other threads; negative means no limit.
          patient: wait while another transaction has a turn. An event loop must not: it may have a task of its own.

        Returns:
          The reply. None if the time ran out, or empty if the request would have to wait and is not patient. In either
          case nothing was done.

        REQUIRES: one channel was opened (its slots are the pins; its rings stay unused), and `run` is not in
        use.
        """
        cdef Channel *channel = &self.core.channels[0]
        cdef u8 *data = <u8 *>PyByteArray_AS_STRING(request)
        cdef u64 size = PyByteArray_GET_SIZE(request), place = 0
        cdef i64 deadline = clock_monotonic_ns() + <i64>(timeout * 1e9) if 0 <= timeout < 1e9 else I64_MAX
        cdef i64 until
        cdef u32 word
        cdef Counters counters
        cdef u64 conflicts
        if size < REQUEST_HEADER_SIZE:
            raise ValueError("a request has at least 64 bytes")
        if not reserve_reply(channel, REPLY_SIZE_MIN):
            raise MemoryError("no private memory for a reply")
        if not self._claim(timeout):
            return None
        while True:
            try:
                counters, conflicts = self.core.counters, channel.conflicts
                place = self._serve(channel, data, size, place)
                if place == 0:
                    return (<char *>channel.out)[:channel.out_size]
                if not patient:
                    self._unserve(channel, place, &counters, conflicts)
                    return b""
                # Read under the mutex: what ends from here on changes the word.
                word = self.core.turns.word
                until = turns_end(&self.core, clock_monotonic_ns() + CLAIM_SLICE_NS)
            finally:
                PyThread_release_lock(self.mutex)
            if not self._wait_turn(place, word, min(until, deadline), deadline):
                return None

    cdef u64 _serve(self, Channel *channel, u8 *data, u64 size, u64 place) except? 0:
        """Serve one request under the mutex. Returns its place in the line of turns; 0: it has its answer."""
        # The channel is everybody's: each thread keeps the place of its request itself. A request that waits has
        # happened in no way, so the next look at it may have a new sequence: sequences grow in the order of commits.
        self.sequence += 1
        (<RequestHeader *>data).sequence = self.sequence
        channel.place = place
        with nogil:
            read_clock(&self.core)
            housekeeping(&self.core, False, self.log)
            if self.core.turns.count:
                turns_expire(&self.core, clock_monotonic_ns())
            batch_serve(&self.core, channel, data, size, self.log)
            batch_commit(&self.core, False, self.log)
            if channel.place == 0:
                batch_seal(&self.core, channel)
                if self.core.turns.fresh:
                    turns_sent(&self.core, clock_monotonic_ns())
            housekeeping(&self.core, False, self.log)
        place = channel.place
        channel.place = 0
        return place

    cdef void _unserve(self, Channel *channel, u64 place, const Counters *counters, u64 conflicts) noexcept:
        """Forget a request that has a place in the line of turns: it comes again, and is counted then."""
        channel.place = place
        turns_leave(&self.core, channel)
        self.core.turns.waited -= 1
        channel.conflicts = conflicts
        self.core.counters.conflicts_read = counters.conflicts_read
        self.core.counters.conflicts_range = counters.conflicts_range
        self.core.counters.conflicts_write = counters.conflicts_write
        self.core.counters.conflicts_cas = counters.conflicts_cas

    cdef bint _wait_turn(self, u64 place, u32 word, i64 until, i64 deadline) except -1:
        """Sleep until the line of turns has changed, and take the mutex. False: the time ran out; nothing was done.

        Whatever is raised here, the request has left the line: its bytes are the caller's.
        """
        cdef bint taken = False
        try:
            with nogil:
                futex_wait(&self.core.turns.word, word, max(1, until - clock_monotonic_ns()))
            PyErr_CheckSignals()
            if clock_monotonic_ns() < deadline:
                taken = self._claim((deadline - clock_monotonic_ns()) / 1e9 if deadline != I64_MAX else -1)
            return taken
        finally:
            if not taken:
                with nogil:
                    PyThread_acquire_lock(self.mutex, WAIT_LOCK)
                    self.core.channels[0].place = place
                    turns_leave(&self.core, &self.core.channels[0])
                    PyThread_release_lock(self.mutex)

    def expire(self):
        """Let due keys expire, in an in-memory database. Returns at once if a thread is committing: it does
        this itself.
        """
        if not PyThread_acquire_lock(self.mutex, NOWAIT_LOCK):
            return
        try:
            with nogil:
                read_clock(&self.core)
                housekeeping(&self.core, False, self.log)
        finally:
            PyThread_release_lock(self.mutex)

    def tick(self):
        """Background work of an in-memory database: expiry and reclamation. Any thread."""
        cdef u32 slices = 0
        self._claim(-1)
        try:
            with nogil:
                read_clock(&self.core)
                while housekeeping(&self.core, True, self.log) and slices < RANGE_SLICES_TICK:
                    slices += 1
        finally:
            PyThread_release_lock(self.mutex)

    cdef bint _claim(self, double timeout) except -1:
        """Take the mutex; see _commit_core.pxd."""
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

    # ---- figures -----------------------------------------------------------------------------------------

    @property
    def committed_version(self):
        return self.core.store.header.committed_version

    @property
    def log_poisoned(self):
        """Whether an earlier failure keeps the log from taking commits until a restart."""
        return bool(self.log is not None and load_acquire_u32(&self.log.file.poison_errno))

    @property
    def commits_over(self):
        """Whether the log failed and no commit is under way. A `committed_version` that is read after this is
        final.
        """
        return load_acquire_u32(&self.core.commits_over) != 0

    @property
    def log_bytes(self):
        """Bytes handed to the log since it was opened; 0 without one."""
        return self.log.total_bytes if self.log is not None else 0

    @property
    def log_errors(self):
        """Batches that the log refused."""
        return self.core.counters.log_errors

    def outcomes(self):
        """{session: (sequence, commit version)} of open channels' last commits.

        Includes every commit that was published before the call. A checkpoint that pinned its version earlier
        may leave out the outcomes above that version, because the log behind the checkpoint has them.
        """
        return channel_outcomes(&self.core)

    def pin(self):
        """Pin the newest version for a checkpoint, and return it. One pin at a time, by one control thread.
        """
        return pin_own(&self.core)

    def pin_revoked(self):
        """Whether a full store revoked the pin. If so, what was read may mix several versions."""
        return self.core.own_slot[0] != 0 and load_acquire_u64(&self.core.own_slot[1]) == self.core.own_slot[0]

    def unpin(self):
        """Release the pinned version."""
        unpin_own(&self.core)

    def loader(self):
        """The loader through which recovery fills this core's store, before `start_at`."""
        return Loader.for_store(&self.core.store, self)

    def channel_figures(self, u32 index):
        """What one channel did and what its oldest snapshot holds back; racy, for display."""
        return channel_figures(&self.core, index)

    def stats(self):
        """Counters of the core, the store and the log; they may be off by one batch."""
        return core_stats(&self.core, self.log)

    def check(self):
        """Audit every invariant of the store. Returns what is wrong, or None. REQUIRES: `run` is not in use.
        """
        cdef char message[512]
        message[0] = 0
        self._claim(-1)
        try:
            if store_check(&self.core.store, message, sizeof(message)):
                return (<bytes>message).decode("utf-8", "replace")
        finally:
            PyThread_release_lock(self.mutex)
        return None
