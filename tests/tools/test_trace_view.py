"""Traces on one line and as trees."""

import io
import random
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console
from rich.tree import Tree

import occamdb
from occamdb.primitives import Custom, Decision, Error, Query, Thought, ToolCall, Trace, TraceTree
from occamdb.tools.trace_view import (
    TEXT_LENGTH_MAX,
    Detail,
    fields,
    headline,
    label,
    render,
    shorten,
    show,
    state,
)

RUN = "00000000-0000-7000-8000-000000000001"


@pytest.fixture
def db() -> Iterator[occamdb.Database]:
    with occamdb.open_in_memory() as database:
        yield database


def trace(content: Any, number: int = 1, tags: tuple[str, ...] = ()) -> Trace:
    identity = f"00000000-0000-7000-8000-{number:012}"
    return Trace(identity, None, content, datetime(2026, 1, 1, tzinfo=UTC), tags, {}, identity)


def printed(tree: TraceTree, **options: Any) -> list[str]:
    out = io.StringIO()
    show(tree, Console(file=out, width=120), **options)
    return out.getvalue().splitlines()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (ToolCall("grep", {"for": "x", "n": 2}, ["a"], 1.25), 'grep(for="x", n=2) → ["a"]'),
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


def test_the_state_and_duration_of_a_trace() -> None:
    assert [state(trace(each)) for each in (Thought("x"), Error("E"))] == ["ok", "error"]


def test_a_span_shows_that_it_is_open_and_then_its_duration_or_its_error(db: occamdb.Database) -> None:
    detail = Detail(None, full=True)
    call = db.traces.begin_span(RUN, ToolCall("search", {"q": "x"}))
    other = db.traces.begin_span(RUN, ToolCall("fetch"))
    (line,) = printed(db.traces.get_tree(RUN, call), detail=detail)
    assert line.startswith('ToolCall search(q="x")  open ') and "→" not in line
    db.traces.end_span(RUN, call, result=[1], duration_ms=12.0)
    db.traces.end_span(RUN, other, error="TimeoutError:\n no answer", duration_ms=2500)
    (line,) = printed(db.traces.get_tree(RUN, call), detail=detail)
    assert line.startswith('ToolCall search(q="x") → [1]  12') and " open " not in line
    (line,) = printed(db.traces.get_tree(RUN, other), detail=detail)
    assert line.startswith("ToolCall fetch() failed: TimeoutError: no answer  error 2.5")
    whole = db.traces.get(RUN, other)
    assert whole is not None
    assert whole.started_at.astimezone().isoformat(timespec="milliseconds") in line
    assert fields(whole)[2:4] == ["2500.000", "error"] and "no answer" in fields(whole)[5]


def test_long_texts_are_cut() -> None:
    assert len(headline(trace(Thought("x" * 500)))) == TEXT_LENGTH_MAX
    assert shorten("abcdef", 4) == "abc…"


def test_a_tree_shows_children_in_order_and_how_many_are_left_out(db: occamdb.Database) -> None:
    top = db.traces.record(RUN, Thought("top [not markup]"), tags=["goal"])
    for number in range(2, 7):
        db.traces.record_child(RUN, top, Thought(f"child {number}"))
    assert printed(db.traces.get_tree(RUN, top), children_max=2) == [
        "Thought top [not markup] #goal",
        "├── Thought child 2",
        "├── Thought child 3",
        "└── … 3 more",
    ]


def test_a_tree_can_be_cut_at_a_depth(db: occamdb.Database) -> None:
    tree = chain(db, 5)
    assert printed(tree, depth_max=1) == ["Thought 0", "└── Thought 1", "    └── … 3 below"]


def test_a_deep_tree_is_printed_whole_however_narrow_the_console_is(db: occamdb.Database) -> None:
    tree = chain(db, 45)
    expected = ["Thought 0"] + [" " * 4 * (depth - 1) + f"└── Thought {depth}" for depth in range(1, 45)]
    assert printed(tree) == expected
    terminal = io.StringIO()
    show(tree, Console(file=terminal, width=40, force_terminal=True, color_system=None))
    assert terminal.getvalue().splitlines() == expected


def test_a_long_label_is_printed_whole(db: occamdb.Database) -> None:
    top = db.traces.record(RUN, Thought("x" * 100), tags=["first tag", "y" * 100])
    assert printed(db.traces.get_tree(RUN, top)) == [f"Thought {'x' * 100} #first tag #{'y' * 100}"]


def test_a_tree_deeper_than_the_recursion_limit_is_rendered(db: occamdb.Database) -> None:
    depth = sys.getrecursionlimit() + 200
    lines = printed(chain(db, depth))
    assert len(lines) == depth
    assert lines[-1] == " " * 4 * (depth - 2) + f"└── Thought {depth - 1}"


@pytest.mark.parametrize("seed", range(3))
def test_a_tree_looks_like_that_of_rich(db: occamdb.Database, seed: int) -> None:
    choices = random.Random(seed)
    ids = [db.traces.record(RUN, Thought("top"))]
    for number in range(60):
        ids.append(
            db.traces.record_child(RUN, choices.choice(ids[-6:]), Thought(f"{number} [x]"), tags=["t"])
        )
    tree = db.traces.get_tree(RUN, ids[0])
    out = io.StringIO()
    Console(file=out, width=1000).print(by_rich(tree))
    assert printed(tree) == [line.rstrip() for line in out.getvalue().splitlines()]


def by_rich(tree: TraceTree) -> Tree:
    top = Tree(label(tree.trace))
    stack = [(tree, top)]
    while stack:
        node, shown = stack.pop()
        stack += [(child, shown.add(label(child.trace))) for child in node.children]
    return top


def test_an_encoding_without_lines_gets_others(db: occamdb.Database) -> None:
    top = db.traces.record(RUN, Thought("top"))
    first = db.traces.record_child(RUN, top, Thought("first"))
    db.traces.record_child(RUN, first, Thought("below"))
    db.traces.record_child(RUN, top, Thought("last"))
    lines = render(db.traces.get_tree(RUN, top), ascii_only=True)
    assert [line.plain for line in lines] == [
        "Thought top",
        "+-- Thought first",
        "|   `-- Thought below",
        "`-- Thought last",
    ]
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding="ascii") as out:
        show(db.traces.get_tree(RUN, top), Console(file=out))
        out.flush()
        assert b"`-- Thought last" in raw.getvalue()


def test_a_trace_is_one_line_whatever_its_tags_are(db: occamdb.Database) -> None:
    top = db.traces.record(RUN, Thought("a\nb"), tags=["c\nd [red]"])
    assert printed(db.traces.get_tree(RUN, top)) == ["Thought a b #c d [red]"]


def chain(db: occamdb.Database, length: int) -> TraceTree:
    """A tree that is one branch: each trace the only child of the one before."""

    def record(txn: occamdb.Transaction) -> str:
        top = last = txn.traces.record(Thought("0"))
        for level in range(1, length):
            last = txn.traces.record_child(last, Thought(str(level)))
        return top

    return db.traces.get_tree(RUN, db.transaction(RUN, record))
