"""Spans into traces and back: nothing is lost, parents may come late, and what cannot be stored goes alone."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from opentelemetry import trace as trace_api
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)

import occamdb
from occamdb import Custom, Database, Decision, Query, RunId, Thought, ToolCall, Trace
from occamdb.plugins.opentelemetry import OccamSpanExporter, read_spans, to_otlp


@pytest.fixture
def db() -> Iterator[Database]:
    with occamdb.open_in_memory(max_store_size="64MiB") as opened:
        yield opened


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


def provider_of(*exporters: Any, service: str = "agent") -> TracerProvider:
    provider = TracerProvider(
        resource=Resource({"service.name": service, "ports": (1, 2)}, "https://schema/1")
    )
    for exporter in exporters:
        provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


def agent_run(provider: TracerProvider) -> None:
    """Spans of every kind: attributes of all types, events, links, errors, states."""
    tracer = provider.get_tracer("agent.core", "1.2", "https://schema/2", {"team": "a"})
    other = provider.get_tracer("agent.tools")
    elsewhere = SpanContext(7 << 100, 9, True, TraceFlags(0), TraceState([("vendor", "x")]))
    with tracer.start_as_current_span(
        "invoke_agent planner", kind=SpanKind.SERVER, attributes={"gen_ai.operation.name": "invoke_agent"}
    ) as root:
        root.add_link(elsewhere, {"why": "retry"})
        with tracer.start_as_current_span(
            "chat m1",
            kind=SpanKind.CLIENT,
            attributes={
                "gen_ai.operation.name": "chat",
                "gen_ai.request.model": "m1",
                "gen_ai.usage.input_tokens": 2**40,
                "gen_ai.request.temperature": 0.25,
                "gen_ai.request.stop_sequences": ("a", "b"),
                "stream": True,
                "text": "世界",
            },
        ) as chat:
            chat.add_event("first token", {"n": 1}, timestamp=1_700_000_000_000_000_001)
            chat.set_status(Status(StatusCode.OK))
        with other.start_as_current_span(
            "execute_tool search",
            attributes={
                "gen_ai.operation.name": "execute_tool",
                "gen_ai.tool.name": "search",
                "gen_ai.tool.call.arguments": '{"q": "tea"}',
                "gen_ai.tool.call.result": "[1, 2]",
            },
        ):
            pass
        with pytest.raises(ValueError), other.start_as_current_span("parse"):
            raise ValueError("no number")


def facts(span: ReadableSpan) -> dict[str, Any]:
    """What a span is, for comparison: `ReadableSpan` has no equality."""
    assert span.context is not None
    scope = span.instrumentation_scope
    return {
        "context": (*span.context, span.context.trace_state),
        "parent": None if span.parent is None else (*span.parent, span.parent.trace_state),
        "name": span.name,
        "kind": span.kind,
        "times": (span.start_time, span.end_time),
        "attributes": dict(span.attributes or {}),
        "events": [(event.name, event.timestamp, dict(event.attributes or {})) for event in span.events],
        "links": [(tuple(link.context), dict(link.attributes or {})) for link in span.links],
        "status": (span.status.status_code, span.status.description),
        "resource": (dict(span.resource.attributes), span.resource.schema_url),
        "scope": scope and (scope.name, scope.version, scope.schema_url, dict(scope.attributes or {})),
    }


def by_id(spans: Any) -> dict[int, dict[str, Any]]:
    return {span.context.span_id: facts(span) for span in spans}


def tree_of(db: Database, run: RunId) -> list[tuple[int, str]]:
    """Depth and name of all traces below all roots."""
    rows = []
    for root in db.traces.get_roots(run):
        rows += [(depth, name_of(trace)) for depth, trace in db.traces.get_tree(run, root.id).walk()]
    return rows


def name_of(trace: Trace) -> str:
    name: str = trace.metadata["opentelemetry"]["name"]
    return name


def test_a_round_trip_loses_nothing(db: Database, spans: InMemorySpanExporter) -> None:
    exporter = OccamSpanExporter(db)
    agent_run(provider_of(spans, exporter))
    finished = spans.get_finished_spans()
    assert len(finished) == 4
    assert by_id(read_spans(db, exporter.run_id)) == by_id(finished)
    (run,) = db.runs.query_runs(tag="opentelemetry")
    assert run.name == "opentelemetry/default" and run.run_id == exporter.run_id


def test_the_tree(db: Database) -> None:
    """Children are exported before their parents, and are in the order in which they began."""
    exporter = OccamSpanExporter(db)
    agent_run(provider_of(exporter))
    run = exporter.run_id
    assert tree_of(db, run) == [
        (0, "invoke_agent planner"),
        (1, "chat m1"),
        (1, "execute_tool search"),
        (1, "parse"),
    ]
    root, chat, tool, parse = db.traces.get_tree(run, db.traces.get_roots(run)[0].id)
    assert isinstance(tool.trace_type, ToolCall)
    assert (tool.trace_type.tool, tool.trace_type.args, tool.trace_type.result) == (
        "search",
        {"q": "tea"},
        [1, 2],
    )
    assert root.trace_type == Custom("invoke_agent planner")
    assert [each.status for each in (root, chat, tool, parse)] == ["completed"] * 3 + ["failed"]
    assert parse.error == "ValueError: no number"
    took = chat.metadata["opentelemetry"]["end"] - chat.metadata["opentelemetry"]["start"]
    assert chat.duration_ms == pytest.approx(took / 1e6, abs=0.001)
    assert db.kv.list(run, "pending/") == []


@pytest.mark.parametrize("order", ["as exported", "reversed", "one by one", "one by one, reversed"])
def test_any_order_of_batches_gives_one_tree(db: Database, spans: InMemorySpanExporter, order: str) -> None:
    provider = provider_of(spans)
    tracer = provider.get_tracer("t")
    for _ in range(3):
        with tracer.start_as_current_span("0"):
            for _ in range(2):
                with tracer.start_as_current_span("1"):
                    for _ in range(2):
                        with tracer.start_as_current_span("2"), tracer.start_as_current_span("3"):
                            pass
    given = list(spans.get_finished_spans())
    if "reversed" in order:
        given.reverse()
    exporter = OccamSpanExporter(db)
    for batch in [[span] for span in given] if "one" in order else [given]:
        assert exporter.export(batch) is SpanExportResult.SUCCESS
    one = [(0, "0"), *[(1, "1"), *[(2, "2"), (3, "3")] * 2] * 2]
    assert tree_of(db, exporter.run_id) == one * 3
    assert db.kv.list(exporter.run_id, "pending/") == []


def test_a_root_that_runs_for_long(db: Database, spans: InMemorySpanExporter) -> None:
    """Its children wait in batch after batch, some of them for parents that wait themselves."""
    exporter = OccamSpanExporter(db)
    tracer = provider_of(spans).get_tracer("t")
    with tracer.start_as_current_span("root"):
        for number in range(5):
            for _ in range(20):
                with tracer.start_as_current_span(f"step {number}"), tracer.start_as_current_span("call"):
                    pass
            given = spans.get_finished_spans()
            spans.clear()
            exporter.export(given[1::2])  # the steps before their calls
            exporter.export(given[::2])
            assert db.traces.count(exporter.run_id) == 0
    exporter.export(spans.get_finished_spans())
    steps = [(depth, name) for n in range(5) for depth, name in [(1, f"step {n}"), (2, "call")] * 20]
    assert tree_of(db, exporter.run_id) == [(0, "root"), *steps]
    assert db.kv.list(exporter.run_id, "pending/") == []


def test_a_deep_trace(db: Database, spans: InMemorySpanExporter) -> None:
    """Deeper than Python's recursion limit, and in several batches."""
    tracer = provider_of(spans).get_tracer("t")
    open_spans = []
    context = None
    for _ in range(3000):
        span = tracer.start_span("s", context)
        context = trace_api.set_span_in_context(span)
        open_spans.append(span)
    for span in reversed(open_spans):
        span.end()
    exporter = OccamSpanExporter(db)
    assert exporter.export(spans.get_finished_spans()) is SpanExportResult.SUCCESS
    (root,) = db.traces.get_roots(exporter.run_id)
    assert max(depth for depth, _ in db.traces.get_tree(exporter.run_id, root.id).walk()) == 2999


def test_a_batch_may_come_again(db: Database, spans: InMemorySpanExporter) -> None:
    exporter = OccamSpanExporter(db)
    agent_run(provider_of(spans))
    finished = spans.get_finished_spans()
    for batch in (finished[:2], finished[:2], finished, finished[2:]):
        assert exporter.export(batch) is SpanExportResult.SUCCESS
    assert by_id(read_spans(db, exporter.run_id)) == by_id(finished)
    assert db.traces.count(exporter.run_id) == 4


def test_spans_that_wait_are_not_lost(db: Database, spans: InMemorySpanExporter) -> None:
    """The parent is in a process that never exports it, or was killed."""
    parent = NonRecordingSpan(SpanContext(5, 6, True, TraceFlags(1)))
    tracer = provider_of(spans).get_tracer("t")
    with tracer.start_as_current_span("child", trace_api.set_span_in_context(parent)):
        with tracer.start_as_current_span("grandchild"):
            pass
    finished = spans.get_finished_spans()
    exporter = OccamSpanExporter(db)
    assert exporter.export(finished) is SpanExportResult.SUCCESS
    assert db.traces.count(exporter.run_id) == 0
    assert by_id(read_spans(db, exporter.run_id)) == by_id(finished), "they can be read while they wait"
    assert exporter.record_orphans() == 0, "not yet"
    assert OccamSpanExporter(db, orphans_after=0).record_orphans() == 1
    assert tree_of(db, exporter.run_id) == [(0, "child"), (1, "grandchild")]
    assert [trace.tags for trace in db.traces.get_roots(exporter.run_id)] == [("orphan",)]
    assert by_id(read_spans(db, exporter.run_id)) == by_id(finished), "what its parent was is not forgotten"


def export_some(path: Path, order: int, carrier: tuple[int, int] | None) -> tuple[int, int]:
    """A process of its own: 50 spans under a span of another process; the context of its first one."""
    with occamdb.open(path) as db:
        exporter = OccamSpanExporter(db)
        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(exporter))
        tracer = provider.get_tracer("t")
        context = None
        if carrier is not None:
            context = trace_api.set_span_in_context(
                NonRecordingSpan(SpanContext(*carrier, True, TraceFlags(1)))
            )
        with tracer.start_as_current_span(f"process {order}", context) as root:
            for _ in range(50):
                with tracer.start_as_current_span("step"):
                    pass
            first = root.get_span_context()
        provider.shutdown()
        return first.trace_id, first.span_id


def test_a_trace_of_several_processes(database_path: Path) -> None:
    """Four processes export children of one span at once, and the span itself comes last."""
    spans = InMemorySpanExporter()
    root = provider_of(spans).get_tracer("t").start_span("root")
    context = root.get_span_context()
    carrier = context.trace_id, context.span_id
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(export_some, database_path, n, carrier) for n in range(4)]
        assert len({future.result(60) for future in futures}) == 4
    root.end()
    with occamdb.open(database_path) as db:
        exporter = OccamSpanExporter(db)
        assert db.traces.count(exporter.run_id) == 0
        exporter.export(spans.get_finished_spans())
        names = tree_of(db, exporter.run_id)
        assert len(names) == 1 + 4 * 51 and names[0] == (0, "root")
        assert sorted(name for depth, name in names if depth == 1) == [f"process {n}" for n in range(4)]


# --- Traces as spans -----------------------------------------------------------------------------


def test_traces_have_the_names_of_the_conventions(db: Database) -> None:
    run = db.runs.create_run("agent 7").run_id
    plan = db.traces.record(run, Thought("I need the weather", 0.9), tags=["plan"], metadata={"n": 1})
    with db.traces.span(run, ToolCall("weather", {"city": "Oslo"}), parent=plan) as span:
        span.set_result({"sky": "blue"})
    db.traces.record(run, Query("web", "oslo", ["a"]), parent_id=plan)
    db.traces.record(run, Decision("which?", ("a", "b"), "a"), parent_id=plan)
    db.traces.record(run, occamdb.Error("Timeout", "no answer"), parent_id=plan)
    db.traces.record(run, Custom("chat m1", {"tokens": 5}), parent_id=plan)
    spans = {span.name: span for span in read_spans(db, run)}
    assert [*spans] == ["plan", "execute_tool weather", "retrieval web", "error", "chat m1"]
    every = read_spans(db, run)
    assert len({span.context.trace_id for span in every if span.context}) == 1
    tool = spans["execute_tool weather"]
    assert tool.attributes is not None and tool.parent is not None and every[0].context is not None
    assert tool.parent.span_id == every[0].context.span_id
    assert tool.attributes["gen_ai.operation.name"] == "execute_tool"
    assert tool.attributes["gen_ai.tool.name"] == "weather"
    assert json.loads(str(tool.attributes["gen_ai.tool.call.arguments"])) == {"city": "Oslo"}
    assert json.loads(str(tool.attributes["gen_ai.tool.call.result"])) == {"sky": "blue"}
    assert tool.attributes["gen_ai.conversation.id"] == str(run)
    assert tool.end_time is not None and tool.start_time is not None and tool.end_time >= tool.start_time
    assert spans["error"].status.status_code is StatusCode.ERROR
    assert spans["error"].status.description == "no answer"
    assert spans["error"].attributes is not None and spans["error"].attributes["error.type"] == "Timeout"
    assert spans["chat m1"].attributes is not None
    assert spans["chat m1"].attributes["gen_ai.operation.name"] == "chat"

    exporter = OccamSpanExporter(db, name="copy")
    assert exporter.export(every) is SpanExportResult.SUCCESS
    (copied,) = db.traces.get_roots(exporter.run_id)
    before, after = db.traces.get_tree(run, plan), db.traces.get_tree(exporter.run_id, copied.id)
    # A tuple has become a list, as in all JSON.
    assert [shape(trace) for trace in after] == [shape(trace) for trace in before]
    assert copied.tags == ("plan",) and copied.metadata["n"] == 1


def shape(trace: Trace) -> tuple[str, dict[str, Any]]:
    kind = trace.trace_type
    fields = {name: getattr(kind, name) for name in type(kind).__dataclass_fields__ if name != "duration_ms"}
    return trace.type_name, json.loads(json.dumps(fields))


def test_open_spans_have_no_end(db: Database) -> None:
    run = RunId.new()
    db.traces.begin_span(run, ToolCall("search"))
    (span,) = read_spans(db, run)
    assert span.end_time is None


def test_otlp_is_read_by_the_protocol_itself(db: Database) -> None:
    exporter = OccamSpanExporter(db)
    agent_run(provider_of(exporter))
    agent_run(provider_of(exporter, service="other"))
    request = to_otlp(read_spans(db, exporter.run_id))
    text = json.dumps(request)
    assert json.loads(text) == request
    assert len(request["resourceSpans"]) == 2
    assert [len(entry["scopeSpans"]) for entry in request["resourceSpans"]] == [2, 2]
    # The mapping of protocol buffers to JSON has base64 where OTLP has hexadecimal.
    message = json_format.ParseDict(in_base64(request), ExportTraceServiceRequest())
    found = {
        span.span_id.hex(): span
        for entry in message.resource_spans
        for within in entry.scope_spans
        for span in within.spans
    }
    for span in read_spans(db, exporter.run_id):
        assert span.context is not None
        read = found.pop(f"{span.context.span_id:016x}")
        assert read.trace_id.hex() == f"{span.context.trace_id:032x}"
        assert read.name == span.name and read.kind == span.kind.value + 1
        assert (read.start_time_unix_nano, read.end_time_unix_nano) == (span.start_time, span.end_time)
        assert read.status.code == span.status.status_code.value
        assert read.parent_span_id.hex() == ("" if span.parent is None else f"{span.parent.span_id:016x}")
        assert len(read.attributes) == len(span.attributes or ())
        assert [event.name for event in read.events] == [event.name for event in span.events]
        assert len(read.links) == len(span.links)
    assert found == {}
    scopes = [within for entry in request["resourceSpans"] for within in entry["scopeSpans"]]
    chat = next(span for within in scopes for span in within["spans"] if span["name"] == "chat m1")
    values = {each["key"]: each["value"] for each in chat["attributes"]}
    assert values["gen_ai.usage.input_tokens"] == {"intValue": str(2**40)}
    assert values["stream"] == {"boolValue": True}
    assert values["gen_ai.request.stop_sequences"] == {
        "arrayValue": {"values": [{"stringValue": "a"}, {"stringValue": "b"}]}
    }


def in_base64(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: in_base64(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [in_base64(item) for item in value]
    return (
        base64.b64encode(bytes.fromhex(value)).decode()
        if key in ("traceId", "spanId", "parentSpanId")
        else value
    )


# --- Bad input -----------------------------------------------------------------------------------


def test_a_span_that_cannot_be_stored_takes_no_other_with_it(
    db: Database, spans: InMemorySpanExporter
) -> None:
    tracer = provider_of(spans).get_tracer("t")
    for value in (1, 2**200, "\ud800", float("nan"), 3):
        tracer.start_span("s", attributes={"value": value}).end()
    exporter = OccamSpanExporter(db)
    assert exporter.export(spans.get_finished_spans()) is SpanExportResult.SUCCESS
    values = [str((span.attributes or {})["value"]) for span in read_spans(db, exporter.run_id)]
    assert values == ["1", str(2**200), "?", "nan", "3"], "what does not fit is kept as text"


def test_a_span_that_is_too_large_is_dropped_alone(spans: InMemorySpanExporter, caplog: Any) -> None:
    tracer = provider_of(spans).get_tracer("t")
    for size in (1, 200_000, 2):
        tracer.start_span("s", attributes={"value": "a" * size}).end()
    with occamdb.open_in_memory(value_size_max="64KiB", max_store_size="16MiB") as db:
        exporter = OccamSpanExporter(db)
        assert exporter.export(spans.get_finished_spans()) is SpanExportResult.SUCCESS
        assert len(read_spans(db, exporter.run_id)) == 2
    assert "was dropped, because it cannot be stored" in caplog.text


def test_it_never_raises(db: Database, spans: InMemorySpanExporter, caplog: Any) -> None:
    agent_run(provider_of(spans))
    exporter = OccamSpanExporter(db)
    db.close()
    assert exporter.export(spans.get_finished_spans()) is SpanExportResult.FAILURE
    assert "4 spans were not exported" in caplog.text
    assert exporter.force_flush()
    exporter.shutdown()
    exporter.shutdown()
    assert exporter.export([]) is SpanExportResult.FAILURE


def test_a_path_is_closed_by_shutdown(database_path: Path) -> None:
    exporter = OccamSpanExporter(database_path)
    agent_run(provider_of(exporter))
    exporter.shutdown()
    assert len(read_spans(database_path, exporter.run_id)) == 4


def test_without_the_extra() -> None:
    program = (
        "import sys; sys.modules['opentelemetry.sdk.trace'] = None\nimport occamdb.plugins.opentelemetry\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1 and "pip install 'occamdb[opentelemetry]'" in done.stderr
