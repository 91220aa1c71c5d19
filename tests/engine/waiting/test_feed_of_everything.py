"""Whatever is committed: the changes of a run, applied to an empty dict, give what the store has.

A small ring is lapped all the time: a watch then says that it lags, and never leaves anything out.
"""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from occamdb import Database, RunId
from tests.support.databases import DatabaseFactory
from tests.support.engines import Engine, memory_database
from tests.support.followers import Follower, state_of_run
from tests.support.processes import kill_coordinator, open_database, stop_coordinator, wait_until

KEYS = st.integers(0, 30).map(lambda number: f"{'ab'[number % 2]}/{number:02}")
VALUES = st.one_of(
    st.integers(-9, 9), st.text(max_size=20), st.integers(1, 9000).map(lambda size: "v" * size)
)


class Changes(RuleBasedStateMachine):
    """Commits of all kinds in two runs, and followers of one of them."""

    database: Database
    watch_history = "64KiB"
    engine: Engine | None = None

    def __init__(self) -> None:
        super().__init__()
        self.db = self.make()
        self.run, self.other = RunId.new(), RunId.new()
        start = state_of_run(self.db, self.run)[1]
        self.followers = [Follower(self.db, self.run, prefix, since=start) for prefix in ("", "a/")]

    def make(self) -> Database:
        if self.engine is None or self.engine.name == "memory":
            return memory_database(watch_history=self.watch_history)
        return self.engine.fresh()

    def teardown(self) -> None:
        for follower in self.followers:
            self.check(follower)
            follower.watch.close()
        if self.engine is None:
            self.db.close()
        else:
            self.engine.discard(self.db)

    def check(self, follower: Follower) -> None:
        follower.catch_up()
        state, version = state_of_run(self.db, self.run, follower.prefix)
        assert follower.state == state
        assert follower.watch.version >= version

    @rule(key=KEYS, value=VALUES)
    def put(self, key: str, value: Any) -> None:
        self.db.put(self.run, key, value)

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        self.db.delete(self.run, key)

    @rule(key=KEYS)
    def increment(self, key: str) -> None:
        self.db.increment(self.run, f"n{key}")

    @rule(key=KEYS, value=VALUES)
    def elsewhere(self, key: str, value: Any) -> None:
        self.db.put(self.other, key, value)

    @rule(changes=st.lists(st.tuples(KEYS, st.one_of(st.none(), VALUES)), max_size=40), clear=st.booleans())
    def transaction(self, changes: list[tuple[str, Any]], clear: bool) -> None:
        with self.db.begin(self.run) as txn:
            if clear:
                txn.delete_range("a/")
            for key, value in changes:
                if value is None:
                    txn.delete(key)
                else:
                    txn.put(key, value)

    @rule()
    def many(self) -> None:
        """More than becomes a range tombstone when it is deleted."""
        with self.db.begin(self.run) as txn:
            for number in range(600):
                txn.put(f"b/many/{number:03}", number)

    @rule()
    def delete_many(self) -> None:
        self.db.space(self.run, 1).delete_range("b/")

    @rule(key=KEYS)
    def refused(self, key: str) -> None:
        with self.db.begin(self.run) as txn:
            txn.put(key, 0)
            txn.abort()

    @rule(which=st.integers(0, 1))
    def catch_up(self, which: int) -> None:
        self.check(self.followers[which])

    @rule(which=st.integers(0, 1))
    def reopen(self, which: int) -> None:
        self.followers[which].reopen()


class ChangesInALargeRing(Changes):
    watch_history = "16MiB"

    @invariant()
    def nothing_was_lost(self) -> None:
        """Only the keys of a large range delete may be gone."""
        self.deleted_many = getattr(self, "deleted_many", 0)
        assert all(follower.lagged <= self.deleted_many for follower in self.followers)

    @rule()
    def delete_many(self) -> None:
        self.deleted_many = getattr(self, "deleted_many", 0) + 1
        self.db.space(self.run, 1).delete_range("b/")


class ChangesOverRestarts(Changes):
    """The same with a coordinator that is killed and stopped in between."""

    def make(self) -> Database:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "db"
        return open_database(self.path, watch_history=self.watch_history)

    def teardown(self) -> None:
        self.db.put(self.other, "served", 1)
        super().teardown()
        stop_coordinator(self.path)
        self.folder.cleanup()

    @rule(kill=st.booleans())
    def restart(self, kill: bool) -> None:
        self.db.put(self.other, "served", 1)  # by the coordinator that is to end
        if kill:
            kill_coordinator(self.path)
        else:
            stop_coordinator(self.path)

    @rule()
    def checkpoint(self) -> None:
        self.db.checkpoint()


def test_the_feed_over_restarts() -> None:
    few = settings(stateful_step_count=20, max_examples=8, deadline=None, phases=[Phase.generate])
    run_state_machine_as_test(ChangesOverRestarts, settings=few)


@pytest.mark.by_default("memory")
@pytest.mark.parametrize("machine", [Changes, ChangesInALargeRing])
def test_the_feed_gives_what_the_store_has(machine: type[Changes], engine: Engine) -> None:
    run_state_machine_as_test(
        type("OnThisEngine", (machine,), {"engine": engine}),
        settings=settings(stateful_step_count=30, max_examples=engine.examples(40), deadline=None),
    )


def test_one_commit_larger_than_the_ring(db_factory: DatabaseFactory, run: RunId) -> None:
    db = db_factory(watch_history="64KiB")
    db.put(run, "a", 1)
    follower = Follower(db, run, since=0)
    follower.catch_up()
    with db.begin(run) as txn:
        for number in range(200):
            txn.put(f"k{number}", "x" * 1000)
    db.put(run, "b", 2)
    follower.catch_up()
    assert follower.lagged == (db.path is None)  # with files, the log has it
    assert follower.state == state_of_run(db, run)[0]


def test_a_large_value_is_read_from_the_store(db_factory: DatabaseFactory, run: RunId) -> None:
    db = db_factory(watch_history="64KiB")
    with db.watch(run) as watch:
        db.put(run, "large", "x" * 100_000)
        db.put(run, "small", 1)
        assert [(c.key, c.value) for c in watch.ready()] == [("large", "x" * 100_000), ("small", 1)]


def test_a_watch_that_is_awake_sees_every_key_of_a_large_delete(
    db_factory: DatabaseFactory, run: RunId
) -> None:
    db = db_factory()
    with db.begin(run) as txn:
        for number in range(3000):
            txn.put(f"{number:04}", number)
    deleted: list[str] = []
    with db.watch(run, timeout=60) as watch:

        def read() -> None:
            deleted.extend(change.key for change in next(watch.commits()) if change.kind == "delete")

        reader = threading.Thread(target=read)
        reader.start()
        hub = db.handle.waits
        wait_until(lambda: hub._leader is not None)
        db.space(run, 1).delete_range()
        reader.join(60)
        assert deleted == [f"{number:04}" for number in range(3000)]


def test_a_commit_gives_each_key_once_however_its_ranges_overlap(
    db_factory: DatabaseFactory, run: RunId
) -> None:
    db = db_factory()
    with db.begin(run) as txn:
        for number in range(3000):
            txn.put(f"{number:04}", number)
    found: list[tuple[str, str]] = []
    with db.watch(run, timeout=60) as watch:
        reader = threading.Thread(
            target=lambda: found.extend((change.key, change.kind) for change in next(watch.commits()))
        )
        reader.start()
        hub = db.handle.waits
        wait_until(lambda: hub._leader is not None)
        with db.begin(run) as txn:
            txn.delete("0001")
            txn.delete_range()
            txn.delete_range(start="0000", end="2500")
            txn.put("0002", "back")
        reader.join(60)
    assert len(found) == 3000
    assert dict(found) == {f"{number:04}": "delete" for number in range(3000)} | {"0002": "put"}
