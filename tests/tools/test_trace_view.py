"""Traces on one line and as trees."""

import io
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console

from occamdb.primitives import Custom, Decision, Error, Query, Thought, ToolCall, Trace, TraceTree
from occamdb.tools.trace_view import TEXT_LENGTH_MAX, headline, render, shorten


def trace(content: Any, number: int = 1, tags: tuple[str, ...] = ()) -> Trace:
    identity = f"00000000-0000-7000-8000-{number:012}"
    return Trace(identity, None, content, datetime(2026, 1, 1, tzinfo=UTC), tags, {}, identity)


def leaf(content: Any, number: int = 1, tags: tuple[str, ...] = ()) -> TraceTree:
    shown = trace(content, number, tags)
    return TraceTree(b"", [], lambda _id, _record: shown)


def printed(tree: TraceTree, **options: Any) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=120).print(render(tree, **options))
    return [line.rstrip() for line in out.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (ToolCall("grep", {"for": "x", "n": 2}, ["a"], 1.25), 'grep(for="x", n=2) → ["a"] in 1.2 ms'),
        (ToolCall("now"), "now() → null"),
        (Decision("which?", ["a", "b"], "a", "first"), 'which? "a" (first)'),
        (Query("sql", "select 1", [1]), 'sql: "select 1" → [1]'),
        (Thought("hm,\n  well"), "hm, well"),
        (Error("IOError", "gone", recoverable=False), "IOError: gone (fatal)"),
        (Custom("mine", {"a": b"\x00"}), '{"a": {"$bytes": "AA=="}}'),
    ],
)
def test_a_headline_says_what_happened(content: Any, expected: str) -> None:
    assert headline(trace(content)) == expected


def test_long_texts_are_cut() -> None:
    assert len(headline(trace(Thought("x" * 500)))) == TEXT_LENGTH_MAX
    assert shorten("abcdef", 4) == "abc…"


def test_a_tree_shows_children_in_order_and_how_many_are_left_out() -> None:
    top = leaf(Thought("top [not markup]"), tags=("goal",))
    top.children = [leaf(Thought(f"child {n}"), n) for n in range(2, 7)]
    lines = printed(top, children_max=2)
    assert lines == [
        "Thought top [not markup] #goal",
        "├── Thought child 2",
        "├── Thought child 3",
        "└── … 3 more",
    ]


def test_a_tree_can_be_cut_at_a_depth() -> None:
    tree = leaf(Thought("0"))
    node = tree
    for level in range(1, 5):
        node.children.append(leaf(Thought(str(level)), level))
        node = node.children[0]
    assert printed(tree, depth_max=1) == ["Thought 0", "└── Thought 1", "    └── … 3 below"]


def test_a_tree_deeper_than_the_recursion_limit_is_rendered() -> None:
    tree = leaf(Thought("0"))
    node = tree
    for level in range(5000):
        node.children.append(leaf(Thought(str(level)), level))
        node = node.children[0]
    shown, depth = render(tree), 0
    while shown.children:
        shown, depth = shown.children[0], depth + 1
    assert depth == 5000
