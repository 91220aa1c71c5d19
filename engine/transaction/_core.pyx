"""A transaction's private state: snapshot, read set, effects, checks, ranges. `_commit.pyx` makes them a
commit.

The thread that began a transaction reads and writes it; any other gets an error (`refuse_thread`). A transaction
that is read-only, or that no caller can share, has no owner. Any thread may commit or abort: that happens once.
Every method runs under the GIL, so a second thread meets an error or an interleaving, but never a crash. The keys
here are stored keys (namespace, run, tag, user key), so one transaction can span runs.

1. A read sees the transaction's own effect on the key if there is one, else the snapshot at `version`. When
   the transaction is tracking, a read of the snapshot enters `reads` with the version found there (0:
   absent).
2. There is one effect per key, the last one. A check outlives the effect that it came with: a put after a cas
   keeps the check. The effect of a key with a check is sent UNCHECKED, because the expected version alone
   decides.
3. A range delete removes the effects in its range. The commit core applies range deletes first, so what is
   written to the range afterwards stays.
4. The version of an own write, for cas, is that of the committed value it builds on; so read, cas, read, cas
   on one key works inside one transaction and is one check at commit. Absent after an own delete is version
   0.
5. The pin is held until the answer has arrived. Tombstones newer than the snapshot therefore stay in the
   store, and validation is exact.
6. The state goes from ACTIVE through VALIDATING to COMMITTED or ABORTED. A question about conflicts
   (`validate`) leads back to ACTIVE. A transaction whose outcome stays unknown, because the coordinator did
   not come back or the wait was interrupted, stays VALIDATING.
"""

from bisect import bisect_left, insort
from datetime import timedelta

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItem
from cpython.pythread cimport PyThread_get_thread_ident
from libc.string cimport memcpy

from ...ipc._atomics cimport clock_monotonic_ns
from ..commit._wire cimport OP_ADD, OP_DELETE, OP_HEADER_SIZE, OP_PUT, REQUEST_HEADER_SIZE
from ..model._records cimport make_versioned
from ..model._value_reader cimport decode_value
from ..model._value_writer cimport encode_value
from ._view cimport fork_generation

from ..model.bounds import check_bounds, join_bounds
from ..model.conflict_records import cas_conflict
from ..model.errors import (
    ForkedHandleError, IntegerOverflowError, InvalidArgumentError, NotAnIntegerError, ReadOnlyError,
    TransactionStateError, TransactionTimeout, TransactionTooLarge,
)
from ..model.keys import decode_key, successor

cdef enum:
    PENDING_MAX = 64                # up to so many new keys are inserted into `order` one by one; more are sorted in

STATES = ("active", "validating", "committed", "aborted")
DELTA_MIN = -(2**63)
DELTA_MAX = 2**63 - 1
INTEGER_MIN = -(2**63)
INTEGER_MAX = 2**64 - 1
DAYS_MAX = 36_500                   # the longest ttl: expiry times stay far below 2**63 nanoseconds


cdef bytes join_key(bytes prefix, const u8 *key, Py_ssize_t size):
    """`prefix` and a user key as one stored key."""
    cdef Py_ssize_t prefix_size = PyBytes_GET_SIZE(prefix)
    cdef bytes joined = PyBytes_FromStringAndSize(NULL, prefix_size + size)
    cdef char *into = PyBytes_AS_STRING(joined)
    memcpy(into, PyBytes_AS_STRING(prefix), prefix_size)
    memcpy(into + prefix_size, key, size)
    return joined


cdef i64 expiry_of(object ttl, i64 now) except -1:
    """When a value put at `now` with this time to live expires, in ns since the epoch.

    Raises:
      InvalidArgumentError: not a positive, finite number of seconds (or timedelta) up to 100 years.
    """
    cdef double seconds
    if isinstance(ttl, timedelta):
        ttl = ttl.total_seconds()
    if isinstance(ttl, bool) or not isinstance(ttl, (int, float)):
        raise InvalidArgumentError(
            f"ttl must be a number of seconds or a timedelta, got {type(ttl).__name__}", hint="ttl=None keeps it for ever"
        )
    if not 0 < ttl <= DAYS_MAX * 86_400:        # false for NaN as well
        raise InvalidArgumentError(
            f"ttl = {ttl!r} s is out of range: more than 0, at most {DAYS_MAX:,} days", hint="leave ttl out to keep it for ever"
        )
    seconds = ttl
    return now + max(<i64>1, <i64>(seconds * 1e9))


cdef object add_integers(bytes key, object base, object delta):
    """base + delta as the commit core would add them.

    Raises:
      NotAnIntegerError, IntegerOverflowError: as the commit would.
    """
    if type(base) is not int:
        raise NotAnIntegerError(key=decode_key(key).user_key)
    total = base + delta
    if not INTEGER_MIN <= total <= INTEGER_MAX:
        raise IntegerOverflowError(key=decode_key(key).user_key)
    return total


@cython.final
@cython.auto_pickle(False)
cdef class RunGuard:
    """A database's rule about the runs that may be written to, in the namespace `base`; applied by _guard.pyx."""

    def __cinit__(self, bytes base not None, rule):
        self.base = base
        self.rule = rule


@cython.final
@cython.no_gc
@cython.freelist(64)
@cython.auto_pickle(False)
cdef class Effect:
    """One write: a put, a delete or an add."""


cdef Effect new_effect(u8 code, bytes value, i64 expires_at, i64 delta, bint wanted, bint ephemeral=False):
    cdef Effect effect = Effect.__new__(Effect)
    effect.code = code
    effect.value = value
    effect.expires_at = expires_at
    effect.delta = delta
    effect.wanted = wanted
    effect.ephemeral = ephemeral
    return effect


@cython.final
@cython.no_gc
@cython.auto_pickle(False)
cdef class ScanRange:
    """How far a scan has walked: from `start` up to `last`, or in reverse from `end` down to it."""

    cdef tuple bounds(self, u64 stored_size_max):
        """[start, end) of the keys that were walked; None when there were none."""
        cdef bytes last
        if self.exhausted:
            return self.start, self.end
        if self.last == NULL:
            return None
        last = PyBytes_FromStringAndSize(<const char *>self.last, self.last_size)
        if self.reverse:
            return last, self.end
        # The first key after `last`: itself and a NUL, or, when no key can be longer, its successor.
        return self.start, last + b"\x00" if len(last) < stored_size_max else successor(last)


cdef u64 op_cost(bytes key, bytes value):
    return OP_HEADER_SIZE + <u64>PyBytes_GET_SIZE(key) + (<u64>PyBytes_GET_SIZE(value) if value is not None else 0)


@cython.final
@cython.no_gc
@cython.auto_pickle(False)
cdef class TransactionCore(PinnedView):
    """See the module docstring. Made by `_transaction.pyx`; `PinnedView.open` gives it its snapshot."""

    # ---- life cycle -----------------------------------------------------------------------------------------

    cdef int require_active(self) except -1:
        if self.state != STATE_ACTIVE or self.generation != fork_generation or self.deadline_ns != 0:
            self.refuse()
        if self.owner != 0 and self.owner != PyThread_get_thread_ident():
            self.refuse_thread()
        return 0

    cdef int refuse_thread(self) except -1:
        here = <unsigned long>PyThread_get_thread_ident()
        raise TransactionStateError(
            f"the transaction is used by two threads: it was begun in thread {self.owner} and is used in thread {here}",
            hint="let each thread begin its own: db.transaction(run_id, fn) in the thread, not a transaction handed to it",
            details={"begun_in": self.owner, "used_in": here},
        )

    cdef int refuse(self) except -1:
        """Raise the reason why the transaction cannot be used; return if it can."""
        if self.generation != fork_generation:
            raise ForkedHandleError("this transaction was begun in the parent process")
        if self.state == STATE_VALIDATING:
            raise TransactionStateError(
                "the transaction's commit is under way, or its outcome is unknown",
                hint="a transaction belongs to one thread; begin another one",
            )
        if self.state != STATE_ACTIVE:
            raise TransactionStateError(
                f"the transaction is {STATES[self.state]}", hint="begin a new one: a transaction is used once"
            )
        if self.deadline_ns != 0 and clock_monotonic_ns() > self.deadline_ns:
            self.finish(STATE_ABORTED)
            raise TransactionTimeout(
                "the transaction's deadline passed before it committed", hint="give it a longer timeout, or do less in it"
            )
        return 0

    cdef int require_writable(self) except -1:
        self.require_active()
        if self.read_only:
            raise ReadOnlyError("this transaction is read-only", hint="begin it without read_only=True")
        return 0

    cdef int finish(self, int state) except -1:
        """End the transaction: release the snapshot and drop the read and write sets."""
        self.state = state
        self.release()
        self.reads = self.effects = self.checks = None
        self.scans = self.cleared = self.order = self.unordered = None
        return 0

    # ---- reading --------------------------------------------------------------------------------------------

    cdef int lookup(self, bytes key, bint track, Found *found) except -1:
        """Find a key in the snapshot. With `track`, and if the transaction is tracking, the key enters the
        read set."""
        cdef int status = self.find(<const u8 *>PyBytes_AS_STRING(key), <u32>PyBytes_GET_SIZE(key), found)
        if not status:
            found.version = 0
        if track and self.tracking:
            if self.reads is None:
                self.reads = {}
            self.reads[key] = found.version
        return status

    cdef int look(self, bytes key, bint track, Found *found, PyObject **own) except -1:
        """Where the transaction sees this key: SEEN_*. `own` is borrowed from `effects`."""
        cdef PyObject *item
        if self.effects is not None:
            item = PyDict_GetItem(self.effects, key)
            if item != NULL:
                own[0] = item
                if (<Effect>item).code == OP_PUT:
                    return SEEN_OWN
                if (<Effect>item).code == OP_DELETE:
                    return SEEN_ABSENT
                if self.cleared is not None and self.is_cleared(key):
                    return SEEN_DELTA
                return SEEN_SUM if self.lookup(key, track, found) else SEEN_DELTA
        if self.cleared is not None and self.is_cleared(key):
            return SEEN_ABSENT
        return SEEN_STORED if self.lookup(key, track, found) else SEEN_ABSENT

    cdef bint live_base(self, bytes key, Found *found) except -1:
        """Whether there is a live committed record below an own write of this key. Does not enter the read
        set."""
        if self.cleared is not None and self.is_cleared(key):
            return False
        return self.lookup(key, False, found)

    cdef bint is_cleared(self, bytes key):
        for start, end in self.cleared:
            if start <= key < end:
                return True
        return False

    cdef object own_value(self, bytes key, Effect own, const Found *base):
        """What an own put or add makes of a key whose live committed record is `base` (NULL: absent)."""
        if own.code == OP_PUT:
            return decode_value(<const u8 *>PyBytes_AS_STRING(own.value), PyBytes_GET_SIZE(own.value), self.codec)
        return add_integers(key, self.value_of(base) if base != NULL else 0, own.delta)

    cdef object own_record(self, bytes key, Effect own, const Found *base):
        """`own_value` with the version a cas has to expect, stamped with the transaction's clock."""
        cdef u64 version = base.version if base != NULL else 0
        cdef i64 expires_at = own.expires_at
        cdef u64 session = 0
        if self.checks is not None and key in self.checks:
            version = self.checks[key]
        if own.code == OP_ADD:
            expires_at = base.expires_at if base != NULL else 0
            session = base.session if base != NULL else 0
        elif own.ephemeral:
            session = self.handle.session
        return make_versioned(self.own_value(key, own, base), version, self.now(), expires_at, session)

    # ---- writing --------------------------------------------------------------------------------------------

    cdef int grow(self, u64 more, u64 less) except -1:
        """Count the bytes on the wire. Raises TransactionTooLarge if they would exceed the limit."""
        cdef u64 size = self.size + more - less
        if size + REQUEST_HEADER_SIZE > self.transaction_size_max:
            raise TransactionTooLarge(size=size + REQUEST_HEADER_SIZE, limit=self.transaction_size_max)
        self.size = size
        return 0

    cdef int set_effect(self, bytes key, Effect effect) except -1:
        cdef PyObject *old = NULL
        self.begin_now()
        if self.effects is None:
            self.effects = {}
        else:
            old = PyDict_GetItem(self.effects, key)
        if old != NULL:
            self.grow(op_cost(key, effect.value), op_cost(key, (<Effect>old).value))
        else:
            self.grow(op_cost(key, effect.value), 0)
            if self.order is not None:
                self.unordered.append(key)
        self.effects[key] = effect
        return 0

    cdef int put(self, bytes key, object value, i64 expires_at, bint ephemeral) except -1:
        cdef bytes encoded = encode_value(value, self.value_size_max, self.codec)
        self.binds = self.binds or ephemeral
        return self.set_effect(key, new_effect(OP_PUT, encoded, expires_at, 0, False, ephemeral))

    cdef int delete(self, bytes key) except -1:
        """Delete a key. Returns 1 if the transaction saw it, else 0; looking for it enters the read set."""
        cdef Found found
        cdef PyObject *own = NULL
        cdef bint was_there
        if self.effects is not None:
            own = PyDict_GetItem(self.effects, key)
        if own != NULL:
            # This transaction put it or added to it, so it is there even if the snapshot does not have it.
            was_there = (<Effect>own).code != OP_DELETE
        else:
            was_there = self.look(key, True, &found, &own) != SEEN_ABSENT
        self.drop(key, False)
        return was_there

    cdef int drop(self, bytes key, bint wanted) except -1:
        return self.set_effect(key, new_effect(OP_DELETE, None, 0, 0, wanted))

    cdef int cas(self, bytes key, u64 expected, object value, i64 expires_at, bint ephemeral) except -1:
        cdef bytes encoded = encode_value(value, self.value_size_max, self.codec)
        cdef Effect effect = new_effect(OP_PUT, encoded, expires_at, 0, False, ephemeral)
        cdef PyObject *own = PyDict_GetItem(self.effects, key) if self.effects is not None else NULL
        cdef bint gone
        if own != NULL:
            gone = (<Effect>own).code == OP_DELETE
        else:
            gone = self.cleared is not None and self.is_cleared(key)
        if gone:
            # This transaction deleted it, so it is absent here. The check of the delete covers the committed
            # value.
            if expected != 0:
                self.doom(key, expected, 0)
        elif self.checks is not None and key in self.checks:
            if self.checks[key] != expected:
                self.doom(key, expected, self.checks[key])
        else:
            self.grow(op_cost(key, None), 0)
            if self.checks is None:
                self.checks = {}
            self.checks[key] = expected
        self.binds = self.binds or ephemeral
        return self.set_effect(key, effect)

    cdef doom(self, bytes key, u64 expected, u64 found):
        """Note that two expectations of one key cannot both hold. The commit will fail and name them."""
        if self.doomed is None:
            self.doomed = []
            self.doomed_key = key
        self.doomed.append(cas_conflict(key, expected, found))

    cdef int add(self, bytes key, i64 delta, bytes bounds, bint wanted) except -1:
        cdef PyObject *item = PyDict_GetItem(self.effects, key) if self.effects is not None else NULL
        cdef Effect own
        if item == NULL:
            return self.set_effect(key, new_effect(OP_ADD, bounds, 0, delta, wanted))
        own = <Effect>item
        if own.code == OP_ADD:
            total = int(own.delta) + int(delta)
            if not DELTA_MIN <= total <= DELTA_MAX:
                raise IntegerOverflowError(key=decode_key(key).user_key)
            if own.value is not None:
                bounds = join_bounds(own.value, bounds, delta)
            return self.set_effect(key, new_effect(OP_ADD, bounds, 0, total, wanted))
        base = 0
        if own.code == OP_PUT:
            base = decode_value(<const u8 *>PyBytes_AS_STRING(own.value), PyBytes_GET_SIZE(own.value), self.codec)
        total = add_integers(key, base, delta)
        if bounds is not None:
            check_bounds(decode_key(key).user_key, base, delta, bounds)
        return self.set_effect(key, new_effect(OP_PUT, encode_value(total, self.value_size_max, None), own.expires_at, 0,
                                               False, own.ephemeral))

    cdef int clear_range(self, bytes start, bytes end) except -1:
        cdef u64 freed = 0
        self.begin_now()
        for key in self.own_between(start, end):
            freed += op_cost(key, (<Effect>self.effects.pop(key)).value)
            self.order = self.unordered = None
        self.grow(op_cost(start, end), freed)
        if self.cleared is None:
            self.cleared = []
        self.cleared.append((start, end))
        return 0

    cdef list own_between(self, bytes start, bytes end):
        """The keys of own effects in [start, end), sorted. O(new keys since the last call) plus the size of
        the answer."""
        if not self.effects:
            return []
        if self.order is None:
            self.order = sorted(self.effects)
            self.unordered = []
        elif len(self.unordered) > PENDING_MAX:
            self.order.extend(self.unordered)
            self.order.sort()
            self.unordered = []
        elif self.unordered:
            for key in self.unordered:
                insort(self.order, key)
            self.unordered = []
        return self.order[bisect_left(self.order, start):bisect_left(self.order, end)]
