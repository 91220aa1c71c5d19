"""`db.snapshot(run)` offers what a read-only transaction does: every read of every primitive, and no write."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, assert_type

import pytest

from occamdb import (
    Database,
    EventLog,
    KVStore,
    ReadOnlyError,
    RunId,
    Snapshot,
    Thought,
    Transaction,
    TransactionStateError,
)
from occamdb.primitives.extension import Primitive, reader, register, registered_primitives, single
from occamdb.primitives.operations import Operation

NAMES = ("kv", "events", "cells", "traces", "runs", "tasks")


class Facts:
    """What the snapshot shows: names of things in it."""

    def __init__(self, db: Database) -> None:
        self.run = db.runs.create_run("run").run_id
        self.child = db.runs.create_run_with_options("child", parent=self.run).run_id
        self.paused = db.runs.create_run("paused").run_id
        db.runs.pause_run(self.paused)
        self.done = db.runs.create_run_with_options("done", tags=["t"]).run_id
        db.runs.complete_run(self.done)
        db.kv.put_many(self.run, {"a": 1, "b": 2, b"\xff": 3})
        db.events.append(self.run, "started", {"n": 1})
        db.cells.init(self.run, "cell", 1)
        self.trace = db.traces.record(self.run, Thought("first"), tags=["t"])
        db.traces.record_child(self.run, self.trace, Thought("second"))
        db.tasks.put_many(self.run, "q", range(3))
        dead = db.tasks.claim(self.run, "q")
        assert dead is not None
        self.dead: Any = dead
        db.tasks.fail(self.run, self.dead, "error", retry=False)
        self.task: Any = db.tasks.claim(self.run, "q")
        self.span = db.traces.begin_span(self.run, Thought("open"))

    def spoil(self, db: Database) -> None:
        """Change everything after the snapshot."""
        db.kv.put_many(self.run, {"a": 10, "c": 11})
        db.kv.delete(self.run, "b")
        db.events.append(self.run, "started", {"n": 2})
        db.cells.set(self.run, "cell", 2)
        db.traces.record_child(self.run, self.trace, Thought("third"), tags=["t"])
        db.runs.create_run_with_options("late", parent=self.run)
        db.runs.complete_run(self.child)
        db.tasks.complete(self.run, self.task)
        db.tasks.requeue(self.run, self.dead)
        db.tasks.put(self.run, "other")


LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)

Call = Callable[[Any, Facts], Any]
READS: dict[str, Call] = {
    "kv.get": lambda v, f: v.kv.get("a"),
    "kv.get_versioned": lambda v, f: v.kv.get_versioned("a"),
    "kv.ttl": lambda v, f: v.kv.ttl("a"),
    "kv.exists": lambda v, f: (v.kv.exists("b"), v.kv.exists("c")),
    "kv.keys": lambda v, f: (list(v.kv.keys()), list(v.kv.keys(raw=True))),
    "kv.scan": lambda v, f: list(v.kv.scan(limit=2, reverse=True)),
    "kv.list": lambda v, f: v.kv.list(start="b"),
    "kv.list_with_values": lambda v, f: v.kv.list_with_values(end="c"),
    "kv.count": lambda v, f: v.kv.count(),
    "kv.get_many": lambda v, f: v.kv.get_many(["a", "c"]),
    "events.read": lambda v, f: v.events.read(0),
    "events.read_range": lambda v, f: v.events.read_range(),
    "events.iterate": lambda v, f: list(v.events.iterate()),
    "events.read_by_type": lambda v, f: v.events.read_by_type("started"),
    "events.head": lambda v, f: v.events.head(),
    "events.len": lambda v, f: v.events.len(),
    "events.last": lambda v, f: v.events.last(2),
    "events.read_between": lambda v, f: v.events.read_between(LONG_AGO, datetime.now(UTC)),
    "events.verify_chain": lambda v, f: v.events.verify_chain(),
    "cells.read": lambda v, f: v.cells.read("cell"),
    "cells.exists": lambda v, f: v.cells.exists("cell"),
    "cells.list": lambda v, f: v.cells.list(),
    "cells.list_with_values": lambda v, f: v.cells.list_with_values(),
    "traces.get": lambda v, f: v.traces.get(f.trace),
    "traces.count": lambda v, f: v.traces.count(),
    "traces.query_by_type": lambda v, f: v.traces.query_by_type("Thought"),
    "traces.query_by_tag": lambda v, f: v.traces.query_by_tag("t"),
    "traces.query_by_time": lambda v, f: v.traces.query_by_time(),
    "traces.query": lambda v, f: v.traces.query(tag="t"),
    "traces.get_children": lambda v, f: v.traces.get_children(f.trace),
    "traces.get_roots": lambda v, f: v.traces.get_roots(),
    "traces.get_tree": lambda v, f: [each.trace.id for each in v.traces.get_tree(f.trace).children],
    "tasks.get": lambda v, f: v.tasks.get(f.task),
    "tasks.list": lambda v, f: v.tasks.list("q"),
    "tasks.stats": lambda v, f: v.tasks.stats("q"),
    "tasks.queues": lambda v, f: v.tasks.queues(),
    "runs.get_run": lambda v, f: v.runs.get_run(f.child),
    "runs.query_runs": lambda v, f: v.runs.query_runs(status="active"),
    "runs.list_runs": lambda v, f: v.runs.list_runs(),
    "runs.get_child_runs": lambda v, f: v.runs.get_child_runs(f.run),
    "runs.find": lambda v, f: v.runs.find("child"),
    "runs.count": lambda v, f: v.runs.count(),
    "kv.wait": lambda v, f: v.kv.wait("a"),
    "cells.wait": lambda v, f: v.cells.wait("cell"),
    "runs.wait": lambda v, f: v.runs.wait(f.child, status="active"),
}
WRITES: dict[str, Call] = {
    "tasks.put": lambda v, f: v.tasks.put("q"),
    "tasks.put_many": lambda v, f: v.tasks.put_many("q", [1]),
    "tasks.claim": lambda v, f: v.tasks.claim("q"),
    "tasks.complete": lambda v, f: v.tasks.complete(f.task),
    "tasks.fail": lambda v, f: v.tasks.fail(f.task, "error"),
    "tasks.release": lambda v, f: v.tasks.release(f.task),
    "tasks.extend": lambda v, f: v.tasks.extend(f.task),
    "tasks.requeue": lambda v, f: v.tasks.requeue(f.dead),
    "tasks.purge": lambda v, f: v.tasks.purge("q", state="ready"),
    "kv.put": lambda v, f: v.kv.put("a", 1),
    "kv.put_with_ttl": lambda v, f: v.kv.put_with_ttl("a", 1, 5),
    "kv.delete": lambda v, f: v.kv.delete("a"),
    "kv.delete_many": lambda v, f: v.kv.delete_many(["a"]),
    "kv.put_many": lambda v, f: v.kv.put_many({"a": 1}),
    "kv.cas": lambda v, f: v.kv.cas("a", 1, 1),
    "kv.put_if_absent": lambda v, f: v.kv.put_if_absent("new", 1),
    "kv.increment": lambda v, f: v.kv.increment("a"),
    "events.append": lambda v, f: v.events.append("t", {}),
    "events.append_many": lambda v, f: v.events.append_many([("t", {})]),
    "cells.init": lambda v, f: v.cells.init("new", 1),
    "cells.cas": lambda v, f: v.cells.cas("cell", 1, 1),
    "cells.set": lambda v, f: v.cells.set("cell", 1),
    "cells.delete": lambda v, f: v.cells.delete("cell"),
    "cells.transition": lambda v, f: v.cells.transition("cell", lambda state: (2, None)),
    "traces.record": lambda v, f: v.traces.record(Thought("x")),
    "traces.record_child": lambda v, f: v.traces.record_child(f.trace, Thought("x")),
    "traces.record_with_options": lambda v, f: v.traces.record_with_options(Thought("x")),
    "traces.begin_span": lambda v, f: v.traces.begin_span(Thought("x")),
    "traces.end_span": lambda v, f: v.traces.end_span(f.span),
    "runs.get_or_create": lambda v, f: v.runs.get_or_create("new"),
    "runs.rename_run": lambda v, f: v.runs.rename_run(f.child, "new"),
    "runs.create_run": lambda v, f: v.runs.create_run("x"),
    "runs.create_run_with_options": lambda v, f: v.runs.create_run_with_options("x"),
    "runs._end": lambda v, f: v.runs._end(f.child, None),
    "runs.update_status": lambda v, f: v.runs.update_status(f.child, "paused"),
    "runs.complete_run": lambda v, f: v.runs.complete_run(f.child),
    "runs.fail_run": lambda v, f: v.runs.fail_run(f.child, "why"),
    "runs.pause_run": lambda v, f: v.runs.pause_run(f.child),
    "runs.resume_run": lambda v, f: v.runs.resume_run(f.paused),
    "runs.cancel_run": lambda v, f: v.runs.cancel_run(f.child),
    "runs.archive_run": lambda v, f: v.runs.archive_run(f.done),
    "runs.add_tags": lambda v, f: v.runs.add_tags(f.child, ["t"]),
    "runs.remove_tags": lambda v, f: v.runs.remove_tags(f.done, ["t"]),
    "runs.update_metadata": lambda v, f: v.runs.update_metadata(f.child, {"a": 1}),
    "runs.delete_run": lambda v, f: v.runs.delete_run(f.child),
}


@pytest.fixture
def facts(db: Database) -> Facts:
    return Facts(db)


@pytest.mark.parametrize("name", READS)
def test_every_read_shows_the_snapshot(db: Database, facts: Facts, name: str) -> None:
    with db.begin(facts.run, read_only=True) as txn:
        before = READS[name](txn, facts)
    with db.snapshot(facts.run) as view:
        facts.spoil(db)
        assert READS[name](view, facts) == before


@pytest.mark.parametrize("name", WRITES)
def test_every_write_is_refused(db: Database, facts: Facts, name: str) -> None:
    with db.snapshot(facts.run) as view, pytest.raises(ReadOnlyError):
        WRITES[name](view, facts)


def test_the_tables_name_every_operation() -> None:
    operations = {
        f"{primitive.name}.{name}"
        for primitive in registered_primitives()
        if primitive.name in NAMES
        for name, found in vars(primitive).items()
        if isinstance(found, Operation)
    }
    operations.add(
        "cells.transition"
    )  # an ordinary method, since its result depends on the function it is given
    assert operations == READS.keys() | WRITES.keys()


def test_the_view_itself_reads_like_a_transaction(db: Database, facts: Facts) -> None:
    with db.snapshot(facts.run) as view:
        assert type(view) is Snapshot
        facts.spoil(db)
        assert list(view.keys(limit=2, reverse=True)) == ["\udcff", "b"]
        assert list(view.keys(start="b", end=b"\xff", raw=True)) == [b"b"]
        assert [(key, found.value) for key, found in view.scan(raw=True, limit=1)] == [(b"a", 1)]
        assert view.count(start="b") == 2


class Shelf(Primitive[Any]):
    name = "shelf_on_snapshot"
    tag = 0x7A

    @single
    def put_up(self, key: str) -> None:
        self.space.put(key, 1)

    @reader
    def books(self) -> list[bytes]:
        return list(self.space.keys())


def test_a_registered_primitive_is_on_snapshots(db: Database, run: RunId) -> None:
    register(Shelf)
    shelf: Any = db
    shelf.shelf_on_snapshot.put_up(run, "one")
    view: Any = db.snapshot(run)
    shelf.shelf_on_snapshot.put_up(run, "two")
    assert view.shelf_on_snapshot.books() == [b"one"]
    with pytest.raises(ReadOnlyError):
        view.shelf_on_snapshot.put_up("three")
    view.close()
    with pytest.raises(TransactionStateError):
        view.shelf_on_snapshot.books()
    with pytest.raises(TransactionStateError):
        view.kv.get("a")
    with pytest.raises(AttributeError):
        _ = view.shelve


def types(db: Database, run: RunId) -> None:
    """Never called."""
    with db.snapshot(run) as view:
        assert_type(view, Snapshot)
        assert_type(view.kv, KVStore[Transaction])
        assert_type(view.events, EventLog[Transaction])
        assert_type(view.kv.list(), list[str])
        assert_type(view.keys(), Iterator[str])
        assert_type(view.keys(raw=True), Iterator[bytes])
