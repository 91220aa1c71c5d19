"""The faces of a transaction: `TransactionBase` (a `Space` with a life cycle), `ImplicitSpace` (each call a
transaction of its own) and `DatabaseBase`, which begins them. `Space` itself is in `_space.pyx`.

1. Any number of spaces and runs share one `TransactionCore`: a commit through one of them is the commit of
   all.
2. A run id is parsed once: its prefix is kept by the object that named it.
"""

from os import urandom
from uuid import UUID

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_get_thread_ident
from libc.string cimport memcpy

from ...ipc._atomics cimport clock_coarse_ns, clock_monotonic_ns
from ..commit._interest cimport tag_prefix_size
from ..commit._wire cimport CONFLICT_CAS
from ..model._values cimport Codec
from ._commit cimport commit_transaction, find_conflicts, leave_turn, require_log
from ._core cimport STATE_ABORTED, STATE_ACTIVE, TAG_KV, RunGuard, ScanRange
from ._pending cimport (
    WANT_REMOVED, WANT_SUM, WANT_SWAPPED, WANT_VERSION, PendingCommit, committed_value, new_pending, shown_error,
)
from ._scan cimport ROWS_KEYS, new_scan
from ._space cimport bounds_argument, delta_argument, make_space, with_tag
from ._view cimport SnapshotSource, fork_generation

from ..model.errors import ConflictError, InvalidArgumentError, OccamError, TransactionStateError
from ..model.keys import Namespace, RunId, encode_user_key
from ..model.key_types import tag_name, tag_of
from ..model.public_types import RESERVED_RUN, TransactionStatus
from ._pending import DeferredCommit
from .wait_signal import WaitSignal

# A cimported class is not an attribute of the module. Python code imports this one from here.
globals()["Space"] = Space

cdef enum:
    CACHED_RUNS_MAX = 4096
    STORED_KEY_SIZE_MAX = 65535     # a stored key's size has 16 bits
    LOOK_PERIOD_NS = 1000000000

cdef bytes RESERVED_ID = RESERVED_RUN.bytes

cdef tuple STATUSES = (
    TransactionStatus.ACTIVE, TransactionStatus.VALIDATING, TransactionStatus.COMMITTED, TransactionStatus.ABORTED
)


@cython.no_gc
@cython.auto_pickle(False)
cdef class TransactionBase(Space):
    """A transaction seen in one run, on its key-value tag; `transaction.Transaction` is what users get."""

    @property
    def status(self):
        """ACTIVE, VALIDATING, COMMITTED or ABORTED (`TransactionStatus`)."""
        return STATUSES[self.core.state]

    @property
    def txn_id(self):
        """(session id, sequence) of the commit request; None if none was sent."""
        return (self.core.session, self.core.sequence) if self.core.sequence else None

    @property
    def receipt(self):
        """What the commit returned; None before it."""
        return self.core.receipt

    @property
    def start_version(self):
        """The version of the snapshot it reads."""
        self.core.begin_now()
        return self.core.version

    @property
    def isolation(self):
        """"serializable" or "snapshot"."""
        return "serializable" if self.core.tracking or self.core.read_only else "snapshot"

    @property
    def read_only(self):
        """Whether writes are refused."""
        return self.core.read_only

    @property
    def expired(self):
        """Whether its snapshot was revoked: reads then raise SnapshotExpired."""
        return self.core.expired

    @property
    def store_incarnation(self):
        """The incarnation of the store that holds its snapshot. Each start of a coordinator makes another
        store."""
        return self.core.attachment.incarnation

    @property
    def read_time(self):
        """The one clock reading from which a ttl counts, in ns since the epoch."""
        return self.core.now()

    @property
    def expiry_time(self):
        """The expiry time of its snapshot, in ns since the epoch: keys that expired up to it are absent."""
        return self.core.expiry_time

    @property
    def pending_size(self):
        """The bytes its writes take in the commit request, of at most `transaction_size_max`."""
        return self.core.size

    def space(self, tag, *, bint raw=False):
        """One tag of this run, for primitives. `raw`: scans give keys as bytes."""
        return make_space(self.core, with_tag(self.prefix, tag), raw)

    def for_run(self, run_id):
        """The same transaction seen in another run: one commit for both."""
        self.core.require_active()
        return make_transaction(self.db, self.core, self.db.kv_prefix(run_id))

    def delete_run_range(self, run_id=None):
        """Delete everything of a run, of every tag, in one step at commit. None means the run of this
        transaction."""
        cdef bytes prefix = self.prefix if run_id is None else self.db.kv_prefix(run_id)
        self.core.require_writable()
        prefix = prefix[:len(prefix) - 1]
        if prefix.endswith(RESERVED_ID):
            raise reserved_run()
        # A run's keys go on with a tag of 0x01..0xFE, so the range needs no carry into the run id.
        self.core.clear_range(prefix, prefix + b"\xff")

    def validate(self):
        """What a commit would conflict with as of now: up to 16 conflicts, () when there are none.

        Asks the coordinator, in one round trip, and changes nothing: the transaction stays active. Another
        transaction may still commit before this one does.

        Raises:
          TransactionTooLarge: with everything that was read, the request is larger than
            `transaction_size_max`.
          TransactionTimeout, CoordinatorUnavailable: there was no answer in time.
        """
        self.core.require_active()
        if self.core.doomed is not None:
            return tuple(self.core.doomed)
        return find_conflicts(self.core)

    def wait(self):
        """Give up this attempt, and run the function again when something that it has read was changed by somebody else.

        Does not return. What counts as read are keys, absent keys too, and scanned ranges, as far as they are checked at
        commit. Code after it does not run; `finally` blocks do.

        Raises:
          TransactionStateError: the transaction is not run by `db.transaction`, `@db.transactional` or `db.attempts`, or
            has read nothing that is checked at commit.
        """
        self.core.require_active()
        if not self.core.may_wait:
            raise TransactionStateError(
                "only a transaction that can be run again may wait, and this one was begun by db.begin",
                hint="db.transaction(run_id, fn), @db.transactional or `for attempt in db.attempts(run_id)`",
            )
        raise WaitSignal(self.core, self.core.version, *read_set(self.core))

    @property
    def waits(self):
        """Where threads wait for changes of this database (`waiting.WaitHub`)."""
        return self.db.handle.waits

    def waits_by(self, signal):
        """Whether a WaitSignal is this transaction's."""
        return signal.owner is self.core

    def commit(self, *, bint durable=False):
        """Validate against everything committed since the snapshot and apply all writes, or none.

        Args:
          durable: return only when the commit is on disk.

        Raises:
          InvalidArgumentError: `durable` where there is no log; nothing was sent, and the transaction is
            still active.
          ConflictError: another transaction committed first.
          TransactionStateError: it was committed or aborted already.
          CommitOutcomeUnknown: the coordinator went away and did not come back in time.
        """
        if durable:
            require_log(self.core)
        try:
            return commit_transaction(self.core, durable)
        except BaseException:
            if self.core.state == STATE_ACTIVE:
                self.core.finish(STATE_ABORTED)
            raise

    def abort(self):
        """End the transaction without applying any of its writes."""
        if self.core.state != STATE_ACTIVE or self.core.generation != fork_generation:
            self.core.refuse()
        self.core.finish(STATE_ABORTED)

    def __enter__(self):
        self.core.require_active()
        return self

    def __exit__(self, exc_type, exc, traceback):
        if self.core.state != STATE_ACTIVE:
            return
        if exc_type is None:
            self.commit()
        else:
            self.core.finish(STATE_ABORTED)

    def __repr__(self):
        return (f"<{type(self).__name__} {STATUSES[self.core.state].value} run={self.run_id} "
                f"start_version={self.core.version}>")


def turn_of(TransactionBase txn not None):
    """The number of its turn if the transaction has lost and the next attempt has one; else 0."""
    return txn.core.turn if txn.core.turn_granted else 0


# Random, so that no other process has the same ones. A forked child draws anew.
cdef u64 last_number = 0
cdef u64 number_generation = <u64>-1


cdef u64 next_number() except 0:
    """A number that names one transaction among those of all processes."""
    global last_number, number_generation
    cdef bytes drawn
    if number_generation != fork_generation:
        drawn = urandom(8)
        memcpy(&last_number, PyBytes_AS_STRING(drawn), sizeof(u64))
        number_generation = fork_generation
    last_number += 2
    return last_number | 1


def end_turn(TransactionBase txn not None):
    """End the turn with which this attempt began, if nothing was sent by which it ended."""
    if txn.core.turn and not txn.core.patient and txn.core.sequence == 0 and txn.core.generation == fork_generation:
        leave_turn(txn.core)


def drop_turn(TransactionBase txn not None):
    """End the turn that this attempt was granted: there is no next attempt."""
    if txn.core.turn_granted and txn.core.generation == fork_generation:
        leave_turn(txn.core)


cdef TransactionBase make_transaction(DatabaseBase db, TransactionCore core, bytes prefix):
    cdef TransactionBase txn = TransactionBase.__new__(db.transaction_type)
    txn.core = core
    txn.prefix = prefix
    txn.db = db
    return txn


cdef void keep_blind_conflict(DatabaseBase db, bytes prefix, error) except *:
    """Remember a CAS that lost, for people. A blind commit has no snapshot, and so no source that would."""
    if not error.conflicts:
        return
    lost = error.conflicts[0]
    try:
        db.attach().keep_conflict(
            CONFLICT_CAS, prefix + encode_user_key(lost.key), lost.expected_version, lost.found_version, 1
        )
    except OccamError:
        pass                            # the coordinator has ended since it answered


@cython.auto_pickle(False)
cdef class ImplicitSpace:
    """One tag of one run outside any transaction: each call is a transaction of its own.

    Writes are blind: they begin and commit inside the coordinator's order, in one round trip, and cannot
    conflict.
    """

    def __init__(self):
        raise TypeError("an ImplicitSpace is not made directly: use db.space(run_id, tag)")

    cdef Space reading(self):
        """A space on a new snapshot, which is released when the space is deallocated."""
        if self.db is None:
            self.__init__()
        return make_space(self.db.new_reader(self.prefix), self.prefix, self.raw)

    cdef Space writing(self, object ttl=None):
        cdef TransactionCore core
        if self.db is None:
            self.__init__()
        core = self.db.new_core(self.prefix)
        core.blind = True
        if ttl is not None:
            core.clock = self.db.attach().clock()
        return make_space(core, self.prefix, self.raw)

    cdef object ended(self, Space space, int wanted):
        """The commit of a call that wrote: carried out, or left to the caller where commits are awaited."""
        if self.deferred:
            raise DeferredCommit(new_pending(space.core, False, wanted), self)
        try:
            commit_transaction(space.core, False)
        except ConflictError as error:
            keep_blind_conflict(self.db, self.prefix, error)
            shown = shown_error(error, wanted)
            if shown is error:
                raise
            raise shown from None
        return committed_value(space.core, wanted)

    def answer(self, PendingCommit pending not None):
        """Let the next write give, or raise, what its commit was answered.

        The operation that raised DeferredCommit is called again behind that, and its own code goes on from there.
        """
        self.answered = pending

    def get(self, key, default=None):
        """The newest committed value of a key, `default` when absent."""
        return self.reading().get(key, default)

    def get_versioned(self, key):
        """The newest committed value with version and times, None when absent."""
        return self.reading().get_versioned(key)

    def exists(self, key):
        """Whether the key is there."""
        return self.reading().exists(key)

    def put(self, key, value, *, ttl=None, bint ephemeral=False):
        """Set a key; returns the commit's version."""
        if self.answered is not None:
            return self.answered.result()
        cdef Space space = self.writing(ttl)
        space.put(key, value, ttl=ttl, ephemeral=ephemeral)
        return self.ended(space, WANT_VERSION)

    def delete(self, key):
        """Remove a key; returns whether it was there."""
        if self.answered is not None:
            return self.answered.result()
        cdef Space space = self.writing()
        space.core.drop(space.full_key(key), True)
        return self.ended(space, WANT_REMOVED)

    def cas(self, key, expected_version, value, *, ttl=None, bint ephemeral=False):
        """Set a key if its version is the expected one (0: absent); returns the new version.

        Raises:
          CASConflict: it has another version.
        """
        if self.answered is not None:
            return self.answered.result()
        cdef Space space = self.writing(ttl)
        space.cas(key, expected_version, value, ttl=ttl, ephemeral=ephemeral)
        return self.ended(space, WANT_SWAPPED)

    def add(self, key, delta=1, *, at_most=None, at_least=None):
        """Add to an integer, an absent key counting as 0; returns the new value.

        Raises:
          NotAnIntegerError, IntegerOverflowError, BoundReached: nothing was changed.
        """
        if self.answered is not None:
            return self.answered.result()
        cdef Space space = self.writing()
        space.core.add(space.full_key(key), delta_argument(delta), bounds_argument(at_most, at_least), True)
        return self.ended(space, WANT_SUM)

    def scan(self, prefix="", *, start=None, end=None, limit=None, bint reverse=False, bint raw=False):
        """(key, VersionedValue) rows of one snapshot, taken now and held until the iterator ends or goes."""
        return self.reading().scan(prefix, start=start, end=end, limit=limit, reverse=reverse, raw=raw)

    def keys(self, prefix="", *, start=None, end=None, limit=None, bint reverse=False, bint raw=False):
        """Like `scan`, the keys alone."""
        return self.reading().keys(prefix, start=start, end=end, limit=limit, reverse=reverse, raw=raw)

    def count(self, prefix="", *, start=None, end=None):
        """How many keys there are. O(n)."""
        return self.reading().count(prefix, start=start, end=end)

    def delete_range(self, prefix="", *, start=None, end=None):
        """Delete every key with this prefix in [start, end) in one commit; returns its version."""
        if self.answered is not None:
            return self.answered.result()
        cdef Space space = self.writing()
        space.delete_range(prefix, start=start, end=end)
        return self.ended(space, WANT_VERSION)

    @property
    def run_id(self):
        """The run this is a part of."""
        return RunId(bytes=self.prefix[len(self.prefix) - 17:len(self.prefix) - 1])

    @property
    def tag(self):
        """Which part of the run."""
        return tag_of(self.prefix[len(self.prefix) - 1])

    def __repr__(self):
        return f"<{type(self).__name__} {tag_name(self.tag)} run={self.run_id} of {self.db!r}>"

    def __reduce__(self):
        raise TypeError("an ImplicitSpace cannot be pickled: pickle the Database and ask it for the space again")


@cython.auto_pickle(False)
cdef class DatabaseBase:
    """Begins transactions over one engine handle; safe from several threads.

    Attributes:
      transaction_class: what `begin` makes instances of: a subclass of `TransactionBase` without fields of
        its own.
      awaits_commits: the writes of its spaces raise DeferredCommit, and the caller awaits the commit.
    """

    transaction_class = TransactionBase
    awaits_commits = False

    def __cinit__(self, *args, **kwargs):
        self.prefixes = {}

    def __init__(self, handle, isolation="serializable", namespace=None, Codec codec=None, run_rule=None):
        if not issubclass(self.transaction_class, TransactionBase):
            raise TypeError(f"transaction_class must be a TransactionBase, got {self.transaction_class!r}")
        self.transaction_type = self.transaction_class
        self.deferred = self.awaits_commits
        self.codec = Codec() if codec is None else codec
        self.namespace_ = Namespace() if namespace is None else namespace
        self.base = self.namespace_.base
        self.handle = handle.of(self.base)
        self.serializable = is_serializable(isolation)
        self.guard = None if run_rule is None else RunGuard(self.base, run_rule)
        self.key_size_max = handle.limits.key_size_max
        self.value_size_max = handle.limits.value_size_max
        self.transaction_size_max = handle.limits.transaction_size_max

    @property
    def run_rule(self):
        """Which runs may be written to; None: all."""
        return None if self.guard is None else self.guard.rule

    cdef SnapshotSource attach(self):
        """Where snapshots begin now. Asks the handle when the store at hand can no longer be used, when a key is due
        to expire and has not expired yet, and once a second.

        A store whose name was lost together with its coordinator is never marked superseded; only the handle
        can tell.
        """
        cdef i64 now = clock_coarse_ns()
        if self.current is None or not self.current.is_usable() or now >= self.next_look or self.current.is_due(now):
            self.next_look = now + LOOK_PERIOD_NS
            self.current = self.handle.attachment()
        return self.current

    def attachment(self):
        """The source of new snapshots."""
        return self.attach()

    @property
    def attached(self):
        """Whether a snapshot can begin now without asking the handle, which may have to wait for a coordinator."""
        cdef i64 now = clock_coarse_ns()
        return (self.current is not None and self.current.is_usable() and now < self.next_look
                and not self.current.is_due(now))

    cdef bytes kv_prefix(self, object run):
        """Namespace, run and KV tag. Parsing and encoding a run id is expensive, so recent prefixes are kept.

        Hashing a UUID costs as much as a read. A run id is immutable, so its identity serves as the cache
        key.
        """
        cdef tuple entry
        cdef bytes prefix
        if run is self.last_run:
            return self.last_prefix
        entry = self.prefixes.get(<size_t><PyObject *>run)
        if entry is not None and entry[0] is run:
            prefix = entry[1]
        else:
            named = RunId.of(run)
            if not isinstance(run, (UUID, str)):
                # An object that knows a run may later know another run, so it is not a cache key.
                return self.kv_prefix(named)
            # The reserved run is recognised by identity: an id that a caller makes of the same bits is
            # refused.
            if named.int == 0 and named is not RESERVED_RUN:
                raise reserved_run()
            prefix = self.base + named.bytes + b"\x01"
            if len(self.prefixes) >= CACHED_RUNS_MAX:
                self.prefixes.clear()
            self.prefixes[<size_t><PyObject *>run] = (run, prefix)
        self.last_run = None
        self.last_prefix = prefix
        self.last_run = run
        return prefix

    cdef bytes tag_prefix(self, object run, object tag):
        return with_tag(self.kv_prefix(run), tag)

    def prefix_of(self, run_id, tag=TAG_KV):
        """The prefix of every stored key of one tag in a run."""
        return self.tag_prefix(run_id, tag)

    cdef TransactionCore new_core(self, bytes prefix):
        cdef TransactionCore core = TransactionCore.__new__(TransactionCore)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(prefix)
        core.handle = self.handle
        core.codec = self.codec
        core.guard = self.guard
        core.key_size_max = self.key_size_max
        core.value_size_max = self.value_size_max
        core.transaction_size_max = self.transaction_size_max
        core.prefix = prefix
        core.attempts = 1
        return core

    def first_key(self, bytes start not None):
        """The first stored key (namespace, run, tag, user key) from `start` on, of any namespace; None when
        none is.

        For tools that go through a whole database. Raises as a read does.
        """
        cdef TransactionCore core = self.new_reader(b"")
        for key in new_scan(core, start, b"\xff" * STORED_KEY_SIZE_MAX, 0, 1, False, ROWS_KEYS, True):
            return key
        return None

    cdef TransactionCore new_reader(self, bytes prefix):
        cdef TransactionCore core = self.new_core(prefix)
        core.read_only = True
        core.open(self.attach(), True)
        return core

    def begin(self, run_id, *, isolation=None, bint read_only=False, timeout=None, u64 attempts=1, bint may_wait=False,
              u64 turn=0, bint patient=False, bint late=False):
        """An explicit transaction on a fresh snapshot. It does not retry by itself.

        As a context manager it commits on a clean exit and aborts on an exception.

        Args:
          run_id: a RunId, a `uuid.UUID` or its text.
          isolation: "serializable" or "snapshot"; None: as the database was opened.
          read_only: refuse writes, and track no reads.
          timeout: seconds after which every call raises TransactionTimeout; None: no limit.
          attempts: which attempt this is, for the receipt.
          may_wait: the caller catches the WaitSignal of `txn.wait`.
          turn: ask for a turn if it loses; the same number for each attempt, and for no other transaction. 0: do not ask.
          late: on a server, begin the snapshot with the first access, in one round trip with it. For a function that is
            called at once, and again if it conflicts.
          patient: without a `turn`: ask only if it loses after it had to wait for the turns of others.
        """
        cdef bytes prefix = self.kv_prefix(run_id)
        cdef TransactionCore core
        cdef bint serializable = self.serializable
        if isolation is not None:
            serializable = is_serializable(isolation)
        core = self.new_core(prefix)
        core.read_only = read_only
        core.tracking = serializable and not read_only
        core.attempts = attempts
        if not read_only:
            core.owner = PyThread_get_thread_ident()
        core.may_wait = may_wait
        core.turn = turn
        if patient and turn == 0:
            core.turn = next_number()
            core.patient = True
        if timeout is not None:
            core.deadline_ns = deadline_after(timeout)
        core.open(self.attach(), late)
        if attempts > 1:
            core.attachment.note_retry()
        return make_transaction(self, core, prefix)

    def space(self, run_id, tag, *, bint raw=False):
        """One tag of a run, each call a transaction of its own: for primitives."""
        cdef ImplicitSpace space = ImplicitSpace.__new__(ImplicitSpace)
        space.db = self
        space.prefix = self.tag_prefix(run_id, tag)
        space.raw = raw
        space.deferred = self.deferred
        return space


cdef tuple read_set(TransactionCore core):
    """(keys, ranges, prefixes) of what a transaction has read, as `waiting.Interest` takes them."""
    cdef ScanRange scan
    cdef bytes key
    cdef u32 size
    cdef list keys = list(core.reads) if core.reads is not None else []
    cdef list ranges = []
    cdef set prefixes = set()
    if core.scans is not None:
        for scan in core.scans:
            walked = scan.bounds(STORED_KEY_SIZE_MAX)
            if walked is not None:
                ranges.append(walked)
    if not keys and not ranges:
        raise TransactionStateError(
            "the transaction has read nothing that is checked at commit, so nothing could wake it",
            hint="read what it waits for, in a serializable transaction and without track=False",
        )
    for key in [*keys, *[start for start, _ in ranges]]:
        size = tag_prefix_size(<const u8 *>PyBytes_AS_STRING(key), <u32>PyBytes_GET_SIZE(key))
        prefixes.add(key[:size])
    return keys, ranges, prefixes


cdef object reserved_run():
    return InvalidArgumentError(
        "the all-zero run id is reserved: a namespace keeps its index of runs there",
        hint="RunId.new() makes a run id", details={"run_id": str(RESERVED_RUN)},
    )


cdef bint is_serializable(object isolation) except -1:
    if isolation == "serializable":
        return True
    if isolation == "snapshot":
        return False
    raise InvalidArgumentError(f"isolation {isolation!r} is unknown", hint='use "serializable" or "snapshot"')


cdef i64 deadline_after(object timeout) except -1:
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout >= 0:
        raise InvalidArgumentError(f"timeout must be a number of seconds from 0, got {timeout!r}", hint="timeout=None sets no limit")
    return clock_monotonic_ns() + <i64>(min(timeout, 1e9) * 1e9)
