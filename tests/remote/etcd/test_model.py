"""etcd compared with the model of a namespace: every answer, snapshot and change, with a clock that the test sets."""

from __future__ import annotations

import itertools
import os
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from occamdb.engine.commit.messages import (
    Op,
    OpCode,
    OpFlags,
    Reply,
    Request,
    RequestFlags,
    Status,
    encode_request,
)
from occamdb.engine.model.bounds import encode_bounds
from occamdb.engine.model.errors import SnapshotExpired
from occamdb.engine.remote.etcd import EtcdBackend, open_backend
from occamdb.engine.remote.etcd.upkeep import sweep
from tests.support.timeless_namespace_model import ModelReply, NamespaceModel, Stored

from .conftest import BASE, Opening

RUN = BASE + bytes(16) + b"\x01"
NAMES = [RUN + bytes([letter]) for letter in b"abcdefgh"]
END = RUN + b"\xff"
SECOND = 1_000_000_000

keys = st.sampled_from(NAMES)
versions = st.integers(0, 6)
bounds = st.tuples(keys, st.sampled_from([*NAMES, END])).map(sorted).filter(lambda pair: pair[0] < pair[1])
values = st.sampled_from([b"\x01", b"\x05", b"\xd0\x80", b"\xa1x", b"\xcf" + b"\xff" * 8])
limits = st.sampled_from([b"", encode_bounds(8, None), encode_bounds(None, -3), encode_bounds(5, 1)])
counts = itertools.count()


@dataclass
class Snapshot:
    version: int
    expiry_time: int
    state: dict[bytes, Stored]


@st.composite
def effects(draw: st.DrawFn) -> list[tuple[Any, ...]]:
    """(what, key, …), one for each key; times to live in seconds."""
    made: list[tuple[Any, ...]] = []
    for key in draw(st.lists(keys, unique=True, max_size=4)):
        kind = draw(st.sampled_from(["put", "put", "ttl", "delete", "add"]))
        if kind in ("put", "ttl"):
            made.append((kind, key, draw(values), draw(st.integers(0, 6))))
        elif kind == "delete":
            made.append((kind, key))
        else:
            made.append((kind, key, draw(st.integers(-3, 3)), draw(limits)))
    if draw(st.integers(0, 3)) == 0:
        made.append(("range", *draw(bounds)))
    return made


class Machine(RuleBasedStateMachine):
    """Two clients of one namespace, and the model."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        at = f"{self.url}-{next(counts)}"
        settings_of: dict[str, Any] = {"timeout": 10.0, "compact": False, "snapshot_max_age": 8.0}
        self.backends = [open_backend(at, BASE, **settings_of) for _ in range(2)]
        self.time = self.backends[0]._family.client.clock.now()
        for backend in self.backends:
            backend._family.client.clock.now = lambda: self.time  # type: ignore[method-assign]
        self.model = NamespaceModel()
        self.snapshots: list[Snapshot] = []

    def teardown(self) -> None:
        for backend in self.backends:
            backend.close()

    @rule(which=st.integers(0, 1))
    def begin(self, which: int) -> None:
        self.model.expire(self.time)
        begun = self.backends[which].begin(NAMES)
        assert begun.version == self.model.version
        assert begun.clock == self.time
        assert begun.expiry_time <= self.time
        assert not [r for r in self.model.state.values() if begun.expiry_time < r.expires_at <= self.time]
        self.snapshots.append(Snapshot(begun.version, begun.expiry_time, dict(self.model.state)))
        self.same_rows(list(begun.rows), self.snapshots[-1], NAMES)
        del self.snapshots[:-6]

    def floor(self, which: int) -> int:
        """Of the head that a client saw last."""
        known = self.backends[which]._member.space.known()
        assert known is not None
        return known[0].floor

    def same_rows(self, rows: list[Any], snapshot: Snapshot, asked: list[bytes]) -> None:
        for key, row in zip(asked, rows, strict=True):
            record = snapshot.state.get(key)
            if record is None:
                assert row is None
            else:
                found = (row.key, row.value, row.version, row.timestamp, row.expires_at)
                assert found == (key, record.value, record.version, record.timestamp, record.expires_at)

    @rule(seconds=st.sampled_from([0.2, 1, 3, 9]))
    def advance(self, seconds: float) -> None:
        self.time += int(seconds * SECOND)

    @precondition(lambda self: self.snapshots)
    @rule(
        which=st.integers(0, 1), data=st.data(), limit=st.integers(1, 9), reverse=st.booleans(), within=bounds
    )
    def scan(self, which: int, data: st.DataObject, limit: int, reverse: bool, within: list[bytes]) -> None:
        snapshot = data.draw(st.sampled_from(self.snapshots))
        start, end = within
        expected = sorted((key for key in snapshot.state if start <= key < end), reverse=reverse)
        found: list[Any] = []
        whole = False
        try:
            while not whole:
                page, whole = self.backends[which].scan(start, end, snapshot.version, limit, reverse=reverse)
                assert len(page) <= limit and (page or whole)
                found.extend(page)
                if page:
                    start, end = (start, page[-1].key) if reverse else (page[-1].key + b"\0", end)
        except SnapshotExpired:  # a snapshot of the other client, of which the log is gone
            assert snapshot.version < self.floor(which) and not found
            return
        assert [row.key for row in found] == expected
        self.same_rows(found, snapshot, expected)
        self.same_rows(list(self.backends[which].read(NAMES, snapshot.version)), snapshot, NAMES)

    @precondition(lambda self: self.snapshots)
    @rule(
        which=st.integers(0, 1),
        data=st.data(),
        reads=st.lists(keys, unique=True, max_size=3),
        honest=st.booleans(),
        ranges=st.lists(bounds, max_size=2, unique_by=tuple),
        cas=st.dictionaries(keys, st.integers(0, 3), max_size=2),
        writes=effects(),
        flags=st.sampled_from([0, 0, 0, 0, 1, 4]),
    )
    def commit(
        self,
        which: int,
        data: st.DataObject,
        reads: list[bytes],
        honest: bool,
        ranges: list[list[bytes]],
        cas: dict[bytes, int],
        writes: list[tuple[Any, ...]],
        flags: int,
    ) -> None:
        snapshot = data.draw(st.sampled_from(self.snapshots[-3:]))
        ops: list[Op] = []
        for key in reads:
            record = snapshot.state.get(key)
            seen = record.version if record is not None and record.live(snapshot.expiry_time) else 0
            ops.append(Op(OpCode.READ, key, argument=seen if honest or flags & 1 else seen + 1))
        blind = bool(flags & RequestFlags.BLIND)
        ops.extend(Op(OpCode.RANGE, start, end) for start, end in ([] if blind else ranges))
        for key, choice in cas.items():
            now = self.model.state.get(key)
            expected = [0, now.version if now else 0, self.model.version, now.version if now else 0][choice]
            ops.append(Op(OpCode.CAS, key, argument=expected))
        for effect in writes:
            ops.append(self.effect(effect, effect[1] in cas))
        self.send(which, snapshot, ops, RequestFlags(flags))

    def send(self, which: int, snapshot: Snapshot, ops: list[Op], flags: RequestFlags) -> Status | None:
        request = Request(0, snapshot.version, snapshot.expiry_time, tuple(ops), flags=flags)
        backend = self.backends[which]
        try:
            reply = backend.commit(encode_request(request), None).reply
        except SnapshotExpired:
            self.model.expire(self.time)
            assert snapshot.version < self.floor(which)
            return None
        self.model.expire(self.time)
        same_reply(reply, self.model.commit(request, max(self.time, snapshot.expiry_time)))
        return reply.status

    def effect(self, effect: tuple[Any, ...], by_cas: bool) -> Op:
        flags = OpFlags.WANT_RESULT | (OpFlags.UNCHECKED if by_cas else OpFlags.NONE)
        kind, key, *rest = effect
        if kind == "range":
            return Op(OpCode.DELETE_RANGE, key, rest[0])
        if kind == "delete":
            return Op(OpCode.DELETE, key, flags=flags)
        if kind == "add":
            return Op(OpCode.ADD, key, rest[1] or b"", rest[0], flags=flags)
        expires_at = self.time + rest[1] * SECOND if kind == "ttl" else 0
        return Op(OpCode.PUT, key, rest[0], expires_at=expires_at, flags=flags & OpFlags.UNCHECKED)

    @rule(which=st.integers(0, 1))
    def forget(self, which: int) -> None:
        sweep(self.backends[which]._member.space)

    @rule(which=st.integers(0, 1), back=st.integers(0, 5), limit=st.integers(1, 5), within=bounds)
    def changes(self, which: int, back: int, limit: int, within: list[bytes]) -> None:
        self.model.expire(self.time)
        backend = self.backends[which]
        assert backend.newest() == self.model.version
        since = max(self.floor(which), self.model.version - back)
        start, end = within
        expected = [
            (version, [c for c in changed if start <= c[1] < end])
            for version, changed in self.model.log
            if version > since
        ]
        found: list[Any] = []
        while since < self.model.version:
            page = backend.changes(start, end, since, limit, values=True)
            assert page.reached > since
            found.extend((c.version, [tuple(change) for change in c.changes]) for c in page.commits)
            since = page.reached
        assert found == [(version, changed) for version, changed in expected if changed]


def same_reply(reply: Reply, expected: ModelReply) -> None:
    assert reply.status is expected.status
    assert reply.commit_version == expected.version
    assert reply.conflicts_found == expected.validation.found
    assert tuple(entry.record() for entry in reply.conflicts) == expected.validation.conflicts
    if reply.status is Status.COMMITTED:
        assert [(r.op_index, r.kind, r.value) for r in reply.results] == expected.results


def test_etcd_answers_as_the_model_does(url: str) -> None:
    machine = type("EtcdMachine", (Machine,), {"url": url})
    examples = int(os.environ.get("OCCAMDB_TEST_EXAMPLES", "60"))
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


# ---- a long walk ------------------------------------------------------------------------------------------


class Walk(Machine):
    """Random steps, most of them one check and one effect: so that no conflict hides behind another."""

    def check(self, rng: random.Random, snapshot: Snapshot) -> list[Op]:
        key = rng.choice(NAMES[:5])
        start, end = sorted(rng.sample([*NAMES[:5], END], 2))
        record = snapshot.state.get(key)
        seen = record.version if record is not None and record.live(snapshot.expiry_time) else 0
        kind = rng.randrange(4)
        if kind == 0:
            return [Op(OpCode.READ, key, argument=seen)]
        if kind == 1:
            return [Op(OpCode.RANGE, start, end)]
        if kind == 2:
            return [Op(OpCode.CAS, key, argument=rng.choice([0, seen]))]
        return []

    def step(self, rng: random.Random) -> Status | None:
        which, kind = rng.randrange(2), rng.randrange(100)
        if kind < 25 or not self.snapshots:
            self.begin(which)
        elif kind < 35:
            self.time += rng.choice([SECOND // 10, SECOND, SECOND, 3 * SECOND, 9 * SECOND])
        elif kind < 38:
            sweep(self.backends[which]._member.space)
        elif kind < 42:
            within = sorted(rng.sample([*NAMES[:5], END], 2))
            self.changes(which=which, back=rng.randrange(6), limit=rng.randrange(1, 6), within=within)
        elif kind < 46:
            snapshot = rng.choice(self.snapshots)
            try:
                rows = self.backends[which].read(NAMES, snapshot.version)
            except SnapshotExpired:
                assert snapshot.version < self.floor(which)
            else:
                self.same_rows(list(rows), snapshot, NAMES)
        else:
            snapshot = rng.choice(self.snapshots)
            ops = self.check(rng, snapshot)
            effect = rng.choice(["put", "put", "ttl", "ttl", "delete", "add", "range", "range", "none"])
            key = rng.choice(NAMES[:5])
            start, end = sorted(rng.sample([*NAMES[:5], END], 2))
            if effect == "range":
                ops.append(self.effect(("range", start, end), False))
                if rng.randrange(2):
                    ops.append(self.effect(("put", key, b"\x03", 0), False))
            elif effect != "none":
                by_cas = bool(ops) and ops[0].code is OpCode.CAS and ops[0].key == key
                tail = {"delete": (), "add": (1, b"")}.get(effect, (b"\x02", rng.randrange(4)))
                ops.append(self.effect((effect, key, *tail), by_cas))
            return self.send(
                which, snapshot, ops, RequestFlags.JUDGE_ONLY if kind > 95 else RequestFlags.NONE
            )
        return None


@pytest.mark.parametrize("seed", range(4))
def test_a_long_walk_agrees_with_the_model(url: str, seed: int) -> None:
    walk: Any = type("EtcdWalk", (Walk,), {"url": url})()
    rng = random.Random(seed)
    outcomes = []
    try:
        for _ in range(int(os.environ.get("OCCAMDB_TEST_STEPS", "600"))):
            outcomes.append(walk.step(rng))
    finally:
        walk.teardown()
    assert outcomes.count(Status.COMMITTED) > 100
    assert outcomes.count(Status.CONFLICT) > 50


# ---- many at once -----------------------------------------------------------------------------------------


def requests_of(rng: random.Random, backend: EtcdBackend) -> Iterator[Request]:
    """Endless read-modify-write transactions, scans, increments, compare-and-sets and range deletes."""
    while True:
        begun = backend.begin(NAMES)
        seen = {row.key: row for row in begun.rows if row is not None}
        ops: list[Op] = []
        kind = rng.randrange(10)
        key, other = rng.sample(NAMES, 2)
        start, end = sorted((key, other))
        if kind < 4:
            ops.append(Op(OpCode.READ, key, argument=seen[key].version if key in seen else 0))
            ops.append(Op(OpCode.PUT, other, bytes([rng.randrange(100)])))
        elif kind < 6:
            ops.append(Op(OpCode.RANGE, start, end))
            ops.append(Op(OpCode.PUT, end, bytes([rng.randrange(100)])))
        elif kind < 8:
            ops.append(Op(OpCode.ADD, key, argument=1, flags=OpFlags.WANT_RESULT))
            ops.append(Op(OpCode.DELETE, other, flags=OpFlags.WANT_RESULT))
        elif kind == 8:
            ops.append(Op(OpCode.CAS, key, argument=seen[key].version if key in seen else 0))
            ops.append(Op(OpCode.PUT, key, bytes([rng.randrange(100)]), flags=OpFlags.UNCHECKED))
        else:
            ops.append(Op(OpCode.DELETE_RANGE, start, end))
            ops.append(Op(OpCode.PUT, start, b"\x07"))
        yield Request(0, begun.version, begun.expiry_time, tuple(ops))


def replay(done: list[tuple[Request, Reply]]) -> NamespaceModel:
    """Apply what was acknowledged in the order of its versions; each must win in the model, with the same results."""
    model = NamespaceModel()
    won = sorted(
        ((request, reply) for request, reply in done if reply.status is Status.COMMITTED),
        key=lambda pair: pair[1].commit_version,
    )
    for request, reply in won:
        assert reply.commit_version == model.version + 1
        same_reply(reply, model.commit(request, reply.committed_at))
    return model


def work(backend: EtcdBackend, seed: int, count: int, done: list[tuple[Request, Reply]]) -> None:
    for request in itertools.islice(requests_of(random.Random(seed), backend), count):
        done.append((request, backend.commit(encode_request(request), None).reply))


@pytest.mark.parametrize("seed", range(3))
def test_commits_at_once_have_one_order_that_the_model_agrees_with(opened: Opening, seed: int) -> None:
    backends = [opened(), opened()]
    done: list[tuple[Request, Reply]] = []
    threads = [
        threading.Thread(target=work, args=(backends[index % 2], seed * 100 + index, 40, done))
        for index in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 320
    model = replay(done)
    begun = backends[0].begin(NAMES)
    assert begun.version == model.version
    assert {row.key: row.value for row in begun.rows if row} == {k: r.value for k, r in model.state.items()}
    assert any(reply.status is Status.CONFLICT for _, reply in done)
    assert sum(backend.stats()["batches"] for backend in backends) < model.version
    seen: list[int] = []
    since = 0
    while since < model.version:
        page = backends[1].changes(NAMES[0], None, since, 50, values=True)
        for commit in page.commits:
            expected = dict(model.log)[commit.version]
            assert [tuple(change) for change in commit.changes] == expected
            seen.append(commit.version)
        since = page.reached
    assert seen == [version for version, changed in model.log if changed]
