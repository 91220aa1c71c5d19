"""The contract of servers: order, snapshots, validation, effects and changes, compared with a model.

Rules 1, 2, 4, 5 and 8 of `engine/remote/backend.py`, in every interleaving of transactions that hypothesis finds. What
takes time, processes or faults stands in the files beside this one.
"""

from collections.abc import Iterable
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

from occamdb.engine.commit.messages import CONFLICTS_LISTED_MAX, Op, OpCode, RequestFlags, Status
from occamdb.engine.model.values import Codec
from occamdb.engine.remote.backend import Backend, Begun
from tests.support.backends import (
    FAR,
    Kind,
    adding,
    base_of_its_own,
    cas,
    commit,
    decoded,
    deleting,
    deleting_range,
    end_of,
    every_row,
    key_in,
    putting,
    range_read,
    reading,
)
from tests.support.contract_model import ContractModel, Stored, View

_decode = Codec().decode
NAMES = st.sampled_from(["a", "ab", "b", "ba", "c"])
BOUNDS = st.sampled_from(["", "a", "ab", "b", "c", "d"])
VALUES = st.integers(-2, 9) | st.sampled_from(["text", 2**64 - 1])
EXPIRES = st.sampled_from([0, 0, 0, 1, FAR])
EXAMPLES = {"dict": 100, "postgres": 20, "etcd": 15}


class Interleavings(RuleBasedStateMachine):
    """Several transactions at once, on one namespace."""

    client: Backend
    open_views = Bundle("open_views")

    @initialize()
    def open(self) -> None:
        self.base = base_of_its_own()
        self.backend = self.client.of(self.base)
        begun = self.backend.begin()
        self.since = begun.version
        self.model = ContractModel(begun.version)

    def key(self, name: str) -> bytes:
        return key_in(self.base, name)

    @rule(target=open_views, names=st.lists(NAMES, max_size=3))
    def begin(self, names: list[str]) -> tuple[Begun, View]:
        begun = self.backend.begin([self.key(name) for name in names])
        assert begun.version >= self.model.versions[-1]
        view = self.model.view(begun.version)
        for name, row in zip(names, begun.rows, strict=True):
            self.agree(begun, view, self.key(name), row)
        return begun, view

    def agree(self, begun: Begun, view: View, key: bytes, row: Any) -> None:
        """A row is what the view holds; one that has expired may be there still, or no longer."""
        stored = view.state.get(key)
        if stored is not None and stored.is_live:
            assert row is not None
            assert (row.key, decoded(row), row.version) == (key, stored.value, stored.version)
            assert row.expires_at == stored.expires_at and row.session == 0
        else:
            assert row is None or (stored is not None and 0 < row.expires_at <= begun.expiry_time)

    @rule(opened=open_views, name=NAMES)
    def read(self, opened: tuple[Begun, View], name: str) -> None:
        begun, view = opened
        key = self.key(name)
        (row,) = self.backend.read([key], begun.version)
        self.agree(begun, view, key, row)
        view.reads[key] = view.version_of(key)

    @rule(opened=open_views, start=BOUNDS, end=BOUNDS, page=st.integers(1, 3), reverse=st.booleans())
    def scan(self, opened: tuple[Begun, View], start: str, end: str, page: int, reverse: bool) -> None:
        begun, view = opened
        low, high = self.key(start), self.key(end)
        rows = list(every_row(self.backend, begun, low, high, page=page, reverse=reverse))
        expected = [(key, stored.value, stored.version) for key, stored in view.live(low, high)]
        assert [(row.key, decoded(row), row.version) for row in rows] == (
            expected[::-1] if reverse else expected
        )
        if low < high:
            view.ranges.append((low, high))

    def effect(self, view: View, op: Op) -> None:
        """One effect a key, as transactions send them."""
        view.effects = [one for one in view.effects if one.key != op.key or one.code is OpCode.DELETE_RANGE]
        view.cas.pop(op.key, None)
        view.effects.append(op)

    @rule(opened=open_views, name=NAMES, value=VALUES, expires_at=EXPIRES)
    def put(self, opened: tuple[Begun, View], name: str, value: Any, expires_at: int) -> None:
        self.effect(opened[1], putting(self.key(name), value, expires_at))

    @rule(opened=open_views, name=NAMES)
    def delete(self, opened: tuple[Begun, View], name: str) -> None:
        self.effect(opened[1], deleting(self.key(name)))

    @rule(opened=open_views, name=NAMES, by=st.integers(-3, 3))
    def add(self, opened: tuple[Begun, View], name: str, by: int) -> None:
        self.effect(opened[1], adding(self.key(name), by))

    @rule(opened=open_views, name=NAMES, value=VALUES, from_snapshot=st.booleans())
    def cas(self, opened: tuple[Begun, View], name: str, value: Any, from_snapshot: bool) -> None:
        view, key = opened[1], self.key(name)
        _, effect = cas(key, 0, value)
        self.effect(view, effect)
        view.cas[key] = view.version_of(key) if from_snapshot else self.model.versions[-1]

    @rule(names=st.lists(NAMES, min_size=1, unique=True), value=VALUES)
    def write_beside(self, names: list[str], value: Any) -> None:
        """A blind transaction cannot conflict."""
        ops = [putting(self.key(name), value) for name in names]
        sent = commit(self.backend, *ops)
        _, state, changed, _ = self.model.effects(ops, _decode)
        self.model.apply(sent.version, ops, state, changed)

    @rule(opened=open_views, start=BOUNDS, end=BOUNDS)
    def delete_range(self, opened: tuple[Begun, View], start: str, end: str) -> None:
        low, high = self.key(start), self.key(end)
        if low < high:
            opened[1].effects.append(deleting_range(low, high))

    @rule(opened=open_views)
    def judge_only(self, opened: tuple[Begun, View]) -> None:
        """The conflicts of now, and nothing is applied: the invariant looks."""
        begun, view = opened
        validation = self.model.judge(view)
        sent = commit(self.backend, *self.ops_of(view), begun=begun, flags=RequestFlags.JUDGE_ONLY)
        if validation.ok:
            assert sent.reply.status is Status.COMMITTED and sent.version == 0
        else:
            self.same_conflicts(sent.reply, validation)

    @rule(opened=consumes(open_views), blind=st.booleans())
    def commit(self, opened: tuple[Begun, View], blind: bool) -> None:
        begun, view = opened
        # Whether the delete of an absent key counts as a write is left open.
        view.effects = [
            op
            for op in view.effects
            if op.code is not OpCode.DELETE
            or (op.key in self.model.state and self.model.state[op.key].is_live)
        ]
        if blind:
            view.reads, view.ranges, view.cas = {}, [], {}
        validation = self.model.judge(view, blind=blind)
        ops = self.ops_of(view)
        if not ops:
            return
        reply = commit(self.backend, *ops, begun=None if blind else begun).reply
        if not validation.ok:
            self.same_conflicts(reply, validation)
            return
        status, state, changed, results = self.model.effects(view.effects, _decode)
        assert reply.status is status
        if status is Status.COMMITTED:
            assert [result.value for result in reply.results] == results
            if view.effects:
                assert reply.commit_version > self.model.versions[-1]
                self.model.apply(reply.commit_version, view.effects, state, changed)
        else:
            assert ops[reply.detail].code is OpCode.ADD

    def ops_of(self, view: View) -> list[Op]:
        checks = [reading(key, version) for key, version in view.reads.items()]
        checks += [range_read(start, end) for start, end in view.ranges]
        checks += [cas(key, version, None)[0] for key, version in view.cas.items()]
        return checks + view.effects

    def same_conflicts(self, reply: Any, validation: Any) -> None:
        assert reply.status is Status.CONFLICT and reply.commit_version == 0
        assert reply.conflicts_found == validation.found
        found = [entry.record() for entry in reply.conflicts]
        assert len(found) == min(validation.found, CONFLICTS_LISTED_MAX)
        expected = strip(validation.conflicts)
        if validation.found <= CONFLICTS_LISTED_MAX:
            assert strip(found) == expected
        order = [entry.kind for entry in reply.conflicts if entry.kind < 3]
        assert order[: order.count(1)] == [1] * order.count(1)  # reads come first

    @invariant()
    def the_newest_state_is_the_models(self) -> None:
        if hasattr(self, "model"):
            begun = self.backend.begin()
            view = self.model.view(begun.version)
            low, high = self.base, end_of(self.base)
            rows = every_row(self.backend, begun, low, high, page=2)
            found = {row.key: Stored(decoded(row), row.version, row.expires_at) for row in rows}
            assert found == dict(view.live(low, high))

    def teardown(self) -> None:
        """Each commit is in the changes once, in order."""
        if not hasattr(self, "model"):
            return
        found, since = list[tuple[int, dict[bytes, tuple[str, Any]]]](), self.since
        newest = self.backend.newest()
        while since < newest:
            page = self.backend.changes(self.base, end_of(self.base), since, 3, values=True)
            assert page.reached > since
            since = page.reached
            for one in page.commits:
                # An expiry is no write, and so is the delete of what had expired.
                changed: dict[bytes, tuple[str, Any]] = {
                    change.key: (change.kind, None if change.value is None else _decode(change.value))
                    for change in one.changes
                    if change.kind != "expire"
                }
                if changed:
                    found.append((one.version, changed))
        by_version = dict(self.model.changes)
        for version, changed in found:
            expected = by_version.get(version, {})
            extra = changed.keys() - expected.keys()
            assert all(changed.pop(key) == ("delete", None) for key in extra)
        assert [(version, changed) for version, changed in found if changed] == self.model.changes


def strip(conflicts: Iterable[Any]) -> list[Any]:
    """What the conflicts are about, sorted; which of several newer versions a range names is left open."""
    return sorted(
        (type(c).__name__, str(c.key), c.expected_version, str(getattr(c, "range", None)), 0)
        if getattr(c, "range", None) is not None
        else (type(c).__name__, str(c.key), c.expected_version, "", c.found_version)
        for c in conflicts
    )


def test_interleavings_agree_with_the_model(kind: Kind) -> None:
    class OnThisKind(Interleavings):
        client = kind.open(base_of_its_own())

    run_state_machine_as_test(
        OnThisKind,
        settings=settings(max_examples=EXAMPLES[kind.name], stateful_step_count=40, deadline=None),
    )


def test_a_begin_after_an_acknowledged_commit_has_it(kind: Kind, base: bytes) -> None:
    writer, reader = kind.open(base), kind.open(base)
    versions = []
    for number in range(20):
        sent = commit(writer, putting(key_in(base, "k"), number))
        begun = reader.begin([key_in(base, "k")])
        assert begun.version >= sent.version and decoded(begun.rows[0]) == number
        assert reader.newest() >= sent.version
        versions.append(sent.version)
    assert versions == sorted(set(versions))


def test_every_key_of_a_commit_carries_its_version_and_time(backend: Backend, base: bytes) -> None:
    keys = [key_in(base, f"k{number:03}") for number in range(100)]
    sent = commit(backend, *(putting(key, "v") for key in keys))
    begun = backend.begin(keys)
    assert {(row.version, row.timestamp) for row in begun.rows if row is not None} == {
        (sent.version, sent.reply.committed_at)
    }
    assert None not in begun.rows and abs(begun.clock - sent.reply.committed_at) < 60 * 10**9


def test_a_snapshot_stays_while_its_keys_change(kind: Kind, base: bytes) -> None:
    backend, other = kind.open(base), kind.open(base)
    keys = [key_in(base, name) for name in "abcd"]
    commit(other, *(putting(key, "old") for key in keys[:3]))
    begun = backend.begin()
    commit(other, deleting(keys[0]), putting(keys[1], "new"), putting(keys[3], "new"))
    commit(other, deleting_range(base, end_of(base)))
    commit(other, putting(keys[0], "newest"))
    assert [decoded(row) for row in backend.read(keys, begun.version)] == ["old", "old", "old", None]
    for reverse in (False, True):
        rows = list(every_row(backend, begun, base, end_of(base), page=2, reverse=reverse))
        assert [row.key for row in rows] == sorted(keys[:3], reverse=reverse)
    again = backend.begin()
    assert [row.key for row in every_row(backend, again, base, end_of(base))] == [keys[0]]


def test_namespaces_do_not_see_each_other(backend: Backend, kind: Kind) -> None:
    bases = sorted(base_of_its_own() for _ in range(3))
    spaces = [backend.of(base) for base in bases]
    assert all(space.session == backend.session for space in spaces)
    for number, (base, space) in enumerate(zip(bases, spaces, strict=True)):
        commit(space, putting(key_in(base, "k"), number))
    for number, (base, space) in enumerate(zip(bases, spaces, strict=True)):
        rows = list(every_row(space, space.begin(), base, end_of(base)))
        assert [decoded(row) for row in rows] == [number]
    found = [base for base in kind.open(bases[0]).namespaces() if base in bases]
    assert found == bases


def test_many_conflicts_are_counted_and_some_listed(kind: Kind, base: bytes) -> None:
    backend, other = kind.open(base), kind.open(base)
    keys = [key_in(base, f"k{number:02}") for number in range(40)]
    begun = backend.begin(keys)
    sent = commit(other, *(putting(key, 1) for key in keys))
    reads = [reading(key, 0) for key in keys]
    reply = commit(backend, *reads, *(putting(key, 2) for key in keys), begun=begun).reply
    assert reply.status is Status.CONFLICT and reply.conflicts_found == 80
    assert [(one.key, one.expected, one.found) for one in reply.conflicts] == [
        (key, 0, sent.version) for key in keys[:CONFLICTS_LISTED_MAX]
    ]


def test_a_request_is_applied_as_a_whole_or_not_at_all(backend: Backend, base: bytes) -> None:
    text, number, other = (key_in(base, name) for name in ("text", "number", "other"))
    commit(backend, putting(text, "no number"))
    reply = commit(backend, putting(other, 1), adding(number, 5), adding(text, 1)).reply
    assert (reply.status, reply.detail, reply.commit_version) == (Status.NOT_AN_INTEGER, 2, 0)
    assert [decoded(row) for row in backend.begin([text, number, other]).rows] == ["no number", None, None]


def test_an_increment_keeps_expiry_and_merges(kind: Kind, base: bytes) -> None:
    backend, other, key = kind.open(base), kind.open(base), key_in(base, "n")
    commit(backend, putting(key, 1, FAR))
    begun = backend.begin()
    assert commit(other, adding(key, 10), begun=other.begin()).reply.results[0].value == 11
    reply = commit(backend, adding(key, 100), begun=begun).reply  # from an older snapshot: no conflict
    assert reply.status is Status.COMMITTED and reply.results[0].value == 111
    (row,) = backend.begin([key]).rows
    assert row is not None and (decoded(row), row.expires_at) == (111, FAR)


@pytest.mark.parametrize("size", [0, 1, 100_000, 1_000_000])
def test_values_of_every_size_and_all_bytes(backend: Backend, base: bytes, size: int) -> None:
    key = key_in(base, "v") + bytes(range(256))
    value = bytes(index * 7 % 256 for index in range(size))
    commit(backend, putting(key, value))
    (row,) = backend.begin([key]).rows
    assert row is not None and row.key == key and decoded(row) == value
