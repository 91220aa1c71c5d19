"""Finding traces: their entries in the indices, and which index a query reads."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from ..engine.model.errors import InvalidArgumentError
from ..engine.transaction._transaction import Space
from . import layout
from .planner import Choice, IndexRange, Test, beyond, checked_limit, choose, window
from .read_ahead import read_ahead
from .trace_records import decoded_trace, existing_trace, fetch_trace
from .trace_types import (
    CUSTOM,
    FIELDS,
    KIND,
    KIND_NAMED,
    KIND_OF,
    PARENT,
    ROOT,
    TAGS,
    TIME,
    Names,
    Trace,
    TraceType,
    decode_record,
    id_bytes,
)

__all__ = ["IdLike", "TraceFilter", "find_traces", "listed_under_type", "trace_entries"]

IdLike = str | UUID


class TraceFilter(NamedTuple):
    """What a query asks for; what is None or empty is not asked for."""

    trace_type: type[TraceType] | str | None = None
    tags: tuple[str, ...] = ()
    parent_id: IdLike | None = None
    start: datetime | None = None
    end: datetime | None = None
    after: IdLike | None = None
    roots: bool = False


def trace_entries(
    raw_id: bytes,
    kind: int,
    name: Any,
    time_us: int,
    root: bytes,
    parent: bytes | None,
    labels: Iterable[str],
) -> list[bytes]:
    """The keys of all index entries of a trace.

    Args:
      name: of a Custom trace, for anything else ignored.

    Raises:
      InvalidArgumentError: the name or a tag is not text, or is too long.
    """
    suffix = layout.trace_suffix(time_us, raw_id)
    entries = [layout.traces_tagged(tag) + suffix for tag in labels]
    if kind == CUSTOM:
        entries.append(layout.traces_named(name) + suffix)
    family = (layout.ZERO_ID, layout.ZERO_ID) if parent is None else (root, parent)
    entries.append(layout.traces_of_kind(kind) + suffix)
    entries.append(layout.traces_of_family(*family) + suffix)
    entries.append(layout.TRACE_BY_TIME + suffix)
    return entries


def find_traces(space: Space, wanted: TraceFilter, limit: int | None, reverse: bool = False) -> list[Trace]:
    """The traces that meet every filter, in time order; those of one time in the order of their ids."""
    if checked_limit(limit) == 0:
        return []
    plan = _plan(space, wanted, reverse)
    if plan is None:
        return []
    index, tests = plan
    found: list[Trace] = []
    names = Names(space.codec)
    entries = index.keys(space, limit=None if tests else limit, reverse=reverse)
    for key in read_ahead(space, entries, lambda key: layout.trace(layout.suffix_id(key))):
        raw = key[-layout.ID_SIZE :]
        record = decode_record(raw, fetch_trace(space, raw), names.codec)
        if all(test(record) for test in tests):
            found.append(decoded_trace(space, raw, record, names))
            if len(found) == limit:
                break
    return found


def _plan(space: Space, wanted: TraceFilter, reverse: bool) -> tuple[IndexRange, list[Test]] | None:
    """The index to read and the tests left to make on its traces; None: there can be none."""
    bounds = window(wanted.start, wanted.end, ("start", "end"))
    if wanted.after is not None:
        last = id_bytes(wanted.after)
        time_us = decode_record(last, existing_trace(space, last), space.codec)[TIME]
        bounds = beyond(bounds, layout.trace_suffix(time_us, last), reverse=reverse)
    filters: list[tuple[bytes, bytes | None, Test]] = []
    if wanted.parent_id is not None:
        raw = id_bytes(wanted.parent_id, "a parent id")
        stored = space.get(layout.trace(raw))
        if stored is None:
            return None  # a parent is there before its children
        root = decode_record(raw, stored, space.codec)[ROOT]
        family = layout.traces_of_family(root, raw)
        filters.append((family, None, _under(raw)))
    if wanted.roots:
        filters.append((layout.traces_of_family(layout.ZERO_ID, layout.ZERO_ID), None, _under(None)))
    filters += [(layout.traces_tagged(tag), None, _tagged(tag)) for tag in wanted.tags]
    if wanted.trace_type is not None:
        filters.append(listed_under_type(wanted.trace_type))
    if not filters:
        return IndexRange(layout.TRACE_BY_TIME, *bounds), []
    choices = [Choice(IndexRange(prefix, *bounds, also), test) for prefix, also, test in filters]
    return choose(space, choices)


def _under(parent: bytes | None) -> Test:
    return lambda record: record[PARENT] == parent


def _tagged(tag: str) -> Test:
    return lambda record: tag in (record[TAGS] or ())


def listed_under_type(trace_type: type[TraceType] | str) -> tuple[bytes, bytes | None, Test]:
    """Where traces of a type are listed, a second group or None, and how to tell them by their record."""
    if isinstance(trace_type, str):
        named, kind = layout.traces_named(trace_type), KIND_NAMED.get(trace_type)
        if kind is None:
            return named, None, _custom(trace_type)
        of_kind, custom = _of_kind(kind), _custom(trace_type)
        # Those of the name "Custom" are among the Custom traces already.
        also = None if kind == CUSTOM else named
        return layout.traces_of_kind(kind), also, lambda record: of_kind(record) or custom(record)
    number = KIND_OF.get(trace_type) if isinstance(trace_type, type) else None
    if number is None:
        raise InvalidArgumentError(
            f"a trace type is one of {', '.join(KIND_NAMED)} or the name of a Custom one, got {trace_type!r}",
            hint="query_by_type(ToolCall), query_by_type('ToolCall') or query_by_type('my custom name')",
        )
    return layout.traces_of_kind(number), None, _of_kind(number)


def _of_kind(kind: int) -> Test:
    return lambda record: record[KIND] == kind


def _custom(name: str) -> Test:
    return lambda record: record[KIND] == CUSTOM and record[FIELDS][0] == name
