"""The regression guard: `python -m occamdb.stress.bench.smoke`, under a minute.

Compares a few same-run ratios with a committed baseline and fails only when one has lost more than 40 %, so that
continuous integration notices a disaster and not the noise of a shared machine. A row that looks lost is measured
once more before it counts. `--write` makes a new baseline.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from occamdb.stress.bench.catalogue import select_rows
from occamdb.stress.bench.model import RowResult, Scale
from occamdb.stress.bench.report import table_text
from occamdb.stress.bench.session import run_rows

BASELINE = Path(__file__).parent / "baseline.json"
ROWS = (
    "reads",
    "scan",
    "commits-none-1",
    "commits-none-4",
    "commits-standard-1",
    "commits-always-8",
    "event-append",
    "cross",
)
PEER = "lmdb"
LOSS_MAX = 0.4
SCALE = Scale(seconds=0.2, repeat=5, size=0.05, warm_up=0.1)


def measure(names: Sequence[str] = ROWS) -> dict[str, float]:
    """The ratio to the peer of each row that could be measured."""
    results = run_rows(select_rows(names), peers=[PEER], scale=SCALE)
    print(table_text([result for result in results if result.ratio(PEER) is None]), end="")
    return {result.row.name: ratio for result in results if (ratio := _ratio(result)) is not None}


def _ratio(result: RowResult) -> float | None:
    """The second-best ratio of the repetitions, so that a burst of other load does not decide."""
    each = sorted(result.ratios(PEER))
    return each[-2] if len(each) > 1 else (each[0] if each else None)


def compare(found: dict[str, float], baseline: dict[str, float]) -> list[str]:
    """The rows that lost more than `LOSS_MAX` against the baseline, or could not be measured."""
    return [name for name, before in baseline.items() if found.get(name, 0.0) < before * (1 - LOSS_MAX)]


def guard(baseline: dict[str, float]) -> int:
    """Measure, measure what looks lost again, report; returns the exit code."""
    found = measure(tuple(baseline))
    lost = compare(found, baseline)
    if lost:
        again = measure(lost)
        found |= {name: max(ratio, found.get(name, 0.0)) for name, ratio in again.items()}
        lost = compare(found, baseline)
    for name, before in baseline.items():
        ratio = found.get(name)
        shown = "not measured" if ratio is None else f"{ratio:6.2f} x {PEER}"
        word = f"LOST more than {LOSS_MAX:.0%}" if name in lost else "ok"
        print(f"{name:<22} {shown}, baseline {before:.2f}: {word}")
    return 1 if lost else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help="measure twice and write a new baseline")
    parser.add_argument("--baseline", type=Path, default=BASELINE)
    options = parser.parse_args(arguments)
    if options.write:
        first, second = measure(), measure()  # the lower of two: a lucky baseline would raise false alarms
        ratios = {name: round(min(first[name], second[name]), 3) for name in first.keys() & second.keys()}
        ratios = {name: ratios[name] for name in ROWS if name in ratios}
        options.baseline.write_text(
            json.dumps({"format": "occam-smoke-1", "peer": PEER, "ratios": ratios}, indent=1) + "\n"
        )
        print(f"wrote {options.baseline}")
        return 0
    return guard(json.loads(options.baseline.read_text())["ratios"])


if __name__ == "__main__":
    sys.exit(main())
