"""The layout of a timeline: bars in rows, in units of time. `timeline_svg` draws it.

1. A bar has a start and an end in microseconds since the beginning of the timeline, and a row from 0.
2. Bars in one row do not overlap, also where each is drawn at least `BAR_PIXELS_MIN` wide.
3. Each lane is a run. A lane's bars lie in the rows of the lane, the bars under a trace in rows below its own.
4. Of any number of traces at most `BARS_MAX` bars are made; the others are counted in groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from occamdb.tools.pictures.axis import duration_words
from occamdb.tools.pictures.critical_path import critical_path
from occamdb.tools.pictures.forest import BARS_MAX, Forest, moment_us
from occamdb.tools.pictures.grouping import Item, items_of
from occamdb.tools.pictures.packing import pack
from occamdb.tools.pictures.texts import brief, cut

if TYPE_CHECKING:
    from occamdb.primitives import Trace

__all__ = ["Bar", "Lane", "PathPiece", "Timeline", "swim_lanes", "text_width", "timeline"]

# The layout has to know how wide it will be drawn, to keep room for what must be readable.
WIDTH = 1000
BAR_PIXELS_MIN = 3
GAP_PIXELS = 2
LABEL_PADDING = 7  # before and behind a label together
LABEL_PIXELS_MAX = 220
LABEL_LENGTH_MAX = 60
TITLE_LENGTH_MAX = 300
# With more rows than this a lane is packed closely, and labels are drawn where there happens to be room.
LABELLED_ROWS_MAX = 60
_KINDS = frozenset(("ToolCall", "Decision", "Query", "Thought", "Error"))


@dataclass(frozen=True, slots=True)
class Bar:
    """One trace, or a group of them.

    Attributes:
      row: from 0, the top.
      start, end: microseconds since the timeline's beginning.
      kind: "toolcall", "decision", "query", "thought", "error" or "custom".
      state: "ok", "error" or "open".
      critical: whether it is on the critical path.
      label: a few words, of stored text.
      title: several lines that say more, of stored text.
      trace_id: of the trace; of a group the first one's.
      parent_id: of the trace's parent, if there is one.
      count: how many traces it stands for.
    """

    row: int
    start: int
    end: int
    kind: str
    state: str
    critical: bool
    label: str
    title: str
    trace_id: str
    parent_id: str | None
    count: int


class PathPiece(NamedTuple):
    """A piece of the critical path: in which row it goes, from when to when, and whether a trace was busy."""

    row: int
    start: int
    end: int
    busy: bool


@dataclass(frozen=True, slots=True)
class Lane:
    """A run in the timeline.

    Attributes:
      name: of the run, stored text; empty where there is one run only.
      row, rows: where it lies; with a name, the first row is the name's.
      bars: in no particular order.
      path: the critical path, in order of time and without gaps, within what is shown.
      traces: how many traces the run has.
    """

    name: str
    row: int
    rows: int
    bars: tuple[Bar, ...]
    path: tuple[PathPiece, ...]
    traces: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """A layout.

    Attributes:
      origin: when it begins: the first start of any trace.
      first, last: what is shown, in microseconds since the origin.
      extent: how many microseconds the whole width is; more than what is shown, to leave room for the last labels.
      lanes: the runs, top first.
      rows: of all lanes.
    """

    origin: datetime | None
    first: int
    last: int
    extent: int
    lanes: tuple[Lane, ...]
    rows: int

    @property
    def bars(self) -> Iterator[Bar]:
        """Those of all lanes."""
        return (bar for lane in self.lanes for bar in lane.bars)

    @property
    def traces(self) -> int:
        """How many traces the runs have."""
        return sum(lane.traces for lane in self.lanes)

    @property
    def grouped(self) -> int:
        """How many traces are in groups."""
        return sum(bar.count for bar in self.bars if bar.count > 1)


def timeline(
    traces: Iterable[Trace],
    *,
    now: datetime | None = None,
    window: tuple[int, int] | None = None,
    bars_max: int = BARS_MAX,
) -> Timeline:
    """The layout of one run.

    Args:
      traces: all of the run, or those to show, in any order. `TraceTree`s are iterables of them.
      now: until when open spans are drawn; None: until the latest moment in the traces.
      window: show this piece of it alone, larger: from and until, in microseconds since the beginning.
      bars_max: at most so many bars.
    """
    return swim_lanes([("", traces)], now=now, window=window, bars_max=bars_max)


def swim_lanes(
    runs: Iterable[tuple[str, Iterable[Trace]]],
    *,
    now: datetime | None = None,
    window: tuple[int, int] | None = None,
    bars_max: int = BARS_MAX,
) -> Timeline:
    """Several runs under each other on one time axis: names and traces; the rest as for `timeline`."""
    named = [(name, Forest(traces, now)) for name, traces in runs]
    roots = [root for _, forest in named for root in forest.roots]
    if not roots:
        return Timeline(
            None,
            0,
            0,
            1,
            tuple(Lane(name, at, 1, (), (), 0) for at, (name, _) in enumerate(named)),
            len(named),
        )
    begin = min(root.first for root in roots)
    first, last = window if window is not None else (0, max(root.last for root in roots) - begin)
    last = max(last, first + 1)
    drafts = [
        _Draft(name, forest, begin, (first, last), max(1, bars_max // len(named))) for name, forest in named
    ]
    extent = max(draft.extent_needed() for draft in drafts)
    lanes: list[Lane] = []
    row = 0
    for draft in drafts:
        lanes.append(draft.lane(row, extent))
        row += lanes[-1].rows
    origin = min(node.trace.timestamp for node in roots)
    origin += timedelta(microseconds=begin - moment_us(origin))
    return Timeline(origin, first, last, extent, tuple(lanes), row)


class _Draft:
    """A run on its way to be a lane."""

    def __init__(self, name: str, forest: Forest, begin: int, window: tuple[int, int], bars_max: int) -> None:
        self._name = name
        self._begin = begin
        self._first, self._last = window
        self._traces = len(forest.nodes)
        self._path = critical_path(forest.roots)
        forest.keep(begin + self._first, begin + self._last)
        self._tops, self._at = items_of(forest, bars_max)
        self._items = list({id(item): item for item in self._at.values()}.values())
        self._labels = {id(item): _label(item) for item in self._items}
        # The labels may still turn out to take too many rows; nothing is lost then but some room.
        # That of a group only says how many it holds, so no room is kept for it.
        self._widths = {
            id(item): 0.0 if item.node is None else min(text_width(self._labels[id(item)]), LABEL_PIXELS_MAX)
            for item in self._items
        }

    def extent_needed(self) -> int:
        """How many microseconds the width has to be, so that the last bars and their labels fit."""
        shown = self._last - self._first
        needed = float(shown)
        for item in self._items:
            pixels = min(self._widths[id(item)] + LABEL_PADDING + BAR_PIXELS_MIN + GAP_PIXELS, WIDTH / 2)
            end = min(max(self._clipped(item.end), self._clipped(item.start)), shown)
            needed = max(needed, end / (1 - pixels / WIDTH))
        return int(needed) + 1

    def _clipped(self, moment: int) -> int:
        """Microseconds since the first moment shown, for one within what is shown or at its edge."""
        return min(max(moment - self._begin - self._first, 0), self._last - self._first)

    def lane(self, row: int, extent: int) -> Lane:
        """The lane, beginning in a row of the timeline."""
        pixel = extent / WIDTH
        rows = pack(self._tops, self._room(pixel, labelled=True))
        if rows > LABELLED_ROWS_MAX:
            rows = pack(self._tops, self._room(pixel, labelled=False))
        heading = 1 if self._name else 0
        top = row + heading
        path = tuple(self._pieces(top))
        on_path = {id(self._at[id(node)]) for node, *_, busy in self._path if busy and id(node) in self._at}
        bars = tuple(self._bar(item, top, id(item) in on_path) for item in self._items)
        return Lane(self._name, row, rows + heading or 1, bars, path, self._traces)

    def _room(self, pixel: float, *, labelled: bool) -> Callable[[Item], int]:
        def until(item: Item) -> int:
            left = self._clipped(item.start)
            bar = max(self._clipped(item.end), left + BAR_PIXELS_MIN * pixel)
            label = (self._widths[id(item)] + LABEL_PADDING) * pixel if labelled else 0.0
            # A label that fits into its bar takes no more room than that.
            right = bar if bar - left >= label else bar + label
            return self._begin + self._first + int(right + GAP_PIXELS * pixel) + 1

        return until

    def _pieces(self, top: int) -> Iterator[PathPiece]:
        """The part of the path that is shown, adjoining pieces in one row as one."""
        latest: PathPiece | None = None
        for segment in self._path:
            start, end = segment.start - self._begin, segment.end - self._begin
            start, end = max(start, self._first), min(end, self._last)
            if start >= end:
                continue
            item = None if segment.node is None else self._at.get(id(segment.node))
            row = (top if latest is None else latest.row) if item is None else top + item.row
            piece = PathPiece(row, start, end, segment.busy)
            if latest is not None and (latest.row, latest.busy) == (row, segment.busy):
                latest = latest._replace(end=end)
                continue
            if latest is not None:
                yield latest
            latest = piece
        if latest is not None:
            yield latest

    def _bar(self, item: Item, top: int, critical: bool) -> Bar:
        trace = item.nodes[0].trace
        start, end = item.start - self._begin, item.end - self._begin
        return Bar(
            row=top + item.row,
            start=start,
            end=end,
            kind=_css_kind(item.kind),
            state=item.state,
            critical=critical,
            label=self._labels[id(item)],
            title=_title(item, start, end),
            trace_id=trace.id,
            parent_id=trace.parent_id,
            count=item.count,
        )


def text_width(text: str) -> float:
    """About how many pixels a label is wide in the pictures' font."""
    return sum(6.2 if ord(character) < 0x2E80 else 11.5 for character in text)


def _css_kind(type_name: str) -> str:
    return type_name.lower() if type_name in _KINDS else "custom"


def _label(item: Item) -> str:
    if item.node is None:
        return f"{item.count:,}×"
    return _words(item.node.trace)


def _words(trace: Trace) -> str:
    """What a trace is about, in a few words."""
    content = trace.trace_type
    match type(content).__name__:
        case "ToolCall":
            field = "tool"
        case "Decision":
            field = "question"
        case "Thought":
            field = "content"
        case "Custom":
            field = "name"
        case _:
            field = "type"
    words = brief(getattr(content, field), LABEL_LENGTH_MAX)
    if type(content).__name__ == "Error":
        words = cut(f"{words}: {brief(getattr(content, 'message', ''), LABEL_LENGTH_MAX)}", LABEL_LENGTH_MAX)
    return words


def _title(item: Item, start: int, end: int) -> str:
    when = f"at {duration_words(start)}"
    took = duration_words(end - start) if end > start else "a moment"
    if item.node is None:
        return f"{item.count:,} traces, most of them {item.kind}\n{took}, {when}"
    trace = item.node.trace
    lines = [brief(trace.type_name, LABEL_LENGTH_MAX), brief(trace.trace_type, TITLE_LENGTH_MAX)]
    lines.append(f"{took}, {when}{', open' if item.state == 'open' else ''}")
    if trace.error is not None:
        lines.append(f"failed: {brief(trace.error, TITLE_LENGTH_MAX)}")
    if trace.tags:
        lines.append(
            cut(" ".join(f"#{brief(tag, LABEL_LENGTH_MAX)}" for tag in trace.tags[:20]), TITLE_LENGTH_MAX)
        )
    return "\n".join(lines)
