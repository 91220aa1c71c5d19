"""Range deletes against a plain dict: every range becomes a range tombstone, converted a node at a time.

One in-memory engine whose limits are tiny, so that puts, deletes, increments and further range deletes fall between
any two pieces of a conversion. Snapshots of every age are read again and again: each shows its own state, whole.
"""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from occamdb import ConflictError, Database, RunId
from occamdb.engine.client.local_handle import LocalHandle
from occamdb.engine.model.settings import Settings
from tests.support.databases import memory_database

NAMES = [f"{letter}{digit}" for letter in "abc" for digit in range(5)]
BOUNDS = ["a", "a2", "a4", "b", "b3", "c", "c1", "c4", "d"]
RUN = RunId.new()

names = st.sampled_from(NAMES)
bounds = st.sampled_from(BOUNDS)


class RangeDeletes(RuleBasedStateMachine):
    """One writer, snapshots that stay open, and transactions that stay open until they commit or conflict."""

    def __init__(self) -> None:
        super().__init__()
        self.handle = LocalHandle(Settings.of({"max_store_size": "8MiB"}))
        self.db = Database(self.handle)
        self.now: dict[str, int] = {}
        self.snapshots: list[tuple[Any, dict[str, int]]] = []
        self.count = 0

    @initialize(inline=st.sampled_from([0, 1, 3]), piece=st.sampled_from([1, 2, 7]))
    def limits(self, inline: int, piece: int) -> None:
        self.handle._core.set_range_limits(inline_max=inline, slice=piece, walk_slice=1)

    def write(self, body: Any) -> None:
        with self.db.begin(RUN) as txn:
            body(txn)

    @rule(some=st.lists(names, min_size=1, max_size=6, unique=True))
    def put(self, some: list[str]) -> None:
        self.count += 1
        self.write(lambda txn: [txn.put(name, self.count) for name in some])
        self.now |= dict.fromkeys(some, self.count)

    @rule(name=names)
    def delete(self, name: str) -> None:
        self.write(lambda txn: txn.delete(name))
        self.now.pop(name, None)

    @rule(name=names)
    def implicit_delete_tells_whether_it_was_there(self, name: str) -> None:
        assert self.db.delete(RUN, name) == (name in self.now)
        self.now.pop(name, None)

    @rule(name=names)
    def add(self, name: str) -> None:
        self.write(lambda txn: txn.add(name, 5))
        self.now[name] = self.now.get(name, 0) + 5

    @rule(name=names)
    def create(self, name: str) -> None:
        try:
            self.write(lambda txn: txn.cas(name, 0, 1))
        except ConflictError:
            assert name in self.now
        else:
            assert name not in self.now
            self.now[name] = 1

    @rule(low=bounds, high=bounds, kept=st.lists(names, max_size=2))
    def delete_range(self, low: str, high: str, kept: list[str]) -> None:
        self.count += 1

        def body(txn: Any) -> None:
            txn.delete_range(start=low, end=high)
            for name in kept:
                txn.put(name, self.count)

        self.write(body)
        self.now = {name: value for name, value in self.now.items() if not low <= name < high}
        self.now |= dict.fromkeys(kept, self.count)

    @rule(low=bounds, high=bounds, name=names)
    def a_refused_batch_leaves_no_trace(self, low: str, high: str, name: str) -> None:
        """A range tombstone is undone with its request: the increment of text that comes behind it fails."""

        def body(txn: Any) -> None:
            txn.put("text", "no number")

        self.write(body)
        try:
            with self.db.begin(RUN) as txn:
                txn.delete_range(start=low, end=high)
                txn.put(name, -1)
                txn.add("text", 1)
        except Exception as error:
            assert type(error).__name__ == "NotAnIntegerError"
        else:
            raise AssertionError("an increment of text was committed")
        self.write(lambda txn: txn.delete("text"))

    @rule()
    def look(self) -> None:
        self.snapshots.append((self.db.snapshot(RUN), dict(self.now)))

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.snapshots) - 1))
        self.snapshots.pop(index)[0].close()

    @rule()
    def tick(self) -> None:
        self.handle._core.tick()

    @invariant()
    def every_snapshot_is_whole(self) -> None:
        fresh = self.db.begin(RUN, read_only=True)
        assert {key: found.value for key, found in fresh.scan()} == self.now
        backwards = [key for key, _ in fresh.scan(reverse=True)]
        assert backwards == sorted(self.now, reverse=True)
        for name in NAMES:
            assert fresh.get(name) == self.now.get(name)
        fresh.abort()
        for snapshot, then in self.snapshots:
            seen = snapshot.transaction() if hasattr(snapshot, "transaction") else snapshot
            for name in NAMES:
                assert seen.get(name) == then.get(name)

    @invariant()
    def sound(self) -> None:
        assert self.handle._core.check() is None

    def teardown(self) -> None:
        for snapshot, _ in self.snapshots:
            snapshot.close()
        self.handle._core.tick()
        assert self.handle._core.stats()["range_tombstones"] == 0
        assert self.handle._core.check() is None
        self.handle.close()


TestRangeDeletes = RangeDeletes.TestCase
TestRangeDeletes.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_a_conversion_is_finished_in_the_background() -> None:
    db = memory_database()
    core = db.handle._core  # type: ignore[attr-defined]
    core.set_range_limits(inline_max=10, slice=1)
    with db.begin(RUN) as txn:
        for number in range(300):
            txn.put(f"{number:04d}", number)
    before = db.snapshot(RUN)
    with db.begin(RUN) as txn:
        txn.delete_range()
    assert core.stats()["range_tombstones"] == 1
    assert db.begin(RUN).count() == 0
    assert [before.get(f"{number:04d}") for number in range(300)] == list(range(300))
    core.tick()
    assert core.stats()["range_tombstones"] == 0
    assert core.stats()["keys"] == 0
    assert [before.get(f"{number:04d}") for number in range(300)] == list(range(300))
    before.close()
    db.close()
