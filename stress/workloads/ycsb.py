"""YCSB A to F: the usual mixes over a zipfian choice of records, with every record verifying itself.

Source: Cooper et al., "Benchmarking Cloud Serving Systems with YCSB" (SoCC 2010); the zipfian generator is
Gray et al.'s (SIGMOD 1994) with YCSB's constant 0.99.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from occamdb.stress.workloads.base import RUN, Counts, Problem, Workload, between

if TYPE_CHECKING:
    import occamdb
    from occamdb.stress.worker import Context, Settings

SCAN_MAX = 50
FIELDS = 4


@dataclass(frozen=True)
class Mix:
    """Shares of operations; what is left over after the named ones are reads."""

    letter: str
    summary: str
    update: float = 0.0
    insert: float = 0.0
    scan: float = 0.0
    modify: float = 0.0
    latest: bool = False


MIXES = (
    Mix("a", "50 % reads, 50 % updates", update=0.5),
    Mix("b", "95 % reads, 5 % updates", update=0.05),
    Mix("c", "reads only"),
    Mix("d", "95 % reads of the latest, 5 % inserts", insert=0.05, latest=True),
    Mix("e", "95 % scans, 5 % inserts", insert=0.05, scan=0.95),
    Mix("f", "50 % reads, 50 % read-modify-writes", modify=0.5),
)


class Zipf:
    """Draws 0 to count - 1, small numbers most often."""

    def __init__(self, count: int, theta: float = 0.99):
        """Precompute the harmonic sums, O(count)."""
        self.count = count
        zeta = sum(1 / i**theta for i in range(1, count + 1))
        self._alpha = 1 / (1 - theta)
        self._half = 1 + 0.5**theta
        self._eta = (1 - (2 / count) ** (1 - theta)) / (1 - self._half / zeta) if count > 2 else 1.0
        self._zeta = zeta

    def draw(self, dice: random.Random) -> int:
        """One number."""
        u = dice.random()
        z = u * self._zeta
        if z < 1:
            return 0
        if z < self._half:
            return min(1, self.count - 1)
        return min(self.count - 1, int(self.count * (self._eta * u - self._eta + 1) ** self._alpha))


def record_of(dice: random.Random, changes: int) -> dict[str, Any]:
    """A record whose check sum covers its fields."""
    fields = {f"field{i}": dice.randbytes(25).hex() for i in range(FIELDS)}
    return {**fields, "changes": changes, "sum": _sum(fields, changes)}


def intact(record: Any) -> bool:
    """True when a record is one that `record_of` made, in one piece."""
    fields = {name: value for name, value in record.items() if name.startswith("field")}
    return len(fields) == FIELDS and bool(record["sum"] == _sum(fields, record["changes"]))


def _sum(fields: dict[str, str], changes: int) -> int:
    return zlib.crc32("".join(fields[f"field{i}"] for i in range(FIELDS)).encode() + str(changes).encode())


def _name(number: int) -> str:
    # The multiplication spreads the hot records over the key space, as YCSB's hashing does.
    return f"user/{number * 2654435761 % (1 << 32):010d}"


class Ycsb(Workload):
    """One mix."""

    counters = ("inserted", "modified")
    keys = 1000

    def __init__(self, mix: Mix):
        """`mix.letter` names the workload."""
        self.mix = mix
        self.name = f"ycsb-{mix.letter}"  # type: ignore[misc]
        self.summary = f"YCSB {mix.letter.upper()}: {mix.summary}; every record verifies itself"  # type: ignore[misc]

    def prepare(self, db: occamdb.Database, settings: Settings) -> None:
        """Load the records."""
        dice = random.Random(settings.seed)
        for start in range(0, settings.keys, 500):
            with db.begin(RUN) as txn:
                for number in range(start, min(start + 500, settings.keys)):
                    txn.put(_name(number), record_of(dice, 0))

    def step(self, context: Context) -> None:
        """One operation of the mix, each a transaction."""
        mix, dice = self.mix, context.dice
        zipf = context.state.get("zipf") or context.state.setdefault("zipf", Zipf(context.settings.keys))
        number = zipf.draw(dice)
        choice = dice.random()
        if choice < mix.update:
            record = record_of(dice, 0)
            context.retried(lambda txn: txn.put(_name(number), record))
        elif choice < mix.update + mix.insert:
            self._insert(context)
        elif choice < mix.update + mix.insert + mix.scan:
            length = dice.randint(1, SCAN_MAX)
            self._read(
                context,
                lambda txn: [f.value for _, f in txn.scan("user/", start=_name(number), limit=length)],
            )
        elif choice < mix.update + mix.insert + mix.scan + mix.modify:
            context.retried(lambda txn: _modify(txn, _name(number), dice), modified=1)
        elif mix.latest and context.count:
            newest = _inserted_name(context.worker, max(1, context.count - number))
            self._read(context, lambda txn: [value for value in [txn.get(newest)] if value is not None])
        else:
            self._read(context, lambda txn: [txn.get(_name(number))])

    def _insert(self, context: Context) -> None:
        name = _inserted_name(context.worker, context.next_count())
        record = record_of(context.dice, 0)
        context.retried(lambda txn: txn.put(name, record), inserted=1)

    def _read(self, context: Context, body: Any) -> None:
        outcome = context.attempt(body, read_only=True)
        if outcome.ok and not all(intact(record) for record in outcome.result):
            context.problem("a record was read whose check sum does not match its fields")

    def verify(self, context: Context, counts: Counts, tallies: list[Counts]) -> list[Problem]:
        """Every record is intact, none is missing, and read-modify-writes add up."""
        changes = total = 0
        problems: list[Problem] = []
        with context.db.begin(RUN, read_only=True) as txn:
            for key, found in txn.scan("user/"):
                total += 1
                changes += found.value["changes"]
                if not intact(found.value):
                    problems.append(Problem(f"record {key} does not match its check sum"))
        least = context.settings.keys + counts["inserted"]
        problems += between("the number of records", total, least, least + counts["unresolved"])
        if self.mix.modify:
            most = counts["modified"] + counts["unresolved"]
            problems += between("the number of read-modify-writes", changes, counts["modified"], most)
        return problems


def _inserted_name(worker: int, count: int) -> str:
    return f"user/new-{worker:04d}-{count:08d}"


def _modify(txn: occamdb.Transaction, name: str, dice: random.Random) -> None:
    txn.put(name, record_of(dice, txn.get(name)["changes"] + 1))


def ycsb_workloads() -> list[Workload]:
    """The six."""
    return [Ycsb(mix) for mix in MIXES]
