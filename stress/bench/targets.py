"""Our figures beside the targets the system was specified with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from occamdb.stress.bench.model import RowResult
from occamdb.stress.bench.report import figure


@dataclass(frozen=True, slots=True)
class Specified:
    """One target: `row`s' best figure must be `at_least` or `at_most` the limit."""

    text: str
    rows: tuple[str, ...]
    at_least: float | None = None
    at_most: float | None = None
    worst: bool = False


SINGLE = (
    "kv-put",
    "kv-get",
    "kv-cas",
    "kv-increment",
    "event-append",
    "cell-read",
    "cell-set",
    "cell-cas",
    "cell-transition",
    "trace-record",
    "trace-child",
    "trace-get",
    "run-create",
    "run-status",
    "run-get",
)
SPECIFIED = (
    Specified("transactions of one process, per second", ("commits-standard-1",), at_least=10_000),
    Specified("reads over processes, per second", ("reads-2", "reads-4", "reads-8"), at_least=500_000),
    Specified("conflicts on the agents pipeline, %", ("conflicts-agents",), at_most=5),
    Specified("snapshot creation at 100,000 keys, ms", ("snapshot",), at_most=10),
    Specified("validation of typical sets, ms", ("validation",), at_most=1),
    Specified("single primitive operations, the slowest, per second", SINGLE, at_least=10_000, worst=True),
    Specified("cross-primitive transactions, per second", ("cross",), at_least=5_000),
    Specified("from a commit to a waiter in another process, us", ("wake-up",), at_most=60),
    Specified("processor time of a wait of 10 s, ms", ("blocked-wait",), at_most=10),
)


def targets_text(results: Mapping[str, RowResult]) -> str:
    """The section of the report; targets without a measured row are left out."""
    lines = []
    for one in SPECIFIED:
        found = [
            results[row].occam.median for row in one.rows if row in results and results[row].occam.samples
        ]
        if not found:
            continue
        least = one.at_least is not None
        value = min(found) if one.worst or not least else max(found)
        limit = one.at_least if one.at_least is not None else one.at_most
        assert limit is not None
        met = value >= limit if least else value <= limit
        word = "met" if met else "MISSED"
        bound = f"{'at least' if least else 'at most'} {limit:,g}"
        lines.append(f"    {one.text:<52} {figure(value):>12}  {bound:<18} {word}")
    return "\n".join(["== targets the system was specified with ==", *lines]) if lines else ""
