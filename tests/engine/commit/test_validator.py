"""The compiled validator against `tests/support/conflict_model.py`: the same requests, the same verdicts.

One in-memory engine takes raw requests (`LocalHandle.submit`), its clock stepped between them; a model of what was
written, a dict beside it, feeds `validate_transaction`. Where deletes may be forgotten the compiled one must refuse
more: that is a test of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgpack
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from occamdb import Database, Namespace, RunId, TypeTag, WriteConflict
from occamdb.engine.client.local_handle import LocalHandle
from occamdb.engine.commit.messages import (
    ConflictKind,
    Op,
    OpCode,
    OpFlags,
    Reply,
    Request,
    RequestFlags,
    Status,
    decode_reply,
    encode_request,
)
from occamdb.engine.model.keys import tag_prefix
from occamdb.engine.model.settings import Settings
from tests.support import clocks
from tests.support.conflict_model import CommitSets, Newest, validate_transaction

PREFIX = tag_prefix(Namespace(run_id=RunId.new()).prefix, TypeTag.KV)
KEYS = [PREFIX + name for name in (b"a", b"b", b"c/1", b"c/2", b"c/3", b"d")]
BOUNDS = [PREFIX, *KEYS, PREFIX + b"c/", PREFIX + b"c0", PREFIX + b"z"]
SECOND = 1_000_000_000
STEP = 1000 * SECOND  # far more than a test takes: only steps of the clock make keys expire
# Times to live in steps of the clock; 0 means that the key does not expire.
TTLS = [0, 1, 2, 9]


class Engine:
    """An engine and what it should hold; its oldest snapshot is pinned, so that no delete is forgotten.

    The model knows what was written, when it expires, and what time it is. That the engine removes expired keys in
    the background, and with which versions, it does not know.
    """

    def __init__(self) -> None:
        self.handle = LocalHandle(Settings.of({"max_store_size": "4MiB"}))
        self.records: dict[bytes, Newest] = {}
        self.started = clocks.expiry_clock(self.handle)
        self.steps = 0
        self.version = 0
        self.range_deletes: list[tuple[bytes, bytes, int]] = []
        self.snapshots = [(0, self.now)]

    @property
    def now(self) -> int:
        """Half a step behind what the engine's clock shows at least, and half a step before it shows more."""
        return self.started + self.steps * STEP + STEP // 2

    def step_clock(self, steps: int) -> None:
        self.steps += steps
        self.snapshots.append((self.version, self.now))
        clocks.step(self.handle, steps * STEP)

    # The model as a VersionSource.

    def newest(self, key: bytes) -> Newest | None:
        return self.records.get(key)

    def newest_in_range(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, Newest]]:
        return ((k, r) for k, r in sorted(self.records.items()) if start <= k < end)

    def submit(self, request: Request) -> Reply:
        reply = self.handle.submit(bytearray(encode_request(request)), None).reply
        assert isinstance(reply, bytes)
        return decode_reply(reply)

    def live(self, key: bytes) -> bool:
        record = self.records.get(key)
        return (
            record is not None
            and record.version > 0
            and not (record.expires_at and record.expires_at <= self.now)
        )

    def apply(self, request: Request, version: int) -> None:
        """What a committed request does, in plain words."""
        self.version = version
        for op in request.ops:
            if op.code is OpCode.PUT:
                self.records[op.key] = Newest(version, version, op.expires_at)
            elif op.code is OpCode.DELETE and self.live(op.key):
                self.records[op.key] = Newest(0, version)
            elif op.code is OpCode.ADD:
                kept = self.records[op.key].expires_at if self.live(op.key) else 0
                self.records[op.key] = Newest(version, version, kept)
            elif op.code is OpCode.DELETE_RANGE:
                self.range_deletes.append((op.key, op.value, version))
                for key in list(self.records):
                    if op.key <= key < op.value and self.live(key):
                        self.records[key] = Newest(0, version)
        self.snapshots.append((version, self.now))


keys = st.sampled_from(KEYS)
ages = st.integers(0, 6)
ranges = st.tuples(st.sampled_from(BOUNDS), st.sampled_from(BOUNDS))
checks = st.lists(
    st.one_of(
        st.tuples(st.just(OpCode.READ), keys, ages),
        st.tuples(st.just(OpCode.CAS), keys, ages),
        st.tuples(st.just(OpCode.RANGE), ranges, ages),
    ),
    max_size=5,
)
effects = st.lists(
    st.one_of(
        st.tuples(st.just(OpCode.PUT), keys, st.sampled_from(TTLS)),
        st.tuples(st.just(OpCode.DELETE), keys, st.just(0)),
        st.tuples(st.just(OpCode.ADD), keys, st.just(0)),
    ),
    max_size=4,
    unique_by=lambda effect: effect[1],
)
requests = st.tuples(
    st.booleans(),
    ages,
    st.sampled_from([0, 0, 0, 1, 3]),
    checks,
    st.lists(ranges, max_size=1),
    effects,
)


def build(engine: Engine, drawn: Any) -> Request:
    """Steps the clock, then makes a request whose versions are mostly those the engine has, sometimes some behind."""
    blind, age, steps, drawn_checks, cleared, drawn_effects = drawn
    engine.step_clock(steps)
    start_version, read_time = engine.snapshots[max(0, len(engine.snapshots) - 1 - age)]
    ops: list[Op] = []
    checked = set()
    for code, where, behind in drawn_checks:
        if code is OpCode.RANGE:
            ops.append(Op(OpCode.RANGE, *where))
            continue
        record = engine.records.get(where)
        now = record.version if record is not None and engine.live(where) else 0
        if behind == 5 and record is not None:
            now = record.version  # also when it has expired
        ops.append(Op(code, where, argument=max(0, now - behind) if behind < 5 else now))
        if code is OpCode.CAS:
            checked.add(where)
    ops.sort(key=lambda op: op.code)
    for start, end in cleared:
        ops.append(Op(OpCode.DELETE_RANGE, start, end))
    for code, key, ttl in drawn_effects:
        expires_at = engine.started + (engine.steps + ttl) * STEP if ttl else 0
        flags = OpFlags.UNCHECKED if key in checked else OpFlags.NONE
        if code is OpCode.PUT:
            ops.append(Op(code, key, msgpack.packb(7), 0, expires_at, flags))
        else:
            ops.append(Op(code, key, argument=1 if code is OpCode.ADD else 0, flags=flags))
    how = RequestFlags.BLIND if blind else RequestFlags.NONE
    return Request(1, start_version, read_time, tuple(ops), flags=how)


def sets_of(request: Request, now: int) -> CommitSets:
    blind = bool(request.flags & RequestFlags.BLIND)
    cas = {op.key: op.argument for op in request.ops if op.code is OpCode.CAS}
    adds = [op.key for op in request.ops if op.code is OpCode.ADD and not op.flags & OpFlags.UNCHECKED]
    return CommitSets(
        start_version=None if blind else request.start_version,
        read_time=request.read_time,
        cas=cas,
        writes=frozenset(
            op.key
            for op in request.ops
            if op.code in (OpCode.PUT, OpCode.DELETE) and not op.flags & OpFlags.UNCHECKED
        ),
        commit_time=now,
        adds=frozenset(adds),
        deleted_ranges=[(op.key, op.value) for op in request.ops if op.code is OpCode.DELETE_RANGE],
    )


def found_by_model(engine: Engine, request: Request) -> list[tuple[ConflictKind, bytes, bytes, int, int]]:
    """Conflicts by the model, one request op at a time: (kind, key, end, expected, found)."""
    rows = []
    for op in request.ops:
        base = sets_of(
            Request(1, request.start_version, request.read_time, (op,), flags=request.flags), engine.now
        )
        if op.code is OpCode.READ:
            sets = CommitSets(
                base.start_version, base.read_time, reads={op.key: op.argument}, commit_time=engine.now
            )
        elif op.code is OpCode.RANGE:
            # A blind request has no ranges; the compiled one takes its start_version at its word.
            sets = CommitSets(
                request.start_version, base.read_time, ranges=[(op.key, op.value)], commit_time=engine.now
            )
        else:
            sets = base
        found = validate_transaction(engine, sets, range_deletes=engine.range_deletes)
        for conflict in found.conflicts:
            kind = {
                OpCode.READ: ConflictKind.READ,
                OpCode.RANGE: ConflictKind.RANGE,
                OpCode.CAS: ConflictKind.CAS,
                OpCode.DELETE_RANGE: ConflictKind.RANGE,
            }.get(op.code, ConflictKind.WRITE)
            if isinstance(conflict, WriteConflict):
                kind = ConflictKind.WRITE
            end = op.value if kind is ConflictKind.RANGE else b""
            rows.append((kind, op.key, end, conflict.expected_version, conflict.found_version))
    return rows


def same(engine: Engine, reply: Reply, expected: list[tuple[ConflictKind, bytes, bytes, int, int]]) -> None:
    assert reply.conflicts_found == len(expected)
    for entry, (kind, key, end, wanted, found) in zip(reply.conflicts, expected, strict=False):
        assert (entry.kind, entry.key, entry.end, entry.expected) == (kind, key, end, wanted)
        if kind is ConflictKind.RANGE:
            # Which of several writes and expiries in the range it names is its own choice.
            deleted = [version for _, _, version in engine.range_deletes]
            assert (entry.found in deleted and entry.found > wanted) or any(
                record.written_version == entry.found
                and (entry.found > wanted or 0 < record.expires_at <= engine.now)
                for _, record in engine.newest_in_range(key, end)
            )
        else:
            assert entry.found == found


def test_a_create_conflicts_with_a_range_deleted_after_its_key_expired() -> None:
    """The key was alive in the snapshot, expired, and then the range around it was deleted."""
    engine = Engine()
    key, (start, end) = KEYS[0], (BOUNDS[0], BOUNDS[-1])
    assert start <= key < end

    def commit(start_version: int, read_time: int, *ops: Op) -> Reply:
        request = Request(1, start_version, read_time, ops)
        expected = found_by_model(engine, request)
        reply = engine.submit(request)
        same(engine, reply, expected)
        if reply.status is Status.COMMITTED:
            engine.apply(request, reply.commit_version)
        return reply

    expires_at = engine.now + STEP
    put = Op(OpCode.PUT, key, msgpack.packb(1), 0, expires_at)
    assert commit(engine.version, engine.now, put).status is Status.COMMITTED
    snapshot = engine.version, engine.now
    engine.step_clock(2)
    create = (
        Op(OpCode.CAS, key, argument=0),
        Op(OpCode.PUT, key, msgpack.packb(2), flags=OpFlags.UNCHECKED),
    )
    cleared = commit(engine.version, engine.now, Op(OpCode.DELETE_RANGE, start, end))
    assert cleared.status is Status.COMMITTED
    (conflict,) = commit(*snapshot, *create).conflicts
    assert (conflict.kind, conflict.expected, conflict.found) == (
        ConflictKind.WRITE,
        snapshot[0],
        cleared.commit_version,
    )
    assert commit(engine.version, engine.now, *create).status is Status.COMMITTED
    engine.handle.close()


# A key is put into the range that the same request deletes, and has expired when an older transaction wants it absent.
# That one would write into a range that was deleted after its start.
PUT_AND_DELETED: Any = (False, 0, 0, [], [(PREFIX, KEYS[1])], [(OpCode.PUT, KEYS[0], 1)])
WANTED_ABSENT: Any = (False, 2, 1, [(OpCode.CAS, KEYS[0], 0)], [], [])


@settings(suppress_health_check=list(HealthCheck))
@given(st.lists(requests, max_size=25))
@example([PUT_AND_DELETED, WANTED_ABSENT])
def test_the_compiled_validator_agrees_with_the_plain_one(drawn: list[Any]) -> None:
    engine = Engine()
    # A pin on the empty store: every tombstone stays, so the compiled one knows as much as the model.

    oldest = Database(engine.handle).snapshot(RunId.new())
    try:
        for one in drawn:
            request = build(engine, one)
            expected = found_by_model(engine, request)
            reply = engine.submit(request)
            if expected:
                assert reply.status is Status.CONFLICT
                same(engine, reply, expected)
            else:
                assert reply.status is Status.COMMITTED, reply
                engine.apply(request, reply.commit_version)
        assert engine.handle.admin({"kind": "check"}) == {"problem": None}
    finally:
        oldest.close()
        engine.handle.close()


@settings(suppress_health_check=list(HealthCheck))
@given(st.lists(requests, max_size=25), st.integers(0, 20), st.sampled_from([0, 1, 512]))
def test_without_a_pin_it_may_refuse_more_but_never_less(drawn: list[Any], every: int, inline: int) -> None:
    """Deletes are forgotten at once here: what the model refuses is refused, whatever else is.

    So it is with range tombstones, of which a scan also learns when no key of it was deleted.
    """
    engine = Engine()
    engine.handle._core.set_range_limits(inline_max=inline, slice=1, walk_slice=1)
    try:
        for number, one in enumerate(drawn):
            request = build(engine, one)
            expected = found_by_model(engine, request)
            reply = engine.submit(request)
            if expected:
                assert reply.status is Status.CONFLICT
            if reply.status is Status.COMMITTED:
                engine.apply(request, reply.commit_version)
            else:
                assert reply.status is Status.CONFLICT
                # What it refuses on top of that is older than a delete it has forgotten.
                assert expected or request.start_version < engine.handle._core.committed_version
            if every and number % every == 0:
                assert engine.handle.admin({"kind": "check"}) == {"problem": None}
    finally:
        engine.handle.close()


def test_more_conflicts_than_are_listed() -> None:
    """All are counted, sixteen are listed."""
    engine = Engine()
    names = [PREFIX + b"%03d" % n for n in range(40)]
    put = Request(1, ops=tuple(Op(OpCode.PUT, name, b"\x01") for name in names), flags=RequestFlags.BLIND)
    assert engine.submit(put).status is Status.COMMITTED
    reply = engine.submit(Request(1, ops=tuple(Op(OpCode.READ, name, argument=9) for name in names)))
    assert (reply.status, reply.conflicts_found, len(reply.conflicts)) == (Status.CONFLICT, 40, 16)
    engine.handle.close()
