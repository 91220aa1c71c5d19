"""Leases that expire while transactions look at them, recorded for the checker as registers.

Each lease is written once, before the run, and expires during it. The checker sees a register that is None while
the lease is alive and "expired" afterwards; the expiry is recorded as a write of unknown outcome and time. So a
transaction that saw the lease alive comes before the expiry, one that saw it gone comes after, and an expiry out
of order makes a cycle.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from occamdb.stress.history import REGISTER, Op, unique_value
from occamdb.stress.workloads.base import RUN, Counts, Problem, Workload

if TYPE_CHECKING:
    import occamdb
    from occamdb.stress.worker import Context, Settings

LEASES = 64
GROUPS = 8  # leases of one group have a prefix in common, which scans walk
EXPIRED = "expired"


def lease_key(number: int) -> str:
    """The key of a lease, as in the database and in the history."""
    return f"lease/{number % GROUPS}/{number:03}"


class Expiry(Workload):
    """Look at a group of leases, read one register, write another."""

    name = "expiry"
    summary = "leases that expire under load; an expiry out of order closes a cycle"
    history_kind = REGISTER
    keys = 4

    def prepare(self, db: occamdb.Database, settings: Settings) -> None:
        """Leases that expire one after the other, spread over the run."""
        dice = random.Random(settings.seed)
        for number in range(LEASES):
            db.put(RUN, lease_key(number), number, ttl=dice.uniform(0.05, settings.seconds or 5.0))

    def step(self, context: Context) -> None:
        """One transaction."""
        dice = context.dice
        group = dice.randrange(GROUPS)
        leases = [lease_key(number) for number in range(group, LEASES, GROUPS)]
        way = dice.choice(["scan", "get", "exists"])
        read, written = (f"register/{number}" for number in dice.sample(range(context.settings.keys), 2))
        ops: list[Op] = [["r", key] for key in leases] + [["r", read]]
        writes = dice.random() >= context.settings.reads
        if writes:
            ops.append(["w", written, unique_value(context.worker, context.next_count())])

        def body(txn: occamdb.Transaction) -> list[Any]:
            if way == "scan":
                alive = {key for key, _ in txn.scan(f"lease/{group}/")}
            elif way == "get":
                alive = {key for key in leases if txn.get(key) is not None}
            else:
                alive = {key for key in leases if txn.exists(key)}
            results = [None if key in alive else EXPIRED for key in leases]
            results.append(txn.get(read))
            if writes:
                txn.put(written, ops[-1][2])
            return results

        context.recorded(ops, body)

    def verify(self, context: Context, counts: Counts, tallies: list[Counts]) -> list[Problem]:
        """Tell the checker of the expiries; it is the judge."""
        if context.history is not None:
            for number in range(LEASES):
                context.history.happened([["w", lease_key(number), EXPIRED]])
        return []
