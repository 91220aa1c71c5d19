"""Commits, snapshots, expiry, sweeping and changes on PostgreSQL against a model in plain Python.

The server's clock is a row of a table here, so that the model knows the time.
"""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from occamdb.engine.commit.messages import Op, OpCode, OpFlags, Request, RequestFlags, Status, encode_request
from occamdb.engine.model.bounds import encode_bounds
from occamdb.engine.model.errors import OccamError, SnapshotExpired, WatchLagged
from occamdb.engine.model.values import encode_value
from occamdb.engine.remote.backend import Begun, CommitOfChanges
from occamdb.engine.remote.postgres import migrations, open_backend
from occamdb.engine.remote.postgres.backend import PostgresBackend
from tests.support.namespace_model import NamespaceModel, Record
from tests.support.one_postgres import OnePostgres

BASE = b"t\0\0\0"
END = b"t\0\0\1"
START_CLOCK = 1_700_000_000_000_000_000
KEYS = [BASE + name for name in (b"a", b"b", b"c", b"d", b"e")]
NUMBERS = [
    0,
    1,
    -1,
    127,
    128,
    -32,
    -33,
    255,
    256,
    65535,
    65536,
    2**31,
    -(2**31),
    2**32,
    2**63 - 1,
    2**63,
    2**64 - 1,
    -(2**63),
]

VALUES = [encode_value(value) for value in (*NUMBERS, "x", None, "y" * 300)]
DELAYS = [0, 0, 0, 0, -5, 1, 5, 5, 20, 60]
DELTAS = [1, 1, -1, 5, 1000, -(2**63), 2**63 - 1, 2**40]
HOW = [OpFlags.NONE, OpFlags.NONE, OpFlags.NONE, OpFlags.UNCHECKED]
BOUNDS = [b"", b"", b"", encode_bounds(10, None), encode_bounds(None, 0), encode_bounds(2**64 - 1, -5)]
EDGES = [BASE, *KEYS, END]
RIGHT = {OpCode.READ: "right", OpCode.CAS: "right"}

Planned = tuple[
    OpCode, bytes, bytes, OpFlags, Any
]  # code, key, value, flags, and what becomes version, time or delta


def some_range(rng: Random) -> tuple[bytes, bytes]:
    """A range that is not empty."""
    low, high = sorted(rng.sample(EDGES, 2))
    return low, high


def some_operations(rng: Random) -> list[Planned]:
    """Checks and effects; few of each, so that a request often has one reason to fail."""
    ops: list[Planned] = []
    for key in rng.sample(KEYS, rng.choice([0, 0, 1, 2])):
        ops.append((OpCode.READ, key, b"", OpFlags.NONE, rng.choice(["right", "right", "right", "wrong"])))
    for _ in range(rng.choice([0, 0, 0, 1, 2])):
        ops.append((OpCode.RANGE, *some_range(rng), OpFlags.NONE, None))
    for key in rng.sample(KEYS, rng.choice([0, 0, 0, 1, 2])):
        ops.append((OpCode.CAS, key, b"", OpFlags.NONE, rng.choice(["right", "right", "absent", "wrong"])))
    for _ in range(rng.choice([0, 0, 0, 1])):
        ops.append((OpCode.DELETE_RANGE, *some_range(rng), rng.choice(HOW), None))
    written = rng.choices(KEYS, k=rng.choice([0, 1, 1, 2, 3]))
    for key in written if rng.random() < 0.3 else set(written):
        ops.append(some_effect(rng, key))
    return ops


def some_effect(rng: Random, key: bytes) -> Planned:
    """A put, a delete or an increment."""
    code = rng.choice([OpCode.PUT, OpCode.PUT, OpCode.DELETE, OpCode.ADD])
    how = rng.choice(HOW) | (
        OpFlags.WANT_RESULT if code is not OpCode.PUT and rng.random() < 0.5 else OpFlags.NONE
    )
    if code is OpCode.PUT:
        bound = OpFlags.EPHEMERAL if rng.random() < 0.15 else OpFlags.NONE
        return code, key, rng.choice(VALUES), how | bound, rng.choice(DELAYS)
    if code is OpCode.ADD:
        return code, key, rng.choice(BOUNDS) or b"", how, rng.choice(DELTAS)
    return code, key, b"", how, None


operations = st.randoms(use_true_random=False).map(some_operations)
ranges = st.randoms(use_true_random=False).map(some_range)


class Machine(RuleBasedStateMachine):
    """One namespace. `server` and `clock_table` are set by the test."""

    server: OnePostgres
    schemas = itertools.count(1)

    snapshots = Bundle("snapshots")

    @initialize()
    def open(self) -> None:
        self.schema = f"machine_{next(self.schemas)}"
        self.admin = self.server.connect()
        self.admin.execute("create schema if not exists the_clock")
        self.admin.execute("create table if not exists the_clock.clock (now bigint)")
        self.admin.execute("delete from the_clock.clock")
        self.admin.execute("insert into the_clock.clock values (%s)", [START_CLOCK])
        self.backend: PostgresBackend = open_backend(
            self.server.url(schema=self.schema),
            BASE,
            timeout=10,
            durability="none",
            housekeeping=False,
            session_grace=3600,
        )
        self.model = NamespaceModel(START_CLOCK)

    def teardown(self) -> None:
        if hasattr(self, "backend"):
            self.backend.close()
            self.admin.execute(f"set client_min_messages = warning; drop schema {self.schema} cascade")
            self.admin.close()

    def call(self, function: str, *arguments: Any) -> Any:
        places = ", ".join(["%s"] * len(arguments))
        row = self.admin.execute(f"select {self.schema}.{function}({places})", arguments).fetchone()
        assert row is not None
        return row[0]

    @rule(seconds=st.sampled_from([0, 1, 4, 5, 20, -3]))
    def time_passes(self, seconds: int) -> None:
        self.model.clock += seconds * 10**9
        self.admin.execute("update the_clock.clock set now = %s", [self.model.clock])

    @rule(target=snapshots)
    def begin_some(self) -> Begun:
        return self.begin()

    def begin(self) -> Begun:
        """A snapshot, compared with the model's."""
        self.model.remove_expired()  # `begin` does, if it finds something due
        begun = self.backend.begin(KEYS)
        assert begun.version == self.model.version
        # T lies between what the commit V judged by and what the next one will.
        assert self.model.expiry_time <= begun.expiry_time <= self.model.now
        due = [r.expires_at for r in self.model.rows(begun.version).values() if r.expires_at]
        assert not [at for at in due if begun.expiry_time < at <= self.model.clock], (
            "what is due is seen as expired"
        )
        self.model.expiry_time = max(self.model.expiry_time, begun.expiry_time)
        self.same(begun.rows, [self.model.rows(begun.version).get(key) for key in KEYS])
        return begun

    def same(self, rows: Any, records: list[Record | None]) -> None:
        found = [
            None if row is None else (row.version, row.value, row.timestamp, row.expires_at) for row in rows
        ]
        expected = [None if r is None else (r.version, r.value, r.timestamp, r.expires_at) for r in records]
        assert found == expected
        for row, record in zip(rows, records, strict=True):
            assert row is None or record is None or bool(row.session) == record.bound

    @rule(begun=snapshots, low_high=ranges, limit=st.integers(1, 6), reverse=st.booleans())
    def read(self, begun: Begun, low_high: tuple[bytes, bytes], limit: int, reverse: bool) -> None:
        low, high = low_high
        if begun.version < self.model.floor:
            with pytest.raises(SnapshotExpired):
                self.backend.read(KEYS, begun.version)
            with pytest.raises(SnapshotExpired):
                self.backend.scan(low, high, begun.version, limit, reverse=reverse)
            return
        at = self.model.rows(begun.version)
        self.same(self.backend.read(KEYS, begun.version), [at.get(key) for key in KEYS])
        rows, whole = self.backend.scan(low, high, begun.version, limit, reverse=reverse)
        inside = sorted((key for key in at if low <= key < high), reverse=reverse)
        assert [row.key for row in rows] == inside[:limit]
        assert whole == (len(inside) <= limit)
        self.same(rows, [at[row.key] for row in rows])

    @rule(begun=snapshots, ops=operations, flags=st.sampled_from([0, 0, 0, 0, 1, 4]))
    def commit(self, begun: Begun, ops: list[Planned], flags: int) -> None:
        request = self.request(begun, ops, RequestFlags(flags))
        if begun.version < self.model.floor and not flags & RequestFlags.BLIND:
            with pytest.raises(SnapshotExpired):
                self.backend.commit(encode_request(request), None)
            return
        if any(op.flags & OpFlags.EPHEMERAL for op in request.ops):
            self.backend.keep_session()
        expected = self.model.commit(request)
        outcome = self.backend.commit(encode_request(request), None)
        reply = outcome.reply
        assert (reply.status, reply.commit_version) == (expected.status, expected.version), reply
        if reply.status is Status.CONFLICT:
            self.same_conflicts(request, reply, expected.validation)
        else:
            assert (reply.results, reply.detail) == (expected.results, expected.detail)
        if reply.status is Status.COMMITTED and expected.version and reply.results:
            assert reply.committed_at == self.model.expiry_time

    @rule(
        target=snapshots,
        first=operations,
        second=operations,
        seconds=st.sampled_from([0, 0, 1, 5, 20]),
        order=st.sampled_from(["time first", "commit first", "time alone"]),
    )
    def overlap_some(self, first: list[Planned], second: list[Planned], seconds: int, order: str) -> Begun:
        return self.overlap(first, second, seconds, order)

    def overlap(self, first: list[Planned], second: list[Planned], seconds: int, order: str) -> Begun:
        """A transaction during which time passes and another one commits."""
        begun = self.begin()
        if order != "commit first":
            self.time_passes(seconds)
        if order != "time alone":
            other = self.begin()
            self.commit(other, [(*op[:4], RIGHT.get(op[0], op[4])) for op in first], 0)
        if order == "commit first":
            self.time_passes(seconds)
        self.commit(begun, [(*op[:4], RIGHT.get(op[0], op[4])) for op in second], 0)
        return begun

    def request(self, begun: Begun, ops: list[Planned], flags: RequestFlags) -> Request:
        at = self.model.rows(begun.version) if begun.version in self.model.history else {}
        made = []
        for code, key, value, how_, extra in ops:
            argument, expires_at = 0, 0
            if code in (OpCode.READ, OpCode.CAS):
                record = at.get(key)
                seen = record is not None and not 0 < record.expires_at <= begun.expiry_time
                argument = record.version if record is not None and seen else 0
                argument = {"right": argument, "absent": 0, "wrong": argument + 1}[extra]
            elif code is OpCode.PUT:
                expires_at = self.model.clock + extra * 10**9 if extra else 0
            elif code is OpCode.ADD:
                argument = extra
            made.append(Op(code, key, value, argument, expires_at, how_))
        start = 0 if flags & RequestFlags.BLIND else begun.version
        return Request(0, start, begun.expiry_time, tuple(made), flags=flags)

    def same_conflicts(self, request: Request, reply: Any, validation: Any) -> None:
        effects = [op.key for op in request.ops if not op.code.is_check]
        if len(set(effects)) < len(effects):
            return  # the model counts a key once, however often it is written
        assert reply.conflicts_found == validation.found
        found = [entry.record() for entry in reply.conflicts]
        assert Counter(map(repr, found)) == Counter(map(repr, validation.conflicts))
        assert [type(c).__name__ for c in found] == [type(c).__name__ for c in validation.conflicts]

    @rule(age=st.sampled_from([0, 3, 10, 1000]))
    def sweep(self, age: int) -> None:
        removed = self.model.remove_expired()
        before = self.model.now - age * 10**9
        forgotten = [version for version, at, _ in self.model.commits if at < before]
        self.model.floor = max([self.model.floor, *forgotten])
        self.call("sweep", self.number, age * 10**9, 0, 10_000)
        assert self.backend.newest() == self.model.version, removed

    @property
    def number(self) -> int:
        return self.backend.number

    @rule(since=st.integers(0, 40), limit=st.integers(1, 5), low_high=ranges, bounded=st.booleans())
    def follow(self, since: int, limit: int, low_high: tuple[bytes, bytes], bounded: bool) -> None:
        low, high = low_high
        end = high if bounded else None
        if since > self.model.version:
            return
        if since < self.model.floor:
            with pytest.raises(WatchLagged):
                self.backend.changes(low, end, since, limit, values=True)
            return
        found: list[CommitOfChanges] = []
        at = since
        while at < self.model.version:
            page = self.backend.changes(low, end, at, limit, values=True)
            assert page.reached > at
            found += page.commits
            at = page.reached
        seen = [
            (
                version,
                committed_at,
                [(kind, key, value) for key, (kind, value) in changed.items() if self.inside(key, low, end)],
            )
            for version, committed_at, changed in self.model.commits
            if version > since
        ]
        expected = [commit for commit in seen if commit[2]]
        assert [
            (c.version, c.committed_at, [(x.kind, x.key, x.value) for x in c.changes]) for c in found
        ] == expected

    @staticmethod
    def inside(key: bytes, low: bytes, end: bytes | None) -> bool:
        return low <= key and (end is None or key < end)

    @rule()
    def the_session_ends(self) -> None:
        session = self.backend.session
        if not self.backend._server.kept:
            return
        self.call("end_session", session)
        self.call("unbind", self.number, session, 10_000)
        self.model.end_session()
        self.admin.execute(f"delete from {self.schema}.session")
        self.backend._server.session_ended(session)
        assert self.backend.newest() == self.model.version

    @invariant()
    def nothing_is_left_behind(self) -> None:
        """The traces that sweeping must remove are no older than the floor."""
        if not hasattr(self, "backend"):
            return
        row = self.admin.execute(
            f"select count(*) from {self.schema}.old o join {self.schema}.head h using (ns)"
            " where o.superseded <= h.floor"
        ).fetchone()
        assert row == (0,)


@pytest.fixture
def machine(server: OnePostgres, monkeypatch: pytest.MonkeyPatch) -> type[Machine]:
    """With the server's clock in a table."""
    monkeypatch.setattr(migrations, "_CLOCK", "(select now from the_clock.clock)")
    Machine.server = server
    return Machine


def test_commits_against_the_model(machine: type[Machine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=15, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def drive(machine: type[Machine], seed: int, steps: int) -> None:
    """Many steps at random, with a few snapshots at hand: quicker than the search for small examples."""
    rng = Random(seed)
    driven = machine()
    try:
        driven.open()
        snapshots = [driven.begin()]
        for _ in range(steps):
            step = rng.random()
            begun = rng.choice(snapshots)
            if step < 0.45:
                order = rng.choice(["time first", "commit first", "commit first", "time alone"])
                made = driven.overlap(
                    first=some_operations(rng),
                    second=some_operations(rng),
                    seconds=rng.choice([0, 0, 1, 5, 20]),
                    order=order,
                )
                snapshots = [*snapshots[-4:], made]
            elif step < 0.6:
                driven.commit(begun=begun, ops=some_operations(rng), flags=rng.choice([0, 0, 0, 1, 4]))
            elif step < 0.75:
                driven.read(
                    begun=begun, low_high=some_range(rng), limit=rng.randint(1, 6), reverse=rng.random() < 0.5
                )
            elif step < 0.85:
                newest = driven.model.version
                since = rng.randint(max(0, newest - 12), newest)
                driven.follow(
                    since=since, limit=rng.randint(1, 5), low_high=some_range(rng), bounded=rng.random() < 0.5
                )
            elif step < 0.92:
                driven.time_passes(seconds=rng.choice([0, 1, 4, 5, 20, -3]))
            elif step < 0.98:
                driven.sweep(age=rng.choice([0, 3, 10, 1000]))
            else:
                driven.the_session_ends()
            driven.nothing_is_left_behind()
    finally:
        driven.teardown()


@pytest.mark.parametrize("seed", range(4))
def test_long_histories_against_the_model(machine: type[Machine], seed: int) -> None:
    drive(machine, seed, 250)


# Each breaks one rule: (in the function, instead, what it forgets).
BROKEN = [
    ("n.expires_at > q.read_time and n.expires_at <= p_now", "false", "what expired in a scanned range"),
    ("c.key >= g.low and c.key < g.high and c.kind <> 3", "false", "phantoms"),
    ("w.how & 1 = 0 and n.version > q.start", "false", "writes over writes"),
    ("p_erased <= q.start or not", "true or not", "deleted ranges without a key"),
    ("(n.expires_at <> 0 and n.expires_at <= p_now)", "false", "the expiry of what was read"),
    (
        "v_now := greatest({clock}, h.expiry_time);\n    if abs",
        "v_now := {clock};\n    if abs",
        "a clock set back",
    ),
    (
        "update {s}.now n set value = null, session = 0",
        "update {s}.now n set version = h.version, value = null",
        "that expiry is no write",
    ),
    (
        "and n.version < p_version;\n    insert into {s}.now",
        "and false;\n    insert into {s}.now",
        "old values",
    ),
]


@pytest.mark.parametrize(("right", "wrong"), [row[:2] for row in BROKEN], ids=[row[2] for row in BROKEN])
def test_the_model_notices_a_broken_rule(
    machine: type[Machine], monkeypatch: pytest.MonkeyPatch, right: str, wrong: str
) -> None:
    texts = [path.read_text() for path in Path(migrations.__file__).parent.joinpath("sql").iterdir()]
    assert any(right in text for text in texts), "the functions no longer say this"
    whole = migrations.filled
    monkeypatch.setattr(
        migrations, "filled", lambda text, location: whole(text.replace(right, wrong), location)
    )
    with pytest.raises((AssertionError, OccamError, pytest.fail.Exception)):
        for seed in range(100, 110):
            drive(machine, seed, 250)
