"""EventLog: an append-only, hash-chained list of events for each run.

1. Sequences are 0, 1, 2, ... without gaps, also after aborts and crashes: the next one comes from the head record,
   which every append reads and writes in the same transaction as its events. Of two at once the second conflicts.
2. Each event holds the hash of the one before it; the head holds the hash of the last. A changed, missing, added or
   reordered event, and a cut-off tail, therefore show in `verify_chain`.
3. An event is stored as its SHA-256 and then the very bytes that were hashed (the canonical encoding, see
   `README.md`): verifying hashes what is stored and never depends on encoding it again.
4. There is no update and no delete but deletion of the whole run.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, overload

from ..engine.model.errors import (
    CorruptionError,
    InvalidArgumentError,
    OccamError,
    ValueEncodingError,
)
from ..engine.model.public_types import TypeTag
from ..engine.model.values import Codec, encode_value
from . import layout
from .extension import (
    DatabaseBase,
    H_co,
    Primitive,
    RunLike,
    TransactionBase,
    contended,
    from_microseconds,
    pairs,
    reader,
    stream,
    to_microseconds,
)
from .following import Follower
from .read_ahead import read_ahead

if TYPE_CHECKING:
    from ..engine.transaction.async_database import AsyncDatabase

__all__ = ["ChainVerification", "Event", "EventLog"]

HASH_SIZE = 32
FIRST_PREV_HASH = bytes(HASH_SIZE)
_PLAIN = Codec()
_EMPTY: Mapping[str, Any] = MappingProxyType({})
# Microseconds before and behind every timestamp.
_ALWAYS = (-(1 << 63), 1 << 63)


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a log.

    Attributes:
      sequence: its position, from 0.
      event_type: what kind it is, for `read_by_type`.
      payload: a fresh dict.
      timestamp: the clock of the transaction that appended it.
      prev_hash: the hash of the event before; 32 zero bytes for the first.
      hash: SHA-256 of the canonical encoding of all the above.
    """

    sequence: int
    event_type: str
    payload: dict[str, Any]
    timestamp: datetime
    prev_hash: bytes
    hash: bytes

    def __repr__(self) -> str:
        return (
            f"Event({self.sequence}, {self.event_type!r}, {self.payload!r}, "
            f"timestamp={self.timestamp.isoformat()}, hash={self.hash[:4].hex()}...)"
        )


@dataclass(frozen=True, slots=True)
class ChainVerification:
    """What `verify_chain` found.

    Attributes:
      is_valid: every event is there, in place, unchanged and chained.
      length: how many events were checked and found good, from the first one on.
      first_invalid: the sequence of the first event that is not; None when all are.
      error: what is wrong with it.
    """

    is_valid: bool
    length: int
    first_invalid: int | None = None
    error: str | None = None


class EventLog(Primitive[H_co]):
    """The events of a run: `db.events.append(run_id, "started", {...})`, or `txn.events.append("started", {...})`."""

    __slots__ = ()
    name = "events"
    tag = TypeTag.EVENT

    @contended
    def append(self, event_type: str, payload: Mapping[str, Any] = _EMPTY) -> Event:
        """Append one event and return it.

        Outside a transaction it is retried until it has its place, so any number of processes may append to one log.

        Example:
          event = db.events.append(run_id, "started", {"model": "m1"})

        Args:
          event_type: text of 1 to 1024 bytes in UTF-8.
          payload: a dict of storable values; NaN and infinities are refused. Empty when left out.

        Raises:
          ValueEncodingError: the payload holds something that cannot be stored or hashed.
        """
        return self._append([(event_type, payload)])[0]

    @contended
    def append_many(self, events: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Event]:
        """Append several (event type, payload) with consecutive sequences: all of them or none.

        Example:
          db.events.append_many(run_id, [("asked", {"q": 1}), ("answered", {"a": 2})])
        """
        return self._append(pairs(events, "append_many"))

    def _append(self, events: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Event]:
        space, time_us = self.space, self.now_us
        sequence, prev_hash = space.get(layout.EVENT_HEAD) or (0, FIRST_PREV_HASH)
        timestamp = from_microseconds(time_us)
        appended: list[Event] = []
        writes: list[tuple[bytes, bytes | None]] = []
        for event_type, payload in events:
            type_prefix = layout.events_of_type(_checked_type(event_type))
            ordered = canonical_payload(payload, space.codec)
            body = canonical_encoding(sequence, event_type, ordered, time_us, prev_hash, space.codec)
            digest = sha256(body).digest()
            writes += ((layout.event(sequence), digest + body), (type_prefix + layout.u64(sequence), None))
            appended.append(Event(sequence, event_type, ordered, timestamp, prev_hash, digest))
            sequence, prev_hash = sequence + 1, digest
        # Written only when all are good: a caller who catches the error and commits has then written none of
        # them.
        for key, value in writes:
            space.put(key, value)
        if appended:
            space.put(layout.EVENT_HEAD, [sequence, prev_hash])
        return appended

    @reader
    def read(self, sequence: int) -> Event | None:
        """The event at a sequence; None when the log is not that long.

        Example:
          event = db.events.read(run_id, 0)
        """
        stored = self.space.get(layout.event(_checked_sequence(sequence, "sequence")))
        return None if stored is None else self._event(sequence, stored)

    @reader
    def read_range(
        self, start: int = 0, end: int | None = None, *, limit: int | None = None, reverse: bool = False
    ) -> list[Event]:
        """The events from `start` up to but not including `end` (None: to the last one).

        Example:
          newest = db.events.read_range(run_id, limit=20, reverse=True)

        Args:
          start: the first sequence that may come.
          end: the first sequence that may not.
          limit: at most so many.
          reverse: the newest first; with `limit` the newest ones.
        """
        return list(self._rows(start, end, limit, reverse))

    @reader
    def last(self, n: int = 1) -> list[Event]:
        """The newest `n` events, in order: O(n).

        Example:
          newest = db.events.last(run_id, 20)
        """
        return list(self._rows(0, None, n, True))[::-1]

    @reader
    def read_between(
        self, start: datetime | None = None, end: datetime | None = None, *, limit: int | None = None
    ) -> list[Event]:
        """The events whose timestamps are from `start` up to but not including `end`, in order of sequence.

        It reads every event, in constant memory. Timestamps come from the machine's clock, which may be set
        back, so they are not always in the order of the log.

        Example:
          db.events.read_between(run_id, now - timedelta(hours=1), now)

        Args:
          start: an aware datetime; None: from the first event on.
          end: an aware datetime; None: up to the last event.
          limit: at most so many.
        """
        first = _ALWAYS[0] if start is None else to_microseconds(start, "start")
        past = _ALWAYS[1] if end is None else to_microseconds(end, "end")
        if limit is not None and (type(limit) is not int or limit < 0):
            raise InvalidArgumentError(f"limit must be an int from 0, got {limit!r}", hint="None for all")
        found = (
            event
            for event in self._rows(0, None)
            if first <= to_microseconds(event.timestamp, "timestamp") < past
        )
        return list(islice(found, limit))

    @stream
    def iterate(self, start: int = 0, end: int | None = None) -> Iterator[Event]:
        """Like `read_range`, but decoding events as they are asked for, in constant memory.

        Example:
          for event in db.events.iterate(run_id): print(event.event_type)
        """
        return self._rows(start, end)

    @overload
    def follow(
        self: EventLog[AsyncDatabase[Any]],
        run_id: RunLike,
        /,
        after: int = -1,
        event_type: str | None = None,
        *,
        timeout: float | None = None,
    ) -> AsyncIterator[Event]: ...
    @overload
    def follow(
        self: EventLog[DatabaseBase],
        run_id: RunLike,
        /,
        after: int = -1,
        event_type: str | None = None,
        *,
        timeout: float | None = None,
    ) -> Iterator[Event]: ...
    def follow(
        self: EventLog[Any],
        run_id: RunLike,
        /,
        after: int = -1,
        event_type: str | None = None,
        *,
        timeout: float | None = None,
    ) -> Any:
        """The events after a sequence, first those that are there, then each new one as it is committed.

        Every event comes once, in order. If the run is deleted and begins another log, that one is followed from its
        first event.

        Example:
          for event in db.events.follow(run_id):
              if event.event_type == "finished": break

        Args:
          run_id: the run.
          after: the sequence of the last event that was seen; -1: none.
          event_type: only events of this type; None: all.
          timeout: seconds to wait for the next event, after which the iteration ends; None: for ever.
        """
        if self.inside:
            raise InvalidArgumentError(
                "a log is not followed inside a transaction, which sees one snapshot",
                hint="db.events.follow(run_id), or txn.events.iterate()",
            )
        if event_type is not None:
            _checked_type(event_type)
        if isinstance(after, bool) or not isinstance(after, int) or after < -1:
            raise InvalidArgumentError(
                f"after must be a sequence from -1, got {after!r}", hint="-1: all events"
            )
        database: Any = self._handle
        follower = Follower(type(self), after, event_type)
        if isinstance(database, DatabaseBase):
            return follower.events(database, run_id, timeout)
        return follower.awaited_events(database, run_id, timeout)

    @reader
    def read_by_type(
        self,
        event_type: str,
        *,
        start: int = 0,
        end: int | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> list[Event]:
        """The events of one type in order, by index: O(result).

        Example:
          errors = db.events.read_by_type(run_id, "error", limit=10, reverse=True)

        Args:
          event_type: the type.
          start: the first sequence that may come.
          end: the first sequence that may not.
          limit: at most so many.
          reverse: the newest first; with `limit` the newest ones.
        """
        prefix = layout.events_of_type(_checked_type(event_type))
        first = prefix + layout.u64(_checked_sequence(start, "start"))
        last = None if end is None else prefix + layout.u64(_checked_sequence(end, "end"))
        found = []
        entries = self.space.keys(prefix, start=first, end=last, limit=limit, reverse=reverse)
        for key in read_ahead(self.space, entries, lambda key: layout.event(layout.event_sequence(key))):
            sequence = layout.event_sequence(key)
            # Events never change: the index entry in the read set is enough.
            found.append(self._event(sequence, self.space.get(layout.event(sequence), track=False)))
        return found

    @reader
    def head(self) -> Event | None:
        """The last event; None when there is none.

        Example:
          newest = db.events.head(run_id)
        """
        length = self._length()
        return self._event(length - 1, self.space.get(layout.event(length - 1))) if length else None

    @reader
    def len(self) -> int:
        """How many events there are: O(1).

        Example:
          length = db.events.len(run_id)
        """
        return self._length()

    @reader
    def verify_chain(self) -> ChainVerification:
        """Check every event, the chain and the head against each other: O(length), in constant memory.

        Example:
          assert db.events.verify_chain(run_id).is_valid
        """
        length, last_hash = self.space.get(layout.EVENT_HEAD) or (0, FIRST_PREV_HASH)
        expected, prev_hash = 0, FIRST_PREV_HASH
        for key, found in self.space.scan(layout.EVENT):
            sequence = layout.event_sequence(key)
            error = event_fault(expected, sequence, prev_hash, found.value)
            if error is None and expected >= length:
                error = f"the head says the log has {length} events"
            if error is not None:
                return ChainVerification(False, expected, expected, error)
            expected, prev_hash = expected + 1, found.value[:HASH_SIZE]
        if expected != length:
            return ChainVerification(
                False, expected, expected, f"missing: the head says the log has {length} events"
            )
        if prev_hash != last_hash:
            error = f"the head holds hash {last_hash.hex()}, the last event {prev_hash.hex()}"
            return ChainVerification(False, max(expected - 1, 0), max(expected - 1, 0), error)
        return ChainVerification(True, length)

    def __len__(self: EventLog[TransactionBase]) -> int:
        return self._length()

    def __iter__(self: EventLog[TransactionBase]) -> Iterator[Event]:
        return self._rows(0, None)

    def __bool__(self) -> bool:
        return True  # a facade, not its contents

    def _length(self) -> int:
        length: int = (self.space.get(layout.EVENT_HEAD) or (0,))[0]
        return length

    def _rows(
        self, start: int, end: int | None, limit: int | None = None, reverse: bool = False
    ) -> Iterator[Event]:
        first = layout.event(_checked_sequence(start, "start"))
        last = None if end is None else layout.event(_checked_sequence(end, "end"))
        rows = self.space.scan(layout.EVENT, start=first, end=last, limit=limit, reverse=reverse)
        return (self._event(layout.event_sequence(key), found.value) for key, found in rows)

    def _event(self, sequence: int, stored: Any) -> Event:
        return decode_event(sequence, stored, self.space.codec)


# --- The canonical encoding ----------------------------------------------------------------------


def canonical_encoding(
    sequence: int,
    event_type: str,
    payload: dict[str, Any],
    time_us: int,
    prev_hash: bytes,
    codec: Codec = _PLAIN,
) -> bytes:
    """The bytes that are hashed and stored: one msgpack array of five, as `README.md` specifies.

    Args:
      payload: from `canonical_payload`.
      codec: of the database.

    Raises:
      ValueEncodingError: the payload holds something that cannot be stored.
    """
    return b"".join(
        (
            b"\x95",  # array of 5
            encode_value(sequence),
            encode_value(event_type),
            codec.encode(payload),
            encode_value(time_us),
            encode_value(prev_hash),
        )
    )


def canonical_payload(payload: Mapping[str, Any], codec: Codec = _PLAIN) -> dict[str, Any]:
    """A copy with every dict in key order: the encoder then has one way to write it.

    Raises:
      ValueEncodingError: it is not a dict, contains itself, or holds NaN or an infinity.
    """
    if not isinstance(payload, Mapping):
        raise ValueEncodingError(
            f"an event's payload is a dict, got {type(payload).__name__}", hint='wrap it: {"value": ...}'
        )
    copy = dict(payload)
    try:
        ordered: dict[str, Any] = _canonical(copy, "value")
    except RecursionError:
        codec.encode(copy)  # says where it contains itself, or nests too deep
        raise
    return ordered


def _canonical(value: Any, path: str) -> Any:
    """The same value with every dict in key order; the encoder then has one way to write it."""
    kind = type(value)
    if kind is dict:
        try:
            items = sorted(value.items(), key=_first)
        except TypeError:
            return value  # a key that is not text: the encoder names it
        return {
            key: item if type(item) in _SCALARS else _canonical(item, f'{path}["{key}"]')
            for key, item in items
        }
    if kind is list:
        return [
            item if type(item) in _SCALARS else _canonical(item, f"{path}[{at}]")
            for at, item in enumerate(value)
        ]
    if kind is float and not math.isfinite(value):
        raise ValueEncodingError(
            f"{path}: {value!r} cannot be in an event", path=path, hint="use None, or the text of the number"
        )
    return value


_SCALARS = frozenset((str, int, bool, type(None), bytes))


def _first(item: tuple[Any, Any]) -> Any:
    return item[0]


# --- Reading back --------------------------------------------------------------------------------


def decode_event(sequence: int, stored: Any, codec: Codec = _PLAIN) -> Event:
    try:
        number, event_type, payload, time_us, prev_hash = codec.decode(stored[HASH_SIZE:])
        return Event(number, event_type, payload, from_microseconds(time_us), prev_hash, stored[:HASH_SIZE])
    except ValueEncodingError:
        raise  # of a `restore` that does not know a class
    except (TypeError, ValueError, OverflowError, OccamError) as error:
        raise CorruptionError(
            f"event {sequence} is unreadable: {error}",
            hint="db.events.verify_chain(run_id) tells how far the log is good",
        ) from error


def event_fault(expected: int, sequence: int, prev_hash: bytes, stored: Any) -> str | None:
    """What is wrong with the stored event at `sequence`, where `expected` should be; None when nothing is."""
    if sequence != expected:
        return f"missing: the next event found is {sequence}"
    if type(stored) is not bytes or len(stored) <= HASH_SIZE:
        return "not an event"
    digest, body = stored[:HASH_SIZE], stored[HASH_SIZE:]
    computed = sha256(body).digest()
    if computed != digest:
        return f"its hash is {computed.hex()}, stored is {digest.hex()}"
    try:
        event = decode_event(sequence, stored)
    except CorruptionError as error:
        return error.message
    if event.sequence != sequence:
        return f"it says it is event {event.sequence}"
    if event.prev_hash != prev_hash:
        return f"it follows hash {event.prev_hash.hex()}, the event before has {prev_hash.hex()}"
    return None


def _checked_type(event_type: object) -> str:
    if type(event_type) is not str:
        raise InvalidArgumentError(
            f"an event type is str, got {type(event_type).__name__}",
            hint='append("type", {...}); append_many takes (type, payload) pairs',
        )
    return event_type


def _checked_sequence(sequence: object, what: str) -> int:
    if type(sequence) is not int or not 0 <= sequence < 1 << 64:
        raise InvalidArgumentError(
            f"{what} must be an int from 0, got {sequence!r}",
            hint="sequences start at 0; len() is the next one",
        )
    return sequence
