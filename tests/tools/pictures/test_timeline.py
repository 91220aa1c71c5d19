"""The layout of timelines: rows, nesting, the critical path, groups, lanes."""

import random
import sys
from datetime import timedelta
from itertools import pairwise
from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

import occamdb
from occamdb.primitives import Error, Thought, ToolCall, Trace
from occamdb.tools.pictures import BARS_MAX, Bar, Lane, Timeline, swim_lanes, timeline, timeline_svg
from occamdb.tools.pictures.critical_path import Segment, critical_path
from occamdb.tools.pictures.forest import Forest, Node
from occamdb.tools.pictures.grouping import Item, items_of
from occamdb.tools.pictures.packing import pack
from occamdb.tools.pictures.timeline import BAR_PIXELS_MIN, WIDTH
from tests.support.trace_forests import BEGIN, forests, identity, made

# --- Shapes --------------------------------------------------------------------------------------


def by_id(layout: Timeline) -> dict[str, Bar]:
    return {bar.trace_id: bar for bar in layout.bars}


def test_bars_are_where_their_traces_are() -> None:
    layout = timeline(
        [
            made(1, 0, 1_000_000, content=ToolCall("plan", {"city": "Oslo"})),
            made(2, 100_000, 300_000, parent=1, content=Thought("inner")),
            made(3, 500_000, 400_000, parent=1, content=Thought("later")),
        ]
    )
    bars = by_id(layout)
    assert [(bars[identity(n)].start, bars[identity(n)].end) for n in (1, 2, 3)] == [
        (0, 1_000_000),
        (100_000, 400_000),
        (500_000, 900_000),
    ]
    # The two below share a row: neither is there while the other one is.
    assert [bars[identity(n)].row for n in (1, 2, 3)] == [0, 1, 1]
    assert layout.origin == BEGIN and (layout.first, layout.last) == (0, 1_000_000)
    assert bars[identity(1)].label == "plan" and 'city: "Oslo"' in bars[identity(1)].title
    assert (layout.traces, layout.grouped) == (3, 0)


def test_traces_at_the_same_time_lie_below_each_other() -> None:
    layout = timeline([made(1, 0, 100), made(2, 50, 100), made(3, 60, 100)])
    assert sorted(bar.row for bar in layout.bars) == [0, 1, 2] and layout.rows == 3


def test_a_recorded_duration_lies_before_the_record_and_that_of_a_span_behind_it() -> None:
    call = made(1, 1_000_000, content=ToolCall("search", duration_ms=250.0), span=False)
    recorded = Trace(
        **{name: getattr(call, name) for name in Trace.__dataclass_fields__} | {"duration_ms": 250.0}
    )
    layout = timeline([recorded, made(2, 1_000_000, 250_000)])
    bars = by_id(layout)
    assert (bars[identity(1)].start, bars[identity(1)].end) == (0, 250_000)
    assert (bars[identity(2)].start, bars[identity(2)].end) == (250_000, 500_000)


def test_an_open_span_goes_on_until_now_or_the_latest_moment_known() -> None:
    traces = [made(1, 0, is_open=True), made(2, 100, 900)]
    (bar,) = (bar for bar in timeline(traces).bars if bar.state == "open")
    assert (bar.start, bar.end) == (0, 1_000)
    now = BEGIN + timedelta(seconds=2)
    (bar,) = (bar for bar in timeline(traces, now=now).bars if bar.state == "open")
    assert bar.end == 2_000_000
    # A clock behind that of the run does not turn bars around.
    assert timeline(traces, now=BEGIN - timedelta(hours=1)).last == 1_000


def test_errors_are_told_by_type_and_by_the_end_of_a_span() -> None:
    layout = timeline([made(1, 0, 10, content=Error("E")), made(2, 20, 10, error="gone"), made(3, 40, 10)])
    assert [by_id(layout)[identity(n)].state for n in (1, 2, 3)] == ["error", "error", "ok"]
    assert "failed: gone" in by_id(layout)[identity(2)].title


def test_without_traces_there_is_an_empty_timeline() -> None:
    layout = timeline([])
    assert (list(layout.bars), layout.origin, layout.rows, layout.traces) == ([], None, 1, 0)


def test_a_circle_of_parents_and_a_missing_parent_still_show_every_trace() -> None:
    traces = [
        made(1, 0, 9, parent=2),
        made(2, 1, 9, parent=1),
        made(3, 2, 9, parent=3),
        made(4, 3, 9, parent=99),
    ]
    layout = timeline(traces)
    assert {bar.trace_id for bar in layout.bars} == {identity(n) for n in (1, 2, 3, 4)}


def test_a_chain_deeper_than_the_recursion_limit_is_laid_out() -> None:
    depth = sys.getrecursionlimit() + 100
    layout = timeline([made(n, n, 10 * depth - 2 * n, parent=n - 1 if n else None) for n in range(depth)])
    assert len(list(layout.bars)) == depth == layout.rows


def test_a_tree_of_the_database_is_laid_out() -> None:
    run = "00000000-0000-7000-8000-000000000001"
    with occamdb.open_in_memory() as db:
        with db.traces.span(run, ToolCall("outer")) as outer:
            inner = db.traces.record(run, Thought("inner"))
        layout = timeline(db.traces.get_tree(run, outer.id))
    bars = by_id(layout)
    assert bars[inner].parent_id == outer.id and bars[inner].row == 1


# --- What always holds ---------------------------------------------------------------------------


def drawn_overlaps(layout: Timeline) -> list[tuple[Bar, Bar]]:
    """Pairs of bars in one row that overlap as they are drawn."""
    least = BAR_PIXELS_MIN * layout.extent / WIDTH
    rows: dict[int, list[Bar]] = {}
    for bar in layout.bars:
        rows.setdefault(bar.row, []).append(bar)
    found = []
    for bars in rows.values():
        bars.sort(key=lambda bar: (bar.start, bar.end))
        found += [(a, b) for a, b in pairwise(bars) if max(a.end, a.start + least) > b.start]
    return found


@given(forests(), st.sampled_from([1, 5, BARS_MAX]))
def test_bars_never_overlap_in_a_row(traces: list[Trace], bars_max: int) -> None:
    layout = timeline(traces, bars_max=bars_max)
    assert drawn_overlaps(layout) == []
    assert all(0 <= bar.row < layout.rows and bar.start <= bar.end for bar in layout.bars)


@given(forests(), st.sampled_from([3, 7, BARS_MAX]))
def test_every_trace_is_counted_once(traces: list[Trace], bars_max: int) -> None:
    layout = timeline(traces, bars_max=bars_max)
    assert sum(bar.count for bar in layout.bars) == len(traces) == layout.traces
    if len(traces) <= bars_max:
        assert {bar.trace_id for bar in layout.bars} == {trace.id for trace in traces}
    else:
        assert len(list(layout.bars)) <= bars_max


@given(forests(), st.sampled_from([4, 10, BARS_MAX]))
def test_what_is_below_a_trace_lies_in_the_rows_below_it_and_nothing_else_does(
    traces: list[Trace], bars_max: int
) -> None:
    forest = Forest(traces)
    tops, _ = items_of(forest, bars_max)
    height = pack(tops, lambda item: item.end + 1)

    def check(items: list[Item], first: int, last: int) -> None:
        for item in items:
            assert first <= item.row and item.row + item.height <= last
            check(item.children, item.row + 1, item.row + item.height)
        for at, one in enumerate(items):
            for other in items[at + 1 :]:
                share_rows = one.row < other.row + other.height and other.row < one.row + one.height
                assert not share_rows or not overlap(one, other)

    def overlap(one: Item, other: Item) -> bool:
        (a, b), (c, d) = whole(one), whole(other)
        return a < d and c < b

    def whole(item: Item) -> tuple[int, int]:
        below = [whole(child) for child in item.children]
        return min([item.start, *(a for a, _ in below)]), max([item.end + 1, *(b for _, b in below)])

    check(tops, 0, height)


@given(forests())
def test_the_critical_path_is_connected_and_as_long_as_the_run(traces: list[Trace]) -> None:
    forest = Forest(traces)
    path = critical_path(forest.roots)
    if not traces:
        assert path == []
        return
    begin, end = min(n.first for n in forest.nodes), max(n.last for n in forest.nodes)
    edges = [begin, *(segment.end for segment in path)]
    assert edges[-1] == end
    assert [segment.start for segment in path] == edges[:-1]
    assert sum(segment.end - segment.start for segment in path) == end - begin
    for segment in path:
        if segment.busy:
            assert segment.node is not None
            assert segment.node.start <= segment.start < segment.end <= segment.node.end


@given(forests(max_size=12))
def test_the_critical_path_is_that_of_the_plain_definition(traces: list[Trace]) -> None:
    forest = Forest(traces)
    found = [(s.node and s.node.trace.id, s.start, s.end) for s in joined(critical_path(forest.roots))]
    assert found == plain_path(forest)


def joined(path: list[Segment]) -> list[Segment]:
    """Segments of one node next to each other as one, busy or not."""
    found: list[Segment] = []
    for segment in path:
        if found and found[-1].node is segment.node and found[-1].end == segment.start:
            found[-1] = found[-1]._replace(end=segment.end)
        else:
            found.append(segment)
    return found


def plain_path(forest: Forest) -> list[tuple[str | None, int, int]]:
    """For each microsecond, whose it is; from the end backwards, by recursion."""
    owners: dict[int, str | None] = {}

    def go(node: Node | None, children: list[Node], first: int, cursor: int) -> None:
        while cursor > first:
            ready = [c for c in children if c.first < c.last <= cursor]
            last = max(ready, key=lambda c: (c.last, -c.first), default=None)
            until = first if last is None else last.last
            for moment in range(until, cursor):
                owners[moment] = None if node is None else node.trace.id
            cursor = until
            if last is not None:
                go(last, last.children, last.first, last.last)
                cursor = last.first

    if not forest.roots:
        return []
    begin, end = min(n.first for n in forest.nodes), max(n.last for n in forest.nodes)
    go(None, forest.roots, begin, end)
    assert sorted(owners) == list(range(begin, end))
    found: list[tuple[str | None, int, int]] = []
    for moment in sorted(owners):
        if found and found[-1][0] == owners[moment]:
            found[-1] = (found[-1][0], found[-1][1], moment + 1)
        else:
            found.append((owners[moment], moment, moment + 1))
    return found


def test_the_critical_path_goes_through_what_the_end_waited_for() -> None:
    layout = timeline(
        [
            made(1, 0, 100),
            made(2, 10, 30, parent=1),  # ended before the next one began: on the path
            made(3, 10, 20, parent=1),  # ended earlier: not on it
            made(4, 50, 40, parent=1),
            made(5, 60, 20, parent=4),
        ]
    )
    critical = {bar.trace_id for bar in layout.bars if bar.critical}
    assert critical == {identity(n) for n in (1, 2, 4, 5)}
    row = {n: by_id(layout)[identity(n)].row for n in range(1, 6)}
    (lane,) = layout.lanes
    assert [(piece.row, piece.start, piece.end) for piece in lane.path] == [
        (row[1], 0, 10),
        (row[2], 10, 40),
        (row[1], 40, 50),
        (row[4], 50, 60),
        (row[5], 60, 80),
        (row[4], 80, 90),
        (row[1], 90, 100),
    ]


# --- Large runs ----------------------------------------------------------------------------------


def large(shape: str, count: int = 10_000) -> list[Trace]:
    choices = random.Random(shape)
    traces = []
    for n in range(count):
        if shape == "roots":
            start, took, parent = n * 1000, choices.randrange(1, 3000), None
        elif shape == "at once":
            start, took, parent = n, 10**9, None
        elif shape == "chain":
            start, took, parent = n, 10**6 - 2 * n, n - 1 if n else None
        elif shape == "bush":
            start, took, parent = n * 10, (count - n) * 10, choices.randrange(n) if n else None
        else:
            start, took, parent = n * 10, 5 if n else count * 10, 0 if n else None
        failed = "failed" if n % 4000 == 3999 else None
        traces.append(made(n, start, took, parent=parent, error=failed, content=Thought(f"number {n}")))
    return traces


@pytest.mark.parametrize("shape", ["roots", "at once", "chain", "bush", "star"])
def test_ten_thousand_traces_become_few_bars_quickly(shape: str) -> None:
    traces = large(shape)
    began = perf_counter()
    layout = timeline(traces)
    text = timeline_svg(layout)
    assert perf_counter() - began < 10  # a tenth of that on a machine that has nothing else to do
    bars = list(layout.bars)
    assert 30 < len(bars) <= BARS_MAX
    assert sum(bar.count for bar in bars) == 10_000 and layout.grouped > 0
    assert drawn_overlaps(layout) == []
    assert len(text) < 2_000_000 and "10,000 traces; " in text
    # What failed is shown itself, or its group says so.
    assert any(bar.state == "error" for bar in bars)


def test_failed_and_open_traces_are_shown_themselves_in_a_large_run() -> None:
    layout = timeline([*large("star"), made(20_000, 500, is_open=True, parent=0)])
    alone = {bar.trace_id: bar for bar in layout.bars if bar.count == 1}
    assert alone[identity(3999)].state == alone[identity(7999)].state == "error"
    assert alone[identity(20_000)].state == "open"


def test_a_window_shows_what_is_in_it_larger() -> None:
    traces = large("star")
    layout = timeline(traces, window=(10_000, 11_000))
    bars = [bar for bar in layout.bars if bar.parent_id is not None]
    assert layout.grouped == 0 and 95 <= len(bars) <= 105
    assert all(bar.end >= 10_000 and bar.start <= 11_000 for bar in bars)
    (lane,) = layout.lanes
    assert (lane.path[0].start, lane.path[-1].end) == (10_000, 11_000)
    assert lane.traces == 10_000


# --- Lanes ---------------------------------------------------------------------------------------


@given(st.lists(forests(max_size=10), min_size=2, max_size=4))
def test_lanes_lie_under_each_other_on_one_axis(runs: list[list[Trace]]) -> None:
    layout = swim_lanes([(f"run {at}", traces) for at, traces in enumerate(runs)])
    assert drawn_overlaps(layout) == []
    row = 0
    for lane, traces in zip(layout.lanes, runs, strict=True):
        assert (lane.row, lane.traces) == (row, len(traces))
        assert all(lane.row < bar.row < lane.row + lane.rows for bar in lane.bars)
        assert all(lane.row < piece.row < lane.row + lane.rows for piece in lane.path)
        row += lane.rows
    assert layout.rows == row


def test_the_lanes_of_large_runs_share_the_bars() -> None:
    layout = swim_lanes([(str(n), large("star", 3_000)) for n in range(4)])
    assert len(list(layout.bars)) <= BARS_MAX
    assert [lane.traces for lane in layout.lanes] == [3_000] * 4


def test_a_lane_of_a_run_without_traces_has_its_name_alone() -> None:
    layout = swim_lanes([("empty", []), ("other", [made(1, 0, 5)])])
    empty: Lane = layout.lanes[0]
    assert (empty.rows, empty.bars, empty.path) == (1, (), ())
    assert layout.lanes[1].row == 1
