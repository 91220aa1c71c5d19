"""What a namespace of a server must contain: the contract of `engine/remote/backend.py` for one client at a time.

It keeps the state after every commit. Conflicts are those of `conflict_model.py`. Keys expire never or long ago: what
expires meanwhile has tests of its own.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from occamdb.engine.commit.messages import Op, OpCode, OpFlags, Status
from tests.support.conflict_model import CommitSets, Newest, RangeDelete, Validation, validate_transaction

__all__ = ["ContractModel", "Stored", "View"]

INTEGER_MAX = 2**64 - 1


class Stored(NamedTuple):
    """A value that is there."""

    value: Any
    version: int
    expires_at: int = 0

    @property
    def is_live(self) -> bool:
        return self.expires_at == 0 or self.expires_at > 1


State = dict[bytes, Stored]
Changed = dict[bytes, tuple[str, Any]]


@dataclass
class View:
    """A snapshot, and what its transaction has asked for so far."""

    version: int
    state: State
    reads: dict[bytes, int] = field(default_factory=dict)
    ranges: list[tuple[bytes, bytes]] = field(default_factory=list)
    cas: dict[bytes, int] = field(default_factory=dict)
    effects: list[Op] = field(default_factory=list)

    def live(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, Stored]]:
        """What a scan finds, in key order."""
        return ((k, v) for k, v in sorted(self.state.items()) if start <= k < end and v.is_live)

    def version_of(self, key: bytes) -> int:
        """What a read finds."""
        stored = self.state.get(key)
        return stored.version if stored is not None and stored.is_live else 0


class ContractModel:
    """A namespace."""

    def __init__(self, version: int) -> None:
        self.versions = [version]
        self.states: list[State] = [{}]
        self.written: dict[bytes, int] = {}  # by a put or a delete
        self.range_deletes: list[RangeDelete] = []
        self.changes: list[tuple[int, Changed]] = []

    @property
    def state(self) -> State:
        """The newest."""
        return self.states[-1]

    def view(self, version: int) -> View:
        """A snapshot at a version of the server, which may lie between two commits."""
        return View(version, self.states[bisect_right(self.versions, version) - 1])

    # ---- what conflict_model asks ---------------------------------------------------------------------------

    def newest(self, key: bytes) -> Newest | None:
        if key not in self.written:
            return None
        stored = self.state.get(key)
        if stored is None:
            return Newest(0, self.written[key])
        return Newest(stored.version, self.written[key], stored.expires_at)

    def newest_in_range(self, start: bytes, end: bytes) -> Iterable[tuple[bytes, Newest]]:
        for key in sorted(self.written):
            newest = self.newest(key)
            if start <= key < end and newest is not None:
                yield key, newest

    def judge(self, view: View, *, blind: bool = False) -> Validation:
        """The conflicts of what a view's transaction asks for."""
        checked = [op for op in view.effects if not op.flags & OpFlags.UNCHECKED]
        sets = CommitSets(
            start_version=None if blind else view.version,
            read_time=2,  # what expires long ago did so before
            reads=view.reads,
            ranges=view.ranges,
            cas=view.cas,
            writes={op.key for op in checked if op.code in (OpCode.PUT, OpCode.DELETE)},
            adds={op.key for op in checked if op.code is OpCode.ADD},
            deleted_ranges=[(op.key, op.value) for op in checked if op.code is OpCode.DELETE_RANGE],
        )
        return validate_transaction(self, sets, range_deletes=() if blind else self.range_deletes)

    # ---- effects --------------------------------------------------------------------------------------------

    def effects(self, ops: Iterable[Op], decode: Any) -> tuple[Status, State, Changed, list[int]]:
        """What a commit would do: its status, the state behind it, what changed, and the results in order."""
        given = list(ops)
        state, changed, results = dict(self.state), Changed(), list[int]()
        for op in given:
            if op.code is OpCode.DELETE_RANGE:
                for key in [key for key in state if op.key <= key < op.value]:
                    if state.pop(key).is_live:
                        changed[key] = ("delete", None)
        for op in given:
            before = state.get(op.key)
            is_there = before is not None and before.is_live
            if op.code is OpCode.PUT:
                state[op.key] = Stored(decode(op.value), 0, op.expires_at)
                changed[op.key] = ("put", decode(op.value))
            elif op.code is OpCode.DELETE:
                state.pop(op.key, None)
                changed[op.key] = ("delete", None)
                results.append(int(is_there))
            elif op.code is OpCode.ADD:
                old = before.value if before is not None and is_there else 0
                if type(old) is not int:
                    return Status.NOT_AN_INTEGER, self.state, {}, []
                total = old + op.argument
                if not -(2**63) <= total <= INTEGER_MAX:
                    return Status.INTEGER_OVERFLOW, self.state, {}, []
                state[op.key] = Stored(total, 0, before.expires_at if before is not None and is_there else 0)
                changed[op.key] = ("put", total)
                results.append(total)
        return Status.COMMITTED, state, changed, results

    def apply(self, version: int, ops: Iterable[Op], state: State, changed: Changed) -> None:
        """A commit got this version."""
        for key, (kind, _) in changed.items():
            self.written[key] = version
            if kind == "put":
                state[key] = state[key]._replace(version=version)
        self.range_deletes += [(op.key, op.value, version) for op in ops if op.code is OpCode.DELETE_RANGE]
        self.versions.append(version)
        self.states.append(state)
        if changed:
            self.changes.append((version, changed))
