"""Spans of OpenTelemetry as what traces store, and back.

1. A packed span is a dict of values that can be stored. Its resource and its scope are kept once a run, under the hash
   of their content, and named by it.
2. The id of a span's trace record begins with the time of its start, so siblings of one commit are in the order in
   which they began.
3. The names of the GenAI conventions are written out here: they have no stable package to be imported from.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags, TraceState
from opentelemetry.trace.status import Status, StatusCode

import occamdb
from occamdb import RunId, Trace

__all__ = [
    "INTERNED",
    "METADATA",
    "Interned",
    "Packed",
    "error_of",
    "native_span",
    "packed",
    "safe",
    "span_record",
    "unpacked",
]

Packed = dict[str, Any]
METADATA = "opentelemetry"
INTERNED = "interned/"

# Of the GenAI conventions.
OPERATION = "gen_ai.operation.name"
TOOL, ARGUMENTS, RESULT = "gen_ai.tool.name", "gen_ai.tool.call.arguments", "gen_ai.tool.call.result"
QUERY, DOCUMENTS = "gen_ai.retrieval.query.text", "gen_ai.retrieval.documents"
SOURCE, CONVERSATION, ERROR_TYPE = "gen_ai.data_source.id", "gen_ai.conversation.id", "error.type"
_MODEL = ("chat", "generate_content", "text_completion", "embeddings")
_AGENT = ("create_agent", "invoke_agent", "invoke_workflow", "execute_tool", "retrieval", "plan")
OPERATIONS = frozenset((*_MODEL, *_AGENT))
# Of ours: what the conventions have no name for.
TYPE, FIELDS, TAGS, EXTRA = "occamdb.type", "occamdb.fields", "occamdb.tags", "occamdb.metadata"
_TYPES: Mapping[str, type[Any]] = {
    cls.__name__: cls
    for cls in (
        occamdb.ToolCall,
        occamdb.Decision,
        occamdb.Query,
        occamdb.Thought,
        occamdb.Error,
        occamdb.Custom,
    )
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INT64 = 1 << 63


class Interned:
    """Resources and scopes of a batch: each is packed once, and stored once a run."""

    def __init__(self) -> None:
        self.items: dict[str, Any] = {}
        self._keys: dict[
            int, tuple[str, Any]
        ] = {}  # by identity, with the thing itself, which so stays alive

    def key(self, thing: Resource | InstrumentationScope | None) -> str | None:
        """The key under which it is stored."""
        if thing is None:
            return None
        known = self._keys.get(id(thing))
        if known is not None:
            return known[0]
        value: Packed = {"attributes": _stored(thing.attributes), "schema_url": thing.schema_url}
        if isinstance(thing, InstrumentationScope):
            value |= {"name": thing.name, "version": thing.version}
        text = json.dumps(plain(value), sort_keys=True)
        key = INTERNED + blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()
        self.items[key] = plain(value)
        self._keys[id(thing)] = key, thing
        return key


# --- From OpenTelemetry --------------------------------------------------------------------------


def packed(span: ReadableSpan, interned: Interned) -> Packed:
    """A span as what can be stored; parts that are empty are left out."""
    context, parent, status = span.get_span_context(), span.parent, span.status
    assert context is not None
    row: Packed = {
        "trace": f"{context.trace_id:032x}",
        "span": f"{context.span_id:016x}",
        "parent": None if parent is None else f"{parent.span_id:016x}",
        "name": span.name,
        "kind": span.kind.value,
        "start": span.start_time or 0,
        "end": span.end_time,
        "attributes": _stored(span.attributes),
        "resource": interned.key(span.resource),
        "scope": interned.key(span.instrumentation_scope),
    }
    if parent is not None and parent.is_remote:
        row["remote"] = True
    if status.status_code is not StatusCode.UNSET:
        row["status"] = [status.status_code.value, status.description]
    if span.events:
        row["events"] = [[event.name, event.timestamp, _stored(event.attributes)] for event in span.events]
    if span.links:
        row["links"] = [[*_context(link.context), _stored(link.attributes)] for link in span.links]
    flags, state = context.trace_flags, context.trace_state
    if flags != TraceFlags.SAMPLED:
        row["flags"] = int(flags)
    if state:
        row["state"] = state.to_header()
    if parent is not None and (parent.trace_flags != flags or parent.trace_state != state):
        row["parent_context"] = _context(parent)
    return row


def _stored(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    if not attributes:
        return {}
    # `copy` is far quicker than iterating what the SDK has, which takes a lock for each key.
    values: dict[str, Any] = attributes.copy() if hasattr(attributes, "copy") else dict(attributes)
    for key, value in values.items():
        if type(value) is tuple:
            values[key] = list(value)
    return values


def _context(context: SpanContext) -> list[Any]:
    state = context.trace_state.to_header() if context.trace_state else ""
    return [
        f"{context.trace_id:032x}",
        f"{context.span_id:016x}",
        context.is_remote,
        int(context.trace_flags),
        state,
    ]


def safe(row: Packed) -> Packed:
    """A packed span, with text in place of what cannot be stored."""
    clean: Packed = plain(row)
    return clean


def plain(value: Any) -> Any:
    """A value that JSON and a database take: integers beyond 64 bits, bytes and the like become text."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, int) and not -_INT64 <= value < _INT64:
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [plain(item) for item in value]
    return str(value)


def span_record(row: Packed, parent: str | None, *, orphan: bool = False) -> dict[str, Any]:
    """What `begin_span` is called with to record a packed span."""
    attributes = row["attributes"]
    tags: Sequence[str] = ()
    metadata: dict[str, Any] = {METADATA: row}
    if TYPE in attributes:
        tags, extra = attributes.get(TAGS, ()), _parsed(attributes.get(EXTRA))
        metadata |= extra if isinstance(extra, dict) else {}
    return {
        "trace": _trace_type(row),
        "id": f"{row['start'] % (1 << 64):016x}{row['span']}",
        "parent_id": parent,
        "tags": [*tags, "orphan"] if orphan else tags,
        "metadata": metadata,
    }


def _trace_type(row: Packed) -> Any:
    """What the traces have for an operation of the GenAI conventions; a Custom of the span's name for all else."""
    attributes = row["attributes"]
    if OPERATION in attributes or TYPE in attributes:
        own = _TYPES.get(attributes.get(TYPE, ""))
        if own is not None:
            try:
                return own(**json.loads(attributes[FIELDS]))
            except (KeyError, TypeError, ValueError):
                pass  # not of ours after all
        operation = attributes.get(OPERATION)
        if operation == "execute_tool":
            tool = attributes.get(TOOL) or row["name"]
            return occamdb.ToolCall(tool, _parsed(attributes.get(ARGUMENTS)), _parsed(attributes.get(RESULT)))
        if operation == "retrieval":
            source = str(attributes.get(SOURCE) or operation)
            return occamdb.Query(source, attributes.get(QUERY), _parsed(attributes.get(DOCUMENTS)))
    return occamdb.Custom(row["name"])


def _parsed(value: Any) -> Any:
    """The value of a JSON text; other text as it is."""
    if isinstance(value, str):
        try:
            return plain(json.loads(value))
        except (ValueError, RecursionError):
            return value
    return value


def error_of(row: Packed) -> str | None:
    """What a span failed with."""
    code, description = row.get("status", (0, None))
    if code != StatusCode.ERROR.value:
        return None
    return str(description or row["attributes"].get(ERROR_TYPE) or "error")


# --- To OpenTelemetry ----------------------------------------------------------------------------


def unpacked(row: Packed, interned: Mapping[str, Any]) -> ReadableSpan:
    """The span that was packed."""
    trace_id = int(row["trace"], 16)
    flags = TraceFlags(row.get("flags", TraceFlags.SAMPLED))
    state = TraceState.from_header([row["state"]]) if "state" in row else None
    context = SpanContext(trace_id, int(row["span"], 16), False, flags, state)
    parent = None
    if "parent_context" in row:
        parent = _context_of(row["parent_context"])
    elif row["parent"] is not None:
        parent = SpanContext(trace_id, int(row["parent"], 16), row.get("remote", False), flags, state)
    origin = interned.get(row["resource"] or "") or {"attributes": {}, "schema_url": None}
    scope = interned.get(row["scope"] or "")
    code, description = row.get("status", (0, None))
    return ReadableSpan(
        name=row["name"],
        context=context,
        parent=parent,
        resource=Resource(_given(origin["attributes"]), origin["schema_url"]),
        attributes=_given(row["attributes"]),
        events=[Event(name, _given(attributes), at) for name, at, attributes in row.get("events", ())],
        links=[Link(_context_of(link), _given(link[5])) for link in row.get("links", ())],
        kind=SpanKind(row["kind"]),
        status=Status(StatusCode(code), description),
        start_time=row["start"],
        end_time=row["end"],
        instrumentation_scope=None
        if scope is None
        else InstrumentationScope(
            scope["name"], scope["version"], scope["schema_url"], _given(scope["attributes"])
        ),
    )


def _given(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in attributes.items()}


def _context_of(stored: Sequence[Any]) -> SpanContext:
    trace_id, span_id, remote, flags, state = stored[:5]
    return SpanContext(
        int(trace_id, 16),
        int(span_id, 16),
        remote,
        TraceFlags(flags),
        TraceState.from_header([state]) if state else None,
    )


def native_span(trace: Trace, run_id: RunId) -> ReadableSpan:
    """A trace that was recorded by occamdb's own calls, with the names of the GenAI conventions."""
    what = trace.trace_type
    start = (trace.timestamp - _EPOCH) // timedelta(microseconds=1) * 1000
    took = trace.duration_ms or 0.0
    end: int | None = start + round(took * 1e6)
    if trace.is_open:
        end = None
    fields = json.dumps(plain(asdict(what)), ensure_ascii=False)
    name, attributes = _conventions(what)
    attributes |= {CONVERSATION: str(run_id), TYPE: type(what).__name__, FIELDS: fields}
    if trace.tags:
        attributes[TAGS] = trace.tags
    if trace.metadata:
        attributes[EXTRA] = json.dumps(plain(trace.metadata), ensure_ascii=False)
    error = what.message or what.type if isinstance(what, occamdb.Error) else trace.error
    sampled = TraceFlags(TraceFlags.SAMPLED)
    trace_id = int(trace.root_id.replace("-", ""), 16)
    return ReadableSpan(
        name=name,
        context=SpanContext(trace_id, _span_id(trace.id), False, sampled),
        parent=None
        if trace.parent_id is None
        else SpanContext(trace_id, _span_id(trace.parent_id), False, sampled),
        resource=Resource({"service.name": "occamdb"}),
        attributes=attributes,
        status=Status(StatusCode.UNSET) if error is None else Status(StatusCode.ERROR, error),
        start_time=start,
        end_time=end,
        instrumentation_scope=InstrumentationScope("occamdb", occamdb.__version__),
    )


def _span_id(trace_id: str) -> int:
    """The lower half of an id: of those made here it holds the random digits."""
    return int(trace_id.replace("-", ""), 16) & ((1 << 64) - 1) or 1


def _conventions(what: Any) -> tuple[str, dict[str, Any]]:
    """The name and the attributes of a span, by the type of its trace."""
    if isinstance(what, occamdb.ToolCall):
        attributes = {OPERATION: "execute_tool", TOOL: what.tool}
        if what.args is not None:
            attributes[ARGUMENTS] = json.dumps(plain(what.args), ensure_ascii=False)
        if what.result is not None:
            attributes[RESULT] = json.dumps(plain(what.result), ensure_ascii=False)
        return f"execute_tool {what.tool}", attributes
    if isinstance(what, occamdb.Query):
        attributes = {OPERATION: "retrieval", SOURCE: what.type}
        if what.query is not None:
            text = what.query if isinstance(what.query, str) else json.dumps(plain(what.query))
            attributes[QUERY] = text
        if what.results is not None:
            attributes[DOCUMENTS] = json.dumps(plain(what.results), ensure_ascii=False)
        return f"retrieval {what.type}", attributes
    if isinstance(what, occamdb.Thought | occamdb.Decision):
        return "plan", {OPERATION: "plan"}
    if isinstance(what, occamdb.Error):
        return "error", {ERROR_TYPE: what.type}
    assert isinstance(what, occamdb.Custom)
    operation = what.name.partition(" ")[0]
    return what.name, {OPERATION: operation} if operation in OPERATIONS else {}
