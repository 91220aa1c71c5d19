"""Spans: open until they end, parents by context, and what a killed process leaves."""

import asyncio
import multiprocessing
import os
import signal
import threading
from typing import Any

import pytest

from occamdb.engine.model.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError
from occamdb.engine.model.public_types import RunId, TypeTag
from occamdb.engine.model.values import encode_value
from occamdb.primitives import Custom, Decision, Query, Thought, ToolCall, layout
from occamdb.primitives.auditors import audit_traces
from occamdb.primitives.trace_types import id_bytes
from tests.support.audit import audit
from tests.support.engines import Place


def faults(db: Any, run: RunId) -> list[str]:
    with db.begin(run, read_only=True) as txn:
        return [fault.message for fault in audit_traces(txn.space(TypeTag.TRACE, raw=True))]


def test_a_span_is_open_until_it_ends(db: Any, run: RunId) -> None:
    with db.traces.span(run, ToolCall("search", {"q": "x"}), tags=["t"], metadata={"n": 1}) as span:
        trace = db.traces.get(run, span.id)
        assert (trace.is_open, trace.status, trace.ended_at, trace.duration_ms) == (True, "open", None, None)
        assert (trace.tags, trace.metadata, trace.trace_type) == (
            ("t",),
            {"n": 1},
            ToolCall("search", {"q": "x"}),
        )
        span.set_result(["hit"])
    trace = db.traces.get(run, span.id)
    assert (trace.is_open, trace.status, trace.error, trace.result) == (False, "completed", None, ["hit"])
    assert trace.started_at == trace.timestamp <= trace.ended_at
    assert trace.duration_ms > 0
    assert trace.trace_type == ToolCall("search", {"q": "x"}, ["hit"], trace.duration_ms)
    assert db.traces.query_by_tag(run, "t") == db.traces.get_roots(run) == [trace]
    assert db.traces.get_tree(run, span.id).trace == trace


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (Query("sql", "q"), Query("sql", "q", (1, 2))),
        (Decision("which?", ["a"]), Decision("which?", ["a"], (1, 2))),
        (Thought("x"), Thought("x")),
        (ToolCall("t", None, "its own", 1.5), ToolCall("t", None, "its own", 1.5)),
    ],
)
def test_where_a_result_goes(db: Any, run: RunId, what: Any, expected: Any) -> None:
    with db.traces.span(run, what) as span:
        span.set_result((1, 2))
    trace = db.traces.get(run, span.id)
    assert (trace.result, trace.trace_type) == ((1, 2), expected)


def test_a_span_inside_a_transaction(db: Any, run: RunId) -> None:
    with db.begin(run) as txn:
        with txn.traces.span(ToolCall("t")) as span:
            child = txn.traces.record(Thought("x"))
            assert txn.traces.get(span.id).is_open
            span.set_result(1)
        assert txn.traces.get(span.id).result == 1
    assert [trace.id for trace in db.traces.get_tree(run, span.id)] == [span.id, child]
    assert db.traces.get(run, span.id).status == "completed"
    with pytest.raises(InvalidArgumentError):
        db.traces.span(Thought("without its run"))
    with pytest.raises(InvalidArgumentError):
        txn.traces.span(run, Thought("with a run"))


def test_an_exception_ends_it_as_failed(db: Any, run: RunId) -> None:
    with pytest.raises(ZeroDivisionError), db.traces.span(run, Thought("x")) as span:
        print(1 / 0)
    trace = db.traces.get(run, span.id)
    assert (trace.status, trace.error) == ("failed", "ZeroDivisionError: division by zero")
    with db.traces.span(run, Thought("y")) as span:
        span.set_error("no answer")
    assert db.traces.get(run, span.id).error == "no answer"


def test_what_is_no_span(do: Any) -> None:
    trace = do.traces.get(do.traces.record(ToolCall("t", duration_ms=2.5)))
    assert (trace.is_span, trace.is_open, trace.status, trace.duration_ms) == (False, False, "recorded", 2.5)
    with pytest.raises(InvalidArgumentError):
        do.traces.end_span(trace.id)
    with pytest.raises(NotFoundError):
        do.traces.end_span("1" * 32)


def test_children_find_their_parent_by_context(db: Any, run: RunId) -> None:
    other = RunId.new()
    with db.traces.span(run, Thought("outer")) as outer:
        with db.traces.span(other, Thought("of another run")) as elsewhere:
            with db.traces.span(run, Thought("inner")) as inner:
                leaf = db.traces.record(run, Thought("leaf"))
            root = db.traces.record(run, Thought("root"), parent_id=None)
        sibling = db.traces.record(run, Thought("sibling"))
    assert db.traces.get(other, elsewhere.id).parent_id is None
    tree = db.traces.get_tree(run, outer.id)
    assert [(depth, trace.id) for depth, trace in tree.walk()] == [
        (0, outer.id),
        (1, inner.id),
        (2, leaf),
        (1, sibling),
    ]
    assert [trace.status for trace in tree] == ["completed", "completed", "recorded", "recorded"]
    assert [trace.status for trace in db.traces.get_tree(run, inner.id)] == ["completed", "recorded"]
    assert db.traces.get(run, root).parent_id is None
    assert db.traces.get(run, db.traces.record(run, Thought("after"))).parent_id is None
    audit(db, run, other)
    assert faults(db, run) == []


def test_a_transaction_that_does_not_see_the_span_records_a_root(db: Any, run: RunId) -> None:
    with db.begin(run) as txn:
        with db.traces.span(run, Thought("later than the snapshot")):
            trace = txn.traces.record(Thought("x"))
        txn.commit()
    assert db.traces.get(run, trace).parent_id is None


def test_threads_have_their_own_spans_and_tasks_inherit(db: Any, run: RunId) -> None:
    found: dict[str, str] = {}

    async def task(name: str) -> None:
        with db.traces.span(run, Thought(name)):
            await asyncio.sleep(0)
            found[name] = db.traces.record(run, Custom(name))

    async def both() -> None:
        await asyncio.gather(task("a"), task("b"))

    with db.traces.span(run, Thought("outer")) as outer:
        thread = threading.Thread(target=lambda: found.update(thread=db.traces.record(run, Thought("t"))))
        thread.start()
        thread.join()
        asyncio.run(both())
    assert db.traces.get(run, found["thread"]).parent_id is None
    for name in "ab":
        above = db.traces.get(run, db.traces.get(run, found[name]).parent_id)
        assert (above.trace_type, above.parent_id) == (Thought(name), outer.id)


def test_it_ends_once(do: Any) -> None:
    call = do.traces.begin_span(ToolCall("t"))
    do.traces.end_span(call, error="no", duration_ms=2)
    with pytest.raises(AlreadyExistsError):
        do.traces.end_span(call)
    trace = do.traces.get(call)
    assert (trace.status, trace.error, trace.duration_ms) == ("failed", "no", 2)


def _die_in_a_span(place: Place, run: RunId, parent: str) -> None:
    with place.open() as db, db.traces.span(run, ToolCall("slow"), parent=parent):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.by_default("shared")
def test_a_killed_process_leaves_it_open(place: Place, placed: Any) -> None:
    db, run = placed, RunId.new()
    with db.traces.span(run, Thought("boss")) as boss:
        worker = multiprocessing.get_context("spawn").Process(
            target=_die_in_a_span, args=(place, run, boss.id)
        )
        worker.start()
        worker.join(60)
    assert worker.exitcode == -signal.SIGKILL
    (trace,) = db.traces.get_children(run, boss.id)
    assert (trace.is_open, trace.status, trace.trace_type) == (True, "open", ToolCall("slow"))
    db.traces.end_span(run, trace.id, error="its process was killed")
    assert db.traces.get(run, trace.id).status == "failed"


def test_an_audit_knows_the_ends(db: Any, run: RunId) -> None:
    with db.traces.span(run, Thought("x")) as span:
        plain = db.traces.record(run, Thought("y"))
    assert faults(db, run) == []
    space, raw = db.space(run, TypeTag.TRACE, raw=True), id_bytes(span.id)
    space.put(layout.span_end(raw, id_bytes(plain)), encode_value([1, 1, None, None, False]))
    assert "does not call for it" in "".join(faults(db, run))
    space.delete(layout.span_end(raw, id_bytes(plain)))
    space.put(layout.span_end(raw, raw), encode_value([1]))
    assert "unreadable" in "".join(faults(db, run))
