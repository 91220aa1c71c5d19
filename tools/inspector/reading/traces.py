"""The traces of a run: as trees whose branches open, as a list, and one with everything in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from occamdb import Snapshot, Trace
from occamdb.engine.model.errors import CorruptionError, NotFoundError, OccamError
from occamdb.primitives import layout
from occamdb.primitives.trace_records import decoded_trace
from occamdb.primitives.trace_types import ROOT, Names, decode_record, decode_trace, id_bytes, id_text
from occamdb.tools.inspector.reading.runs import cursor_bytes
from occamdb.tools.inspector.reading.safely import PAGE_ROWS, problem
from occamdb.tools.trace_view import headline, state

__all__ = [
    "Node",
    "TracesPage",
    "input_and_output",
    "one_trace",
    "read_traces",
    "trace_trees",
    "traces_listed",
]

TREE_NODES = 300  # of one page
DEPTH_OPEN = 3  # levels that are open at first
DEPTH_MAX = 40
LOOKED_AT_MAX = 20_000


@dataclass(slots=True)
class Node:
    """A trace on a page.

    Attributes:
      id: its id.
      trace: None if it cannot be read.
      error: why.
      depth: below the top of the page.
      children: those that are on the page.
      has_more: there are further ones, which are not on the page.
    """

    id: str
    trace: Trace | None
    error: str | None = None
    depth: int = 0
    children: list[Node] = field(default_factory=list)
    has_more: bool = False

    @property
    def state(self) -> str:
        """ok, error, open or unreadable."""
        return "unreadable" if self.trace is None else state(self.trace)

    @property
    def text(self) -> str:
        """What it says, on one line."""
        return self.error or "" if self.trace is None else headline(self.trace)

    @property
    def is_open_at_first(self) -> bool:
        """Whether its branch is shown open."""
        return self.depth < DEPTH_OPEN


@dataclass(slots=True)
class TracesPage:
    """Some traces.

    Attributes:
      nodes: the tops of trees, or the traces of a list.
      next: the cursor of the next page; "" if there is none.
      above: of a page that shows a branch: the trace at its top.
    """

    nodes: list[Node] = field(default_factory=list)
    next: str = ""
    above: Node | None = None


def _node(view: Snapshot, raw: bytes, names: Names, depth: int = 0) -> Node:
    try:
        stored = view.traces.space.get(layout.trace(raw))
        if stored is None:
            raise CorruptionError("an index names this trace, and it is missing")
        trace = decoded_trace(view.traces.space, raw, decode_record(raw, stored, names.codec), names)
        return Node(id_text(raw), trace, None, depth)
    except (OccamError, ValueError, TypeError, LookupError) as error:
        return Node(id_text(raw), None, problem(error), depth)


def _family(view: Snapshot, root: bytes, parent: bytes, after: str = "") -> Iterator[bytes]:
    """The suffixes of the children of a trace in time order."""
    prefix = layout.traces_of_family(root, parent)
    start = prefix + cursor_bytes(after) + b"\0" if after else None
    for key in view.traces.space.keys(prefix, start=start):
        yield key[-layout.SUFFIX_SIZE :]


def trace_trees(view: Snapshot, *, under: str = "", after: str = "") -> TracesPage:
    """The trees of a run, or the branch under one trace, a page of them.

    Args:
      under: the id of a trace; "" for whole trees.
      after: the cursor behind which the page begins.

    Raises:
      NotFoundError: the run has no trace `under`.
    """
    names = Names(view.traces.space.codec)
    page = TracesPage()
    root = parent = layout.ZERO_ID
    if under:
        parent = id_bytes(under)
        page.above = _node(view, parent, names)
        stored = view.traces.space.get(layout.trace(parent))
        if stored is None:
            raise NotFoundError(f"there is no trace {under} in this run", hint="it may be one of another run")
        root = decode_record(parent, stored, names.codec)[ROOT]
    left = TREE_NODES
    for suffix in _family(view, root, parent, after):
        if left <= 0 or len(page.nodes) >= PAGE_ROWS:
            return page
        raw = suffix[-layout.ID_SIZE :]
        node = _node(view, raw, names)
        left -= 1 + _grow(view, root if under else raw, node, names, left - 1)
        page.nodes.append(node)
        page.next = suffix.hex()
    page.next = ""
    return page


def _grow(view: Snapshot, root: bytes, top: Node, names: Names, most: int) -> int:
    """Add what is under a node, level by level, at most so many; returns how many."""
    level, count = [top], 0
    while level:
        below: list[Node] = []
        for node in level:
            for suffix in _family(view, root, id_bytes(node.id)):
                if count >= most or node.depth >= DEPTH_MAX:
                    node.has_more = True
                    break
                child = _node(view, suffix[-layout.ID_SIZE :], names, node.depth + 1)
                node.children.append(child)
                below.append(child)
                count += 1
        level = below
    return count


def traces_listed(
    view: Snapshot, *, kind: str = "", tag: str = "", failed: bool = False, after: str = ""
) -> TracesPage:
    """The traces of a run in time order that meet the filters, a page of them.

    Args:
      kind: the name of a type, or of Custom traces; "" for all.
      tag: a tag; "" for any.
      failed: only those that failed or have not ended.
      after: the cursor behind which the page begins.
    """
    names = Names(view.traces.space.codec)
    page = TracesPage()
    prefix = layout.traces_tagged(tag) if tag else layout.TRACE_BY_TIME
    start = prefix + cursor_bytes(after) + b"\0" if after else None
    for looked_at, key in enumerate(view.traces.space.keys(prefix, start=start)):
        if len(page.nodes) >= PAGE_ROWS or looked_at >= LOOKED_AT_MAX:
            return page
        suffix = key[-layout.SUFFIX_SIZE :]
        node = _node(view, suffix[-layout.ID_SIZE :], names)
        if node.trace is None or (
            (not kind or node.trace.type_name == kind or type(node.trace.trace_type).__name__ == kind)
            and (not failed or node.state != "ok")
        ):
            page.nodes.append(node)
        page.next = suffix.hex()
    page.next = ""
    return page


def one_trace(view: Snapshot, trace_id: str) -> Node:
    """One trace.

    Raises:
      NotFoundError: the run has no such trace.
      InvalidArgumentError: it is not an id.
    """
    raw = id_bytes(trace_id)
    if not view.traces.space.exists(layout.trace(raw)):
        raise NotFoundError(
            f"there is no trace {id_text(raw)} in this run", hint="it may be one of another run"
        )
    return _node(view, raw, Names(view.traces.space.codec))


def input_and_output(trace: Trace) -> list[tuple[str, Any]]:
    """What a trace was given and what it gave, by name; what is not there is left out."""
    content: dict[str, Any] = {
        name: getattr(trace.trace_type, name) for name in type(trace.trace_type).__dataclass_fields__
    }
    content.pop("duration_ms", None)
    rows = [(name, value) for name, value in content.items() if value is not None and value != ()]
    if trace.result is not None and not any(value == trace.result for _, value in rows):
        rows.append(("result", trace.result))
    if trace.error is not None:
        rows.append(("error", trace.error))
    if trace.metadata:
        rows.append(("metadata", trace.metadata))
    return rows


def read_traces(view: Snapshot, most: int) -> tuple[list[Trace], int]:
    """The traces of a run for a picture, in time order, and how many of them cannot be read.

    Args:
      most: at most so many are read; the first ones.
    """
    space = view.traces.space
    names = Names(space.codec)
    found: list[Trace] = []
    unreadable = 0
    # By one scan each: a look-up for each of ten thousand traces would take as long as the picture.
    ends = {key[-layout.ID_SIZE :]: row.value for key, row in space.scan(layout.SPAN_END, limit=most)}
    for key, row in space.scan(layout.TRACE, limit=most):
        raw = key[-layout.ID_SIZE :]
        try:
            found.append(decode_trace(raw, decode_record(raw, row.value, names.codec), names, ends.get(raw)))
        except (OccamError, ValueError, TypeError, LookupError):
            unreadable += 1
    return found, unreadable
