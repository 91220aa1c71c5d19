"""A timeline as SVG: axis, lanes, bars with tooltips, and the critical path as a line through them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC

from occamdb.tools.pictures.axis import ticks
from occamdb.tools.pictures.style import CSS
from occamdb.tools.pictures.texts import xml_text
from occamdb.tools.pictures.timeline import BAR_PIXELS_MIN, WIDTH, Bar, Lane, Timeline, text_width

__all__ = ["timeline_svg"]

MARGIN = 10
AXIS_HEIGHT = 24
ROW_HEIGHT = 20
BAR_HEIGHT = 15
TEXT_PIXELS_MIN = 24  # room for less than this gets no label
NOTE_HEIGHT = 20
PATH_PIXELS_MIN = 4

Link = Callable[[Bar], str | None]


def timeline_svg(
    layout: Timeline, *, title: str = "", link: Link | None = None, standalone: bool = False
) -> str:
    """Draw a layout.

    Args:
      layout: what to draw.
      title: what the picture shows, for those who cannot see it and as its tooltip; stored text will do.
      link: where a click on a bar leads, as an address; None leads nowhere.
      standalone: a file of its own, with an XML declaration and the styles in it. Otherwise an element for an HTML
        page that has `style.CSS` among its styles.
    """
    height = AXIS_HEIGHT + layout.rows * ROW_HEIGHT + MARGIN + (NOTE_HEIGHT if _note(layout) else 0)
    width = WIDTH + 2 * MARGIN
    parts = ['<?xml version="1.0" encoding="UTF-8"?>\n'] if standalone else []
    parts.append(
        f'<svg xmlns="http://www.w3.org/2000/svg" class="tl" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">\n'
    )
    parts.append(f"<title>{xml_text(title)}</title>\n" if title else "")
    parts.append(f"<style>{xml_text_of_css()}</style>\n" if standalone else "")
    drawing = _Drawing(layout, link)
    parts += drawing.axis(height)
    for lane in layout.lanes:
        parts += drawing.lane(lane)
    if note := _note(layout):
        parts.append(f'<text class="tl-note" x="{MARGIN}" y="{height - 8}">{xml_text(note)}</text>\n')
    parts.append("</svg>\n")
    return "".join(parts)


def xml_text_of_css() -> str:
    """The styles as the content of an element; they hold no markup, so both XML and HTML read them as they are."""
    assert not {"<", "&"} & set(CSS)
    return CSS


def _note(layout: Timeline) -> str:
    if layout.origin is None:
        return "no traces"
    grouped = layout.grouped
    some = f"; {grouped:,} of them are drawn as groups" if grouped else ""
    began = layout.origin.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    return f"{layout.traces:,} {'trace' if layout.traces == 1 else 'traces'}{some}; begun {began} UTC"


class _Drawing:
    def __init__(self, layout: Timeline, link: Link | None) -> None:
        self._layout = layout
        self._link = link

    def _x(self, moment: int) -> float:
        shown = min(max(moment, self._layout.first), self._layout.last) - self._layout.first
        return MARGIN + shown * WIDTH / self._layout.extent

    def axis(self, height: int) -> Iterator[str]:
        yield '<g class="tl-axis">\n'
        for moment, words in ticks(self._layout.first, self._layout.last):
            x = self._x(moment)
            yield f'<line x1="{x:.1f}" y1="{AXIS_HEIGHT - 6}" x2="{x:.1f}" y2="{height}"/>'
            at = min(x + 2, MARGIN + WIDTH - text_width(words))
            yield f'<text x="{at:.1f}" y="{AXIS_HEIGHT - 10}">{xml_text(words)}</text>\n'
        yield "</g>\n"

    def lane(self, lane: Lane) -> Iterator[str]:
        """The name, then the bars row by row, then the path on top of them."""
        if lane.name:
            y = AXIS_HEIGHT + lane.row * ROW_HEIGHT
            yield '<g class="tl-lane">'
            yield f'<line x1="0" y1="{y}" x2="{WIDTH + 2 * MARGIN}" y2="{y}"/>'
            yield f'<text x="{MARGIN}" y="{y + 14}">{xml_text(lane.name, 100)}</text></g>\n'
        rows: dict[int, list[Bar]] = {}
        for bar in lane.bars:
            rows.setdefault(bar.row, []).append(bar)
        for _, bars in sorted(rows.items()):
            bars.sort(key=lambda bar: (bar.start, bar.end))
            for at, bar in enumerate(bars):
                next_x = self._x(bars[at + 1].start) if at + 1 < len(bars) else MARGIN + WIDTH
                yield self._bar(bar, next_x)
        yield from self._path(lane)

    def _bar(self, bar: Bar, next_x: float) -> str:
        x, y = self._x(bar.start), AXIS_HEIGHT + bar.row * ROW_HEIGHT
        width = max(self._x(bar.end) - x, BAR_PIXELS_MIN)
        classes = f"tl-{bar.kind}{' tl-group' if bar.count > 1 else ''}"
        if bar.state != "ok":
            classes += f" tl-is-{bar.state}"
        title = "\n".join(map(xml_text, bar.title.split("\n")))
        drawn = (
            f'<rect class="{classes}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BAR_HEIGHT}" rx="2"/>'
            f"{self._label(bar, x, width, next_x, y)}<title>{title}</title>"
        )
        data = f'data-trace="{xml_text(bar.trace_id)}"'
        if bar.critical:
            data += ' data-critical="1"'
        target = None if self._link is None else self._link(bar)
        if target is None:
            return f"<g {data}>{drawn}</g>\n"
        return f'<a {data} href="{xml_text(target)}">{drawn}</a>\n'

    def _label(self, bar: Bar, x: float, width: float, next_x: float, y: int) -> str:
        """In the bar if it fits, else behind it, else as much of it as there is room for."""
        needed = text_width(bar.label)
        behind = next_x - x - width - 6
        if needed <= width - 6 or width - 6 >= behind:
            left, room = x + 3, width - 6
        else:
            left, room = x + width + 3, behind
        if not bar.label or room < min(TEXT_PIXELS_MIN, needed):
            return ""
        shown = bar.label if needed <= room else _fitting(bar.label, room)
        return f'<text x="{left:.1f}" y="{y + 11}">{xml_text(shown)}</text>'

    def _path(self, lane: Lane) -> Iterator[str]:
        """One connected line along the lower edges, and thick where a trace was busy.

        It goes to another row for pieces that are long enough to be seen; the others are drawn where it just is.
        """
        line: list[str] = []
        busy: list[str] = []
        row = None
        for piece in lane.path:
            left, right = self._x(piece.start), self._x(piece.end)
            seen = row is None or right - left >= PATH_PIXELS_MIN
            y = AXIS_HEIGHT + (piece.row if seen or row is None else row) * ROW_HEIGHT + BAR_HEIGHT + 1
            if row is None:
                line.append(f"M{left:.1f} {y}")
            elif seen and piece.row != row:
                line.append(f"H{left:.1f}V{y}")
            if piece.busy and seen:
                busy.append(f"M{left:.1f} {y}H{right:.1f}")
            row = piece.row if seen else row
        if lane.path:
            line.append(f"H{self._x(lane.path[-1].end):.1f}")
            yield f'<path class="tl-path" d="{"".join(line)}"/>\n'
        if busy:
            yield f'<path class="tl-busy" d="{"".join(busy)}"/>\n'


def _fitting(text: str, room: float) -> str:
    """The beginning of a text that fits into so many pixels, with an ellipsis."""
    taken = text_width("…")
    for at, character in enumerate(text):
        taken += text_width(character)
        if taken > room:
            return text[:at] + "…"
    return text
