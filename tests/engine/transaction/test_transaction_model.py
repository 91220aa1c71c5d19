"""Interleaved transactions against a plain multi-version model: every read, every outcome, every conflict.

The model keeps whole states: one dict per version, and when each key was last written. Its verdict on a commit is
`conflict_model.py` over that; the engine's (worker side and commit core together) must be the same set of conflicts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from occamdb import Database, Transaction
from occamdb.engine.model.errors import ConflictError
from occamdb.engine.model.keys import successor
from occamdb.engine.model.public_types import IsolationName, RunId
from tests.support.conflict_model import CommitSets, Newest, validate_transaction
from tests.support.engines import Engine, memory_database

KEYS = st.sampled_from(["a", "ab", "b", "ba", "c"])
BOUNDS = st.none() | st.sampled_from(["a", "ab", "b", "c"])
VALUES = st.integers(-5, 5)
ABSENT = object()


class Model:
    """All committed states, by version. Keys are stored keys."""

    def __init__(self, newest_version: int) -> None:
        self.states: dict[int, dict[bytes, tuple[int, int]]] = {newest_version: {}}  # key -> (value, version)
        self.written: dict[bytes, int] = {}
        self.newest_version = newest_version

    @property
    def state(self) -> dict[bytes, tuple[int, int]]:
        return self.states[self.newest_version]

    def apply(self, version: int, changes: dict[bytes, Any]) -> None:
        state = dict(self.state)
        for key, value in changes.items():
            if value is ABSENT:
                if state.pop(key, None) is not None:
                    self.written[key] = version
            else:
                state[key] = (value, version)
                self.written[key] = version
        self.states[version] = state
        self.newest_version = version

    # VersionSource
    def newest(self, key: bytes) -> Newest | None:
        if key not in self.written:
            return None
        return Newest(self.state[key][1] if key in self.state else 0, self.written[key])

    def newest_in_range(self, start: bytes, end: bytes) -> Iterable[tuple[bytes, Newest]]:
        for key in sorted(self.written):
            newest = self.newest(key)
            if start <= key < end and newest is not None:
                yield key, newest


@dataclass
class Session:
    """One open transaction with what the model knows of it."""

    txn: Transaction
    tracking: bool
    view: dict[bytes, tuple[int, int]]
    reads: dict[bytes, int] = field(default_factory=dict)
    ranges: list[tuple[bytes, bytes]] = field(default_factory=list)
    cas: dict[bytes, int] = field(default_factory=dict)
    writes: dict[bytes, Any] = field(default_factory=dict)

    def seen(self, key: bytes) -> Any:
        if key in self.writes:
            return self.writes[key]
        return self.view[key][0] if key in self.view else ABSENT

    def note_read(self, key: bytes) -> None:
        if self.tracking and key not in self.writes:
            self.reads[key] = self.view[key][1] if key in self.view else 0


class Interleavings(RuleBasedStateMachine):
    """Several transactions at once, in every order that hypothesis finds interesting."""

    sessions = Bundle("sessions")
    end: Callable[[Database], None] = staticmethod(Database.close)
    make_database: Callable[[], Database] = staticmethod(memory_database)

    @initialize()
    def open(self) -> None:
        self.db = self.make_database()
        self.run_id = RunId.new()
        self.prefix = self.db.prefix_of(self.run_id)
        self.model = Model(self.db.attachment().committed_version)
        self.open_sessions: list[Session] = []

    def teardown(self) -> None:
        if hasattr(self, "db"):
            for session in self.open_sessions:
                session.txn.abort()
            assert self.db.attachment().pin_count == 0
            self.end(self.db)

    def key(self, name: str) -> bytes:
        return self.prefix + name.encode()

    @rule(target=sessions, isolation=st.sampled_from(["serializable", "serializable", "snapshot"]))
    def begin(self, isolation: IsolationName) -> Session:
        txn = self.db.begin(self.run_id, isolation=isolation)
        assert txn.start_version == self.model.newest_version
        session = Session(txn, isolation == "serializable", self.model.state)
        self.open_sessions.append(session)
        return session

    @rule(session=sessions, name=KEYS, track=st.sampled_from([True, True, False]))
    def get(self, session: Session, name: str, track: bool) -> None:
        key = self.key(name)
        assert session.txn.get(name, ABSENT, track=track) == session.seen(key)
        if track:
            session.note_read(key)

    @rule(session=sessions, name=KEYS)
    def get_versioned(self, session: Session, name: str) -> None:
        key = self.key(name)
        found = session.txn.get_versioned(name)
        assert (ABSENT if found is None else found.value) == session.seen(key)
        if found is not None:
            committed = session.view[key][1] if key in session.view else 0
            assert found.version == session.cas.get(key, committed)
        session.note_read(key)

    @rule(session=sessions, name=KEYS, value=VALUES)
    def put(self, session: Session, name: str, value: int) -> None:
        session.txn.put(name, value)
        session.writes[self.key(name)] = value

    @rule(session=sessions, name=KEYS)
    def delete(self, session: Session, name: str) -> None:
        key = self.key(name)
        assert session.txn.delete(name) is (session.seen(key) is not ABSENT)
        session.note_read(key)
        session.writes[key] = ABSENT

    @rule(session=sessions, name=KEYS, value=VALUES, guess=st.integers(0, 3))
    def cas(self, session: Session, name: str, value: int, guess: int) -> None:
        key = self.key(name)
        if session.writes.get(key) is ABSENT or key in session.cas:
            return  # what these mean has tests of its own
        expected = (
            (session.view[key][1] if key in session.view else 0) if guess else self.model.newest_version
        )
        session.txn.cas(name, expected, value)
        session.cas[key] = expected
        session.writes[key] = value

    @rule(
        session=sessions,
        prefix=st.sampled_from(["", "a", "b"]),
        start=BOUNDS,
        end=BOUNDS,
        limit=st.none() | st.integers(0, 3),
        reverse=st.booleans(),
    )
    def scan(
        self,
        session: Session,
        prefix: str,
        start: str | None,
        end: str | None,
        limit: int | None,
        reverse: bool,
    ) -> None:
        low, high = self.key(prefix), successor(self.key(prefix))
        assert high is not None
        low = max(low, self.key(start or ""))
        high = min(high, self.key(end)) if end is not None else high
        merged = {key: value for key, (value, _) in session.view.items()} | session.writes
        rows = [
            (k, v) for k, v in sorted(merged.items(), reverse=reverse) if low <= k < high and v is not ABSENT
        ]
        found = session.txn.scan(prefix, start=start, end=end, limit=limit, reverse=reverse)
        got = [(self.key(str(key)), row.value) for key, row in found]
        assert got == rows[:limit]
        if not session.tracking or low >= high or limit == 0:
            return
        if limit is not None and len(rows) >= limit:
            last = rows[limit - 1][0]
            low, high = (last, high) if reverse else (low, last + b"\x00")
        session.ranges.append((low, high))

    @rule(name=KEYS, value=VALUES | st.none())
    def write_beside(self, name: str, value: int | None) -> None:
        """A one-operation transaction: cannot conflict."""
        key = self.key(name)
        if value is None:
            there = key in self.model.state
            before = self.model.newest_version
            assert self.db.delete(self.run_id, name) is there
            after = self.db.attachment().committed_version
            if after != before:
                self.model.apply(after, {key: ABSENT})
        else:
            self.model.apply(self.db.put(self.run_id, name, value), {key: value})

    def verdict(self, session: Session) -> Any:
        return validate_transaction(
            self.model,
            CommitSets(
                start_version=session.txn.start_version,
                read_time=session.txn.read_time,
                reads=session.reads,
                ranges=merge(session.ranges),
                cas=session.cas,
                writes=frozenset(session.writes) - frozenset(session.cas),
            ),
        )

    @rule(session=consumes(sessions))
    def commit(self, session: Session) -> None:
        self.open_sessions.remove(session)
        validation = self.verdict(session)
        if not session.writes:
            assert session.txn.commit().version == session.txn.start_version
        elif validation.ok:
            receipt = session.txn.commit()
            assert receipt.version == self.model.newest_version + 1
            self.model.apply(receipt.version, session.writes)
        else:
            with pytest.raises(ConflictError) as caught:
                session.txn.commit()
            expected, found = set(validation.conflicts), set(caught.value.conflicts)
            if session.txn.txn_id is not None:
                assert strip(found) == strip(expected)  # the commit core sees everything
            else:
                assert strip(found) <= strip(expected) and found  # the worker need not ask it to be sure

    @rule(session=sessions)
    def validate(self, session: Session) -> None:
        expected = set(self.verdict(session).conflicts)
        assert strip(session.txn.validate()) <= strip(expected)

    @rule(session=consumes(sessions))
    def abort(self, session: Session) -> None:
        self.open_sessions.remove(session)
        session.txn.abort()

    @invariant()
    def committed_state_is_the_models(self) -> None:
        if not hasattr(self, "db"):
            return
        with self.db.snapshot(self.run_id) as view:
            rows = {self.key(str(key)): (row.value, row.version) for key, row in view.scan_prefix()}
            assert view.version == self.model.newest_version
        assert rows == self.model.state


def merge(ranges: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Overlapping and touching ranges as one, as a request carries them."""
    merged: list[tuple[bytes, bytes]] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def strip(conflicts: Iterable[Any]) -> set[Any]:
    """What the conflicts are about; which of several newer versions a range names is left open."""
    return {
        (type(c).__name__, c.key, c.expected_version, getattr(c, "range", None))
        if getattr(c, "range", None) is not None
        else (type(c).__name__, c.key, c.expected_version, c.found_version)
        for c in conflicts
    }


@pytest.mark.by_default("memory")
def test_interleavings_agree_with_the_model(engine: Engine) -> None:
    class OnThisEngine(Interleavings):
        make_database = staticmethod(engine.fresh)
        end = staticmethod(engine.discard)

    run_state_machine_as_test(
        OnThisEngine,
        settings=settings(max_examples=engine.examples(120), stateful_step_count=40, deadline=None),
    )
