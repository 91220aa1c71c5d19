"""What a check found: anomalies by class, each with its smallest example, and a text form of it all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

# Classes in the order of how bad they are; the names are Adya's (with Elle's for what Adya does not name).
CLASSES = {
    "duplicate-value": "the history itself is malformed: one value was written twice to a key",
    "garbage-read": "a read returned a value nobody wrote",
    "internal": "a transaction's reads disagree with its own earlier reads and writes",
    "duplicated-write": "one write took effect twice",
    "vanished-write": "a committed write is missing from a read that began after it was acknowledged",
    "incompatible-order": "two reads of a key cannot both come from one order of its writes",
    "lost-update": "two committed transactions read the same version of a key and both wrote it",
    "duplicate-version": "two commits were acknowledged with the same version",
    "version-order": "a commit's version is not above that of a commit acknowledged before it began",
    "G0": "write cycle: writes of two transactions are interleaved",
    "G1a": "aborted read: a value of a refused transaction was read",
    "G1b": "intermediate read: a value its transaction itself overwrote was read",
    "G1c": "circular information flow: a cycle of writes and reads",
    "G-single": "read skew: a cycle with exactly one anti-dependency",
    "G2": "write skew or phantom: a cycle with several anti-dependencies",
    "G0-realtime": "a write cycle that real-time order closes",
    "G1c-realtime": "a cycle of writes and reads that real-time order closes: a stale or a future read",
    "G-single-realtime": "a cycle with one anti-dependency that real-time order closes: a stale read",
    "G2-realtime": "a cycle with several anti-dependencies that real-time order closes",
    "realtime": "returned before it was invoked: the recorded times contradict themselves",
}

# What each isolation level lets pass. Snapshot isolation is taken with real-time snapshots, as occamdb's are.
TOLERATED = {
    "strict-serializable": frozenset[str](),
    "serializable": frozenset(
        {"G0-realtime", "G1c-realtime", "G-single-realtime", "G2-realtime", "version-order", "vanished-write"}
    ),
    "snapshot": frozenset({"G2", "G2-realtime"}),
}


@dataclass(slots=True)
class Anomaly:
    """One class of anomaly: how often it was found and the smallest example."""

    name: str
    count: int
    example: str
    example_size: int

    @property
    def meaning(self) -> str:
        """One line of prose on the class."""
        return CLASSES[self.name]


@dataclass(slots=True)
class Report:
    """The outcome of one check."""

    kind: str
    level: str
    transactions: int = 0
    committed: int = 0
    refused: int = 0
    unknown: int = 0
    operations: int = 0
    edges: int = 0
    seconds: float = 0.0
    anomalies: dict[str, Anomaly] = field(default_factory=dict)

    def add(self, name: str, example: str, size: int, count: int = 1) -> None:
        """Count `count` anomalies of a class, keeping the smaller example."""
        known = self.anomalies.get(name)
        if known is None:
            self.anomalies[name] = Anomaly(name, count, example, size)
            return
        known.count += count
        if size < known.example_size:
            known.example, known.example_size = example, size

    @property
    def forbidden(self) -> list[Anomaly]:
        """The anomalies the isolation level does not allow, worst first."""
        return [self.anomalies[name] for name in self._found() if name not in TOLERATED[self.level]]

    @property
    def valid(self) -> bool:
        """True when nothing was found that the level forbids."""
        return not self.forbidden

    def _found(self) -> Iterable[str]:
        return (name for name in CLASSES if name in self.anomalies)

    def text(self) -> str:
        """A report for people: counts, then every class with its smallest example."""
        lines = [
            f"{self.kind} history: {self.transactions:,} transactions ({self.committed:,} committed, "
            f"{self.refused:,} refused, {self.unknown:,} unknown), {self.operations:,} operations, "
            f"{self.edges:,} dependencies, checked in {self.seconds:.1f} s"
        ]
        for name in self._found():
            anomaly = self.anomalies[name]
            note = "" if name not in TOLERATED[self.level] else f" (allowed at {self.level})"
            lines += [f"{name} x {anomaly.count:,}{note}: {anomaly.meaning}", *_indent(anomaly.example)]
        verdict = "VALID" if self.valid else "INVALID"
        lines.append(f"{verdict} at {self.level}: {sum(a.count for a in self.forbidden):,} anomalies")
        return "\n".join(lines)


def _indent(text: str) -> list[str]:
    return ["    " + line for line in text.splitlines()]
