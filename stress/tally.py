"""Counters of one worker that survive its SIGKILL.

One small mapped file per worker, one signed 64-bit number per name. The worker raises `begun` before it asks
for a commit and one of the outcomes after it has heard, so that for a worker killed in between
`begun - resolved` is 1: that transaction may have happened or not. Written by one process; read by the
runner after that process has ended (or, for progress, at any time: a stale number is harmless).
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path

OUTCOMES = ("ok", "conflict", "refused", "unknown")
BASE = ("begun", *OUTCOMES, "resolved", "retries", "operations", "problems")
SLOTS = 64
_NUMBER = struct.Struct("<q")


class Tally:
    """Named counters in a mapped file."""

    def __init__(self, path: Path, extra: tuple[str, ...] = ()):
        """Map the file, creating it with zeros. `extra` are the workload's own names.

        Args:
          path: one file for each worker.
          extra: at most SLOTS - len(BASE) names, the same for every worker of a run.
        """
        self.names = (*BASE, *extra)
        if len(self.names) > SLOTS:
            raise ValueError(f"{len(self.names)} counters; a tally holds {SLOTS}")
        self._at = {name: 8 * place for place, name in enumerate(self.names)}
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.ftruncate(file, 8 * SLOTS)
            self._map = mmap.mmap(file, 8 * SLOTS)
        finally:
            os.close(file)

    def add(self, name: str, amount: int = 1) -> None:
        """Raise one counter."""
        at = self._at[name]
        _NUMBER.pack_into(self._map, at, _NUMBER.unpack_from(self._map, at)[0] + amount)

    def get(self, name: str) -> int:
        """Read one counter."""
        return int(_NUMBER.unpack_from(self._map, self._at[name])[0])

    def read(self) -> dict[str, int]:
        """All counters."""
        return {name: self.get(name) for name in self.names}

    def close(self) -> None:
        """Unmap; the numbers stay in the file."""
        self._map.close()


def unresolved(counts: Mapping[str, int]) -> int:
    """How many transactions have an unknown outcome, one that was cut off by a kill included."""
    return counts["unknown"] + max(0, counts["begun"] - sum(counts[name] for name in OUTCOMES))


def totals(tallies: list[dict[str, int]]) -> dict[str, int]:
    """The sums over workers, with `unresolved` added."""
    names = tallies[0] if tallies else {}
    summed = {name: sum(one[name] for one in tallies) for name in names}
    summed["unresolved"] = sum(unresolved(one) for one in tallies)
    return summed
