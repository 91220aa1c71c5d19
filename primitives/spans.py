"""Spans: traces that begin, and end later with a result or an error.

The trace is recorded when the span begins and is never changed; its end is a key of its own. So a process that is
killed in between leaves a trace without an end, which every reader sees as open.

Which span a call is in is kept in a context variable: each thread has its own, a task of asyncio inherits that of the
code that made it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from contextvars import ContextVar, Token
from time import monotonic_ns
from types import TracebackType
from typing import Any, NamedTuple

from ..engine.model.errors import InvalidArgumentError, OccamError
from .blocks import needs_coroutine, needs_plain_result
from .trace_types import TraceId, TraceType

__all__ = ["INHERIT", "Span", "error_text", "spans_around"]

# As a parent: the innermost span around the call.
INHERIT = "inherit"


class _Around(NamedTuple):
    trace_id: TraceId
    outer: _Around | None


_around: ContextVar[_Around | None] = ContextVar("occamdb_span", default=None)


def spans_around() -> Iterator[TraceId]:
    """The ids of the spans that the caller is in, the innermost first; they may be of other runs."""
    here = _around.get()
    while here is not None:
        yield here.trace_id
        here = here.outer


def error_text(error: BaseException) -> str:
    """The type and the message of an exception."""
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class Span:
    """A span in a `with` block (`async with` where commits are awaited), as `db.traces.span` makes it.

    It is used once, in one thread or task.

    with db.traces.span(run, ToolCall("search", {"q": "x"})) as span:
        span.set_result(search("x"))
    """

    __slots__ = (
        "_ended",
        "_error",
        "_id",
        "_options",
        "_result",
        "_run",
        "_started",
        "_store",
        "_token",
        "_trace",
    )

    def __init__(self, store: Any, run: tuple[Any, ...], trace: TraceType, options: dict[str, Any]) -> None:
        self._store = store
        self._run = run
        self._trace = trace
        self._options = options
        self._id: TraceId | None = None
        self._token: Token[_Around | None] | None = None
        self._result: Any = None
        self._error: str | None = None
        self._started = 0
        self._ended = False

    @property
    def id(self) -> TraceId:
        """The id of its trace, which other processes can name as `parent`.

        Raises:
          InvalidArgumentError: it has not begun.
        """
        if self._id is None:
            raise InvalidArgumentError("the span has not begun", hint="with db.traces.span(...) as span:")
        return self._id

    def set_result(self, result: Any) -> None:
        """What the span's end is to record as its result. The last one counts."""
        self._result = result

    def set_error(self, error: str | BaseException) -> None:
        """Let the span end as failed although no exception leaves the block."""
        self._error = error_text(error) if isinstance(error, BaseException) else error

    def __enter__(self) -> Span:
        return self._begun(needs_plain_result(self._begin()))

    async def __aenter__(self) -> Span:
        return self._begun(await needs_coroutine(self._begin()))

    def _begin(self) -> Any:
        if self._id is not None:
            raise InvalidArgumentError("the span has begun already", hint="make a new one for each block")
        return self._store.begin_span(*self._run, self._trace, **self._options)

    def _begun(self, trace_id: TraceId) -> Span:
        self._id = trace_id
        self._started = monotonic_ns()
        self._token = _around.set(_Around(trace_id, _around.get()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._end(error)
        except OccamError as problem:
            self._also(error, problem)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._end(error)
        except OccamError as problem:
            self._also(error, problem)

    def _end(self, error: BaseException | None) -> Any:
        if self._token is not None:
            with suppress(ValueError):  # a generator that is closed in another context
                _around.reset(self._token)
        self._ended = True
        duration_ms = (monotonic_ns() - self._started) / 1e6
        text = self._error if error is None else error_text(error)
        return self._store.end_span(
            *self._run, self._id, result=self._result, error=text, duration_ms=duration_ms
        )

    def _also(self, error: BaseException | None, problem: OccamError) -> None:
        if error is None:
            raise problem
        error.add_note(f"and the end of span {self._id} could not be recorded: {problem}")

    def __repr__(self) -> str:
        state = "not begun" if self._id is None else f"{'ended' if self._ended else 'open'} id={self._id}"
        return f"<Span {type(self._trace).__name__} {state}>"
