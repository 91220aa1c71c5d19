"""Registers: reads, read-modify-writes and blind writes of single values, recorded for the checker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from occamdb.stress.history import REGISTER, Op, unique_value
from occamdb.stress.workloads.base import Counts, Problem, Workload

if TYPE_CHECKING:
    import occamdb
    from occamdb.stress.worker import Context, Settings

BLIND = 0.1  # the share of writes that did not read first; they order versions less well


class RegisterWorkload(Workload):
    """Transactions of one to three registers, most of them read before they are written."""

    name = "register"
    summary = "reads and writes of registers, recorded and checked for every class of anomaly"
    history_kind = REGISTER
    keys = 8

    def prepare(self, db: occamdb.Database, settings: Settings) -> None:
        """Registers start absent."""

    def step(self, context: Context) -> None:
        """One transaction."""
        dice = context.dice
        ops: list[Op] = []
        read_only = dice.random() < context.settings.reads
        for key in dice.sample(range(context.settings.keys), min(dice.randint(1, 3), context.settings.keys)):
            if read_only or dice.random() >= BLIND:
                ops.append(["r", str(key)])
            if not read_only and dice.random() < 0.7:
                ops.append(["w", str(key), unique_value(context.worker, context.next_count())])

        def body(txn: occamdb.Transaction) -> list[Any]:
            results = []
            for op in ops:
                if op[0] == "r":
                    results.append(txn.get(f"register/{op[1]}"))
                else:
                    txn.put(f"register/{op[1]}", op[2])
            return results

        if ops:
            context.recorded(ops, body)

    def verify(self, context: Context, counts: Counts, tallies: list[Counts]) -> list[Problem]:
        """Read every register once more, for the checker; it is the judge."""
        names = [str(key) for key in range(context.settings.keys)]
        ops: list[Op] = [["r", name] for name in names]
        context.recorded(ops, lambda txn: [txn.get(f"register/{name}") for name in names])
        return []
