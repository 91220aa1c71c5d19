"""Reading stored traces, one or a whole tree: functions on the part of a run that belongs to traces."""

from __future__ import annotations

from typing import Any

from ..engine.model.errors import NotFoundError
from ..engine.transaction._transaction import Space
from . import layout
from .read_ahead import read_ahead
from .trace_types import (
    FORM,
    PARENT,
    ROOT,
    SPAN,
    Names,
    Trace,
    TraceTree,
    decode_record,
    decode_trace,
    id_text,
)

__all__ = ["decoded_trace", "existing_trace", "fetch_trace", "read_tree"]


def existing_trace(space: Space, raw: bytes) -> bytes:
    """The stored trace of an id.

    Raises:
      NotFoundError: the run has no such trace.
    """
    stored: bytes | None = space.get(layout.trace(raw))
    if stored is None:
        raise NotFoundError(
            f"there is no trace {id_text(raw)} in this run",
            hint="traces are found only in the run they were recorded in",
            details={"id": id_text(raw)},
        )
    return stored


def fetch_trace(space: Space, raw: bytes) -> bytes:
    """The stored trace that an index entry names.

    It is not in the read set: traces never change, so the entry there is enough.
    """
    stored: bytes = space.get(layout.trace(raw), track=False)
    return stored


def decoded_trace(space: Space, raw: bytes, record: list[Any], names: Names) -> Trace:
    """The trace of a decoded record, with its end if it is a span that has ended."""
    return decode_trace(raw, record, names, _end_of(space, raw, record))


def _end_of(space: Space, raw: bytes, record: list[Any]) -> Any:
    """The stored end of a trace that is a span and has ended, else None."""
    return space.get(layout.span_end(record[ROOT], raw)) if record[FORM] & SPAN else None


def read_tree(space: Space, raw: bytes) -> TraceTree:
    """A trace with everything under it: O(its size).

    Raises:
      NotFoundError: the run has no such trace.
    """
    stored = existing_trace(space, raw)
    names = Names(space.codec)
    record = decode_record(raw, stored, names.codec)
    tree = TraceTree(raw, stored, names, _end_of(space, raw, record))
    if record[PARENT] is None:
        _grow_whole(space, raw, tree, names)
    else:
        _grow_branch(space, record[ROOT], raw, tree, names)
    return tree


def _grow_whole(space: Space, root: bytes, tree: TraceTree, names: Names) -> None:
    """Add all descendants of a root: one range of the family index, ordered by parent, then time."""
    get = space.get
    family = layout.traces_of_family(root)
    start, end = len(family), len(family) + layout.ID_SIZE
    nodes, links = {root: tree}, []
    ends = {key[-layout.ID_SIZE :]: row.value for key, row in space.scan(layout.span_end(root))}
    for key in read_ahead(space, space.keys(family), _trace_key):
        raw = key[-layout.ID_SIZE :]
        # The same as `fetch_trace`, without a call for each of many traces.
        node = nodes[raw] = TraceTree(raw, get(layout.TRACE + raw, track=False), names, ends.get(raw))
        links.append((key[start:end], node))
    for parent, node in links:
        nodes[parent].adopt(node)


def _grow_branch(space: Space, root: bytes, top: bytes, tree: TraceTree, names: Names) -> None:
    """Add the descendants of a trace inside a larger tree, one range of children after another."""
    open_nodes = [(top, tree)]
    while open_nodes:
        parent, node = open_nodes.pop()
        for key in read_ahead(space, space.keys(layout.traces_of_family(root, parent)), _trace_key):
            raw = layout.suffix_id(key)
            child = TraceTree(raw, fetch_trace(space, raw), names, space.get(layout.span_end(root, raw)))
            node.adopt(child)
            open_nodes.append((raw, child))


def _trace_key(entry: bytes) -> bytes:
    """The key of the trace that an entry of a family names."""
    return layout.trace(layout.suffix_id(entry))
