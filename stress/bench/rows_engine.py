"""Rows on the engine beside its peers: reads, commits by durability and process count, scans."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from occamdb.stress.bench.model import OCCAM, Row, Side, Target
from occamdb.stress.bench.stores import PEERS
from occamdb.stress.bench.tasks import store_side

PRIVATE_KEYS = 1000


def _sides(operation: str, **settings: Any) -> Mapping[str, Callable[[], Side]]:
    return {name: store_side(name, operation, **settings) for name in (OCCAM, *PEERS)}


def engine_rows() -> list[Row]:
    """Reads, commits and scans with a peer beside each, and read scaling."""
    return [
        Row(
            "reads",
            "point reads, transactions of 10, 100,000 keys",
            "reads/s",
            _sides("reads"),
            "engine",
            target=Target(ratio=1.0),
        ),
        *(_read_scaling(processes) for processes in (2, 4, 8)),
        *(_commits("none", processes) for processes in (1, 4, 16)),
        *(_commits("none", processes, busy=True) for processes in (1, 4)),
        Row(
            "scan",
            "prefix scan of 1,000 rows",
            "scans/s",
            _sides("scan", batch=1),
            "engine",
            target=Target(ratio=1.0),
        ),
    ]


def durability_rows() -> list[Row]:
    """Commits at `standard` and `always`."""
    standard = dict(_sides("update", durability="standard", private=PRIVATE_KEYS))
    standard["occamdb none"] = store_side(OCCAM, "update", durability="none", private=PRIVATE_KEYS)
    return [
        Row(
            "commits-standard-1",
            "read-modify-write commits, standard, 1 process",
            "commits/s",
            standard,
            "durability",
            baseline="occamdb none",
            target=Target(ratio=0.75),
        ),
        _commits("always", 1),
        _commits("always", 8),
    ]


def _read_scaling(processes: int) -> Row:
    return Row(
        f"reads-{processes}",
        f"point reads over {processes} processes",
        "reads/s",
        _sides("reads", processes=processes),
        "engine",
    )


_COMMIT_TARGETS = {
    ("none", 1, False): Target(ratio=0.7),
    ("none", 4, False): Target(ratio=0.8),
    ("none", 16, False): Target(ratio=0.7, of_row="commits-none-4"),
    ("none", 1, True): Target(ratio=0.7),
    ("none", 4, True): Target(ratio=0.8),
    ("always", 1, False): Target(ratio=0.9),
    ("always", 8, False): Target(ratio=4.0),
}


def _commits(durability: str, processes: int, *, busy: bool = False) -> Row:
    sides = _sides(
        "update",
        processes=processes,
        durability=durability,
        private=PRIVATE_KEYS,
        busy=busy,
        batch=1 if durability == "always" else 10,
    )
    noise = ", a busy loop beside on each core" if busy else ""
    return Row(
        f"commits-{durability}-{processes}" + ("-busy" if busy else ""),
        f"read-modify-write commits, {durability}, {processes} process{'es' if processes > 1 else ''}{noise}",
        "commits/s",
        sides,
        "engine" if durability == "none" else "durability",
        target=_COMMIT_TARGETS[durability, processes, busy],
    )
