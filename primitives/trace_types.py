"""What a trace can record: six frozen types, how they are stored, and the traces that hold them.

1. The number of a type in `_TYPES` is written to the store and never changes; new types get new numbers.
2. A trace is stored as the bytes of one list, under one key. A tree can so be read without decoding its
   traces, and each is decoded when it is first looked at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from operator import attrgetter
from typing import Any, TypeAlias
from uuid import UUID

from ..engine.model.errors import CorruptionError, InvalidArgumentError, OccamError, ValueEncodingError
from ..engine.model.values import Codec
from .extension import from_microseconds
from .layout import ZERO_ID
from .notebook import duration_text, moment_text, record_text, tree_html

__all__ = [
    "Custom",
    "Decision",
    "Error",
    "Query",
    "Thought",
    "ToolCall",
    "Trace",
    "TraceId",
    "TraceTree",
    "TraceType",
]

TraceId: TypeAlias = str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool that was called, with what, and what came back."""

    tool: str
    args: Any = None
    result: Any = None
    duration_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """A choice among options, and why."""

    question: str
    options: Sequence[Any] = ()
    chosen: Any = None
    reasoning: str | None = None


@dataclass(frozen=True, slots=True)
class Query:
    """A search in some source, and its results."""

    type: str
    query: Any = None
    results: Any = None


@dataclass(frozen=True, slots=True)
class Thought:
    """A step of reasoning, with a confidence if there is one."""

    content: str
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class Error:
    """Something that went wrong, and whether the agent can go on."""

    type: str
    message: str = ""
    recoverable: bool = True


@dataclass(frozen=True, slots=True)
class Custom:
    """Anything else, under a name of its own, by which `query_by_type` finds it."""

    name: str
    data: Any = None


TraceType: TypeAlias = ToolCall | Decision | Query | Thought | Error | Custom

_TYPES: dict[int, type[Any]] = {1: ToolCall, 2: Decision, 3: Query, 4: Thought, 5: Error, 6: Custom}
KIND_OF: dict[type[Any], int] = {cls: number for number, cls in _TYPES.items()}
KIND_NAMED: dict[str, int] = {cls.__name__: number for number, cls in _TYPES.items()}
CUSTOM = KIND_OF[Custom]
DECISION = KIND_OF[Decision]
_FIELD_NAMES = {number: tuple(cls.__dataclass_fields__) for number, cls in _TYPES.items()}
_FIELDS_OF: dict[int, Callable[[Any], tuple[Any, ...]]] = {
    number: attrgetter(*names) for number, names in _FIELD_NAMES.items()
}


@dataclass(frozen=True, slots=True)
class Trace:
    """One step of an agent.

    Attributes:
      id: text of a UUID; made here it is time-ordered.
      parent_id: the trace it belongs under; None for a root.
      trace_type: what happened: a ToolCall, Decision, Query, Thought, Error or Custom.
      timestamp: the clock of the transaction that recorded it.
      tags: for `query_by_tag`, in order and without repetition.
      metadata: a fresh dict.
      root_id: the root of its tree; its own id for a root.
      is_span: it was recorded when it began, and its end is recorded apart.
      ended_at: when a span ended; None for an open span, and for a trace that is not a span.
      duration_ms: how long a span took, or what a ToolCall says.
      error: what a span ended with, if it failed.
      result: what a span ended with; a ToolCall, Query or Decision also has it as its result, results or choice.
    """

    id: TraceId
    parent_id: TraceId | None
    trace_type: TraceType
    timestamp: datetime
    tags: tuple[str, ...]
    metadata: dict[str, Any]
    root_id: TraceId
    is_span: bool = False
    ended_at: datetime | None = None
    duration_ms: float | None = None
    error: str | None = None
    result: Any = None

    @property
    def started_at(self) -> datetime:
        """When it began, or happened: its timestamp."""
        return self.timestamp

    @property
    def is_open(self) -> bool:
        """Whether it is a span without an end: it is still running, or its process was killed."""
        return self.is_span and self.ended_at is None

    @property
    def status(self) -> str:
        """ "open", "completed" or "failed" for a span, else "recorded"."""
        if not self.is_span:
            return "recorded"
        if self.ended_at is None:
            return "open"
        return "completed" if self.error is None else "failed"

    @property
    def type_name(self) -> str:
        """The name of its type; of a Custom trace its own name."""
        kind = self.trace_type
        return kind.name if isinstance(kind, Custom) else type(kind).__name__


class TraceTree:
    """A trace with everything under it, children in time order.

    Trees can be deeper than Python's recursion limit: use `walk` rather than recursion. What was read is complete; each
    trace is decoded when it is first asked for.
    """

    # A leaf holds only its stored bytes, so the garbage collector has nothing to traverse.
    __slots__ = ("_children", "_end", "_names", "_raw_id", "_stored", "_trace")

    def __init__(self, raw_id: bytes, stored: bytes, names: Names, end: bytes | None = None) -> None:
        self._end = end
        self._raw_id = raw_id
        self._stored = stored
        self._names = names
        self._trace: Trace | None = None
        self._children: list[TraceTree] | None = None

    @property
    def children(self) -> Sequence[TraceTree]:
        """The trees of the traces directly under it."""
        return self._children or ()

    def adopt(self, child: TraceTree) -> None:
        """Put a tree under this one, behind those that are there."""
        if self._children is None:
            self._children = [child]
        else:
            self._children.append(child)

    @property
    def trace(self) -> Trace:
        """The trace itself.

        Raises:
          CorruptionError: its record is unreadable.
        """
        if self._trace is None:
            self._trace = decode_trace(
                self._raw_id,
                decode_record(self._raw_id, self._stored, self._names.codec),
                self._names,
                self._end,
            )
        return self._trace

    def walk(self) -> Iterator[tuple[int, Trace]]:
        """Every trace with its depth below this one, parents first, in time order among siblings."""
        stack = [(0, self)]
        while stack:
            depth, tree = stack.pop()
            yield depth, tree.trace
            stack.extend((depth + 1, child) for child in reversed(tree.children))

    def __iter__(self) -> Iterator[Trace]:
        """Every trace, in the order of `walk`."""
        for _, trace in self.walk():
            yield trace

    def __len__(self) -> int:
        return self.size

    @property
    def size(self) -> int:
        """How many traces it holds, as `len` does: O(size)."""
        count, stack = 0, [self]
        while stack:
            tree = stack.pop()
            count += 1
            stack.extend(tree.children)
        return count

    def __repr__(self) -> str:
        trace, count = self.trace, len(self.children)
        took = f" {duration_text(trace.duration_ms)}" if trace.duration_ms is not None else ""
        children = f"{count} {'child' if count == 1 else 'children'}"
        return f"<TraceTree {record_text(trace.trace_type)} {trace.status}{took} id={trace.id} {children}>"

    def _repr_html_(self) -> str:
        rows = ((depth, _cells(trace)) for depth, trace in self.walk())
        return tree_html(("trace", "status", "duration", "start", "error"), rows, self.size)


def _cells(trace: Trace) -> tuple[str | None, ...]:
    """The row of a trace in the table of its tree."""
    return (
        record_text(trace.trace_type),
        trace.status,
        duration_text(trace.duration_ms),
        moment_text(trace.started_at),
        trace.error,
    )


# --- Ids -----------------------------------------------------------------------------------------


_ID_TEXT = re.compile(r"[0-9a-fA-F]{32}|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def id_bytes(trace_id: object, what: str = "a trace id") -> bytes:
    """The 16 stored bytes of an id given as text or UUID.

    Raises:
      InvalidArgumentError: it is neither, or all zeros.
    """
    if type(trace_id) is str:
        # Exactly: `bytes.fromhex` would also take spaces, and hyphens could be anywhere.
        raw = bytes.fromhex(trace_id.replace("-", "")) if _ID_TEXT.fullmatch(trace_id) else b""
    else:
        raw = trace_id.bytes if isinstance(trace_id, UUID) else b""
    if len(raw) != 16 or raw == ZERO_ID:
        raise InvalidArgumentError(
            f"{what} is the text of a UUID other than zero, got {trace_id!r}",
            hint="record() returns one and str(uuid.uuid4()) makes one",
        )
    return raw


def id_text(raw: bytes) -> TraceId:
    """The text of a stored id."""
    h = raw.hex()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


# --- Storing -------------------------------------------------------------------------------------
# [kind, fields, time in us, root id, parent id or None, tags or None, metadata or None, form]
#
# Fields that are tuples are stored as lists. `form` is an int: bit n says that field n is a tuple. It is left out, as
# in the records of earlier versions, when it is the usual one: a Decision's options are a tuple, nothing else is.
# `SPAN` in it marks a span.

KIND, FIELDS, TIME, ROOT, PARENT, TAGS, METADATA, FORM = range(8)
RECORD_LENGTH = 7
_OPTIONS_FIELD = 1
SPAN = 1 << 16  # in `form`: the trace is a span

# The end of a span: [time in us, duration in us, error or None, result, whether the result is a tuple]
_RESULT_FIELD = {ToolCall: "result", Query: "results", Decision: "chosen"}
_PLAIN = Codec()


def kind_of(trace: object) -> int:
    """The number of a trace's type.

    Raises:
      InvalidArgumentError: it is not a trace type.
    """
    kind = KIND_OF.get(type(trace))
    if kind is None:
        raise InvalidArgumentError(
            f"a trace is a {', '.join(KIND_NAMED)} instance, got {type(trace).__name__}",
            hint='record(Thought("...")), or Custom(name, data) for anything else',
        )
    return kind


def encode_record(
    kind: int, trace: TraceType, rest: list[Any], codec: Codec = _PLAIN, form: int = 0
) -> bytes:
    """The stored bytes of a trace: its kind and fields, then time, root, parent, tags, metadata.

    Raises:
      ValueEncodingError: names the field that cannot be stored.
      InvalidArgumentError: a Decision's options are not a list.
    """
    if isinstance(trace, Decision) and not isinstance(trace.options, list | tuple):
        raise InvalidArgumentError(
            f"a Decision's options are a list or a tuple, got {type(trace.options).__name__}",
            hint='Decision("which tool?", options=["search", "ask"], chosen="search")',
        )
    fields = []
    for at, value in enumerate(_FIELDS_OF[kind](trace)):
        if type(value) is tuple:
            form |= 1 << at
            value = list(value)
        fields.append(value)
    record = [kind, fields, *rest]
    if form != _usual_form(kind):
        record.append(form)
    try:
        return codec.encode(record)
    except ValueEncodingError:
        explain(dict(zip(_FIELD_NAMES[kind], fields, strict=True)) | {"metadata": rest[-1]}, codec)
        raise


def _usual_form(kind: int) -> int:
    return 1 << _OPTIONS_FIELD if kind == DECISION else 0


def explain(parts: Mapping[str, Any], codec: Codec = _PLAIN) -> None:
    """Raise the error of the first part that cannot be stored, with the part's name in its path."""
    for name, value in parts.items():
        try:
            codec.encode(value)
        except ValueEncodingError as error:
            path = error.path.replace("value", name, 1)
            message = error.message.replace("value", name, 1)
            raise ValueEncodingError(message, path=path, hint=error.hint) from None


def decode_record(raw_id: bytes, stored: Any, codec: Codec = _PLAIN) -> list[Any]:
    """The list that `encode_record` stored.

    Raises:
      CorruptionError: it is not such a list.
    """
    try:
        record = codec.decode(stored)
        if type(record) is list and len(record) == RECORD_LENGTH:
            return [*record, _usual_form(record[KIND])]
        if type(record) is list and len(record) == RECORD_LENGTH + 1 and type(record[FORM]) is int:
            return record
        problem = "not a record"
    except ValueEncodingError:
        raise  # of a `restore` that does not know a class
    except (TypeError, ValueError, OccamError) as error:
        problem = str(error)
    raise CorruptionError(f"trace {raw_id.hex()} is unreadable: {problem}")


class Names(dict[bytes, TraceId]):
    """The texts of ids, each made once: in one answer the same id occurs as id, as parent and as root.

    Attributes:
      codec: how the values of the answer's traces are read.
    """

    __slots__ = ("codec",)

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.codec = codec

    def __missing__(self, raw: bytes) -> TraceId:
        text = self[raw] = id_text(raw)
        return text


def decode_trace(raw_id: bytes, record: list[Any], names: Names, end: Any = None) -> Trace:
    """The trace of a stored record.

    Args:
      raw_id: its id.
      record: from `decode_record`.
      names: those of the traces of one answer.
      end: what is stored as the end of a span, None when there is nothing.

    Raises:
      CorruptionError: the record holds no trace.
    """
    try:
        kind, fields, time_us, root, parent, tags, metadata, form = record
        if form:
            # Not in place: the record may be asked for more than once.
            fields = [
                tuple(value) if form >> at & 1 and type(value) is list else value
                for at, value in enumerate(fields)
            ]
        what = _TYPES[kind](*fields)
        span = (False, None, what.duration_ms if type(what) is ToolCall else None)
        if form & SPAN:
            what, span = _ended(what, end, names.codec)
        return Trace(
            names[raw_id],
            names[parent] if parent else None,
            what,
            from_microseconds(time_us),
            tuple(tags) if tags else (),
            metadata or {},
            names[root],
            *span,
        )
    except ValueEncodingError:
        raise  # of a `restore` that does not know a class
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise CorruptionError(f"trace {raw_id.hex()} is unreadable: {error}") from error


def _ended(what: Any, end: Any, codec: Codec) -> tuple[Any, tuple[Any, ...]]:
    """What a span records with what its end adds, and the fields of its `Trace` from `is_span` on."""
    if end is None:
        return what, (True,)
    ended_us, duration_us, error, result, is_tuple = codec.decode(end)
    duration_ms = duration_us / 1000
    if is_tuple:
        result = tuple(result)
    name = _RESULT_FIELD.get(type(what))
    if result is not None and name is not None and getattr(what, name) is None:
        what = replace(what, **{name: result})
    if type(what) is ToolCall and what.duration_ms is None:
        what = replace(what, duration_ms=duration_ms)
    return what, (True, from_microseconds(ended_us), duration_ms, error, result)


def encode_end(
    ended_us: int, duration_us: int, error: str | None, result: Any, codec: Codec = _PLAIN
) -> bytes:
    """The stored bytes of a span's end.

    Raises:
      ValueEncodingError: names what cannot be stored.
    """
    is_tuple = type(result) is tuple
    result = list(result) if is_tuple else result
    try:
        return codec.encode([ended_us, duration_us, error, result, is_tuple])
    except ValueEncodingError:
        explain({"result": result, "error": error}, codec)
        raise


def checked_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A dict to store, None for an empty one."""
    if metadata is None:
        return None
    if not isinstance(metadata, Mapping):
        raise InvalidArgumentError(
            f"metadata is a dict, got {type(metadata).__name__}", hint='metadata={"key": value}'
        )
    return dict(metadata) or None


def checked_tags(tags: object) -> list[str]:
    """Tags in order without repetition.

    Raises:
      InvalidArgumentError: one text instead of several, or something else than text.
    """
    several: list[Any] = (
        list(tags) if isinstance(tags, Iterable) and not isinstance(tags, str | bytes) else [None]
    )
    if not all(type(tag) is str for tag in several):
        raise InvalidArgumentError(f"tags are several str, got {tags!r}", hint='tags=["a", "b"]')
    return list(dict.fromkeys(several))
