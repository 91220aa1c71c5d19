"""TraceStore: what an agent did, step by step, as trees.

1. A trace and its entries in every index (type, Custom name, tag, family, time) are written in one transaction, and
   a trace is never changed, and removed only with its run. So an entry always has its trace. The end of a
   span is a key of its own, written once.
2. A parent exists when its child is recorded, which the commit checks whatever the isolation, and a trace belongs to
   the tree of its parent's root. So a whole tree is one range of the family index, and so are the children of one
   trace.
3. Every index is in time order within its group and holds the time in its keys, so a time range cuts any of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, overload

from ..engine.model.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError
from ..engine.model.public_types import TypeTag
from . import layout
from .extension import DatabaseBase, H_co, Primitive, RunLike, TransactionBase, operation, reader, single
from .spans import INHERIT, Span, spans_around
from .trace_ids import new_id
from .trace_queries import IdLike, TraceFilter, find_traces, listed_under_type, trace_entries
from .trace_records import decoded_trace, existing_trace, read_tree
from .trace_types import (
    CUSTOM,
    FORM,
    ROOT,
    SPAN,
    TIME,
    Names,
    Trace,
    TraceId,
    TraceTree,
    TraceType,
    checked_metadata,
    checked_tags,
    decode_record,
    encode_end,
    encode_record,
    id_bytes,
    id_text,
    kind_of,
)

if TYPE_CHECKING:
    from ..engine.transaction.async_database import AsyncDatabase

__all__ = ["TraceStore"]


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
        record = decode_record(raw, existing_trace(self.space, raw), self.space.codec)
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
        ):  # of two at once that end it, one conflicts, is retried and then gets this error
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
        """Whether the trace is there. Not in the read set: the span may be younger than the snapshot."""
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
        """The trace with an id; None when the run has none.

        Example:
          trace = db.traces.get(run, step)
        """
        raw = id_bytes(trace_id)
        stored = self.space.get(layout.trace(raw))
        if stored is None:
            return None
        names = Names(self.space.codec)
        return decoded_trace(self.space, raw, decode_record(raw, stored, names.codec), names)

    @single
    def count(self) -> int:
        """How many traces the run has. Walks them: O(count).

        Example:
          steps = db.traces.count(run)
        """
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
        listed_under_type(trace_type)  # without this None would mean any type
        return find_traces(self.space, TraceFilter(trace_type=trace_type, after=after), limit, reverse)

    @reader
    def query_by_tag(
        self, tag: str, *, after: IdLike | None = None, limit: int | None = None, reverse: bool = False
    ) -> list[Trace]:
        """The traces with a tag, in time order; `after` and the rest as for `query`.

        Example:
          plans = db.traces.query_by_tag(run, "plan")
        """
        return find_traces(self.space, TraceFilter(tags=(tag,), after=after), limit, reverse)

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

        Example:
          hour = db.traces.query_by_time(run, datetime.now(UTC) - timedelta(hours=1))
        """
        return find_traces(self.space, TraceFilter(start=start, end=end, after=after), limit, reverse)

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
        return find_traces(
            self.space, TraceFilter(trace_type, labels, parent_id, start, end, after), limit, reverse
        )

    @reader
    def get_children(
        self, trace_id: IdLike, *, after: IdLike | None = None, limit: int | None = None
    ) -> list[Trace]:
        """The traces directly under one, in time order; empty also when the run has no such trace.

        Example:
          children = db.traces.get_children(run, step)
        """
        id_bytes(trace_id)  # without this None would mean that any parent will do
        return find_traces(self.space, TraceFilter(parent_id=trace_id, after=after), limit)

    @reader
    def get_roots(
        self, *, after: IdLike | None = None, limit: int | None = None, reverse: bool = False
    ) -> list[Trace]:
        """The traces without a parent, in time order; `after` and the rest as for `query`.

        Example:
          newest = db.traces.get_roots(run, limit=1, reverse=True)
        """
        return find_traces(self.space, TraceFilter(roots=True, after=after), limit, reverse)

    @reader
    def get_tree(self, trace_id: IdLike) -> TraceTree:
        """A trace with everything under it: O(its size).

        Example:
          for depth, trace in db.traces.get_tree(run, step).walk(): print("  " * depth, trace.type_name)

        Raises:
          NotFoundError: the run has no such trace.
        """
        return read_tree(self.space, id_bytes(trace_id))
