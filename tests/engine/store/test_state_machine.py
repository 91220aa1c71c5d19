"""The store against the model, step by step: batches, undo, pins, collection, reads at every pinned version."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.store_model import Model, make_store, settle

KEYS = [
    b"",
    b"a",
    b"aa",
    b"ab",
    b"a\x00",
    b"b",
    b"run1/1",
    b"run1/2",
    b"run1/22",
    b"run2/1",
    b"\xff",
    b"\xff\xff",
]
KEYS += [b"long" * 40 + bytes([i]) for i in range(4)]
keys = st.sampled_from(KEYS)
bounds = st.one_of(keys, st.binary(max_size=3))
values = st.one_of(st.binary(max_size=20), st.integers(0, 3000).map(lambda n: b"v" * n))


class StoreMachine(RuleBasedStateMachine):
    """One batch at a time; pins may be opened at the committed version only, as in the database."""

    @initialize()
    def start(self) -> None:
        self.writer, self.reader = make_store(2 << 20)
        self.model = Model()
        self.committed = 0
        self.version = 1
        self.batch: list[bytes] = []
        self.pins: list[int] = []

    def teardown(self) -> None:
        if hasattr(self, "writer"):
            self.writer.undo()
            settle(self.writer)
            self.writer.check()
            stats = self.writer.stats()
            assert stats["records"] == stats["nodes"] == stats["keys"]
            assert stats["quarantine_bytes"] == stats["superseded_bytes"] == 0
            self.writer.close()

    @rule(key=keys, value=values)
    def put(self, key: bytes, value: bytes) -> None:
        assert self.writer.put(key, value, self.version)
        self.model.write(key, value, self.version)
        self.batch.append(key)

    @rule(key=keys)
    def delete(self, key: bytes) -> None:
        assert self.writer.delete(key, self.version)
        self.model.write(key, None, self.version)
        self.batch.append(key)

    @rule(key=keys)
    def ensure_only(self, key: bytes) -> None:
        """A commit that fails after it made its nodes."""
        assert self.writer.ensure(key)

    @precondition(lambda self: self.batch)
    @rule()
    def next_transaction(self) -> None:
        self.version += 1

    @precondition(lambda self: self.batch)
    @rule(data=st.data())
    def undo(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, len(self.batch)))
        self.writer.undo(count)
        for _ in range(count):
            self.model.undo(self.batch.pop())

    @rule()
    def publish(self) -> None:
        self.writer.publish(self.version)
        self.committed = self.version
        self.version += 1
        self.batch.clear()

    @rule()
    def open_pin(self) -> None:
        self.pins.append(self.committed)

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    def close_pin(self, data: st.DataObject) -> None:
        self.pins.remove(data.draw(st.sampled_from(self.pins)))

    @precondition(lambda self: not self.batch)
    @rule(budget=st.sampled_from([1, 3, 1000]))
    def collect(self, budget: int) -> None:
        self.writer.collect(self.pins, horizon=self.committed, budget=budget)

    @rule()
    def force_collect(self) -> None:
        """Also inside a batch, as when an allocation fails."""
        self.writer.collect(self.pins, horizon=self.committed, force=True)

    @rule()
    def flip(self) -> None:
        self.writer.flip()

    @rule(start=bounds, end=st.one_of(st.none(), bounds), reverse=st.booleans(), page_rows=st.integers(1, 20))
    def scan_range(self, start: bytes, end: bytes | None, reverse: bool, page_rows: int) -> None:
        expected = self.model.rows(self.committed, start, end, reverse)
        assert self.reader.scan(self.committed, start, end, reverse, page_rows) == expected

    @invariant()
    def sound(self) -> None:
        if hasattr(self, "writer"):
            self.writer.check()

    @invariant()
    def every_snapshot_reads_its_state(self) -> None:
        if not hasattr(self, "writer"):
            return
        assert self.reader.committed_version == self.committed
        for version in {*self.pins, self.committed}:
            rows = self.model.rows(version)
            assert self.reader.scan(version, page_rows=5) == rows
            assert self.reader.scan(version, reverse=True, page_rows=7) == rows[::-1]
            for key in KEYS:
                found = self.reader.get(key, version)
                assert (found and found[:2]) == self.model.get(key, version)

    @invariant()
    def counters_agree(self) -> None:
        if hasattr(self, "writer"):
            assert self.writer.stats()["keys"] == self.model.live_keys()


StoreMachine.TestCase.settings = settings(
    max_examples=max(120, settings().max_examples), stateful_step_count=50, deadline=None
)
TestStoreMachine = StoreMachine.TestCase
