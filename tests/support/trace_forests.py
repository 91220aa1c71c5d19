"""Traces for pictures: made without a database, of any shape and with any text in them."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from occamdb.primitives import Custom, Decision, Error, Query, Thought, ToolCall, Trace

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)

# What breaks markup, terminals and encodings.
NASTY = [
    "<script>alert(1)</script>",
    "]]><!--",
    "\"' onload='x",
    "&amp;&lt;&#0;",
    "\x00\x08\x1b[31m\x7f\x9f",
    "\ud800 \udfff",
    "\ufffe\uffff\ufeff",
    "\u202eabc\u2066",
    "漢字 🙂",
    "a\nb\tc\rd",
]
texts = st.one_of(st.sampled_from(NASTY), st.text(st.characters(exclude_categories=[]), max_size=20))


def identity(number: int) -> str:
    return f"00000000-0000-7000-8000-{number:012}"


def made(
    number: int,
    start_us: int,
    took_us: int = 0,
    *,
    parent: int | None = None,
    content: Any = None,
    span: bool = True,
    is_open: bool = False,
    error: str | None = None,
    tags: tuple[str, ...] = (),
) -> Trace:
    """A trace of so many microseconds after `BEGIN`: a span, or one moment."""
    start = BEGIN + timedelta(microseconds=start_us)
    above = None if parent is None else identity(parent)
    what = Thought("hm") if content is None else content
    if not span:
        return Trace(identity(number), above, what, start, tags, {}, identity(number))
    ended = None if is_open else start + timedelta(microseconds=took_us)
    took = None if is_open else took_us / 1000
    return Trace(identity(number), above, what, start, tags, {}, identity(number), True, ended, took, error)


contents = st.one_of(
    st.builds(ToolCall, texts, st.dictionaries(texts, texts, max_size=2)),
    st.builds(Decision, texts, st.lists(texts, max_size=2), texts),
    st.builds(Query, texts, texts),
    st.builds(Thought, texts),
    st.builds(Error, texts, texts),
    st.builds(Custom, texts, st.one_of(st.none(), st.binary(max_size=4), texts)),
    # What is stored need not be of the declared types.
    st.just(ToolCall("odd", duration_ms=math.nan)),
    st.just(ToolCall(7, duration_ms="long")),  # type: ignore[arg-type]
)


@st.composite
def forests(draw: st.DrawFn, max_size: int = 30) -> list[Trace]:
    """Traces with parents among them, or not; mostly in sensible times, always shuffled."""
    count = draw(st.integers(0, max_size))
    traces = []
    for number in range(count):
        parent = draw(st.one_of(st.none(), st.integers(0, max(0, number - 1)), st.integers(0, max_size)))
        traces.append(
            made(
                number,
                draw(st.integers(-50, 1_000)),
                draw(st.sampled_from([0, 1, 10, 400])),
                parent=parent,
                content=draw(contents),
                span=draw(st.booleans()),
                is_open=draw(st.sampled_from([False, False, True])),
                error=draw(st.one_of(st.none(), texts)),
                tags=tuple(draw(st.lists(texts, max_size=1))),
            )
        )
    shuffled: Sequence[Trace] = draw(st.permutations(traces))
    return list(shuffled)
