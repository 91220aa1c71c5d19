"""A backend on a dict: the contract of `engine/remote/backend.py` in plain Python, written from its rules.

It keeps every record of every key, judges by `conflict_model.py`, and never forgets anything. Tests run the whole
stack over it, and compare other backends with it.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from occamdb.engine.commit.messages import (
    CONFLICTS_LISTED_MAX,
    ConflictEntry,
    ConflictKind,
    Op,
    OpCode,
    OpFlags,
    Reply,
    Request,
    RequestFlags,
    ResultEntry,
    ResultKind,
    Status,
    decode_request,
)
from occamdb.engine.model.bounds import decode_bounds
from occamdb.engine.model.errors import DatabaseClosedError
from occamdb.engine.model.limits import Limits
from occamdb.engine.model.values import Codec
from occamdb.engine.remote.backend import Begun, ChangedKey, Changes, CommitOfChanges, Outcome, Row

from .conflict_model import Newest, RangeDelete, erased_since, validate_ranges, version_now

__all__ = ["DictBackend", "DictServer"]

_INTEGER_MIN, _INTEGER_MAX = -(2**63), 2**64 - 1
_codec = Codec()
_sessions = itertools.count(1)


@dataclass
class Record:
    """A record of a key. `value` None: a delete, which an expiry is too (`expired` is then the record it removed)."""

    version: int
    timestamp: int
    value: bytes | None
    expires_at: int = 0
    session: int = 0
    expired: Record | None = None


@dataclass
class Space:
    """One namespace."""

    version: int = 0
    expiry_time: int = 0
    records: dict[bytes, list[Record]] = field(default_factory=dict)
    keys: list[bytes] = field(default_factory=list)  # sorted
    range_deletes: list[RangeDelete] = field(default_factory=list)
    log: list[CommitOfChanges] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=lambda: threading.Condition(threading.RLock()))
    clock: Callable[[], int] = time.time_ns

    # ---- what conflict_model asks -------------------------------------------------------------------------

    def newest(self, key: bytes) -> Newest | None:
        records = self.records.get(key)
        return _newest(records[-1]) if records else None

    def newest_in_range(self, start: bytes, end: bytes) -> list[tuple[bytes, Newest]]:
        return [(key, _newest(self.records[key][-1])) for key in self.between(start, end)]

    # ---- records --------------------------------------------------------------------------------------------

    def between(self, start: bytes, end: bytes | None) -> list[bytes]:
        """The keys with records in [start, end)."""
        last = len(self.keys) if end is None else bisect_left(self.keys, end)
        return self.keys[bisect_left(self.keys, start) : last]

    def at(self, key: bytes, version: int) -> Row | None:
        """The row of a key at a version."""
        records = self.records.get(key, [])
        index = bisect_right(records, version, key=lambda record: record.version)
        if not index or records[index - 1].value is None:
            return None
        record = records[index - 1]
        assert record.value is not None
        return Row(key, record.value, record.version, record.timestamp, record.expires_at, record.session)

    def live(self, key: bytes, now: int) -> Record | None:
        """The newest record of a key if it has a value at `now`."""
        records = self.records.get(key)
        if not records or records[-1].value is None:
            return None
        record = records[-1]
        return None if record.expires_at and record.expires_at <= now else record

    def add(self, key: bytes, record: Record) -> None:
        if key not in self.records:
            insort(self.keys, key)
        self.records.setdefault(key, []).append(record)

    def publish(self, commit: CommitOfChanges) -> None:
        self.version = commit.version
        self.log.append(commit)
        self.changed.notify_all()

    def expire(self) -> None:
        """Remove what has expired, as a commit of its own, and raise the expiry time to that moment."""
        now = self.clock()
        due = [
            key
            for key, records in self.records.items()
            if records[-1].value is not None and 0 < records[-1].expires_at <= now
        ]
        if due:
            self.expiry_time = max(self.expiry_time, now)
            version = self.version + 1
            for key in sorted(due):
                self.add(key, Record(version, now, None, expired=self.records[key][-1]))
            self.publish(
                CommitOfChanges(version, now, [ChangedKey("expire", key, None) for key in sorted(due)])
            )


def _newest(record: Record) -> Newest:
    if record.expired is not None:
        return _newest(record.expired)
    return Newest(record.version if record.value is not None else 0, record.version, record.expires_at)


class DictServer:
    """What several backends of one process may share, as clients share a server."""

    def __init__(self) -> None:
        self.spaces: dict[bytes, Space] = {}
        self._ahead = 0

    def space(self, base: bytes) -> Space:
        return self.spaces.setdefault(base, Space(clock=self.clock))

    def clock(self) -> int:
        """What this server's clock shows, in ns since the epoch."""
        return time.time_ns() + self._ahead

    def step_clock(self, when: int) -> None:
        """Step it forward to `when`, unless it is there."""
        self._ahead += max(0, when - self.clock())


class DictBackend:
    """See backend.py for the methods."""

    engine = "dict"
    location = "dict://"
    durability = "none"
    incarnation = 1

    def __init__(
        self, server: DictServer, base: bytes, limits: Limits | None = None, shared: _Client | None = None
    ) -> None:
        self.server = server
        self.limits = limits or Limits()
        self._base = base
        self._client = shared or _Client()
        self._space = server.space(base)

    @property
    def session(self) -> int:
        self._client.after_fork()
        return self._client.session

    def of(self, base: bytes) -> DictBackend:
        return DictBackend(self.server, base, self.limits, self._client)

    def namespaces(self) -> Sequence[bytes]:
        return sorted(base for base, space in self.server.spaces.items() if space.version)

    def begin(self, keys: Sequence[bytes] = ()) -> Begun:
        self._client.require_open()
        space = self._space
        with space.changed:
            space.expire()
            rows = [space.at(key, space.version) for key in keys]
            return Begun(space.version, space.expiry_time, space.clock(), rows)

    def read(self, keys: Sequence[bytes], version: int) -> Sequence[Row | None]:
        self._client.require_open()
        with self._space.changed:
            return [self._space.at(key, version) for key in keys]

    def scan(
        self, start: bytes, end: bytes, version: int, limit: int, *, reverse: bool = False
    ) -> tuple[Sequence[Row], bool]:
        self._client.require_open()
        rows: list[Row] = []
        with self._space.changed:
            keys = self._space.between(start, end)
            for key in reversed(keys) if reverse else keys:
                row = self._space.at(key, version)
                if row is None:
                    continue
                if len(rows) == limit:
                    return rows, False
                rows.append(row)
        return rows, True

    def commit(self, request: bytes, deadline: float | None, *, durable: bool = False) -> Outcome:
        self._client.require_open()
        asked = decode_request(request)
        with self._space.changed:
            sequence = self._client.next_sequence()
            reply = _Judge(self._space, asked, sequence, self.session).reply()
            if reply.status is Status.COMMITTED:
                self._client.outcomes[sequence] = (reply.commit_version, reply.committed_at)
        return Outcome(self.session, sequence, reply, self.durability)

    async def commit_async(self, request: bytes, deadline: float | None, *, durable: bool = False) -> Outcome:
        return self.commit(request, deadline, durable=durable)

    async def begin_async(self) -> Begun:
        return self.begin()

    def outcome(self, session: int, sequence: int) -> tuple[int, int] | None:
        return self._client.outcomes.get(sequence) if session == self.session else None

    def newest(self) -> int:
        self._client.require_open()
        with self._space.changed:
            self._space.expire()
            return self._space.version

    def changes(self, start: bytes, end: bytes | None, since: int, limit: int, *, values: bool) -> Changes:
        self._client.require_open()
        commits: list[CommitOfChanges] = []
        found = 0
        with self._space.changed:
            for commit in self._space.log[bisect_right(self._space.log, since, key=lambda c: c.version) :]:
                changes = [
                    change if values else change._replace(value=None)
                    for change in commit.changes
                    if start <= change.key and (end is None or change.key < end)
                ]
                if changes:
                    commits.append(commit._replace(changes=changes))
                    found += len(changes)
                    if found >= limit:
                        return Changes(commits, commit.version)
            return Changes(commits, self._space.version)

    def wait(self, since: int, timeout: float) -> bool:
        space, deadline = self._space, time.monotonic() + timeout
        with space.changed:
            while True:
                self._client.require_open()
                space.expire()
                left = deadline - time.monotonic()
                if space.version > since or left <= 0:
                    return space.version > since
                space.changed.wait(min(left, 0.01))

    def keep_session(self) -> None:
        """Nothing: the client lives in this process."""

    def stats(self) -> dict[str, Any]:
        return {"commits": self._space.version}

    def close(self) -> None:
        if self._client.closed:
            return
        self._client.closed = True
        for space in list(self.server.spaces.values()):
            with space.changed:
                bound = [
                    key
                    for key, records in space.records.items()
                    if records[-1].value is not None and records[-1].session == self._client.session
                ]
                if bound:
                    version, now = space.version + 1, space.clock()
                    for key in sorted(bound):
                        space.add(key, Record(version, now, None))
                    space.publish(
                        CommitOfChanges(
                            version, now, [ChangedKey("delete", key, None) for key in sorted(bound)]
                        )
                    )


class _Client:
    """What the backends of one open database share."""

    def __init__(self) -> None:
        self.closed = False
        self.outcomes: dict[int, tuple[int, int]] = {}
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self.session = (os.getpid() << 32) + next(_sessions)
        self._sequences = itertools.count(1)

    def after_fork(self) -> None:
        if self._pid != os.getpid():
            self._begin()

    def next_sequence(self) -> int:
        self.after_fork()
        return next(self._sequences)

    def require_open(self) -> None:
        if self.closed:
            raise DatabaseClosedError()


class _Judge:
    """One request in its place in the order."""

    def __init__(self, space: Space, request: Request, sequence: int, session: int) -> None:
        self.space = space
        self.request = request
        self.sequence = sequence
        self.session = session
        space.expire()
        self.now = max(space.clock(), space.expiry_time, request.read_time)

    def reply(self) -> Reply:
        found = [entry for op in self.request.ops for entry in self.conflicts(op)]
        if found:
            listed = tuple(found[:CONFLICTS_LISTED_MAX])
            return Reply(Status.CONFLICT, self.sequence, conflicts=listed, conflicts_found=len(found))
        if self.request.flags & RequestFlags.JUDGE_ONLY:
            return Reply(Status.COMMITTED, self.sequence)
        return self.apply()

    def conflicts(self, op: Op) -> Iterator[ConflictEntry]:
        """What conflicts with one op, as `conflict_model.py` says."""
        space, start = self.space, self.request.start_version
        blind = bool(self.request.flags & RequestFlags.BLIND)
        if op.code in (OpCode.READ, OpCode.CAS):
            kind = ConflictKind.READ if op.code is OpCode.READ else ConflictKind.CAS
            found = version_now(space, op.key, self.now)
            if found != op.argument:
                yield ConflictEntry(kind, op.key, op.argument, found)
            elif op.code is OpCode.CAS and op.argument == 0 and not blind:
                yield from self.erased(op)
        elif op.code is OpCode.RANGE:
            ranges = [(op.key, op.value)]
            for conflict in validate_ranges(space, ranges, start, self.request.read_time, self.now):
                yield ConflictEntry(ConflictKind.RANGE, op.key, start, conflict.found_version, op.value)
        elif blind or op.flags & OpFlags.UNCHECKED:
            return
        elif op.code is OpCode.DELETE_RANGE:
            versions = [c.found_version for c in validate_ranges(space, [(op.key, op.value)], start)]
            versions += [
                version
                for low, high, version in space.range_deletes
                if version > start and max(low, op.key) < min(high, op.value)
            ]
            if versions:
                yield ConflictEntry(ConflictKind.RANGE, op.key, start, max(versions), op.value)
        else:
            newest = space.newest(op.key)
            if op.code is not OpCode.ADD and newest is not None and newest.written_version > start:
                yield ConflictEntry(ConflictKind.WRITE, op.key, start, newest.written_version)
            else:
                yield from self.erased(op)

    def erased(self, op: Op) -> Iterator[ConflictEntry]:
        start = self.request.start_version
        version = erased_since(self.space.range_deletes, op.key, start)
        if version:
            yield ConflictEntry(ConflictKind.WRITE, op.key, start, version)

    def holds_value(self, key: bytes) -> bool:
        """Whether a key has a value, expired or not."""
        records = self.space.records.get(key)
        return records is not None and records[-1].value is not None

    def apply(self) -> Reply:
        space, version = self.space, self.space.version + 1
        written: dict[bytes, Record] = {}
        results: list[ResultEntry] = []
        for op in self.request.ops:
            if op.code is OpCode.DELETE_RANGE:
                for key in space.between(op.key, op.value):
                    if space.live(key, self.now) is not None:
                        written[key] = Record(version, self.now, None)
        for index, op in enumerate(self.request.ops):
            before = space.live(op.key, self.now)
            if op.key in written:
                before = written[op.key] if written[op.key].value is not None else None
            if op.code is OpCode.PUT:
                session = self.session if op.flags & OpFlags.EPHEMERAL else 0
                written[op.key] = Record(version, self.now, op.value, op.expires_at, session)
            elif op.code is OpCode.DELETE:
                if op.key in written or self.holds_value(op.key):
                    written[op.key] = Record(version, self.now, None)
                if op.flags & OpFlags.WANT_RESULT:
                    results.append(ResultEntry(index, ResultKind.EXISTED, int(before is not None)))
            elif op.code is OpCode.ADD:
                added = _add(op, before)
                if isinstance(added, Status):
                    return self.refused(added, index, before)
                written[op.key] = Record(
                    version,
                    self.now,
                    _codec.encode(added),
                    before.expires_at if before else 0,
                    before.session if before else 0,
                )
                if op.flags & OpFlags.WANT_RESULT:
                    kind = ResultKind.SIGNED if added < 0 else ResultKind.UNSIGNED
                    results.append(ResultEntry(index, kind, added))
        for key, record in written.items():
            space.add(key, record)
        for op in self.request.ops:
            if op.code is OpCode.DELETE_RANGE:
                space.range_deletes.append((op.key, op.value, version))
        changes = [
            ChangedKey("put" if record.value is not None else "delete", key, record.value)
            for key, record in sorted(written.items())
        ]
        space.publish(CommitOfChanges(version, self.now, changes))
        return Reply(Status.COMMITTED, self.sequence, version, self.now, results=tuple(results))

    def refused(self, status: Status, index: int, before: Record | None) -> Reply:
        results: tuple[ResultEntry, ...] = ()
        if status is Status.BOUND_REACHED:
            value = _codec.decode(before.value) if before and before.value is not None else 0
            kind = ResultKind.SIGNED if value < 0 else ResultKind.UNSIGNED
            results = (ResultEntry(index, kind, value),)
        return Reply(status, self.sequence, detail=index, results=results)


def _add(op: Op, before: Record | None) -> int | Status:
    base = 0 if before is None or before.value is None else _codec.decode(before.value)
    if type(base) is not int:
        return Status.NOT_AN_INTEGER
    total = base + op.argument
    if not _INTEGER_MIN <= total <= _INTEGER_MAX:
        return Status.INTEGER_OVERFLOW
    at_most, at_least = decode_bounds(op.value) if op.value else (None, None)
    if (at_most is not None and total > at_most) or (at_least is not None and total < at_least):
        return Status.BOUND_REACHED
    return total
