"""Snapshots of a store in shared memory: pinning a version, finding a key in it, copying a value out.

Transactions, snapshots and implicit reads of one process use this, from any thread that holds the GIL. Who
writes what: the store is mapped read-only. In the channel segment this module writes slot values, slot marks
(to 0, when a slot is taken), `slots_high` and the tally. The coordinator writes a mark to revoke a pin.

1. A slot belongs to one `PinnedView` from `pin` to `unpin`. The free list is private to the process and
   guarded by the GIL: nothing between taking and returning a slot releases the GIL.
2. Between pin and unpin every record visible at `version` stays in place, unless the pin is revoked. The
   pointers in a `Found` are therefore valid as long as the pin holds, and each copy through one is followed
   by a check of the mark.
3. Bytes from the store are parsed only in private memory. A decoder that read shared bytes twice could see
   different ones once a pin is revoked.
4. A forked child shares the memory of the slots with its parent but owns none of them. All it may do with an
   inherited attachment or view is to drop it, without touching a slot.
5. A mark left by the slot's last user can equal the new value only if that user held the same version. The
   only consequence is a spurious SnapshotExpired; a revocation is never missed.
"""

import os

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memcpy

from ...ipc._atomics cimport (
    clock_monotonic_ns, clock_realtime_ns, fence_acquire, load_acquire_u32, load_acquire_u64, load_relaxed_u64, load_seq_cst_u32, load_seq_cst_u64,
    store_relaxed_u64, store_release_u64, store_seq_cst_u32, store_seq_cst_u64,
)
from ...ipc._layout cimport (
    BELL_SEGMENT_SIZE, CLOSED_OFFSET, RINGS_OFFSET, SLOT_SIZE, SLOTS_HIGH_OFFSET, SLOTS_OFFSET, TALLY_OFFSET, TALLY_SIZE,
)
from ..commit._hot_keys cimport note_hot_key
from ..commit._recent_conflicts cimport note_recent_conflict
from ..disk._failpoints cimport FP_WORKER_AFTER_PIN, failpoint_armed, failpoint_hit
from ..model._value_reader cimport decode_value
from ..store._layout cimport STORE_HEADER_SIZE
from ..store._reader cimport key_hash, reader_get, reader_open, reader_scan

from ..model.errors import CorruptionError, DatabaseClosedError, ForkedHandleError, LimitExceeded, SnapshotExpired, TransactionStateError

assert sizeof(Tally) <= TALLY_SIZE

fork_generation = 1


def _after_fork_in_child():
    global fork_generation
    fork_generation += 1


os.register_at_fork(after_in_child=_after_fork_in_child)


@cython.no_gc
@cython.auto_pickle(False)
cdef class SnapshotSource:
    """Where snapshots come from: the store of this machine, or a server (engine/remote).

    What a source gives for one snapshot never changes. Views and scans call the methods below; each source has its own.
    The pointers of a `Found` are valid as long as the view holds its snapshot, or its scan the page.
    """

    cdef int begin(self, PinnedView view, bint lazily) except -1:
        """Take the newest snapshot into `view`: its slot, version and expiry time.

        With `lazily` the source may begin it with the first read: nobody looks at the version before that.
        """
        raise NotImplementedError

    cdef void unpin(self, u32 slot) noexcept:
        """Let go of a snapshot."""

    cdef int get(self, PinnedView view, const u8 *key, u32 key_size, Found *found) except -2:
        """Find a key in the snapshot: 1 found, expired or not; 0 absent; -1 the store is damaged."""
        raise NotImplementedError

    cdef object page(self, PinnedView view, const u8 *start, u32 start_size, bint exclusive, const u8 *end, u32 end_size,
                     bint reverse, Found *out, u32 count_max, u8 *resume, u32 *resume_size, bint *done, int *count):
        """One page of a scan, with the arguments of `reader_scan`; `count` is what that returns.

        Returns what has to live as long as the rows of the page are used; None: nothing.
        """
        raise NotImplementedError

    cdef int fetch(self, PinnedView view, list keys) except -1:
        """These stored keys are read next: a source with a long way to its data reads them together."""
        return 0

    cdef u64 newest(self, u64 own) noexcept:
        """The newest version with which a commit may be compared here; `own`, that of its snapshot, if there is none."""
        return own

    cdef bint is_due(self, i64 now) noexcept:
        """Whether the handle should be asked for its source, because a key has expired by `now`."""
        return False

    cdef i64 clock(self) noexcept:
        """The clock by which keys expire, in ns since the epoch. A ttl is added to it."""
        return clock_realtime_ns()

    cdef bint is_usable(self) noexcept:
        """Whether new snapshots may begin here."""
        return not self.retired and self.generation == fork_generation

    cdef void note_retry(self) noexcept:
        """Count that a transaction is tried again, for `stats`."""

    cdef void note_conflict(self, bint cas, bytes key) noexcept:
        """Count a commit that was refused early because of this stored key, for `stats`."""

    cdef void keep_conflict(self, u8 kind, bytes key, u64 expected, u64 found, u64 attempt) noexcept:
        """Remember the first conflict of a commit that was refused, early or not, for people."""

    def retire(self):
        """Let no snapshot begin here from now on. Those that are open stay readable."""
        self.retired = True

    def shut_down(self):
        """The handle is closed: calls on open snapshots raise DatabaseClosedError from now on."""
        self.shut = self.retired = True

    def feed(self, since, start, end=None, *, codec=None, skip=0, bare=False):
        """The changes of [start, end) after `since`; see feeds.py."""
        raise NotImplementedError

    def bell(self):
        """Where to sleep until something changes; see feeds.py."""
        raise NotImplementedError

    @property
    def committed_version(self):
        """The newest version that snapshots may take."""
        raise NotImplementedError

    @property
    def incarnation(self):
        """Grows with each start of a coordinator, or when a server lost acknowledged commits."""
        raise NotImplementedError

    @property
    def pin_count(self):
        """How many snapshots are open."""
        raise NotImplementedError

    @property
    def usable(self):
        """Whether new snapshots may begin here: not retired, superseded, thrown out, or inherited through a
        fork."""
        return self.is_usable()


@cython.no_gc
@cython.auto_pickle(False)
cdef class StoreAttachment(SnapshotSource):
    """One process's mapping of one store, and the pin slots through which it holds snapshots.

    Args:
      store: the memory of the store segment, which may be read-only; it stays exported as long as the
        attachment lives.
      channel: the memory of the channel segment, writable; only its header, pin slots, watch slots and tally
        are used here.
      bell: the memory of the doorbell segment, writable, whose register word waiting needs; None in memory.

    Raises:
      CorruptionError: the memory is not a store of this build's layout.
    """

    def __cinit__(self, store, channel, bell=None):
        PyObject_GetBuffer(store, &self.store_buffer, PyBUF_SIMPLE)
        self.store_held = True
        PyObject_GetBuffer(channel, &self.channel_buffer, PyBUF_WRITABLE)
        self.channel_held = True
        if bell is not None:
            PyObject_GetBuffer(bell, &self.bell_buffer, PyBUF_WRITABLE)
            self.bell_held = True
        cdef u64 size = <u64>self.store_buffer.len
        if size < STORE_HEADER_SIZE or reader_open(&self.reader, <const u8 *>self.store_buffer.buf, size) != 0:
            raise CorruptionError(
                f"the store segment ({size:,} bytes) is not a store of this build",
                expected="the store layout of this build",
                hint="all processes that share a database need the same occamdb version",
            )
        if self.channel_buffer.len < RINGS_OFFSET or (self.bell_held and self.bell_buffer.len < BELL_SEGMENT_SIZE):
            raise CorruptionError(
                f"the channel segment has {self.channel_buffer.len:,} bytes", expected=f"at least {RINGS_OFFSET:,} bytes"
            )
        cdef u8 *channel_base = <u8 *>self.channel_buffer.buf
        self.header = <const StoreHeader *>self.store_buffer.buf
        self.slots = channel_base + SLOTS_OFFSET
        self.slots_high = channel_base + SLOTS_HIGH_OFFSET
        self.closed = channel_base + CLOSED_OFFSET
        self.tally = <Tally *>(channel_base + TALLY_OFFSET)
        self.generation = fork_generation
        self.first_page_rows = FIRST_PAGE_ROWS
        self.page_rows = PAGE_ROWS
        cdef u32 index
        # A stack with the lowest slot on top: slots_high, which the coordinator scans up to, stays small.
        for index in range(<u32>SLOT_COUNT):
            self.free_slots[index] = SLOT_COUNT - 1 - index
        self.free_count = SLOT_COUNT

    def __dealloc__(self):
        if self.channel_held:
            PyBuffer_Release(&self.channel_buffer)
        if self.store_held:
            PyBuffer_Release(&self.store_buffer)
        if self.bell_held:
            PyBuffer_Release(&self.bell_buffer)

    cdef int begin(self, PinnedView view, bint lazily) except -1:
        view.slot = self.pin(&view.version, &view.expiry_time)
        return 0

    cdef int get(self, PinnedView view, const u8 *key, u32 key_size, Found *found) except -2:
        return reader_get(&self.reader, key, key_size, key_hash(key, key_size, self.reader.hash_seed), view.version, found)

    cdef object page(self, PinnedView view, const u8 *start, u32 start_size, bint exclusive, const u8 *end, u32 end_size,
                     bint reverse, Found *out, u32 count_max, u8 *resume, u32 *resume_size, bint *done, int *count):
        count[0] = reader_scan(&self.reader, start, start_size, exclusive, end, end_size, reverse, view.version, out,
                               count_max, resume, resume_size, done)
        return None

    cdef u64 newest(self, u64 own) noexcept:
        cdef u64 committed = load_acquire_u64(&self.header.committed_version)
        # A newer coordinator's commits are not in this store: a version learnt from them would look wrong here.
        # Acquire: the mark was set before anything that the caller can have learnt was acknowledged.
        return own if load_acquire_u32(&self.header.superseded) else committed

    cdef u32 pin(self, u64 *version, i64 *expiry_time) except 0x7FFFFFFF:
        """Pin the newest committed version. Returns the slot; `version` and `expiry_time` are those of the
        snapshot."""
        cdef u32 slot, turns = 0
        cdef u8 *words
        cdef u64 newest = 0
        cdef i64 own_clock = self.clock() if self.unserved else 0
        if self.generation != fork_generation:
            raise ForkedHandleError("this mapping of the store belongs to the parent process")
        if self.free_count == 0:
            raise LimitExceeded(
                f"all {SLOT_COUNT:,} snapshots that one process can hold at a time are open",
                size=SLOT_COUNT + 1,
                limit=SLOT_COUNT,
                hint="commit, abort or close transactions, snapshots and scans that are no longer needed",
            )
        self.free_count -= 1
        slot = self.free_slots[self.free_count]
        if slot >= self.high:
            self.high = slot + 1
            # Before the value: a scan that could miss the slot reads `slots_high` before the value was
            # stored.
            store_seq_cst_u32(self.slots_high, self.high)
        words = self.slots + <u64>slot * SLOT_SIZE
        # Relaxed: a revoker compares with the value, which is stored after this.
        store_relaxed_u64(words + 8, 0)
        while turns < PIN_TURNS_MAX:
            turns += 1
            # Acquire: everything committed up to `newest` is visible to the walks that follow.
            newest = load_acquire_u64(&self.header.committed_version)
            # Sequentially consistent, both: either the coordinator's scan sees this value, or we see its
            # raised horizon.
            store_seq_cst_u64(words, newest + 1)
            if load_seq_cst_u64(&self.header.gc_horizon) > newest:
                continue
            # Acquire: between two equal readings of the version, so the time is that of this version or was
            # set since, and before the next version.
            expiry_time[0] = <i64>load_acquire_u64(&self.header.expiry_time)
            if load_acquire_u64(&self.header.committed_version) == newest:
                break
        else:
            self.unpin(slot)
            raise CorruptionError(
                f"the store's header says that versions up to {self.header.gc_horizon} are gone, but the newest is {newest}",
                expected="gc_horizon at or below committed_version",
            )
        # Sequentially consistent: a coordinator that closes the channel sets the word, then reads the slots.
        # So either it saw our value and revoked it, or we see the word and do so.
        if load_seq_cst_u32(self.closed):
            store_seq_cst_u64(words + 8, newest + 1)
        # A new coordinator marks this store before it reads the clock for its first commit.
        if own_clock > expiry_time[0] and load_acquire_u32(&self.header.superseded) == 0:
            expiry_time[0] = own_clock
        version[0] = newest
        return slot

    cdef u32 pin_at(self, u64 version) except 0x7FFFFFFF:
        """Hold the snapshot of an older version, to which nothing was reclaimed yet. The slot; NO_SLOT - 1: too late."""
        cdef u64 newest
        cdef i64 expiry_time
        cdef u32 slot = self.pin(&newest, &expiry_time)
        cdef u8 *words = self.slots + <u64>slot * SLOT_SIZE
        # Sequentially consistent, both, as in `pin`: either the coordinator's scan sees the value, or we see a horizon
        # above it.
        store_seq_cst_u64(words, version + 1)
        if load_seq_cst_u64(&self.header.gc_horizon) > version or load_seq_cst_u32(self.closed):
            self.unpin(slot)
            return NO_SLOT - 1
        return slot

    cdef void unpin(self, u32 slot) noexcept:
        if self.generation != fork_generation:
            return  # the slot is the parent's
        # Release: our reads of the snapshot happen before the coordinator may free what it held.
        store_release_u64(self.slots + <u64>slot * SLOT_SIZE, 0)
        self.free_slots[self.free_count] = slot
        self.free_count += 1

    cdef bint lost(self, u32 slot) noexcept:
        """Whether the pin in this slot was revoked; asked after a copy."""
        cdef u8 *words = self.slots + <u64>slot * SLOT_SIZE
        # As in PinnedView.revoked: the copies before it are not read after the mark.
        fence_acquire()
        return load_acquire_u64(words + 8) == load_relaxed_u64(words)

    cdef i64 clock(self) noexcept:
        # Relaxed: see _expiry_time.pxd.
        return clock_monotonic_ns() + <i64>load_relaxed_u64(&self.header.clock_offset)

    cdef bint is_due(self, i64 now) noexcept:
        # Whether the expiry time should have been raised by `now`, a coarse monotonic time.
        cdef i64 due = <i64>load_relaxed_u64(&self.header.next_due)
        # The exact clock is read only shortly before that time, or after it.
        return due != 0 and now + COARSE_NS_MAX >= due and clock_monotonic_ns() >= due

    cdef bint is_usable(self) noexcept:
        # Acquire: pairs with the new coordinator's store before its first acknowledgement. A begin that
        # follows an acknowledged commit in real time therefore sees the mark.
        return (not self.retired and self.generation == fork_generation
                and load_acquire_u32(&self.header.superseded) == 0 and load_acquire_u32(self.closed) == 0)

    cdef void note_retry(self) noexcept:
        # The coordinator cannot see it.
        if self.generation == fork_generation:
            self.tally.retries += 1

    cdef void note_conflict(self, bint cas, bytes key) noexcept:
        if self.generation != fork_generation:
            return
        if cas:
            self.tally.conflicts_cas += 1
        else:
            self.tally.conflicts_read += 1
        note_hot_key(self.tally.hot, TALLY_KEYS, <const u8 *>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))

    cdef void keep_conflict(self, u8 kind, bytes key, u64 expected, u64 found, u64 attempt) noexcept:
        if self.generation != fork_generation:
            return
        self.tally.conflicts += 1
        note_recent_conflict(self.tally.recent, self.tally.conflicts, self.clock(), kind,
                             <const u8 *>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), expected, found, attempt)

    def note_unserved(self):
        """The coordinator is gone: judge expiry by our own clock until another one supersedes the store."""
        self.unserved = True

    @property
    def address(self):
        """The address of the mapped store, for compiled modules that read its header."""
        return <size_t>self.store_buffer.buf

    @property
    def committed_version(self):
        """The newest version that snapshots may take."""
        return load_acquire_u64(&self.header.committed_version)

    @property
    def incarnation(self):
        """The number of the coordinator start that made this store."""
        return self.header.incarnation

    @property
    def superseded(self):
        """Whether a newer coordinator serves this database from another store."""
        return load_acquire_u32(&self.header.superseded) != 0

    @property
    def pin_count(self):
        """How many snapshots are open."""
        return SLOT_COUNT - self.free_count


@cython.no_gc
@cython.auto_pickle(False)
cdef class PinnedView:
    """A snapshot held by one pin slot. `open` takes the slot; `release`, or deallocation, returns it."""

    def __cinit__(self):
        self.slot = NO_SLOT
        self.generation = fork_generation

    def __dealloc__(self):
        self.release()

    cdef int open(self, SnapshotSource source, bint lazily=False) except -1:
        self.attachment = source
        source.begin(self, lazily)
        if failpoint_armed():
            failpoint_hit(FP_WORKER_AFTER_PIN)
        return 0

    cdef int begin_now(self) except -1:
        """Begin the snapshot of a view that was opened lazily."""
        if self.late:
            self.require_alive()
            self.attachment.begin(self, False)
        return 0

    cdef void release(self) noexcept:
        if self.slot != NO_SLOT:
            self.attachment.unpin(self.slot)
            self.slot = NO_SLOT
            self.rows = None

    cdef bint revoked(self) noexcept:
        cdef u8 *words
        if self.slot == NO_SLOT:
            # A finalizer that ran while a value was decoded may have closed the view under its reader.
            return True
        if self.attachment.shut:
            return True
        words = self.attachment.slots + <u64>self.slot * SLOT_SIZE
        # The fence keeps the copies before it from being read after the mark: memory is reused only after the
        # mark is set, so a copy of reused bytes is always noticed. The value is our own word, relaxed.
        fence_acquire()
        return load_acquire_u64(words + 8) == load_relaxed_u64(words)

    cdef int require_alive(self) except -1:
        if self.generation != fork_generation:
            raise ForkedHandleError()
        if self.slot == NO_SLOT:
            raise TransactionStateError("the snapshot is closed", hint="take a new one")
        if self.attachment.shut:
            raise DatabaseClosedError()
        if self.revoked():
            raise SnapshotExpired(
                f"the snapshot of version {self.version} was revoked; the store is at version "
                f"{self.attachment.committed_version}",
                details={"version": self.version},
            )
        return 0

    cdef i64 now(self) except? -1:
        """The one clock reading from which a ttl counts and with which own writes are stamped. It is taken
        when first needed. It does not decide whether a key has expired; `expiry_time` does."""
        if self.clock == 0:
            self.begin_now()        # a server tells its clock then
            self.clock = clock_realtime_ns() if self.attachment is None else self.attachment.clock()
        return self.clock

    cdef int find(self, const u8 *key, u32 key_size, Found *found) except -1:
        """1 if the key has a live value at `version`, 0 if it is absent or expired. REQUIRES: require_alive
        was called."""
        cdef int status = self.attachment.get(self, key, key_size, found)
        # The answer is good only if the pin held throughout the walk, absence included.
        if self.revoked():
            self.require_alive()
        if status < 0:
            raise CorruptionError("the store in shared memory is damaged", expected="intact links between its blocks")
        if status and found.expires_at != 0 and found.expires_at <= self.expiry_time:
            return 0
        return status

    cdef object value_of(self, const Found *found):
        """The decoded value: a fresh object. Copies first, then checks the pin, then parses the copy."""
        cdef u8 copy[STACK_VALUE_SIZE]
        if found.value_size > STACK_VALUE_SIZE:
            large = self.bytes_of(found.value, found.value_size)
            return decode_value(<const u8 *>PyBytes_AS_STRING(large), found.value_size, self.codec)
        memcpy(copy, found.value, found.value_size)
        if self.revoked():
            self.require_alive()
        return decode_value(copy, found.value_size, self.codec)

    cdef bytes bytes_of(self, const u8 *data, u32 size):
        """A private copy of bytes in the store, checked to be from this snapshot."""
        cdef bytes copied = PyBytes_FromStringAndSize(<const char *>data, size)
        if self.revoked():
            self.require_alive()
        return copied

    @property
    def version(self):
        """The version of the snapshot."""
        self.begin_now()
        return self.version

    @property
    def closed(self):
        """Whether nothing is pinned."""
        return self.slot == NO_SLOT

    @property
    def expired(self):
        """Whether the coordinator revoked the pin; reads then raise SnapshotExpired."""
        return self.slot != NO_SLOT and self.generation == fork_generation and self.revoked()
