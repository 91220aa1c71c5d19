"""The last minutes of the engine's figures, for the lines that move.

A sample is what changed between two readings, so that a coordinator that starts anew makes a gap and no cliff.
"""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["History", "Sample"]

SAMPLES_MAX = 300
GAP_S = 15.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One moment.

    Attributes:
      at: seconds since 1970.
      commits, conflicts, retries, refused: a second.
      p50_ms, p99_ms: upper bounds of what a batch took, since the coordinator started.
      used: bytes of the store in use.
      log_used: bytes of entries in the log's files.
      workers: open connections.
    """

    at: float
    commits: float
    conflicts: float
    retries: float
    refused: float
    p50_ms: float
    p99_ms: float
    used: int
    log_used: int
    workers: int


class History:
    """Samples of one database. Written by one thread, read by any."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=SAMPLES_MAX)
        self._before: dict[str, Any] | None = None
        self.newest: dict[str, Any] | None = None

    def add(self, figures: dict[str, Any] | None) -> Sample | None:
        """Enter a reading; None: nobody answered. Returns the sample that it gives with the one before."""
        before, self._before = self._before, figures
        self.newest = figures
        if figures is None or before is None:
            return None
        seconds = figures["read_at"] - before["read_at"]
        if not 0 < seconds < GAP_S or figures.get("incarnation") != before.get("incarnation"):
            return None
        sample = _sample(figures, before, seconds)
        self._samples.append(sample)
        return sample

    def samples(self) -> list[Sample]:
        """All of them, the oldest first."""
        return list(self._samples)

    def series(self) -> dict[str, list[float]]:
        """The same by field."""
        rows = [asdict(sample) for sample in self.samples()]
        return {name: [row[name] for row in rows] for name in Sample.__dataclass_fields__}


def _sample(figures: dict[str, Any], before: dict[str, Any], seconds: float) -> Sample:
    latency, store = figures.get("latency_us") or {}, figures.get("store") or {}
    log = figures.get("log") or {}

    def rate(name: str) -> float:
        return max(0.0, (_count(figures, name) - _count(before, name)) / seconds)

    return Sample(
        figures["read_at"],
        rate("commits"),
        rate("conflicts"),
        rate("retries"),
        rate("refused"),
        latency.get("p50", 0.0) / 1000,
        latency.get("p99", 0.0) / 1000,
        store.get("used", 0),
        log.get("used", 0),
        len(figures.get("workers") or ()),
    )


def _count(figures: dict[str, Any], name: str) -> float:
    """A counter, or the sum of one that is kept by kind; 0 for one that the engine does not keep."""
    found = figures.get(name) or 0
    return float(sum(found.values()) if isinstance(found, dict) else found)
