"""What a benchmark is made of: rows, their sides, samples and results.

A row is one question ("commits of 4 processes"). A side is one way to answer it: occamdb, a peer, or
occamdb in another setting. A session sets all sides of a row up, then measures them in turn, repetition by
repetition, so that whatever disturbs the machine disturbs them alike. Nothing is pinned; every sample is
taken by processes of its own that start at one instant of the shared clock after a warm-up.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

OCCAM = "occamdb"


class Unavailable(Exception):
    """A side cannot run here (a peer is not installed, a server does not answer); it is skipped by name."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much work a session does; `--quick` shrinks it without changing what is compared."""

    seconds: float = 1.0
    repeat: int = 5
    size: float = 1.0
    warm_up: float = 0.3

    def count(self, full: int, least: int = 1) -> int:
        """A number of keys or operations, scaled."""
        return max(least, int(full * self.size))


FULL = Scale()
QUICK = Scale(seconds=0.25, repeat=3, size=0.1, warm_up=0.1)


class Side(Protocol):
    """One way to do a row's work. Called by the session's process only."""

    def setup(self, scratch: Path, scale: Scale) -> None:
        """Make the database and start the processes; `scratch` is an empty directory of its own."""

    def measure(self, scale: Scale) -> float:
        """Take one sample, in the row's unit."""

    def notes(self) -> dict[str, Any]:
        """Other figures worth keeping with the samples."""

    def close(self) -> None:
        """End the processes and let go of everything, also after a failed setup."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a row must reach. Printed beside the figure, never asserted.

    `ratio` compares occamdb with the row's baseline in the row's direction (1 is as good as the baseline);
    `absolute` is a figure in the row's unit; `of_row` compares occamdb with occamdb in another row.
    With `of_best` the ratio is to the best of the peers in the row, and `absolute` may be asked as well.
    """

    ratio: float | None = None
    absolute: float | None = None
    of_row: str | None = None
    of_best: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    name: str
    title: str
    unit: str
    sides: Mapping[str, Callable[[], Side]]
    group: str
    baseline: str | None = "lmdb"
    more_is_better: bool = True
    target: Target | None = None
    repeat_max: int = 1000


# A row in which no peer takes part and less is better.
own_row = partial(Row, baseline=None, more_is_better=False)


@dataclass(slots=True)
class SideResult:
    """The samples of one side of a row."""

    samples: list[float] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    skipped: str = ""

    @property
    def median(self) -> float:
        """The middle sample; NaN when there is none."""
        return statistics.median(self.samples) if self.samples else float("nan")

    @property
    def spread(self) -> float:
        """The interquartile range as a share of the median."""
        if len(self.samples) < 2 or not self.median:
            return 0.0
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return (high - low) / abs(self.median)


@dataclass(slots=True)
class RowResult:
    """All sides of one row."""

    row: Row
    sides: dict[str, SideResult] = field(default_factory=dict)

    @property
    def occam(self) -> SideResult:
        """Our side; empty when it did not run."""
        return self.sides.get(OCCAM, SideResult())

    def ratio(self, peer: str) -> float | None:
        """The ratio of medians, above 1 when occamdb is better; None when a side is missing."""
        other = self.sides.get(peer)
        if other is None or not other.samples or not self.occam.samples:
            return None
        return _better(self.row, self.occam.median, other.median)

    def ratios(self, peer: str) -> list[float]:
        """The ratio of each repetition, for a spread that shared disturbances do not widen."""
        other = self.sides.get(peer)
        if other is None:
            return []
        pairs = zip(self.occam.samples, other.samples, strict=False)
        return [_better(self.row, ours, theirs) for ours, theirs in pairs]


def _better(row: Row, ours: float, theirs: float) -> float:
    if row.more_is_better:
        return ours / theirs if theirs else float("inf")
    return theirs / ours if ours else float("inf")


@dataclass(frozen=True, slots=True)
class Verdict:
    """A row's figure beside its target."""

    text: str
    met: bool | None


def judge(result: RowResult, all_results: Mapping[str, RowResult]) -> Verdict | None:
    """Compare a row with its target; None without one, `met` None when a figure is missing."""
    target = result.row.target
    if target is None or not result.occam.samples:
        return None
    if target.absolute is not None:
        word = ">=" if result.row.more_is_better else "<="
        if result.row.more_is_better:
            enough = result.occam.median >= target.absolute
        else:
            enough = result.occam.median <= target.absolute
        alone = Verdict(f"{word} {target.absolute:,g} {result.row.unit}", enough)
        return _and_best(alone, result, target.ratio) if target.of_best and target.ratio else alone
    assert target.ratio is not None
    if target.of_row is not None:
        other = all_results.get(target.of_row)
        if other is None or not other.occam.samples:
            return Verdict(f">= {target.ratio:g} x {target.of_row}", None)
        found = _better(result.row, result.occam.median, other.occam.median)
        return Verdict(f">= {target.ratio:g} x {target.of_row} ({found:.2f})", found >= target.ratio)
    ratio = result.ratio(result.row.baseline or "")
    met = None if ratio is None else ratio >= target.ratio
    return Verdict(f">= {target.ratio:g} x {result.row.baseline}", met)


def _and_best(alone: Verdict, result: RowResult, least: float) -> Verdict:
    """A verdict, and whether the row reaches a ratio to the best of its peers."""
    ratios = {
        name: ratio
        for name in result.sides
        if not name.startswith(OCCAM) and (ratio := result.ratio(name)) is not None
    }
    if not ratios:
        return Verdict(f"{alone.text} and >= {least:g} x the best peer", None)
    best = min(ratios, key=lambda name: ratios[name])
    text = f"{alone.text} and >= {least:g} x the best peer ({ratios[best]:.2f} x {best})"
    return Verdict(text, bool(alone.met) and ratios[best] >= least)
