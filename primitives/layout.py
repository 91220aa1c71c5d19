"""Every key the primitives write, in one place.

A primitive's keys live under its type tag in a run; what is built here is the part after the tag. Only this
module knows the byte layout, so that indices, point reads and scans cannot disagree.

1. Integers are big-endian and of fixed width: byte order is numeric order, and so is scan order.
2. A part of variable length is the last one or has its length in front. So the keys of one group never begin
   with the prefix of another, and a scan of one group meets no other.
3. Times are microseconds since 1970 (UTC), shifted by 2**63 so that earlier ones sort first, negative ones too.

Sizes below are in bytes, after the tag; the engine adds namespace (3 for the default one), run (16) and tag (1).
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from struct import Struct
from struct import error as StructError

from ..engine.model.errors import InvalidArgumentError

ID_SIZE = 16
ZERO_ID = bytes(ID_SIZE)
NAME_SIZE_MAX = 1024

_U64 = Struct(">Q")
_NAME = Struct(">H")
_TIME_BIAS = 1 << 63


def u64(number: int) -> bytes:
    """Eight bytes whose order is numeric order."""
    return _U64.pack(number)


def time_key(time_us: int) -> bytes:
    """Eight bytes whose order is the order of times."""
    return _U64.pack(time_us + _TIME_BIAS)


def sized_name(name: str, what: str) -> bytes:
    """A text with its length in front; the length is limited so that index keys stay small."""
    if not isinstance(name, str):
        raise InvalidArgumentError(f"{what} is str, got {type(name).__name__}", hint=f"str({name!r})")
    try:
        raw = name.encode()
    except UnicodeEncodeError as error:
        hint = "use text without lone surrogates"
        raise InvalidArgumentError(
            f"{what} {name!a} is not valid Unicode: {error.reason}", hint=hint
        ) from None
    if not 0 < len(raw) <= NAME_SIZE_MAX:
        raise InvalidArgumentError(
            f"{what} has {len(raw)} bytes, it must have 1 to {NAME_SIZE_MAX}",
            hint="index keys hold it whole: use a short name and keep long text in the payload or metadata",
        )
    return _NAME.pack(len(raw)) + raw


# --- EventLog ------------------------------------------------------------------------------------
#   00                          head: [length, hash of the last event]
#   01 sequence:8               event: hash:32 + canonical encoding
#   02 size:2 type sequence:8   by type, no value

EVENT_HEAD = b"\x00"
EVENT = b"\x01"
EVENT_BY_TYPE = b"\x02"


def event(sequence: int) -> bytes:
    """Where one event is."""
    return EVENT + _U64.pack(sequence)


def event_sequence(key: bytes) -> int:
    """The sequence in the key of an event, or of an entry of the type index."""
    number: int = _U64.unpack_from(key, len(key) - 8)[0]
    return number


def events_of_type(event_type: str) -> bytes:
    """The prefix of the type index; a sequence completes the key."""
    return EVENT_BY_TYPE + sized_name(event_type, "an event type")


# --- TraceStore ----------------------------------------------------------------------------------
#   01 id:16                              the trace
#   02 kind:1 suffix:24                   by type
#   03 size:2 name suffix:24              by the name of a Custom trace
#   04 size:2 tag suffix:24               by tag
#   05 root:16 parent:16 suffix:24        by family: all of a tree, or the children of one trace, in one range
#   06 suffix:24                          by time
#   07 root:16 id:16                      the end of a span; a span without it is open
# suffix = time:8 id:16, so every index is in time order and can be cut to a time range without reading traces.

TRACE = b"\x01"
TRACE_BY_KIND = b"\x02"
TRACE_BY_NAME = b"\x03"
TRACE_BY_TAG = b"\x04"
TRACE_BY_FAMILY = b"\x05"
TRACE_BY_TIME = b"\x06"
SPAN_END = b"\x07"
SUFFIX_SIZE = 8 + ID_SIZE


def trace(trace_id: bytes) -> bytes:
    """Where one trace is."""
    return TRACE + trace_id


def traces_of_kind(kind: int) -> bytes:
    """The prefix of the type index for one of the built-in types."""
    return TRACE_BY_KIND + bytes((kind,))


def traces_named(name: str) -> bytes:
    """The prefix of the index of Custom traces of one name."""
    return TRACE_BY_NAME + sized_name(name, "the name of a Custom trace")


def traces_tagged(tag: str) -> bytes:
    """The prefix of the tag index."""
    return TRACE_BY_TAG + sized_name(tag, "a tag")


def traces_of_family(root: bytes, parent: bytes = b"") -> bytes:
    """The prefix of all descendants of `root`, or of the children of one `parent` among them."""
    return TRACE_BY_FAMILY + root + parent


def span_end(root: bytes, trace_id: bytes = b"") -> bytes:
    """Where the end of a span is, or the prefix of all ends in the tree of `root`."""
    return SPAN_END + root + trace_id


def trace_suffix(time_us: int, trace_id: bytes) -> bytes:
    """What completes every index key of a trace."""
    return _U64.pack(time_us + _TIME_BIAS) + trace_id


# --- Leases --------------------------------------------------------------------------------------
#   01 size:2 name slot:2            a holder: [slots, nonce, pid, token or 0]; ephemeral
#   02 size:2 name ticket:8          a waiter: its nonce; ephemeral

LEASE_CLAIM = b"\x01"
LEASE_TICKET = b"\x02"


def lease_text(name: str) -> str:
    """The name of a lease as plain text, of a member of a StrEnum too."""
    if type(name) is str:
        return name
    # What is not hashable must not reach the cache.
    if not isinstance(name, str):
        sized_name(name, "the name of a lease")
    return str.__str__(name)


@lru_cache(maxsize=256)
def _lease_prefix(group: bytes, name: str) -> bytes:
    # Cached: a lease is acquired and released many times under one name.
    return group + sized_name(name, "the name of a lease")


def lease_claims(name: str) -> bytes:
    """The prefix of the holders of a lease."""
    return _lease_prefix(LEASE_CLAIM, lease_text(name))


def lease_claim(name: str, slot: int) -> bytes:
    """Where the holder of one slot is."""
    return lease_claims(name) + _NAME.pack(slot)


def lease_slot(key: bytes) -> int:
    """The slot in the key of a holder."""
    slot: int = _NAME.unpack_from(key, len(key) - 2)[0]
    return slot


def lease_tickets(name: str) -> bytes:
    """The prefix of the waiters for a lease."""
    return _lease_prefix(LEASE_TICKET, lease_text(name))


def lease_ticket(name: str, number: int) -> bytes:
    """Where one waiter is."""
    return lease_tickets(name) + _U64.pack(number)


def lease_ticket_number(key: bytes) -> int:
    """The number in the key of a waiter."""
    number: int = _U64.unpack_from(key, len(key) - 8)[0]
    return number


def lease_name(key: bytes) -> str:
    """The name in the key of a holder or a waiter."""
    return key[3 : 3 + _NAME.unpack_from(key, 1)[0]].decode()


# --- Steps ---------------------------------------------------------------------------------------
#   01 name                          the record: [state, function, attempts, outcome, began, ended]
#   02 name                          who runs it now: a nonce; ephemeral

STEP = b"\x01"
STEP_CLAIM = b"\x02"


def step(name: str) -> bytes:
    """Where the record of a step is."""
    return STEP + sized_name(name, "the name of a step")[2:]


def step_claim(name: str) -> bytes:
    """Where the one that runs a step is."""
    return STEP_CLAIM + sized_name(name, "the name of a step")[2:]


# --- RunIndex (under the reserved run of the namespace) ------------------------------------------
#   01 run:16                        the metadata
#   02 status:1 created:8 run:16     by status
#   03 size:2 tag created:8 run:16   by tag
#   04 parent:16 created:8 run:16    by parent (zeros: no parent)
#   05 created:8 run:16              by creation
#   06 digest:16 created:8 run:16    by name, which may have any length: a digest of it
#   00                               every run has its entry by name; earlier versions made none

RUN_NAMES_WHOLE = b"\x00"
RUN = b"\x01"
RUN_BY_STATUS = b"\x02"
RUN_BY_TAG = b"\x03"
RUN_BY_PARENT = b"\x04"
RUN_BY_CREATION = b"\x05"
RUN_BY_NAME = b"\x06"


def run(run_id: bytes) -> bytes:
    """Where the metadata of one run is."""
    return RUN + run_id


def runs_with_status(status: int) -> bytes:
    """The prefix of the status index."""
    return RUN_BY_STATUS + bytes((status,))


def runs_tagged(tag: str) -> bytes:
    """The prefix of the tag index."""
    return RUN_BY_TAG + sized_name(tag, "a tag")


def runs_under(parent: bytes) -> bytes:
    """The prefix of the parent index; `ZERO_ID` for the runs without a parent."""
    return RUN_BY_PARENT + parent


def runs_named(name: str) -> bytes:
    """The prefix of a name in the name index. It is a digest, so a reader compares names as well."""
    return RUN_BY_NAME + blake2b(name.encode(errors="surrogatepass"), digest_size=16).digest()


def run_suffix(created_us: int, run_id: bytes) -> bytes:
    """What completes every index key of a run."""
    return _U64.pack(created_us + _TIME_BIAS) + run_id


# --- Tasks ---------------------------------------------------------------------------------------
#   01 id:16                                    the record: what was put, which never changes
#   02 size:2 queue 01 rank:2 id:16             open: ready, or claimed while the claim below is there
#   02 size:2 queue 02 rank:2 id:16             a claim: bound to the claimer's session, and gone when its lease ends
#   02 size:2 queue 03 due:8 rank:2 id:16       delayed until then
#   02 size:2 queue 04 id:16                    done, with the result
#   02 size:2 queue 05 id:16                    dead, with the error
#   03 size:2 queue digest:16                   the id of the task that was put with a key
#   04 id:16                                    when a delayed task is due
# rank = 32767 - priority. id = start version of the putting transaction:8 random:5 count:3, so that ids sort by the
# order of commit where transactions do not overlap.

TASK = b"\x01"
TASK_PLACE = b"\x02"
TASK_BY_KEY = b"\x03"
TASK_DUE = b"\x04"

# Encoding a name costs as much as reading a key, so the prefixes of recent queues are kept.
_queues: dict[str, bytes] = {}
_QUEUES_MAX = 4096

TASK_OPEN = b"\x01"
TASK_CLAIM = b"\x02"
TASK_DELAYED = b"\x03"
TASK_DONE = b"\x04"
TASK_DEAD = b"\x05"


def task(task_id: bytes) -> bytes:
    """Where the record of one task is."""
    return TASK + task_id


def task_queue(queue: str) -> bytes:
    """The prefix of all places of a queue; a kind of place follows."""
    if type(queue) is str:
        known = _queues.get(queue)
        if known is not None:
            return known
    prefix = TASK_PLACE + sized_name(queue, "a queue")
    if len(_queues) >= _QUEUES_MAX:
        _queues.clear()
    _queues[queue] = prefix
    return prefix


def task_place(key: bytes) -> tuple[str, bytes, bytes]:
    """The queue of a place, its kind, and what follows it.

    Raises:
      ValueError: it is not the key of a place.
    """
    try:
        at = 3 + _NAME.unpack_from(key, 1)[0]
        return key[3:at].decode(), key[at : at + 1], key[at + 1 :]
    except StructError as error:
        raise ValueError(str(error)) from None


def task_rank(priority: int) -> bytes:
    """Two bytes that sort the higher priority first."""
    try:
        return _NAME.pack(32767 - priority)
    except (TypeError, StructError):
        raise InvalidArgumentError(
            f"{priority!r:.80} is not the priority of a task",
            hint="pass the Task as claim or list returned it",
        ) from None


def task_due(task_id: bytes) -> bytes:
    """Where it is noted when a delayed task is due."""
    return TASK_DUE + task_id


def task_key(queue: str, key: str) -> bytes:
    """Where the id of the task with a key is. The key may have any length: a digest of it is used."""
    digest = blake2b(key.encode(errors="surrogatepass"), digest_size=16).digest()
    return TASK_BY_KEY + sized_name(queue, "a queue") + digest


def suffix(key: bytes) -> bytes:
    """The time and the id at the end of an index key."""
    return key[-SUFFIX_SIZE:]


def suffix_id(key: bytes) -> bytes:
    """The id at the end of an index key."""
    return key[-ID_SIZE:]
