"""Sparklines: the shape of a few numbers, as a word of block characters or as a small SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from occamdb.tools.pictures.texts import xml_text

__all__ = ["sparkline", "sparkline_svg"]

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII_BLOCKS = "_.:-=+*#"  # for terminals that have no others
MISSING = " "


def sparkline(values: Iterable[float | None], length_max: int | None = None, *, blocks: str = BLOCKS) -> str:
    """One block a value, from the lowest for 0 to a full one for the largest.

    Args:
      values: in order of time; None, NaN and infinities are gaps, numbers below 0 count as 0.
      length_max: only the last so many.
      blocks: the characters, lowest first.
    """
    known = _known(values, length_max)
    most = max((value for value in known if value is not None), default=0.0)
    return "".join(MISSING if value is None else _block(value, most, blocks) for value in known)


def _block(value: float, most: float, blocks: str) -> str:
    # Rounded up: only a true 0 looks like one.
    return blocks[0] if most <= 0 else blocks[math.ceil(value / most * (len(blocks) - 1))]


def sparkline_svg(
    values: Iterable[float | None], *, width: int = 120, height: int = 24, title: str = ""
) -> str:
    """A line with the area below it, of the colour of the text around it; its class is `tl-spark` of `style.CSS`.

    Args:
      values: as for `sparkline`.
      width, height: in pixels.
      title: what it shows.
    """
    known = _known(values, None)
    most = max((value for value in known if value is not None), default=0.0) or 1.0
    step = (width - 2) / max(1, len(known) - 1)
    points = [
        None if value is None else (1 + at * step, height - 1 - value / most * (height - 2))
        for at, value in enumerate(known)
    ]
    lines, areas = [], []
    for piece in _pieces(points):
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in piece)
        lines.append(f"M{path}h0.1")  # a point alone is drawn too
        areas.append(f"M{piece[0][0]:.1f} {height - 1}L{path}V{height - 1}Z")
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="tl-spark" viewBox="0 0 {width} {height}" '
    named = f"<title>{xml_text(title)}</title>" if title else ""
    drawn = f'<path class="tl-area" d="{"".join(areas)}"/><path d="{"".join(lines)}"/>' if lines else ""
    return f'{head}width="{width}" height="{height}" role="img">{named}{drawn}</svg>'


def _known(values: Iterable[float | None], length_max: int | None) -> list[float | None]:
    every = list(values)
    if length_max is not None:
        every = every[max(0, len(every) - length_max) :]
    return [None if value is None or not math.isfinite(value) else max(0.0, float(value)) for value in every]


def _pieces(points: Sequence[tuple[float, float] | None]) -> list[list[tuple[float, float]]]:
    """The points between gaps."""
    found: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if point is None:
            found.append([])
        else:
            found[-1].append(point)
    return [piece for piece in found if piece]
