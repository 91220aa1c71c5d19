"""What happens to every task: it is put, claimed and completed. Compiled, since each of the three is one commit
that takes a few microseconds, and Python code for the rest would take longer.

What the keys and entries mean is said in `task_records.py`, and why the moves are right in `README.md`. `tasks.py` calls
these on the tasks' space of a transaction, and raises the errors of tasks that are not held.

Which task is claimed. The first ready one by priority, then by order of the commits that put them. Ids begin with the
start versions of those commits, and a commit's version is above its start version. So a task further on can only be
before one of version v if its start version is below v - 1. The walk ends at the first that is not.
"""

import os

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy

from ..engine.model._records cimport VersionedValue
from ..engine.transaction._core cimport TransactionCore, expiry_of
from ..engine.transaction._scan cimport ROWS_KEYS, ScanIterator, new_scan
from ..engine.transaction._space cimport Space

from ..engine.model.errors import InvalidArgumentError
from ..engine.model.limits import TIMEOUT_MAX as _TIMEOUT_MAX
from . import layout, task_records, task_types
from .task_types import Task, TaskState, checked_number, checked_seconds, claimed_task, raw_task_id
from .trace_types import explain

cdef enum:
    ID_SIZE = 16
    SUFFIX_SIZE = 18                # rank and id
    LOOK_AHEAD = 64                 # tasks of overlapping commits that are put in order
    PROMOTED_AT_ONCE = 64
    BURIED_AT_ONCE = 64

assert ID_SIZE == layout.ID_SIZE and SUFFIX_SIZE == task_records.SUFFIX_SIZE

cdef Py_ssize_t CLAIMS = task_records.CLAIMS, RELEASED = task_records.RELEASED, ERROR = task_records.ERROR
cdef Py_ssize_t MAX_ATTEMPTS = task_records.MAX_ATTEMPTS, ORDER = task_records.ORDER
cdef object PRIORITY_MIN = task_types.PRIORITY_MIN, PRIORITY_MAX = task_types.PRIORITY_MAX
cdef object ATTEMPTS_MAX = task_types.ATTEMPTS_MAX, TIMEOUT_MAX = _TIMEOUT_MAX

cdef bytes RECORD = layout.TASK, DUE = layout.TASK_DUE
cdef bytes OPEN = layout.TASK_OPEN, CLAIM = layout.TASK_CLAIM, DELAYED = layout.TASK_DELAYED
cdef bytes DONE = layout.TASK_DONE, DEAD = layout.TASK_DEAD
cdef object task_queue = layout.task_queue, task_key = layout.task_key, time_key = layout.time_key
cdef object new_tuple = tuple.__new__

cdef object READY_STATE = TaskState.READY, DELAYED_STATE = TaskState.DELAYED, CLAIMED_STATE = TaskState.CLAIMED

cdef uint64_t NEVER = <uint64_t>1 << 63       # the order of a task that this very transaction put


# ---- ids and choices: what makes this process differ from others ---------------------------------------------------

cdef bytes own_part = b""           # five random bytes in the ids of this process
cdef uint64_t id_count = 0
cdef uint64_t dice = 0


def _renew():
    """Draw anew, in a forked child too. Not from the module `random`: users may seed that alike in every worker."""
    global own_part, dice
    own_part = os.urandom(5)
    dice = int.from_bytes(os.urandom(8), "little") | 1


_renew()
os.register_at_fork(after_in_child=_renew)


cdef uint64_t draw(uint64_t below) noexcept:
    """A number from 0. Source of the algorithm: Marsaglia, "Xorshift RNGs", 2003."""
    global dice
    dice ^= dice << 13
    dice ^= dice >> 7
    dice ^= dice << 17
    return (dice >> 11) % below


cdef void put_big_endian(uint8_t *into, uint64_t number, int size) noexcept:
    cdef int position
    for position in range(size):
        into[position] = <uint8_t>(number >> (8 * (size - 1 - position)))


cdef bytes new_suffix(object priority, uint64_t start_version):
    """The rank of a priority and a new id: the start version, the process's own part, a count."""
    global id_count
    cdef bytes suffix = PyBytes_FromStringAndSize(NULL, SUFFIX_SIZE)
    cdef uint8_t *into = <uint8_t *>PyBytes_AS_STRING(suffix)
    put_big_endian(into, <uint64_t>(32767 - <int>priority), 2)
    put_big_endian(into + 2, start_version, 8)
    memcpy(into + 10, PyBytes_AS_STRING(own_part), 5)
    put_big_endian(into + 15, id_count & 0xFFFFFF, 3)
    id_count += 1
    return suffix


# ---- helpers -------------------------------------------------------------------------------------------------------


cdef double seconds_of(object seconds, str what, bint zero) except -1:
    if type(seconds) is int or type(seconds) is float:
        if 0 < seconds <= TIMEOUT_MAX or (zero and seconds == 0):
            return seconds
    return checked_seconds(seconds, what, zero=zero)


cdef ScanIterator keys_between(Space space, bytes low, bytes high):
    """The keys in [low, high) of a space, which the commit does not check."""
    cdef TransactionCore core = space.core
    cdef bint tracking = core.tracking
    core.tracking = False
    try:
        return new_scan(core, space.prefix + low, space.prefix + high, <unsigned int>PyBytes_GET_SIZE(space.prefix),
                        None, False, ROWS_KEYS, True)
    finally:
        core.tracking = tracking


cdef int put(Space space, bytes key, object value) except -1:
    space.core.require_writable()
    return space.core.put(space.full_key(key), value, 0, False)


cdef int set_claim(Space space, bytes key, object claim, double seconds) except -1:
    """The claim of a task: bound to the session, for so many seconds."""
    space.core.require_writable()
    return space.core.put(space.full_key(key), claim, expiry_of(seconds, space.core.now()), True)


cdef object open_task(bytes suffix, list record, object state, list entry, object claim, object due, object lease):
    """The Task of a record and an entry, for a task that is neither done nor dead."""
    queue, priority, key, created, payload = record
    claims, released, most, error, _ = entry
    return new_tuple(Task, (
        suffix[2:].hex(), queue, payload, state, priority, key, claims - released, most, claim, created, due, 0, lease,
        None, error,
    ))


# ---- putting -------------------------------------------------------------------------------------------------------


def put_task(Space space not None, queue, payload, key, priority, delay, max_attempts):
    """Put a task; gives it, or the id of the one that was put with the same key.

    Raises:
      ValueEncodingError: the payload cannot be stored.
      InvalidArgumentError: another argument is wrong.
    """
    cdef bytes prefix = task_queue(queue)
    cdef bytes suffix, raw
    cdef list record, entry
    cdef double wait
    cdef object now
    if type(queue) is not str:
        queue = str.__str__(queue)      # the member of a StrEnum, for example, which would not be storable
    if type(priority) is not int or not PRIORITY_MIN <= priority <= PRIORITY_MAX:
        checked_number(priority, "priority", PRIORITY_MIN, PRIORITY_MAX)
    if type(max_attempts) is not int or not 1 <= max_attempts <= ATTEMPTS_MAX:
        checked_number(max_attempts, "max_attempts", 1, ATTEMPTS_MAX)
    wait = seconds_of(delay, "delay", True)
    if key is not None:
        if type(key) is not str:
            if not isinstance(key, str):
                raise InvalidArgumentError(f"a key is text, got {type(key).__name__}", hint="key=str(...)")
            key = str.__str__(key)
        known = space.get(task_key(queue, key))
        if known is not None:
            return known
    now = space.core.now() // 1000
    space.core.begin_now()
    suffix = new_suffix(priority, space.core.version)
    raw = suffix[2:]
    record = [queue, priority, key, now, payload]
    try:
        put(space, RECORD + raw, record)
    except InvalidArgumentError:
        explain({"payload": payload}, space.codec)
        raise
    if key is not None:
        put(space, task_key(queue, key), raw)
    entry = [0, 0, max_attempts, None, 0]
    due = _set_out(space, prefix, suffix, entry, wait)
    return open_task(suffix, record, DELAYED_STATE if due else READY_STATE, entry, 0, due, 0)


cdef object _set_out(Space space, bytes prefix, bytes suffix, list entry, double wait):
    if wait == 0:
        put(space, prefix + OPEN + suffix, entry)
        return 0
    due = space.core.now() // 1000 + int(wait * 1e6)
    put(space, DUE + suffix[2:], due)
    put(space, prefix + DELAYED + time_key(due) + suffix, entry)
    return due


def set_out(Space space not None, bytes prefix not None, bytes suffix not None, list entry not None, double wait):
    """Make a task ready, or delayed if there are seconds to wait; gives when it is due, 0 if it is ready."""
    return _set_out(space, prefix, suffix, entry, wait)


# ---- claiming ------------------------------------------------------------------------------------------------------


cdef class Choice:
    """The open place of a task that can be claimed, what it holds, and its order."""
    cdef bytes key
    cdef list entry
    cdef uint64_t order


cdef Choice choice_of(bytes key, VersionedValue found):
    """None: the task has no attempt left."""
    cdef list entry = found.value
    cdef Choice choice
    if entry[MAX_ATTEMPTS] - entry[CLAIMS] + entry[RELEASED] <= 0:
        return None
    choice = Choice.__new__(Choice)
    choice.key = key
    choice.entry = entry
    choice.order = entry[ORDER] or found.version or NEVER
    return choice


def claim_task(Space space not None, queue, lease, uint64_t spread):
    """Claim one of the first `spread` ready tasks of a queue; None if there is none."""
    cdef bytes prefix = task_queue(queue), suffix
    cdef double seconds = seconds_of(lease, "lease", False)
    cdef object now
    cdef set taken
    cdef list entry
    cdef Choice chosen = None
    space.core.require_writable()       # a claim that finds nothing is refused as well
    now = space.core.now() // 1000
    taken = held_and_due(space, prefix, now)
    if spread > 1:
        chosen = draw_one(space, prefix, taken, spread)
    if chosen is None:
        chosen = first_of_all(space, prefix, taken, now)
    if chosen is None:
        # What is read here makes `txn.wait()` wait for a task.
        for _ in space.keys(start=prefix + OPEN, end=prefix + DONE):
            pass
        return None
    suffix = chosen.key[PyBytes_GET_SIZE(prefix) + 1:]
    entry = chosen.entry
    claim = entry[CLAIMS] + 1
    entry[CLAIMS] = claim
    entry[ORDER] = 0 if chosen.order == NEVER else chosen.order
    put(space, chosen.key, entry)
    set_claim(space, prefix + CLAIM + suffix, claim, seconds)
    record = space.get(RECORD + suffix[2:], track=False)
    return open_task(suffix, record, CLAIMED_STATE, entry, claim, 0, now + int(seconds * 1e6))


cdef set held_and_due(Space space, bytes prefix, object now):
    """Rank and id of the claimed tasks. Makes delayed tasks open that are due."""
    cdef set taken = set()
    cdef list due = []
    cdef bytes key
    cdef Py_ssize_t skip = PyBytes_GET_SIZE(prefix) + 1
    cdef char delayed = PyBytes_AS_STRING(DELAYED)[0]
    for row in keys_between(space, prefix + CLAIM, prefix + DONE):
        key = row
        if PyBytes_AS_STRING(key)[skip - 1] != delayed:
            taken.add(key[skip:])
        elif task_records.due_of(key) > now or len(due) == PROMOTED_AT_ONCE:
            break
        else:
            due.append(key)
    for row in due:
        promote(space, prefix, row)
    return taken


cdef int promote(Space space, bytes prefix, bytes key) except -1:
    """Make a delayed task open."""
    cdef VersionedValue found = space.get_versioned(key, track=False)
    cdef bytes suffix = key[PyBytes_GET_SIZE(key) - SUFFIX_SIZE:]
    cdef list entry
    assert found is not None, "it was in the snapshot a moment ago"
    entry = found.value
    entry[ORDER] = entry[ORDER] or found.version
    space.delete(key)
    space.delete(DUE + suffix[2:])
    return put(space, prefix + OPEN + suffix, entry)


cdef Choice draw_one(Space space, bytes prefix, set taken, uint64_t spread):
    """One of the first ready tasks of one priority; None: look at the first of all."""
    cdef list ready = []
    cdef bytes key, rank = b""
    cdef Py_ssize_t skip = PyBytes_GET_SIZE(prefix) + 1
    cdef uint64_t wanted = draw(spread)
    for row in keys_between(space, prefix + OPEN, prefix + CLAIM):
        key = row
        if taken and key[skip:] in taken:
            continue
        if ready and key[skip:skip + 2] != rank:
            break
        rank = key[skip:skip + 2]
        ready.append(key)
        if <uint64_t>len(ready) > wanted:
            break
    if not ready:
        return None
    key = ready[wanted % <uint64_t>len(ready)]
    found = space.get_versioned(key, track=False)
    return None if found is None else choice_of(key, found)


cdef Choice first_of_all(Space space, bytes prefix, set taken, object now):
    """The first ready task; None: there is none. Buries those that have no attempt left."""
    cdef bytes key, rank = b""
    cdef Py_ssize_t skip = PyBytes_GET_SIZE(prefix) + 1
    cdef uint64_t start
    cdef int seen = 0
    cdef list graves = []
    cdef Choice best = None, other
    cdef VersionedValue found
    for row in keys_between(space, prefix + OPEN, prefix + CLAIM):
        key = row
        if taken and key[skip:] in taken:
            continue
        if best is not None:
            start = int.from_bytes(key[skip + 2:skip + 10], "big")
            if key[skip:skip + 2] != rank or seen == LOOK_AHEAD or start + 1 >= best.order:
                break
        found = space.get_versioned(key, track=False)
        if found is None:
            continue
        other = choice_of(key, found)
        if other is None:
            graves.append((key, found.value))
            if len(graves) == BURIED_AT_ONCE:
                break
            continue
        seen += 1
        rank = key[skip:skip + 2]
        if best is None or other.order < best.order:
            best = other
    for key, entry in graves:
        bury(space, prefix, key, entry, now)
    return best


cdef int bury(Space space, bytes prefix, bytes key, list entry, object now) except -1:
    """A worker went with the last attempt: the task is dead."""
    error = entry[ERROR] or "the worker of the last attempt went away, or its lease ran out"
    space.delete(key)
    return put(space, prefix + DEAD + key[PyBytes_GET_SIZE(key) - ID_SIZE:],
               [entry[CLAIMS], entry[RELEASED], entry[MAX_ATTEMPTS], now, error])


# ---- ending --------------------------------------------------------------------------------------------------------


cdef class Held:
    """A task that the caller holds: the queue's prefix, rank and id, and the open entry."""
    cdef bytes prefix, suffix
    cdef list entry


cdef Held held(Space space, task):
    """None: the caller does not hold it."""
    cdef bytes raw
    cdef Held found
    if type(task) is not Task or not task.claim or task.state is not CLAIMED_STATE:
        claimed_task(task)
    raw = raw_task_id(task)
    found = Held.__new__(Held)
    found.prefix = task_queue(task.queue)
    if type(task.priority) is not int or not PRIORITY_MIN <= task.priority <= PRIORITY_MAX:
        layout.task_rank(task.priority)
    found.suffix = PyBytes_FromStringAndSize(NULL, 2)
    put_big_endian(<uint8_t *>PyBytes_AS_STRING(found.suffix), <uint64_t>(32767 - <int>task.priority), 2)
    found.suffix += raw
    entry = space.get(found.prefix + OPEN + found.suffix)
    claim = space.get(found.prefix + CLAIM + found.suffix)
    if entry is None or entry[CLAIMS] != task.claim or claim != task.claim:
        return None
    found.entry = entry
    return found


def give_up(Space space not None, task):
    """Delete the claim of a task that the caller holds; the queue's prefix, rank and id, and the open entry.

    None: the caller does not hold it.
    """
    cdef Held found = held(space, task)
    if found is None:
        return None
    space.delete(found.prefix + CLAIM + found.suffix)
    return found.prefix, found.suffix, found.entry


def complete_task(Space space not None, task, result):
    """Make a task done that the caller holds; False: it does not hold it.

    Raises:
      ValueEncodingError: the result cannot be stored.
    """
    cdef Held found = held(space, task)
    cdef list entry
    if found is None:
        return False
    entry = found.entry
    entry = [entry[CLAIMS], entry[RELEASED], entry[MAX_ATTEMPTS], space.core.now() // 1000, result]
    try:
        # First, as it may be refused: a caller who catches that and commits still holds the task.
        put(space, found.prefix + DONE + found.suffix[2:], entry)
    except InvalidArgumentError:
        explain({"result": result}, space.codec)
        raise
    space.delete(found.prefix + CLAIM + found.suffix)
    space.delete(found.prefix + OPEN + found.suffix)
    return True


def extend_claim(Space space not None, task, double seconds):
    """Let the lease of a task that the caller holds end `seconds` from now; the Task, or None: it does not hold it."""
    cdef Held found = held(space, task)
    if found is None:
        return None
    set_claim(space, found.prefix + CLAIM + found.suffix, task.claim, seconds)
    # The entry too: every change of a task writes its place.
    put(space, found.prefix + OPEN + found.suffix, found.entry)
    record = [task.queue, task.priority, task.key, task.created_us, task.payload]
    until = space.core.now() // 1000 + int(seconds * 1e6)
    return open_task(found.suffix, record, CLAIMED_STATE, found.entry, task.claim, 0, until)
