"""Judging commit requests against a view of the newest records, and working out what they write.

This is `tests/support/conflict_model.py` over records that were read from etcd at one head, and the effects of the
local engine (`commit/_apply.pyx`). Nothing here talks to a server.

1. A view answers for the keys and ranges that it was read for. One that is `unchanged` was not read at all: it says
   that nothing was written since the requests began, which holds while the head is the one that they began with.
2. All requests of a batch are judged at one time, `now`, and no value in etcd has expired by then: the view's head is
   not due. So the version of a value record is what is there, and remains are of what expired before.
3. Requests of a batch come one after the other, each at a version of its own, on the writes of those before it. One
   that deletes a range is alone in its batch.
4. A request changes the batch only when it is accepted as a whole.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from ...commit.messages import (
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
)
from ...model.bounds import decode_bounds
from .integers import decode_integer, encode_integer
from .records import DELETE, PUT, Change, Commit, Ghost, Head, Kind, Record

__all__ = ["Batch", "View", "may_trust"]

_ABSENT = Ghost(0, 0)
_NEEDS_NOTHING = frozenset({OpCode.READ, OpCode.RANGE, OpCode.PUT})

# The order in which conflicts are listed. A CAS that expects absence and meets a deleted range comes behind the others.
_RANK = {
    OpCode.READ: 0,
    OpCode.RANGE: 1,
    OpCode.CAS: 2,
    OpCode.PUT: 4,
    OpCode.DELETE: 4,
    OpCode.ADD: 5,
    OpCode.DELETE_RANGE: 6,
}
_RANK_ERASED = 3


@dataclass
class View:
    """What was read at one head.

    Attributes:
      head: the head.
      revision: the head's `mod_revision`; 0: there is none yet.
      unchanged: see the module.
      points: the record of each key that was asked for.
      changed: by (start, end, start version): the records in a range that were written since, and maybe others.
      contents: by (start, end): every record in a range.
      erased: the commits that deleted ranges, back to the oldest start version of the requests.
    """

    head: Head
    revision: int
    unchanged: bool = False
    points: dict[bytes, Record | None] = field(default_factory=dict)
    changed: dict[tuple[bytes, bytes, int], list[tuple[bytes, Record]]] = field(default_factory=dict)
    contents: dict[tuple[bytes, bytes], list[tuple[bytes, Record]]] = field(default_factory=dict)
    erased: Sequence[Commit] = ()

    def ghosts(self, since: int) -> dict[bytes, Ghost]:
        """What range deletes after a version left behind; the newest for each key."""
        found: dict[bytes, Ghost] = {}
        for commit in self.erased:
            if commit.version > since:
                found.update((c.key, Ghost(0, commit.version)) for c in commit.changes if c.kind == DELETE)
                found.update(commit.ghosts)
        return found


def may_trust(request: Request, head: Head, was_read: Callable[[bytes, int, int], bool]) -> bool:
    """Whether a request can be judged by a view that is `unchanged`.

    Args:
      was_read: whether a key is known to have had a version at a snapshot. So a request that claims another version
        than it can have read is judged by the records, like every other one.
    """
    return (
        not request.flags & RequestFlags.JUDGE_ONLY
        and (request.start_version == head.version or bool(request.flags & RequestFlags.BLIND))
        and all(op.code in _NEEDS_NOTHING for op in request.ops)
        and all(was_read(op.key, head.version, op.argument) for op in request.ops if op.code is OpCode.READ)
    )


class Batch:
    """The requests that are committed together.

    Args:
      view: what they are judged by.
      now: the time; at least the head's clock.

    Attributes:
      commits: of the requests that were accepted.
      written: the records they leave, by key.
      removed: [start, end) to be removed from etcd, before `written` is put.
    """

    def __init__(self, view: View, now: int) -> None:
        self.view = view
        self.now = now
        self.commits: list[Commit] = []
        self.written: dict[bytes, Record] = {}
        self.removed: list[tuple[bytes, bytes]] = []
        self._values: list[dict[bytes, Record]] = []  # of each commit
        self._sorted: list[bytes] | None = []  # the keys of `written`

    @property
    def version(self) -> int:
        """The newest version, with the batch."""
        return self.commits[-1].version if self.commits else self.view.head.version

    # ---- judging ------------------------------------------------------------------------------------------

    def judge(self, request: Request, session: int, sequence: int) -> Reply:
        """Judge a request, and take in what it writes if it wins."""
        found = list(self._conflicts(request))
        if found:
            found.sort(key=lambda ranked: ranked[0])
            listed = tuple(entry for _, entry in found[:CONFLICTS_LISTED_MAX])
            return Reply(Status.CONFLICT, sequence, conflicts=listed, conflicts_found=len(found))
        if request.flags & RequestFlags.JUDGE_ONLY:
            return Reply(Status.COMMITTED, sequence)
        if all(op.code.is_check for op in request.ops):
            return Reply(Status.COMMITTED, sequence, self.version, self.now)
        return self._apply(request, session, sequence)

    def _conflicts(self, request: Request) -> Iterator[tuple[int, ConflictEntry]]:
        blind = bool(request.flags & RequestFlags.BLIND)
        start = request.start_version
        ghosts = self.view.ghosts(start)
        for op in request.ops:
            if op.code in (OpCode.READ, OpCode.CAS):
                found, _, expires_at = self._newest(op.key, ghosts, op.argument)
                if 0 < expires_at <= self.now:
                    found = 0
                if found != op.argument:
                    kind = ConflictKind.READ if op.code is OpCode.READ else ConflictKind.CAS
                    yield _RANK[op.code], ConflictEntry(kind, op.key, op.argument, found)
                elif op.code is OpCode.CAS and op.argument == 0 and not blind:
                    yield from self._erased(op, start, _RANK_ERASED)
            elif op.code is OpCode.RANGE:
                if not blind:
                    yield from self._range(op, start, min(request.read_time, self.now), ghosts)
            elif blind or op.flags & OpFlags.UNCHECKED:
                continue
            elif op.code is OpCode.DELETE_RANGE:
                yield from self._deleted_range(op, start, ghosts)
            else:
                written = 0 if op.code is OpCode.ADD else self._newest(op.key, ghosts, 0).written
                if written > start:
                    yield _RANK[op.code], ConflictEntry(ConflictKind.WRITE, op.key, start, written)
                else:
                    yield from self._erased(op, start, _RANK[op.code])

    def _newest(self, key: bytes, ghosts: dict[bytes, Ghost], unchanged: int) -> Ghost:
        """The newest record of a key; `unchanged`: its version where nothing was written."""
        record = self.written.get(key)
        if record is None and self.view.unchanged:
            return Ghost(unchanged, 0)
        record = record or self.view.points[key]
        return record.ghost if record is not None else ghosts.get(key, _ABSENT)

    def _range(
        self, op: Op, start: int, read_time: int, ghosts: dict[bytes, Ghost]
    ) -> Iterator[tuple[int, ConflictEntry]]:
        newest = {key: ghost for key, ghost in ghosts.items() if op.key <= key < op.value}
        if not self.view.unchanged:
            newest.update((key, record.ghost) for key, record in self.view.changed[op.key, op.value, start])
        newest.update((key, self.written[key].ghost) for key in self._written_in(op.key, op.value))
        yield from self._first(op, newest, start, read_time, self.now)

    def _deleted_range(
        self, op: Op, start: int, ghosts: dict[bytes, Ghost]
    ) -> Iterator[tuple[int, ConflictEntry]]:
        newest = {key: ghost for key, ghost in ghosts.items() if op.key <= key < op.value}
        newest.update((key, record.ghost) for key, record in self.view.contents[op.key, op.value])
        found = list(self._first(op, newest, start, 0, 0))
        met = [
            commit.version
            for commit in self.view.erased
            if commit.version > start
            and any(max(low, op.key) < min(high, op.value) for low, high in commit.ranges)
        ]
        if not found and met:
            entry = ConflictEntry(ConflictKind.RANGE, op.key, start, max(met), op.value)
            found = [(_RANK[op.code], entry)]
        yield from found

    def _first(
        self, op: Op, newest: dict[bytes, Ghost], start: int, read_time: int, now: int
    ) -> Iterator[tuple[int, ConflictEntry]]:
        """A conflict if some key was written since, or has expired since; it names the first such key's version."""
        for key in sorted(newest):
            version, written, expires_at = newest[key]
            if written > start or (version and read_time < expires_at <= now):
                yield _RANK[op.code], ConflictEntry(ConflictKind.RANGE, op.key, start, written, op.value)
                return

    def _erased(self, op: Op, start: int, rank: int) -> Iterator[tuple[int, ConflictEntry]]:
        versions = [
            commit.version
            for commit in self.view.erased
            if commit.version > start and any(low <= op.key < high for low, high in commit.ranges)
        ]
        if versions:
            yield rank, ConflictEntry(ConflictKind.WRITE, op.key, start, max(versions))

    def _written_in(self, start: bytes, end: bytes) -> list[bytes]:
        if self._sorted is None:
            self._sorted = sorted(self.written)
        return self._sorted[bisect_left(self._sorted, start) : bisect_left(self._sorted, end)]

    # ---- effects ------------------------------------------------------------------------------------------

    def _apply(self, request: Request, session: int, sequence: int) -> Reply:
        version = self.version + 1
        mine: dict[bytes, Record] = {}
        removed: dict[bytes, Record] = {}  # from etcd, by the ranges of this request
        ranges = [(op.key, op.value) for op in request.ops if op.code is OpCode.DELETE_RANGE]
        for bounds in ranges:
            removed.update(self.view.contents[bounds])
        results: list[ResultEntry] = []
        for index, op in enumerate(request.ops):
            if op.code is OpCode.PUT:
                bound = session if op.flags & OpFlags.EPHEMERAL else 0
                mine[op.key] = Record(Kind.VALUE, version, self.now, op.expires_at, bound, op.value)
            elif op.code is OpCode.DELETE:
                existed = self._live(op.key, mine, removed) is not None
                if existed:
                    mine[op.key] = Record(Kind.TOMBSTONE, version, self.now)
                if op.flags & OpFlags.WANT_RESULT:
                    results.append(ResultEntry(index, ResultKind.EXISTED, int(existed)))
            elif op.code is OpCode.ADD:
                before = self._live(op.key, mine, removed)
                refused = self._add(op, index, before, mine, version, sequence)
                if refused is not None:
                    return refused
                if op.flags & OpFlags.WANT_RESULT:
                    results.append(_result(index, decode_integer(mine[op.key].value) or 0))
        self._accept(Commit(version, self.now, session, sequence, (), ranges), mine, removed)
        return Reply(Status.COMMITTED, sequence, version, self.now, results=tuple(results))

    def _live(self, key: bytes, mine: dict[bytes, Record], removed: dict[bytes, Record]) -> Record | None:
        """The record of a key that has a value now, within the request."""
        if key in removed and key not in mine:
            return None
        record = mine.get(key) or self.written.get(key) or self.view.points[key]
        return record if record is not None and record.is_live(self.now) else None

    def _add(
        self,
        op: Op,
        index: int,
        before: Record | None,
        mine: dict[bytes, Record],
        version: int,
        sequence: int,
    ) -> Reply | None:
        """Add to an integer; the reply if the request is refused for it."""
        base = 0 if before is None else decode_integer(before.value)
        if base is None:
            return Reply(Status.NOT_AN_INTEGER, sequence, detail=index)
        total = base + op.argument
        value = encode_integer(total)
        if value is None:
            return Reply(Status.INTEGER_OVERFLOW, sequence, detail=index)
        at_most, at_least = decode_bounds(op.value) if op.value else (None, None)
        if (at_most is not None and total > at_most) or (at_least is not None and total < at_least):
            return Reply(Status.BOUND_REACHED, sequence, detail=index, results=(_result(index, base),))
        expires_at, session = (before.expires_at, before.session) if before is not None else (0, 0)
        mine[op.key] = Record(Kind.VALUE, version, self.now, expires_at, session, value)
        return None

    def _accept(self, commit: Commit, mine: dict[bytes, Record], removed: dict[bytes, Record]) -> None:
        changes = [Change(PUT if record.kind is Kind.VALUE else DELETE, key) for key, record in mine.items()]
        ghosts: list[tuple[bytes, Ghost]] = []
        for key, record in removed.items():
            if not record.is_live(self.now):
                if record.ghost.written > self.view.head.floor:
                    ghosts.append((key, record.ghost))
            elif key not in mine:
                changes.append(Change(DELETE, key))
        commit.changes = sorted(changes, key=lambda change: change.key)
        commit.ghosts = sorted(ghosts)
        self.commits.append(commit)
        self._values.append(mine)
        self.written.update(mine)
        self._sorted = None
        self.removed.extend(commit.ranges)

    def undo_last(self) -> None:
        """Take the last request that was accepted out again."""
        self.commits.pop()
        self._values.pop()
        self.written = {key: record for mine in self._values for key, record in mine.items()}
        self._sorted = None
        self.removed = [bounds for commit in self.commits for bounds in commit.ranges]

    # ---- the outcome --------------------------------------------------------------------------------------

    def log_commits(self) -> list[Commit]:
        """The commits as the log keeps them: with the values that later ones of the batch replaced."""
        return [
            Commit(
                commit.version,
                commit.timestamp,
                commit.session,
                commit.sequence,
                [
                    change._replace(value=values[change.key].value)
                    if change.kind == PUT and self.written[change.key].version != commit.version
                    else change
                    for change in commit.changes
                ],
                commit.ranges,
                commit.ghosts,
            )
            for commit, values in zip(self.commits, self._values, strict=True)
        ]


def _result(index: int, number: int) -> ResultEntry:
    return ResultEntry(index, ResultKind.SIGNED if number < 0 else ResultKind.UNSIGNED, number)
