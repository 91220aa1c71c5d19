"""The picture of a run, and of several side by side: read, laid out, drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from markupsafe import Markup

from occamdb import RunId, Snapshot, Trace
from occamdb.tools.inspector.reading.traces import read_traces
from occamdb.tools.pictures import Bar, Timeline, swim_lanes, timeline_svg
from occamdb.tools.pictures.axis import duration_words

__all__ = ["LaneOfRun", "Picture", "Window", "draw", "read_lane"]

TRACES_READ_MAX = 50_000  # of one run; more than that takes longer than a person waits
WINDOW_US_MIN = 10
Window = tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawn timeline.

    Attributes:
      svg: the element.
      window: the piece of time that it shows, in microseconds since its beginning; None: all.
      first, last: the same in numbers, also where all is shown.
      whole: how long all of it is.
      left_out: traces that are not in it, because there are too many.
      unreadable: traces that cannot be read.
    """

    svg: Markup
    window: Window
    first: int
    last: int
    whole: int
    left_out: int
    unreadable: int

    @property
    def words(self) -> str:
        """What is shown."""
        return f"{duration_words(self.first)} to {duration_words(self.last)}"

    def zoomed(self, factor: float, move: float = 0.0) -> tuple[int, int] | None:
        """Another piece of the time: larger or smaller about the middle, or moved by a part of itself.

        Returns:
          The piece; None: that is all.
        """
        size = max(round((self.last - self.first) * factor), WINDOW_US_MIN)
        middle = (self.first + self.last) // 2 + round((self.last - self.first) * move)
        first = max(0, min(middle - size // 2, self.whole - size))
        last = min(self.whole, first + size)
        return None if (first, last) == (0, self.whole) else (first, last)


@dataclass(frozen=True, slots=True)
class LaneOfRun:
    """What a lane is drawn from."""

    run_id: RunId
    name: str
    traces: list[Trace]
    left_out: int
    unreadable: int


def read_lane(view: Snapshot, run_id: RunId, name: str, most: int = TRACES_READ_MAX) -> LaneOfRun:
    """The traces of a run, and its name in the picture; "" where the run is alone."""
    found, unreadable = read_traces(view, most)
    left_out = max(0, view.traces.count() - most) if len(found) + unreadable >= most else 0
    return LaneOfRun(run_id, name, found, left_out, unreadable)


def draw(lanes: Sequence[LaneOfRun], window: Window, title: str) -> Picture:
    """Draw one run, or several on one axis. Open spans are drawn until now."""
    now = datetime.now(UTC)
    layout = swim_lanes([(lane.name, lane.traces) for lane in lanes], now=now, window=window)
    whole = layout.last if window is None else _whole(lanes, now)
    owners = {trace.id: lane.run_id for lane in lanes for trace in lane.traces} if len(lanes) > 1 else {}
    svg = timeline_svg(layout, title=title, link=_links(lanes, owners))
    return Picture(
        Markup(svg),
        window,
        layout.first,
        layout.last,
        max(whole, layout.last),
        sum(lane.left_out for lane in lanes),
        sum(lane.unreadable for lane in lanes),
    )


def _whole(lanes: Sequence[LaneOfRun], now: datetime) -> int:
    """How long everything is. Grouped into a few bars, since only its end is asked for."""
    layout: Timeline = swim_lanes([("", lane.traces) for lane in lanes], now=now, bars_max=8)
    return layout.last


def _links(lanes: Sequence[LaneOfRun], owners: dict[str, RunId]) -> Callable[[Bar], str | None]:
    def link(bar: Bar) -> str | None:
        run_id = owners.get(bar.trace_id, lanes[0].run_id)
        if bar.count > 1:
            under = f"?under={bar.parent_id}" if bar.parent_id else ""
            return f"/run/{run_id}/traces{under}"
        return f"/run/{run_id}/trace/{bar.trace_id}"

    return link
