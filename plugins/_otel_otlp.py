"""Spans as OTLP in its JSON form: what a collector takes at `/v1/traces`, and what its file exporter writes."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext

__all__ = ["to_otlp"]

Json = dict[str, Any]
IS_REMOTE_KNOWN, IS_REMOTE = 0x100, 0x200


def to_otlp(spans: Iterable[ReadableSpan]) -> Json:
    """The request that exports spans, as what `json.dumps` takes: grouped by resource and scope.

    Ids are hexadecimal and 64-bit integers are text, as OTLP has them.
    """
    resources: dict[Any, tuple[Json, dict[Any, Json]]] = {}
    for span in spans:
        resource, scope = span.resource, span.instrumentation_scope
        key = (tuple(map(repr, resource.attributes.items())), resource.schema_url)
        found = resources.get(key)
        if found is None:
            entry: Json = {"resource": {"attributes": _attributes(resource.attributes)}}
            if resource.schema_url:
                entry["schemaUrl"] = resource.schema_url
            found = resources[key] = entry, {}
        scopes = found[1]
        within = scopes.get(scope)
        if within is None:
            within = scopes[scope] = {"scope": {}, "spans": []}
            if scope is not None:
                within["scope"] = {"name": scope.name, "version": scope.version or ""}
                if scope.attributes:
                    within["scope"]["attributes"] = _attributes(scope.attributes)
                if scope.schema_url:
                    within["schemaUrl"] = scope.schema_url
        within["spans"].append(_span(span))
    return {
        "resourceSpans": [{**entry, "scopeSpans": [*scopes.values()]} for entry, scopes in resources.values()]
    }


def _span(span: ReadableSpan) -> Json:
    context = span.get_span_context()
    assert context is not None
    encoded: Json = {
        **_ids(context),
        "name": span.name,
        "kind": span.kind.value + 1,  # OTLP keeps 0 for a kind that is not known
        "startTimeUnixNano": str(span.start_time or 0),
        "endTimeUnixNano": str(span.end_time or 0),
        "attributes": _attributes(span.attributes or {}),
        "flags": int(context.trace_flags),
    }
    if span.parent is not None:
        encoded["parentSpanId"] = f"{span.parent.span_id:016x}"
        encoded["flags"] |= IS_REMOTE_KNOWN | (IS_REMOTE if span.parent.is_remote else 0)
    if span.events:
        encoded["events"] = [
            {
                "timeUnixNano": str(event.timestamp),
                "name": event.name,
                "attributes": _attributes(event.attributes or {}),
            }
            for event in span.events
        ]
    if span.links:
        encoded["links"] = [
            {**_ids(link.context), "attributes": _attributes(link.attributes or {})} for link in span.links
        ]
    if span.status.status_code.value:
        encoded["status"] = {"code": span.status.status_code.value}
        if span.status.description:
            encoded["status"]["message"] = span.status.description
    return encoded


def _ids(context: SpanContext) -> Json:
    ids = {"traceId": f"{context.trace_id:032x}", "spanId": f"{context.span_id:016x}"}
    if context.trace_state:
        ids["traceState"] = context.trace_state.to_header()
    return ids


def _attributes(attributes: Mapping[str, Any]) -> list[Json]:
    return [{"key": key, "value": _value(value)} for key, value in attributes.items()]


def _value(value: Any) -> Json:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, bytes):
        return {"bytesValue": base64.b64encode(value).decode()}
    if isinstance(value, Mapping):
        return {"kvlistValue": {"values": _attributes(value)}}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return {"arrayValue": {"values": [_value(item) for item in value]}}
    return {"stringValue": str(value)} if value is not None else {}
