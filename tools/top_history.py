"""The latest minute of `occamdb top`, as sparklines."""

from __future__ import annotations

from collections import deque
from typing import Any

from occamdb.tools import console
from occamdb.tools.pictures.sparkline import ASCII_BLOCKS, BLOCKS, sparkline

__all__ = ["READINGS_MAX", "History"]

READINGS_MAX = 60


class History:
    """Readings one after another. Rates are gaps where a counter began again, as after a restart."""

    def __init__(self) -> None:
        self._before: dict[str, Any] | None = None
        self._series: dict[str, deque[float | None]] = {}

    def add(self, figures: dict[str, Any]) -> None:
        """The next reading."""
        counters = {
            "commits/s": figures["commits"],
            "conflicts/s": sum(figures["conflicts"].values()),
            "log/s": figures["log"]["bytes"] if figures["log"] else 0,
        }
        before, self._before = self._before, {**counters, "at": figures["read_at"]}
        if before is None:
            return
        seconds = max(figures["read_at"] - before["at"], 1e-9)
        for name, counter in counters.items():
            grown = counter - before[name]
            self._put(name, None if grown < 0 else grown / seconds)
        self._put("batch p50", figures["latency_us"]["p50"])
        self._put("store used", figures["store"]["used"])

    def _put(self, name: str, value: float | None) -> None:
        self._series.setdefault(name, deque(maxlen=READINGS_MAX)).append(value)

    def lines(self, ascii_only: bool) -> dict[str, str]:
        """A sparkline under each name, with the latest and the largest value; none before the second reading."""
        blocks = ASCII_BLOCKS if ascii_only else BLOCKS
        found = {}
        for name, values in self._series.items():
            latest, most = values[-1], max((value for value in values if value is not None), default=0.0)
            now = "" if latest is None else _shown(name, latest)
            found[name] = f"{sparkline(values, blocks=blocks)}  {now}, at most {_shown(name, most)}"
        return found


def _shown(name: str, value: float) -> str:
    if name in ("log/s", "store used"):
        return console.size(value)
    if name == "batch p50":
        return console.duration(value / 1e6)
    return f"{value:,.0f}"
