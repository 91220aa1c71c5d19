"""A PNG of a benchmark's results: ratios to the peers, conflicts by contention, reads by process count."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from occamdb.stress.bench.model import OCCAM, RowResult

COLOURS = {
    OCCAM: "#1f5fa8",
    "lmdb": "#c46a1b",
    "sqlite": "#5a8f3d",
    "diskcache": "#8a5aa8",
    "redis": "#b03030",
}


def draw_chart(results: Sequence[RowResult], path: Path) -> None:
    """Draw what the results hold; a panel without data is left out."""
    panels = [
        draw
        for draw, wanted in ((_ratios, _with_peers), (_conflicts, _contended), (_scaling, _reads))
        if wanted(results)
    ]
    if not panels:
        panels = [_ratios]
    figure, axes = pyplot.subplots(len(panels), 1, figsize=(10, 4.2 * len(panels)), squeeze=False)
    for draw, axis in zip(panels, axes[:, 0], strict=True):
        draw(results, axis)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _with_peers(results: Sequence[RowResult]) -> list[RowResult]:
    return [result for result in results if result.ratio("lmdb") is not None]


def _contended(results: Sequence[RowResult]) -> list[tuple[int, float]]:
    prefix = "conflicts-"
    return sorted(
        (int(result.row.name.removeprefix(prefix)), result.occam.median)
        for result in results
        if result.row.name.startswith(prefix)
        and result.row.name[len(prefix) :].isdigit()
        and result.occam.samples
    )


def _reads(results: Sequence[RowResult]) -> list[tuple[int, RowResult]]:
    found = []
    for result in results:
        if result.row.name == "reads":
            found.append((1, result))
        elif result.row.name.startswith("reads-") and result.row.name[6:].isdigit():
            found.append((int(result.row.name[6:]), result))
    return sorted(found, key=lambda entry: entry[0]) if len(found) > 1 else []


def _ratios(results: Sequence[RowResult], axis: Any) -> None:
    shown = _with_peers(results)
    for place, result in enumerate(shown):
        each = result.ratios("lmdb")
        axis.barh(place, result.ratio("lmdb"), color=COLOURS[OCCAM], height=0.6)
        axis.plot([min(each), max(each)], [place, place], color="black", linewidth=1)
    axis.axvline(1, color=COLOURS["lmdb"], linewidth=1.5)
    axis.set_yticks(range(len(shown)), [result.row.name for result in shown], fontsize=7)
    axis.invert_yaxis()
    axis.set_xlabel("times LMDB in the same run (line: range over repetitions)")


def _conflicts(results: Sequence[RowResult], axis: Any) -> None:
    points = _contended(results)
    axis.semilogx(
        [keys for keys, _ in points], [share for _, share in points], "o-", color=COLOURS[OCCAM], base=2
    )
    axis.set_xlabel("keys shared by 4 processes")
    axis.set_ylabel("attempts that conflict, %")
    axis.set_ylim(bottom=0)


def _scaling(results: Sequence[RowResult], axis: Any) -> None:
    rows = _reads(results)
    for name in dict.fromkeys(side for _, result in rows for side in result.sides):
        points = [(count, result.sides[name].median) for count, result in rows if result.sides[name].samples]
        if points:
            axis.plot(*zip(*points, strict=True), "o-", label=name, color=COLOURS.get(name))
    axis.set_xlabel("processes")
    axis.set_ylabel("reads/s")
    axis.set_ylim(bottom=0)
    axis.legend()
