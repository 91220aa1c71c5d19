"""The benchmark's table, and everything it measured as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from occamdb.stress.bench.model import OCCAM, RowResult, Scale, SideResult, judge

_VERDICTS = {True: "met", False: "MISSED", None: "cannot be judged"}


def figure(value: float) -> str:
    """Three or more significant digits, thousands separated; `-` for no figure."""
    if value != value:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table_text(results: Sequence[RowResult]) -> str:
    """A plain-text table: a line for each side, the verdict below its row."""
    everything = {result.row.name: result for result in results}
    lines: list[str] = []
    group = ""
    for result in results:
        if result.row.group != group:
            group = result.row.group
            lines += ["", f"== {group} =="]
        lines.append(f"{result.row.name}: {result.row.title} [{result.row.unit}]")
        lines += [_side_line(result, name, side) for name, side in result.sides.items()]
        verdict = judge(result, everything)
        if verdict is not None:
            lines.append(f"    target {verdict.text}: {_VERDICTS[verdict.met]}")
    return "\n".join(lines).lstrip("\n")


def _side_line(result: RowResult, name: str, side: SideResult) -> str:
    if not side.samples:
        return f"    {name:<18} {side.skipped or 'no samples'}"
    line = f"    {name:<18} {figure(side.median):>12}  spread {side.spread:5.1%}"
    ratio = result.ratio(name) if name != OCCAM and result.row.baseline else None
    if ratio is not None:
        each = sorted(result.ratios(name))
        line += f"  occamdb {ratio:.2f} x (repetitions {each[0]:.2f} to {each[-1]:.2f})"
    shown = {key: value for key, value in side.notes.items() if isinstance(value, int | float)}
    if shown:
        line += "  " + ", ".join(f"{key} {figure(float(value))}" for key, value in shown.items())
    return line


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load": list(os.getloadavg()),
    }


def to_json(results: Sequence[RowResult], scale: Scale, about: Mapping[str, Any]) -> dict[str, Any]:
    """Everything measured, as plain data."""
    everything = {result.row.name: result for result in results}
    settings = {"seconds": scale.seconds, "repeat": scale.repeat, "size": scale.size}
    rows = {result.row.name: _row_json(result, everything) for result in results}
    return {"format": "occam-bench-1", "machine": dict(about), "scale": settings, "rows": rows}


def _row_json(result: RowResult, everything: Mapping[str, RowResult]) -> dict[str, Any]:
    row, verdict = result.row, judge(result, everything)
    return {
        "title": row.title,
        "unit": row.unit,
        "more_is_better": row.more_is_better,
        "baseline": row.baseline,
        "ratio": result.ratio(row.baseline) if row.baseline else None,
        "target": verdict.text if verdict else None,
        "met": verdict.met if verdict else None,
        "sides": {
            name: {
                "median": side.median if side.samples else None,
                "spread": side.spread,
                "samples": side.samples,
                "notes": side.notes,
                "skipped": side.skipped or None,
            }
            for name, side in result.sides.items()
        },
    }


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write the JSON file."""
    path.write_text(json.dumps(data, indent=1) + "\n")
