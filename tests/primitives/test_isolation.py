"""Runs never see each other's data, in any primitive; one transaction may span them."""

from typing import Any

import pytest

from occamdb.engine.model.errors import ConflictError, NotFoundError
from occamdb.engine.model.public_types import RunId
from occamdb.primitives import Thought
from tests.support.operation_forms import Inside, Outside


@pytest.fixture(params=[Outside, Inside], ids=["implicit", "in_transaction"])
def two(request: pytest.FixtureRequest, db: Any) -> Any:
    """The same form over two runs whose ids are neighbours in key order."""
    one = RunId.new()
    return request.param(db, one), request.param(db, RunId(int=one.int + 1))


def test_kv(two: Any) -> None:
    one, other = two
    one.kv.put_many({"a": 1, "b": 2})
    other.kv.put("a", 3)
    assert (one.kv.get("a"), other.kv.get("a")) == (1, 3)
    assert (one.kv.list(), other.kv.list()) == (["a", "b"], ["a"])
    assert (one.kv.count(), other.kv.count()) == (2, 1)
    other.kv.increment("n")
    assert one.kv.get("n") is None
    assert other.kv.delete("b") is False
    assert one.kv.exists("b")


def test_events(two: Any) -> None:
    one, other = two
    one.events.append_many([("t", {"n": 1}), ("t", {"n": 2})])
    assert other.events.append("t", {"n": 3}).sequence == 0
    assert (one.events.len(), other.events.len()) == (2, 1)
    assert [event.payload["n"] for event in one.events.iterate()] == [1, 2]
    assert [event.payload["n"] for event in other.events.read_by_type("t")] == [3]
    assert one.events.verify_chain().length == 2
    assert other.events.verify_chain().length == 1


def test_cells(two: Any) -> None:
    one, other = two
    one.cells.init("c", 1)
    other.cells.init("c", 2)
    one.cells.transition("c", lambda state: (state.value + 10, None))
    assert (one.cells.read("c").value, other.cells.read("c").value) == (11, 2)
    one.cells.delete("c")
    assert (one.cells.list(), other.cells.list()) == ([], ["c"])


def test_traces(two: Any) -> None:
    one, other = two
    first = one.traces.record(Thought("1"), tags=["t"])
    second = other.traces.record(Thought("2"), tags=["t"])
    for mine, theirs, run in ((first, second, one), (second, first, other)):
        assert run.traces.get(theirs) is None
        for found in (
            run.traces.query_by_tag("t"),
            run.traces.query_by_type(Thought),
            run.traces.query_by_time(),
            run.traces.get_roots(),
        ):
            assert [trace.id for trace in found] == [mine]
        with pytest.raises(NotFoundError):
            run.traces.record_child(theirs, Thought("x"))
        with pytest.raises(NotFoundError):
            run.traces.get_tree(theirs)
    with_same_id = other.traces.record_with_options(Thought("3"), id=first)
    assert one.traces.get(with_same_id).trace_type == Thought("1")


def test_deleting_one_leaves_its_neighbours(db: Any, two: Any) -> None:
    one, other = two
    before = RunId(int=one.run.int - 1)
    for run in (before, one.run, other.run):
        db.kv.put(run, b"\xff" * 8, 1)
        db.events.append(run, "t", {})
    db.runs.delete_run(one.run)
    for run in (before, other.run):
        assert db.kv.count(run) == db.events.len(run) == 1
    assert db.kv.count(one.run) == db.events.len(one.run) == 0


def test_one_commit_spans_runs(db: Any, two: Any) -> None:
    one, other = two
    with db.begin(one.run) as txn:
        txn.kv.put("k", "one")
        there = txn.for_run(other.run)
        there.kv.put("k", "other")
        there.events.append("t", {})
        assert (txn.kv.get("k"), there.kv.get("k")) == ("one", "other")
    versions = {db.kv.get_versioned(run, "k").version for run in (one.run, other.run)}
    assert len(versions) == 1
    assert db.events.len(other.run) == 1


def test_transactions_on_different_runs_do_not_conflict(db: Any, two: Any) -> None:
    one, other = two
    first, second = db.begin(one.run), db.begin(other.run)
    for txn in (first, second):
        txn.kv.put("k", txn.kv.get("k", 0))
        txn.events.append("t", {})
        txn.traces.record(Thought("x"))
        txn.cells.set("c", 1)
    first.commit()
    second.commit()
    third, fourth = db.begin(one.run), db.begin(one.run)
    for txn in (third, fourth):
        txn.events.append("t", {})
    third.commit()
    with pytest.raises(ConflictError):
        fourth.commit()
