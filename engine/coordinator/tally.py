"""What workers count themselves, each in its channel segment: retries, and commits refused without a round trip.

The coordinator hears of neither, so it reads the tallies (`Tally` in _view.pxd) when somebody asks for figures, and
takes over that of a worker that leaves. They are read while they are written, and come from another process: for
display, and never trusted to hold a key.
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
_COUNT_MAX = 1 << 48  # sums of forged counts still fit an answer
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
        """One to add to, while this one stays."""
        return copy.deepcopy(self)
