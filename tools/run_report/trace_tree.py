"""The traces of a run as nested lists: what each was about, what went in and what came out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import TYPE_CHECKING

from occamdb.tools.pictures import brief, pretty
from occamdb.tools.pictures.axis import duration_words
from occamdb.tools.pictures.forest import Forest, Node
from occamdb.tools.run_report.elements import Markup, element, opening, rows

if TYPE_CHECKING:
    from occamdb.primitives import Trace

__all__ = ["Room", "anchor", "trace_list"]

# Lists in lists: browsers stop at some hundred levels. Deeper traces are listed flat, with their depth.
DEPTH_MAX = 60
HEADLINE_LENGTH = 160


class Room:
    """How many characters of stored values a report may still hold.

    Attributes:
      each: at most so many of one value.
      left: for all others together; once it is used up, values are cut to `short`.
    """

    def __init__(self, left: int, each: int = 4_000, short: int = 200) -> None:
        self.left = left
        self.each = each
        self.short = short
        self.was_short = False

    def value(self, value: object) -> Markup:
        """A value in a block of its own."""
        if self.left <= 0:
            self.was_short = True
        text = pretty(value, self.each if self.left > 0 else self.short)
        self.left -= len(text)
        return element("pre", text)


def anchor(trace_id: str) -> str:
    """The name of a trace's place in the page."""
    return f"t-{trace_id}"


def trace_list(traces: Iterable[Trace], count_max: int, room: Room) -> Iterator[Markup]:
    """The lists, parents before their children, of at most so many traces."""
    depth = -1
    for node in Forest(traces).nodes[:count_max]:
        level = min(node.depth, DEPTH_MAX)
        yield Markup("</li></ul>" * max(0, depth - level))
        if level > depth:
            yield Markup("".join('<ul class="tree">' for _ in range(level - depth)))
        else:
            yield Markup("</li>")
        yield _trace(node, room)
        depth = level
    yield Markup("</li></ul>" * (depth + 1))


def _trace(node: Node, room: Room) -> Markup:
    """A trace without the end of its `li`, which its children come before."""
    trace = node.trace
    took = duration_words(node.end - node.start) if node.end > node.start else ""
    summary = element(
        "summary",
        element("b", brief(trace.type_name, HEADLINE_LENGTH)),
        f" {_headline(trace)} ",
        element("span", f" {took}", class_="faint"),
        *([element("span", f" {node.state}", class_="bad")] if node.state != "ok" else []),
        *(element("span", f" #{brief(tag, HEADLINE_LENGTH)}", class_="faint") for tag in trace.tags),
    )
    deeper = f"{node.depth} levels deep" if node.depth > DEPTH_MAX else ""
    facts = rows([*_facts(trace, room), ("depth", deeper)])
    return Markup(f"{opening('li', id=anchor(trace.id))}<details>{summary}{facts}</details>\n")


def _facts(trace: Trace, room: Room) -> Iterator[tuple[str, str]]:
    content = trace.trace_type
    values = {field.name: getattr(content, field.name) for field in fields(content)}
    if trace.result is not None and trace.result not in values.values():
        values["result"] = trace.result
    if trace.metadata:
        values["metadata"] = trace.metadata
    for name, value in values.items():
        if value is not None:
            yield name, room.value(value)
    if trace.error is not None:
        yield "failed with", room.value(trace.error)
    yield "began", trace.timestamp.isoformat(timespec="milliseconds")
    yield "ended", trace.ended_at.isoformat(timespec="milliseconds") if trace.ended_at is not None else ""
    yield "id", element("code", trace.id)


def _headline(trace: Trace) -> str:
    """The first things that a trace says, on one line."""
    content = trace.trace_type
    values = [getattr(content, field.name) for field in fields(content)]
    shown = [
        brief(value, HEADLINE_LENGTH // 2) for value in values[:2] if value not in (None, "", (), [], {})
    ]
    return " ".join(shown)
