"""Runs rows: sets all sides of a row up, measures them in turn, tears them down.

The order of the sides turns by one with each repetition, so that no side always follows the same other.
A side that cannot run is skipped with its reason; a side that fails is reported as failed and the session
continues, because a benchmark of twenty minutes should not end at its third row.
"""

from __future__ import annotations

import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from occamdb.stress.bench.model import Row, RowResult, Scale, Side, SideResult, Unavailable
from occamdb.stress.bench.redis_store import stop_servers
from occamdb.stress.bench.stores import PEERS
from occamdb.stress.coordinators import stop_coordinator

Progress = Callable[[str], None]


def run_rows(
    rows: Iterable[Row],
    *,
    peers: Sequence[str],
    scale: Scale,
    directory: Path | None = None,
    progress: Progress = lambda _: None,
) -> list[RowResult]:
    """Measure rows one after the other.

    Args:
      rows: what to measure.
      peers: the peers that may take part; sides that are not peers (occamdb in another setting) always do.
      scale: how long and how often.
      directory: where databases are made, in a directory of their own that is removed; the system's
        temporary directory unless given. It should be on the disk whose speed matters.
      progress: called with a line of text at each step.
    """
    results = []
    for row in rows:
        scratch = Path(tempfile.mkdtemp(prefix="occam-bench-", dir=directory))
        try:
            results.append(_run_row(row, peers, scale, scratch, progress))
        finally:
            for lock in scratch.rglob(
                "LOCK"
            ):  # the coordinators of this row, which would idle on for a while
                stop_coordinator(str(lock.parent))
            stop_servers(scratch)
            shutil.rmtree(scratch, ignore_errors=True)
    return results


def _run_row(row: Row, peers: Sequence[str], scale: Scale, scratch: Path, progress: Progress) -> RowResult:
    result = RowResult(row)
    sides: dict[str, Side] = {}
    try:
        for name, make in row.sides.items():
            if name in PEERS and name not in peers:
                continue
            result.sides[name] = SideResult()
            progress(f"{row.name}: setting up {name}")
            place = scratch / name.replace("/", "-").replace(" ", "-")
            place.mkdir()
            sides[name] = side = make()
            _attempt(result.sides[name], partial(side.setup, place, scale))
        order = list(sides)
        for repetition in range(min(scale.repeat, row.repeat_max)):
            progress(f"{row.name}: repetition {repetition + 1}")
            turn = repetition % max(1, len(order))
            for name in order[turn:] + order[:turn]:
                if not result.sides[name].skipped:
                    _attempt(result.sides[name], partial(_sample, result.sides[name], sides[name], scale))
        for name, side in sides.items():
            result.sides[name].notes |= side.notes()
    finally:
        for side in sides.values():
            _close(side)
    return result


def _sample(result: SideResult, side: Side, scale: Scale) -> None:
    result.samples.append(side.measure(scale))


def _attempt(result: SideResult, action: Callable[[], object]) -> None:
    try:
        action()
    except Unavailable as reason:
        result.skipped = f"skipped: {reason}"
    except Exception as error:
        text = str(error).strip()
        if "Unavailable: " in text:  # raised in a worker and carried here as a traceback
            result.skipped = "skipped: " + text.rsplit("Unavailable: ", 1)[1]
            return
        result.skipped = f"failed: {text.splitlines()[-1] if text else type(error).__name__}"
        result.notes["traceback"] = traceback.format_exc()
        result.samples.clear()


def _close(side: Side) -> None:
    try:
        side.close()
    except Exception:  # a failed side must not keep the others from being closed
        traceback.print_exc()
