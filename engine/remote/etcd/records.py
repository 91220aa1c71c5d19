"""What is stored in etcd for a database: the keys, and the bytes behind them.

Below the prefix, for each namespace with the base B (what its stored keys begin with):

    h B                     the head: the newest version, and what every commit must know
    r KEY                   the newest record of a stored key: a value, a tombstone, or an expired value's remains
    l B VERSION             the log: what the commits up to this version did, one entry for each batch of commits
    x B EXPIRES_AT KEY      an index of keys that expire
    b B SESSION KEY         an index of keys that are bound to a session

and for all of them:

    f                       the number of this format
    s SESSION               this session is alive; the key hangs on its lease
    m                       whose turn it is to compact the history

1. Every change of a namespace is one etcd transaction that compares the head's `mod_revision` and writes the head. So
   the changes of a namespace have one order, and each is made on the state that it was judged by.
2. The state at version V is what etcd held at any revision at which the head said V.
3. A key's tombstone stays until no snapshot that may still commit is older than it. The deletion of a range removes its
   keys from etcd; the log has what they leave behind (`Commit.ghosts`).
4. While a record with an expiry time E is a value, the index has an entry for it, and `Head.next_due` is not 0 and at
   most E.
5. What is read from etcd may be damaged or of another version: every decoder here checks it.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, Final, NamedTuple

import msgpack

from ...model.errors import CorruptionError

__all__ = ["FORMAT", "Change", "Commit", "Ghost", "Head", "Keys", "Kind", "LogEntry", "Record", "after"]

FORMAT: Final = 1
VERSION_JUMP: Final = 1 << 32  # after commits were lost, as the local engine does

_RECORD = struct.Struct(">BQqqQ")
_U64 = struct.Struct(">Q")
_KINDS: Final = ("put", "delete", "expire")


class Kind(IntEnum):
    """What a record is."""

    VALUE = 1
    TOMBSTONE = 2
    EXPIRED = 3


class Ghost(NamedTuple):
    """What validation asks of a record: `Newest` of the conflict model."""

    version: int  # of the value that is there; 0: the newest record is a delete
    written: int  # of the commit that wrote the newest record
    expires_at: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """The newest record of a key.

    Attributes:
      version: of the commit that wrote it; EXPIRED: of the one that wrote the value.
      timestamp, expires_at, session: as in `Row`.
      removed_at: EXPIRED: the version of the removal.
    """

    kind: Kind
    version: int
    timestamp: int
    expires_at: int = 0
    session: int = 0
    value: bytes = b""
    removed_at: int = 0

    @property
    def ghost(self) -> Ghost:
        """What validation asks of it."""
        if self.kind is Kind.TOMBSTONE:
            return Ghost(0, self.version)
        return Ghost(self.version, self.version, self.expires_at)

    def is_live(self, now: int) -> bool:
        """Whether there is a value at a time."""
        return self.kind is Kind.VALUE and not 0 < self.expires_at <= now

    def encode(self) -> bytes:
        """As stored."""
        last = self.removed_at if self.kind is Kind.EXPIRED else self.session
        return _RECORD.pack(self.kind, self.version, self.timestamp, self.expires_at, last) + self.value

    @classmethod
    def decode(cls, data: bytes) -> Record:
        """Read one."""
        if len(data) < _RECORD.size or data[0] not in (1, 2, 3):
            raise _damaged("a record")
        kind, version, timestamp, expires_at, last = _RECORD.unpack_from(data)
        if expires_at < 0 or (kind != Kind.VALUE and len(data) > _RECORD.size):
            raise _damaged("a record")
        expired = kind == Kind.EXPIRED
        return cls(
            Kind(kind),
            version,
            timestamp,
            expires_at,
            0 if expired else last,
            data[_RECORD.size :],
            last if expired else 0,
        )


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a namespace.

    Attributes:
      version: the newest.
      clock: by which the commit before judged expiry; never goes back.
      floor: snapshots older than this version may no longer be read, nor commit.
      mark, mark_time: a later floor: `mark` was the newest version at `mark_time`.
      range_deleted: the last version that deleted a range; 0: none.
      next_due: no record that is a value expires earlier; 0: none expires.
      incarnation: how often acknowledged commits were lost, from 1.
      cluster: the id of the etcd cluster that this was written in.
      bound: the sessions to which keys may be bound, ascending.
    """

    version: int = 0
    clock: int = 0
    floor: int = 0
    mark: int = 0
    mark_time: int = 0
    range_deleted: int = 0
    next_due: int = 0
    incarnation: int = 1
    cluster: int = 0
    bound: tuple[int, ...] = ()

    def due(self, now: int) -> bool:
        """Whether some value may have expired at a time."""
        return 0 < self.next_due <= now

    def advanced(self, version: int, now: int, age: int) -> Head:
        """The head after a commit at `version`, judged at `now`, with the floor raised where it may be.

        The mark was the newest version when the mark was made. Once that is `age` ago, every older version has been
        replaced for longer than that.
        """
        head = replace(self, version=version, clock=now)
        if now - self.mark_time >= age:
            return replace(head, floor=self.mark, mark=version, mark_time=now)
        return head

    def encode(self) -> bytes:
        """As stored."""
        return bytes(
            msgpack.packb(
                [
                    FORMAT,
                    self.version,
                    self.clock,
                    self.floor,
                    self.mark,
                    self.mark_time,
                    self.range_deleted,
                    self.next_due,
                    self.incarnation,
                    self.cluster,
                    list(self.bound),
                ]
            )
        )

    @classmethod
    def decode(cls, data: bytes) -> Head:
        """Read one."""
        fields = _unpack(data, "a head")
        if len(fields) != 11 or fields[0] != FORMAT or not isinstance(fields[10], list):
            raise _damaged("a head")
        if not all(type(number) is int and number >= 0 for number in [*fields[1:10], *fields[10]]):
            raise _damaged("a head")
        numbers: Any = fields[1:10]
        head = cls(*numbers)
        head = replace(head, bound=tuple(fields[10]))
        if not head.floor <= head.mark <= head.version or head.range_deleted > head.version:
            raise _damaged("a head")
        return head


class Change(NamedTuple):
    """A change of a key. `value` is kept only where the record at the entry's revision has it no longer."""

    kind: int  # an index of ("put", "delete", "expire")
    key: bytes
    value: bytes | None = None

    @property
    def name(self) -> Any:
        """As `ChangedKey` names it."""
        return _KINDS[self.kind]


PUT, DELETE, EXPIRE = range(3)


@dataclass(slots=True)
class Commit:
    """What one commit did.

    Attributes:
      session, sequence: its name; 0: the backend's own.
      changes: in key order.
      ranges: [start, end) that it deleted.
      ghosts: what validation must still know of keys in these ranges that had no value. Those that had one are among
        the changes.
    """

    version: int
    timestamp: int
    session: int = 0
    sequence: int = 0
    changes: Sequence[Change] = ()
    ranges: Sequence[tuple[bytes, bytes]] = ()
    ghosts: Sequence[tuple[bytes, Ghost]] = ()


@dataclass(slots=True)
class LogEntry:
    """The commits of one etcd transaction, oldest first, with dense versions; `revision` is that of the transaction."""

    commits: list[Commit] = field(default_factory=list)
    revision: int = 0

    def encode(self) -> bytes:
        """As stored."""
        return bytes(
            msgpack.packb(
                [
                    FORMAT,
                    [
                        [
                            commit.version,
                            commit.timestamp,
                            commit.session,
                            commit.sequence,
                            [list(change) for change in commit.changes],
                            [list(bounds) for bounds in commit.ranges],
                            [[key, *ghost] for key, ghost in commit.ghosts],
                        ]
                        for commit in self.commits
                    ],
                ]
            )
        )

    @classmethod
    def decode(cls, data: bytes, revision: int) -> LogEntry:
        """Read one."""
        try:
            number, packed = _unpack(data, "a log entry")
            commits = [_commit(*fields) for fields in packed]
        except (TypeError, ValueError):
            raise _damaged("a log entry") from None
        dense = all(late.version == early.version + 1 for early, late in itertools.pairwise(commits))
        if number != FORMAT or not commits or not dense:
            raise _damaged("a log entry")
        return cls(commits, revision)


def _commit(
    version: Any, timestamp: Any, session: Any, sequence: Any, changes: Any, ranges: Any, ghosts: Any
) -> Commit:
    numbers = [version, timestamp, session, sequence]
    made = [Change(kind, key, value) for kind, key, value in changes]
    bounds = [(start, end) for start, end in ranges]
    left = [(key, Ghost(*ghost)) for key, *ghost in ghosts]
    good = (
        all(type(number) is int for number in numbers)
        and all(c.kind in (0, 1, 2) and isinstance(c.key, bytes) for c in made)
        and all(c.value is None or isinstance(c.value, bytes) for c in made)
        and all(isinstance(start, bytes) and isinstance(end, bytes) for start, end in bounds)
        and all(isinstance(key, bytes) and all(type(n) is int for n in ghost) for key, ghost in left)
    )
    if not good:
        raise ValueError
    return Commit(version, timestamp, session, sequence, made, bounds, left)


def _unpack(data: bytes, what: str) -> list[Any]:
    try:
        found = msgpack.unpackb(data)
    except (ValueError, msgpack.exceptions.UnpackException):
        raise _damaged(what) from None
    if not isinstance(found, list):
        raise _damaged(what)
    return found


def _damaged(what: str) -> CorruptionError:
    return CorruptionError(
        f"{what} in etcd is damaged, or was written by another version of occamdb",
        hint="use the version that wrote it, or restore etcd from a snapshot (`etcdctl snapshot restore`)",
    )


def after(key: bytes) -> bytes:
    """The smallest key behind this one."""
    return key + b"\x00"


class Keys:
    """The keys of one namespace in etcd."""

    def __init__(self, prefix: bytes, base: bytes) -> None:
        self.base = base
        self.head = prefix + b"h" + base
        self._record = prefix + b"r"
        self._log = prefix + b"l" + base
        self._expiry = prefix + b"x" + base
        self._bound = prefix + b"b" + base

    def record(self, key: bytes) -> bytes:
        """Of a stored key; also the bound of a range of them."""
        return self._record + key

    def stored(self, key: bytes) -> bytes:
        """The stored key of a record."""
        if not key.startswith(self._record):
            raise _damaged("a key")
        return key[len(self._record) :]

    def log(self, version: int) -> bytes:
        """Of the entry whose last version this is."""
        return self._log + _U64.pack(version)

    @property
    def log_end(self) -> bytes:
        """Behind every entry of the log."""
        return self._log + b"\xff" * 9

    def expiry(self, expires_at: int, key: bytes = b"") -> bytes:
        """Of an index entry; without a key the first possible one at that time."""
        return self._expiry + _U64.pack(expires_at) + key

    @property
    def expiry_end(self) -> bytes:
        """Behind every entry of the index."""
        return self._expiry + b"\xff" * 9

    def expiring(self, key: bytes) -> tuple[int, bytes]:
        """The time and the stored key of an index entry."""
        rest = key[len(self._expiry) :]
        if not key.startswith(self._expiry) or len(rest) <= 8:
            raise _damaged("a key")
        return _U64.unpack_from(rest)[0], rest[8:]

    def bound(self, session: int, key: bytes = b"") -> bytes:
        """Of an index entry; without a key what all of the session begin with."""
        return self._bound + _U64.pack(session) + key

    def bound_key(self, key: bytes) -> bytes:
        """The stored key of an index entry."""
        rest = key[len(self._bound) :]
        if not key.startswith(self._bound) or len(rest) <= 8:
            raise _damaged("a key")
        return rest[8:]


def session_key(prefix: bytes, session: int) -> bytes:
    """The key that lives as long as a session."""
    return prefix + b"s" + _U64.pack(session)


def session_of(key: bytes) -> int:
    """The session of such a key."""
    return int(_U64.unpack(key[-8:])[0])
