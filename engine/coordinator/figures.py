"""Figures for people: percentiles from the commit core's histograms, and the shape of `db.stats()`.

A histogram's bucket b counts values in [2**(b-1), 2**b); bucket 0 counts zeros. A percentile is given as the
largest value of its bucket. The true value is at most that, and more than half of it. Zero and one have
buckets of their own, so they are exact. The last bucket has no upper end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ..model.errors import CorruptionError
from ..model.keys import decode_key
from .tally import Tallies

__all__ = ["core_figures", "percentile"]


class _Core(Protocol):
    def stats(self) -> Mapping[str, Any]: ...


def percentile(buckets: Sequence[int], share: float) -> int:
    """A bound that `share` (0..1) of the counted values do not exceed: a bucket's largest value; 0 when
    empty.
    """
    total = sum(buckets)
    if total == 0:
        return 0
    wanted, seen = share * total, 0
    for bucket, count in enumerate(buckets):
        seen += count
        if seen >= wanted:
            return (1 << bucket) - 1
    return (1 << (len(buckets) - 1)) - 1


def _shown_key(key: bytes) -> str:
    try:
        decoded = decode_key(key)
    except CorruptionError:
        return key.hex()
    return f"{decoded.namespace.run_id}/{decoded.tag:#04x}/{decoded.user_key!r}"


def core_figures(core: _Core, tallies: Tallies) -> dict[str, Any]:
    """`CommitCore.stats()` with percentiles for histograms, readable keys, and what workers counted."""
    raw = dict(core.stats())
    times, sizes = raw.pop("batch_ns"), raw.pop("batch_sizes")
    raw["latency_us"] = {name: percentile(times, share) / 1000 for name, share in _SHARES.items()}
    raw["group_commit"] = {name: percentile(sizes, share) for name, share in _SHARES.items()}
    conflicts = dict(raw["conflicts"])
    conflicts["read"] += tallies.reads
    conflicts["cas"] += tallies.cas
    raw["conflicts"] = conflicts
    raw["conflicts_found_early"] = tallies.reads + tallies.cas
    raw["retries"] = tallies.retries
    hot = Counter(tallies.keys)
    for key, count in raw["hot_keys"]:
        hot[key] += count
    raw["hot_keys"] = [
        {"key": _shown_key(key), "conflicts": count} for key, count in hot.most_common(_HOT_KEYS_MAX)
    ]
    return raw


_HOT_KEYS_MAX = 32
_SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
