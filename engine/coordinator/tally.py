"""Counts that each worker keeps in its channel segment: retries, and commits it refused without a round trip.

The coordinator sees neither, so it reads the tallies (`Tally` in _view.pxd) when figures are asked for, and
adds a worker's tally to its own sum when the worker leaves. A tally comes from another process and changes
while it is read. It is for display only, and need not hold a valid key.
"""

from __future__ import annotations

import copy
import struct
from collections import Counter
from typing import Any

from ...ipc import layout

__all__ = ["Tallies"]

_COUNTS = struct.Struct("<4Q")
_KEY = struct.Struct("<QI96s4x")
_KEYS = 16
_KEPT = 256  # hot keys of workers that left
_COUNT_MAX = 1 << 48  # so that sums of forged counts still fit into an answer
_SIZE = _COUNTS.size + _KEYS * _KEY.size
assert _SIZE <= layout.TALLY_SIZE


class Tallies:
    """The sum of any number of workers' tallies."""

    def __init__(self) -> None:
        self.retries = 0
        self.reads = 0
        self.cas = 0
        self.keys: Counter[bytes] = Counter()

    def add(self, channel: Any) -> None:
        """Add the tally in a channel segment's memory."""
        raw = bytes(channel[layout.TALLY_OFFSET : layout.TALLY_OFFSET + _SIZE])
        retries, reads, cas, _ = _COUNTS.unpack_from(raw)
        self.retries += min(retries, _COUNT_MAX)
        self.reads += min(reads, _COUNT_MAX)
        self.cas += min(cas, _COUNT_MAX)
        for count, size, key in _KEY.iter_unpack(raw[_COUNTS.size :]):
            if count:
                self.keys[key[:size]] += min(count, _COUNT_MAX)
        if len(self.keys) > 2 * _KEPT:
            self.keys = Counter(dict(self.keys.most_common(_KEPT)))

    def copy(self) -> Tallies:
        """A copy that can be added to without changing this one."""
        return copy.deepcopy(self)
