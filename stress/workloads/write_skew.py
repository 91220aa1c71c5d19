"""Write skew: pairs of which one member at least must stay on duty, though each writer touches only one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from occamdb.stress.workloads.base import RUN, Counts, Problem, Workload

if TYPE_CHECKING:
    import occamdb
    from occamdb.stress.worker import Context, Settings


class WriteSkew(Workload):
    """Doctors on call: leave only while the other is on duty."""

    name = "write-skew"
    summary = "pairs of flags of which one must stay set; fails at isolation=snapshot, as it should"
    counters = ("left",)
    keys = 8

    def prepare(self, db: occamdb.Database, settings: Settings) -> None:
        """Everybody is on duty."""
        with db.begin(RUN) as txn:
            for pair in range(settings.keys):
                txn.put(f"duty/{pair}/a", 1)
                txn.put(f"duty/{pair}/b", 1)

    def step(self, context: Context) -> None:
        """Leave, return, or look."""
        dice = context.dice
        pair = dice.randrange(context.settings.keys)
        mine, other = dice.sample([f"duty/{pair}/a", f"duty/{pair}/b"], 2)
        if dice.random() < context.settings.reads:
            outcome = context.attempt(lambda txn: txn.get(mine) + txn.get(other), read_only=True)
            if outcome.ok and outcome.result < 1:
                context.problem(f"nobody of pair {pair} is on duty")
            return

        def body(txn: occamdb.Transaction) -> None:
            both = txn.get(mine) + txn.get(other)
            txn.put(mine, 0 if both == 2 else 1)

        context.attempt(body, left=1)

    def verify(self, context: Context, counts: Counts, tallies: list[Counts]) -> list[Problem]:
        """One of each pair is on duty."""
        with context.db.begin(RUN, read_only=True) as txn:
            return [
                Problem(f"nobody of pair {pair} is on duty")
                for pair in range(context.settings.keys)
                if txn.get(f"duty/{pair}/a") + txn.get(f"duty/{pair}/b") < 1
            ]
