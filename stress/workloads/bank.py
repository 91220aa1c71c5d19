"""A bank: transfers keep the total, and every snapshot sees the same total."""

from __future__ import annotations

from typing import TYPE_CHECKING

from occamdb.stress.workloads.base import RUN, Counts, Problem, Workload, between

if TYPE_CHECKING:
    import occamdb
    from occamdb.stress.worker import Context, Settings

OPENING = 1000


class Bank(Workload):
    """Transfers between accounts beside snapshots that add all accounts up."""

    name = "bank"
    summary = "transfers between accounts; every snapshot sees the same total, no balance below zero"
    counters = ("audits",)
    keys = 20

    def prepare(self, db: occamdb.Database, settings: Settings) -> None:
        """Open the accounts in one transaction."""
        with db.begin(RUN) as txn:
            for account in range(settings.keys):
                txn.put(f"account/{account:06d}", OPENING)

    def step(self, context: Context) -> None:
        """Audit or transfer."""
        if context.dice.random() < context.settings.reads:
            self._audit(context)
        else:
            self._transfer(context)

    def _audit(self, context: Context) -> None:
        expected = context.settings.keys * OPENING
        by_scan = context.dice.random() < 0.5
        names = [f"account/{account:06d}" for account in range(context.settings.keys)]

        def body(txn: occamdb.Transaction) -> int:
            if by_scan:
                return sum(found.value for _, found in txn.scan("account/"))
            return sum(txn.get(name) for name in names)

        outcome = context.attempt(body, read_only=True, audits=1)
        if outcome.ok and outcome.result != expected:
            context.problem(f"a snapshot adds up to {outcome.result:,}, not {expected:,}")

    def _transfer(self, context: Context) -> None:
        source, target = context.dice.sample(range(context.settings.keys), 2)
        amount = context.dice.randint(1, 50)

        def body(txn: occamdb.Transaction) -> None:
            have = txn.get(f"account/{source:06d}")
            if have >= amount:
                txn.put(f"account/{source:06d}", have - amount)
                txn.put(f"account/{target:06d}", txn.get(f"account/{target:06d}") + amount)

        if context.dice.random() < 0.5:
            context.attempt(body)
        else:
            context.retried(body)

    def verify(self, context: Context, counts: Counts, tallies: list[Counts]) -> list[Problem]:
        """The total is what it was and nobody is in debt."""
        with context.db.begin(RUN, read_only=True) as txn:
            balances = [found.value for _, found in txn.scan("account/")]
        total = context.settings.keys * OPENING
        problems = between("the bank's total", sum(balances), total, total)
        if min(balances) < 0:
            problems.append(Problem(f"an account holds {min(balances)}"))
        return problems
