"""TraceStore: what an agent did, step by step, as trees.

1. A trace and its entries in every index (type, Custom name, tag, family, time) are written in one transaction, and
   traces are never changed or removed but with their run: an entry always has its trace. The end of a span is a
   further key, written once.
2. A parent exists when its child is recorded, which the commit checks whatever the isolation, and a trace belongs to
   the tree of its parent's root. So a whole tree is one range of the family index, and so are the children of one
   trace.
3. Every index is in time order within its group and holds the time in its keys, so a time range cuts any of them.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, overload
from uuid import UUID

from ..engine.model.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError
from ..engine.model.public_types import TypeTag
from . import layout
from .extension import DatabaseBase, H_co, Primitive, RunLike, TransactionBase, operation, reader, single
from .planner import Choice, IndexRange, Test, beyond, checked_limit, choose, window
from .spans import INHERIT, Span, spans_around
from .trace_types import (
    CUSTOM,
    FIELDS,
    FORM,
    KIND,
    KIND_NAMED,
    KIND_OF,
    PARENT,
    ROOT,
    SPAN,
    TAGS,
    TIME,
    Names,
    Trace,
    TraceId,
    TraceTree,
    TraceType,
    checked_metadata,
    checked_tags,
    decode_record,
    decode_trace,
    encode_end,
    encode_record,
    id_bytes,
    id_text,
    kind_of,
)

if TYPE_CHECKING:
    from ..engine.transaction.async_database import AsyncDatabase

__all__ = ["TraceStore"]

IdLike = str | UUID


class TraceStore(Primitive[H_co]):
    """The traces of a run: `db.traces.record(run_id, Thought("hm"))`, or `txn.traces.record(Thought("hm"))`."""

    __slots__ = ()
    name = "traces"
    tag = TypeTag.TRACE

    # --- Recording ---

    @operation
    def record(
        self,
        trace: TraceType,
        *,
        id: IdLike | None = None,
        parent_id: IdLike | None = INHERIT,
        tags: Iterable[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> TraceId:
        """Record a trace; returns its id, the text of a time-ordered UUID.

            step = db.traces.record(run, Thought("I need the weather"), tags=["plan"])
            db.traces.record(run, ToolCall("weather", {"city": "Oslo"}), parent_id=step)

        Args:
          trace: what happened.
          id: an id of your own; None: a new one.
          parent_id: the trace of this run that it belongs under; None: it is a root; "inherit": the innermost span of
            this run around the call, if the call sees it, else it is a root.
          tags, metadata: to find it by, and anything else to keep with it.

        Raises:
          AlreadyExistsError: the run has a trace `id`.
          NotFoundError: the run has no trace `parent_id`.
        """
        return self._record_at(trace, id, parent_id, tags, metadata)

    record_with_options = record

    @operation
    def record_child(
        self,
        parent_id: IdLike,
        trace: TraceType,
        *,
        tags: Iterable[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> TraceId:
        """Record a trace under another one: `record` with the parent in front; returns its id.

            db.traces.record_child(run, step, ToolCall("weather", {"city": "Oslo"}))

        Raises:
          NotFoundError: the run has no trace `parent_id`.
        """
        return self._record(trace, new_id(self.now_us), id_bytes(parent_id, "a parent id"), tags, metadata)

    # --- Spans ---

    @overload
    def span(
        self: TraceStore[DatabaseBase | AsyncDatabase[Any]],
        run_id: RunLike,
        trace: TraceType,
        /,
        *,
        id: IdLike | None = None,
        parent: IdLike | None = INHERIT,
        tags: Iterable[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> Span: ...
    @overload
    def span(
        self: TraceStore[TransactionBase],
        trace: TraceType,
        /,
        *,
        id: IdLike | None = None,
        parent: IdLike | None = INHERIT,
        tags: Iterable[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> Span: ...
    def span(
        self: TraceStore[Any],
        *run_and_trace: Any,
        id: IdLike | None = None,
        parent: IdLike | None = INHERIT,
        tags: Iterable[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> Span:
        """A trace for the length of a `with` block: its beginning, and its end with duration, result or exception.

            with db.traces.span(run, ToolCall("search", {"q": "x"}), tags=["net"]) as span:
                span.set_result(search("x"))

        What is recorded in the block goes under it, by context: each thread begins outside all spans, a task of asyncio
        is in those of the code that made it. Another process names the parent: `parent=span.id`. A process that is
        killed leaves the trace open. On a transaction, beginning and end are both part of the transaction.

        Args:
          id, tags, metadata: as for `record`.
          parent: as `parent_id` for `record`.
        """
        expected = 1 if self.inside else 2
        if len(run_and_trace) != expected:
            raise InvalidArgumentError(
                f"span takes {'a trace' if self.inside else 'a run and a trace'}, "
                f"got {len(run_and_trace)} arguments",
                hint=f"{'txn.traces.span(' if self.inside else 'db.traces.span(run, '}Thought('...'))",
            )
        *run, trace = run_and_trace
        options = {"id": id, "parent_id": parent, "tags": tuple(checked_tags(tags)), "metadata": metadata}
        return Span(self, tuple(run), trace, options)

    @operation
    def begin_span(
        self,
        trace: TraceType,
        *,
        id: IdLike | None = None,
        parent_id: IdLike | None = INHERIT,
        tags: Iterable[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> TraceId:
        """Record a trace that is open until `end_span`, for code that cannot use a `with` block; returns its id.

            call = db.traces.begin_span(run, ToolCall("search"))
            db.traces.end_span(run, call, result=[1, 2])

        Args and errors as for `record`.
        """
        return self._record_at(trace, id, parent_id, tags, metadata, form=SPAN)

    @operation
    def end_span(
        self,
        trace_id: IdLike,
        *,
        result: Any = None,
        error: str | None = None,
        duration_ms: float | None = None,
    ) -> None:
        """Record the end of a span, from any process. Without `duration_ms` the clocks of both transactions give it.

            db.traces.end_span(run, call, error="no answer")

        Raises:
          NotFoundError: the run has no such trace.
          InvalidArgumentError: it is not a span.
          AlreadyExistsError: it has ended already.
        """
        raw = id_bytes(trace_id)
        record = decode_record(raw, self._existing(raw), self.space.codec)
        details = {"id": id_text(raw)}
        if not record[FORM] & SPAN:
            raise InvalidArgumentError(
                f"trace {id_text(raw)} is not a span", hint="begin_span or span makes one", details=details
            )
        if error is not None and type(error) is not str:
            raise InvalidArgumentError(
                f"an error is text, got {type(error).__name__}", hint="end_span(..., error=str(error))"
            )
        key = layout.span_end(record[ROOT], raw)
        if (
            self.space.get_checked(key) is not None
        ):  # of two that end it, one conflicts and then gets this error
            raise AlreadyExistsError(
                f"span {id_text(raw)} has ended already", hint="end a span once", details=details
            )
        ended_us = max(self.now_us, record[TIME])
        duration_us = ended_us - record[TIME] if duration_ms is None else round(duration_ms * 1000)
        self.space.put(key, encode_end(ended_us, duration_us, error, result, self.space.codec))

    def _record_at(
        self,
        trace: TraceType,
        id: IdLike | None,
        parent_id: IdLike | None,
        tags: Iterable[str],
        metadata: Mapping[str, Any] | None,
        form: int = 0,
    ) -> TraceId:
        if parent_id == INHERIT:
            parent = next(filter(self._sees, map(id_bytes, spans_around())), None)
        else:
            parent = None if parent_id is None else id_bytes(parent_id, "a parent id")
        if id is None:
            return self._record(trace, new_id(self.now_us), parent, tags, metadata, form)
        raw = id_bytes(id)
        if self._has(raw):
            raise AlreadyExistsError(
                f"trace {id_text(raw)} already exists",
                hint="leave id out to get a new one",
                details={"id": id_text(raw)},
            )
        return self._record(trace, raw, parent, tags, metadata, form)

    def _sees(self, raw: bytes) -> bool:
        """Whether the trace is there. Not in the read set: a span may well be younger than the snapshot."""
        return self.space.get(layout.trace(raw), track=False) is not None

    def _has(self, raw: bytes) -> bool:
        return self.space.exists(layout.trace(raw))

    def _record(
        self,
        trace: TraceType,
        raw_id: bytes,
        parent: bytes | None,
        tags: Iterable[str],
        metadata: Mapping[str, Any] | None,
        form: int = 0,
    ) -> TraceId:
        kind, space, time_us = kind_of(trace), self.space, self.now_us
        root = raw_id if parent is None else self._root_of(parent)
        labels = checked_tags(tags)
        name = trace.name if kind == CUSTOM else None  # type: ignore[union-attr]
        entries = trace_entries(raw_id, kind, name, time_us, root, parent, labels)
        rest = [time_us, root, parent, labels or None, checked_metadata(metadata)]
        space.put(layout.trace(raw_id), encode_record(kind, trace, rest, space.codec, form))
        for entry in entries:
            space.put(entry, None)
        return id_text(raw_id)

    def _root_of(self, parent: bytes) -> bytes:
        stored = self.space.get_checked(layout.trace(parent))
        if stored is None:
            raise NotFoundError(
                f"there is no trace {id_text(parent)} in this run to be a parent",
                hint="record the parent first, in this run; in this transaction is early enough",
                details={"parent_id": id_text(parent)},
            )
        root: bytes = decode_record(parent, stored, self.space.codec)[ROOT]
        return root

    # --- Reading ---

    @reader
    def get(self, trace_id: IdLike) -> Trace | None:
        """The trace with an id; None when the run has none."""
        raw = id_bytes(trace_id)
        stored = self.space.get(layout.trace(raw))
        return None if stored is None else self._decoded(raw, stored, Names(self.space.codec))

    @single
    def count(self) -> int:
        """How many traces the run has. Walks them: O(count)."""
        return self.space.count(layout.TRACE)

    @reader
    def query_by_type(
        self,
        trace_type: type[TraceType] | str,
        *,
        after: IdLike | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> list[Trace]:
        """The traces of one type in time order: a class, its name, or the name of a Custom trace.

        A name finds every trace whose `type_name` it is: `"Thought"` the Thoughts and the Custom traces of that name.
        A class finds its own traces alone. `after` and the rest are as for `query`.

            calls = db.traces.query_by_type(run, ToolCall, limit=20, reverse=True)
        """
        _typed(trace_type)  # None is no type, though no filter
        return self._query(_Filter(trace_type=trace_type, after=after), limit, reverse)

    @reader
    def query_by_tag(
        self, tag: str, *, after: IdLike | None = None, limit: int | None = None, reverse: bool = False
    ) -> list[Trace]:
        """The traces with a tag, in time order; `after` and the rest as for `query`.

        plans = db.traces.query_by_tag(run, "plan")
        """
        return self._query(_Filter(tags=(tag,), after=after), limit, reverse)

    @reader
    def query_by_time(
        self,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        after: IdLike | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> list[Trace]:
        """The traces recorded from `start` up to but not including `end`, in time order; None leaves a side open.

        hour = db.traces.query_by_time(run, datetime.now(UTC) - timedelta(hours=1))
        """
        return self._query(_Filter(start=start, end=end, after=after), limit, reverse)

    @reader
    def query(
        self,
        trace_type: type[TraceType] | str | None = None,
        *,
        tag: str | None = None,
        tags: Iterable[str] = (),
        parent_id: IdLike | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        after: IdLike | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> list[Trace]:
        """The traces that meet every filter given, in time order; those of one time in the order of their ids.

        Reads the index that promises the fewest traces and checks the other filters on what it yields. A trace that is
        not there has no children: with such a `parent_id` the answer is empty.

            page = db.traces.query(run, ToolCall, tags=["plan"], limit=50)
            rest = db.traces.query(run, ToolCall, tags=["plan"], limit=50, after=page[-1].id)

        Args:
          trace_type: as for `query_by_type`.
          tag, tags: tags that must all be there.
          parent_id: the trace they are directly under.
          start, end: recorded from `start` up to but not including `end`.
          after: only what comes behind this trace in the order of the answer: pages neither overlap nor leave gaps.
          limit: at most so many.
          reverse: latest first.

        Raises:
          NotFoundError: the run has no trace `after`.
        """
        labels = (*((tag,) if tag is not None else ()), *checked_tags(tags))
        return self._query(_Filter(trace_type, labels, parent_id, start, end, after), limit, reverse)

    @reader
    def get_children(
        self, trace_id: IdLike, *, after: IdLike | None = None, limit: int | None = None
    ) -> list[Trace]:
        """The traces directly under one, in time order; empty also when the run has no such trace.

        children = db.traces.get_children(run, step)
        """
        id_bytes(trace_id)  # None is no trace, though no filter
        return self._query(_Filter(parent_id=trace_id, after=after), limit, False)

    @reader
    def get_roots(
        self, *, after: IdLike | None = None, limit: int | None = None, reverse: bool = False
    ) -> list[Trace]:
        """The traces without a parent, in time order; `after` and the rest as for `query`.

        newest = db.traces.get_roots(run, limit=1, reverse=True)
        """
        prefix = layout.traces_of_family(layout.ZERO_ID, layout.ZERO_ID)
        bounds = self._behind((b"", None), after, reverse)
        keys = IndexRange(prefix, *bounds).keys(self.space, limit=limit, reverse=reverse)
        ids = map(layout.suffix_id, keys)
        names = Names(self.space.codec)
        return [self._decoded(raw, self._fetch(raw), names) for raw in ids]

    @reader
    def get_tree(self, trace_id: IdLike) -> TraceTree:
        """A trace with everything under it: O(its size).

        Raises:
          NotFoundError: the run has no such trace.
        """
        raw = id_bytes(trace_id)
        stored = self._existing(raw)
        names = Names(self.space.codec)
        record = decode_record(raw, stored, names.codec)
        tree = TraceTree(raw, stored, names, self._end_of(raw, record))
        if record[PARENT] is None:
            self._grow_whole(raw, tree, names)
        else:
            self._grow_branch(record[ROOT], raw, tree, names)
        return tree

    def _grow_whole(self, root: bytes, tree: TraceTree, names: Names) -> None:
        """All descendants of a root: one range of the family index, ordered by parent, then time."""
        get = self.space.get
        family = layout.traces_of_family(root)
        start, end = len(family), len(family) + layout.ID_SIZE
        nodes, links = {root: tree}, []
        ends = {key[-layout.ID_SIZE :]: row.value for key, row in self.space.scan(layout.span_end(root))}
        for key in self.space.keys(family):
            raw = key[-layout.ID_SIZE :]
            # As `_fetch` does, without a call for each of many traces.
            node = nodes[raw] = TraceTree(raw, get(layout.TRACE + raw, track=False), names, ends.get(raw))
            links.append((key[start:end], node))
        for parent, node in links:
            nodes[parent].adopt(node)

    def _grow_branch(self, root: bytes, top: bytes, tree: TraceTree, names: Names) -> None:
        """The descendants of a trace inside a larger tree, one range of children after another."""
        fetch, keys = self._fetch, self.space.keys
        open_nodes = [(top, tree)]
        while open_nodes:
            parent, node = open_nodes.pop()
            for key in keys(layout.traces_of_family(root, parent)):
                raw = layout.suffix_id(key)
                child = TraceTree(raw, fetch(raw), names, self.space.get(layout.span_end(root, raw)))
                node.adopt(child)
                open_nodes.append((raw, child))

    def _decoded(self, raw: bytes, stored: Any, names: Names) -> Trace:
        record = decode_record(raw, stored, names.codec)
        return decode_trace(raw, record, names, self._end_of(raw, record))

    def _end_of(self, raw: bytes, record: list[Any]) -> Any:
        """The stored end of a trace that is a span and has ended, else None."""
        return self.space.get(layout.span_end(record[ROOT], raw)) if record[FORM] & SPAN else None

    def _fetch(self, raw: bytes) -> bytes:
        """The stored trace an index entry names. Traces never change, so the entry in the read set is enough."""
        stored: bytes = self.space.get(layout.trace(raw), track=False)
        return stored

    def _existing(self, raw: bytes) -> bytes:
        stored: bytes | None = self.space.get(layout.trace(raw))
        if stored is None:
            raise NotFoundError(
                f"there is no trace {id_text(raw)} in this run",
                hint="traces are found only in the run they were recorded in",
                details={"id": id_text(raw)},
            )
        return stored

    # --- Queries ---

    def _query(self, wanted: _Filter, limit: int | None, reverse: bool) -> list[Trace]:
        if checked_limit(limit) == 0:
            return []
        plan = self._plan(wanted, reverse)
        if plan is None:
            return []
        index, tests = plan
        found: list[Trace] = []
        names = Names(self.space.codec)
        for key in index.keys(self.space, limit=None if tests else limit, reverse=reverse):
            raw = key[-layout.ID_SIZE :]
            record = decode_record(raw, self._fetch(raw), names.codec)
            if all(test(record) for test in tests):
                found.append(decode_trace(raw, record, names, self._end_of(raw, record)))
                if len(found) == limit:
                    break
        return found

    def _behind(
        self, bounds: tuple[bytes, bytes | None], after: IdLike | None, reverse: bool
    ) -> tuple[bytes, bytes | None]:
        """The bounds of an index range, cut to what comes behind a trace."""
        if after is None:
            return bounds
        raw = id_bytes(after)
        time_us = decode_record(raw, self._existing(raw), self.space.codec)[TIME]
        return beyond(bounds, layout.trace_suffix(time_us, raw), reverse=reverse)

    def _plan(self, wanted: _Filter, reverse: bool) -> tuple[IndexRange, list[Test]] | None:
        """The index to read and the tests left to make on its traces; None: there can be none."""
        since, before = self._behind(
            window(wanted.start, wanted.end, ("start", "end")), wanted.after, reverse
        )
        filters: list[tuple[bytes, bytes | None, Test]] = []
        if wanted.parent_id is not None:
            raw = id_bytes(wanted.parent_id, "a parent id")
            stored = self.space.get(layout.trace(raw))
            if stored is None:
                return None  # a parent is there before its children
            root = decode_record(raw, stored, self.space.codec)[ROOT]
            family = layout.traces_of_family(root, raw)
            filters.append((family, None, _under(raw)))
        filters += [(layout.traces_tagged(tag), None, _tagged(tag)) for tag in wanted.tags]
        if wanted.trace_type is not None:
            filters.append(_typed(wanted.trace_type))
        if not filters:
            return IndexRange(layout.TRACE_BY_TIME, since, before), []
        choices = [Choice(IndexRange(prefix, since, before, also), test) for prefix, also, test in filters]
        return choose(self.space, choices)


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


class _Filter(NamedTuple):
    trace_type: type[TraceType] | str | None = None
    tags: tuple[str, ...] = ()
    parent_id: IdLike | None = None
    start: datetime | None = None
    end: datetime | None = None
    after: IdLike | None = None


def _under(parent: bytes) -> Test:
    return lambda record: record[PARENT] == parent


def _tagged(tag: str) -> Test:
    return lambda record: tag in (record[TAGS] or ())


def _typed(trace_type: type[TraceType] | str) -> tuple[bytes, bytes | None, Test]:
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


# --- New ids -------------------------------------------------------------------------------------


class _Counter(threading.local):
    """Per thread, so that it needs no lock, which a fork could leave held."""

    last_us = 0
    repeats = 0


_counter = _Counter()
# Of its own: users who seed the module's generator alike in every worker must not get alike ids.
_random = random.Random()
os.register_at_fork(after_in_child=_random.seed)


def new_id(time_us: int) -> bytes:
    """A UUID of version 7: 48 bits of ms, 10 of us, a 22-bit counter within the microsecond, 42 random bits.

    Ids that one thread makes at one clock reading sort in the order they were made. Ids of different threads can only
    be equal when made in the same microsecond with the same count, and then with a chance of 2**-42.
    """
    repeats = _counter.repeats + 1 if time_us == _counter.last_us else 0
    _counter.last_us, _counter.repeats = time_us, repeats
    ms, us = divmod(max(time_us, 0), 1000)
    # After the version digit 12 bits: microseconds and the top of the counter; after the variant the rest of it.
    high = ms << 16 | 0x7 << 12 | us << 2 | (repeats >> 20) & 0x3
    low = 0b10 << 62 | (repeats & 0xFFFFF) << 42 | _random.getrandbits(42)
    return (high << 64 | low).to_bytes(16, "big")
