"""Pages of traces, what is read back of a trace's fields, and trees as sequences."""

import uuid
from typing import Any

import pytest

from occamdb.engine.model.errors import NotFoundError
from occamdb.engine.model.public_types import RunId, TypeTag
from occamdb.engine.model.values import encode_value
from occamdb.primitives import Custom, Decision, Query, Thought, ToolCall, Trace
from occamdb.primitives.trace_types import id_bytes


@pytest.mark.parametrize("reverse", [False, True])
def test_pages_of_traces_of_one_transaction(db: Any, run: RunId, reverse: bool) -> None:
    def record(txn: Any) -> list[str]:
        top = txn.traces.record(Thought("top"), tags=["t"])
        return [top, *(txn.traces.record_child(top, Thought(f"{n}"), tags=["t"]) for n in range(10))]

    recorded = db.transaction(run, record)
    assert len({trace.timestamp for trace in db.traces.query(run)}) == 1
    traces, top = db.traces, recorded[0]
    for ask, expected in (
        (traces.query, recorded),
        (traces.query_by_time, recorded),
        (lambda *given, **rest: traces.query_by_type(*given, Thought, **rest), recorded),
        (lambda *given, **rest: traces.query_by_tag(*given, "t", **rest), recorded),
        (
            lambda *given, **rest: traces.query(*given, "Thought", tag="t", parent_id=top, **rest),
            recorded[1:],
        ),
    ):
        found: list[Trace] = []
        while page := ask(run, limit=3, reverse=reverse, after=found[-1].id if found else None):
            found += page
        assert [trace.id for trace in found] == expected[:: -1 if reverse else 1]


def test_pages_of_children_and_roots(do: Any) -> None:
    roots = [do.traces.record(Thought(f"{n}")) for n in range(4)]
    children = [do.traces.record(Thought("c"), parent_id=roots[0]) for _ in range(4)]
    assert [each.id for each in do.traces.get_children(roots[0], after=children[1], limit=1)] == [children[2]]
    assert [each.id for each in do.traces.get_roots(after=roots[1])] == roots[2:]
    assert [each.id for each in do.traces.get_roots(after=roots[2], reverse=True)] == roots[1::-1]
    for ask in (do.traces.query, do.traces.get_roots):
        with pytest.raises(NotFoundError):
            ask(after=uuid.uuid4())


@pytest.mark.parametrize(
    "what",
    [
        Decision("q", ["a"]),
        Decision("q", ("a",), ("a",)),
        Decision("q", [], ["a"]),
        ToolCall("t", ("a", 1), ("r",)),
        ToolCall("t", ["a", 1], ()),
        Query("q", (), [(1)]),
        Custom("c", (1, [2])),
    ],
    ids=repr,
)
def test_lists_and_tuples_come_back_as_they_were(do: Any, what: Any) -> None:
    trace = do.traces.record(what)
    assert do.traces.get(trace).trace_type == what
    assert do.traces.get_tree(trace).trace.trace_type == what
    assert [each.trace_type for each in do.traces.query()] == [what]


def test_records_of_earlier_versions_are_read(db: Any, run: RunId) -> None:
    trace = db.traces.record(run, Decision("q", ("a",)))
    raw = id_bytes(trace)
    record = [2, ["q", ["a"], ["b"], None], 5, raw, None, None, None]
    db.space(run, TypeTag.TRACE, raw=True).put(b"\x01" + raw, encode_value(record))
    assert db.traces.get(run, trace).trace_type == Decision("q", ("a",), ["b"])


def test_a_tree_has_a_length_and_is_iterated(do: Any) -> None:
    root = do.traces.record(Thought("root"))
    child = do.traces.record(Thought("child"), parent_id=root)
    tree = do.traces.get_tree(root)
    assert len(tree) == tree.size == 2
    assert [trace.id for trace in tree] == [root, child]
