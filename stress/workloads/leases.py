"""Leases with time limits that run out: what is committed under a lease is committed by its holder of that moment."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from occamdb.engine.model.errors import LeaseLost, OccamError, TransactionTimeout
from occamdb.stress.workloads.base import RUN, Counts, Problem, Workload, between

if TYPE_CHECKING:
    import occamdb
    from occamdb.stress.worker import Context, Settings

LIMIT = 0.05  # seconds; short, so that leases do run out while their holder works
PATIENCE = 0.5


class LeaseHolders(Workload):
    """Acquire a lease, commit under it a few times, sometimes too late, and give it back."""

    name = "leases"
    summary = "commits fenced by leases that run out; no former holder's commit lands"
    counters = ("fenced", "lost", "waited")
    keys = 4

    def prepare(self, db: occamdb.Database, settings: Settings) -> None:
        """The token of the last holder, for each lease."""
        with db.begin(RUN) as txn:
            for number in range(settings.keys):
                txn.put(f"token/{number}", 0)
            txn.put("backwards", 0)

    def step(self, context: Context) -> None:
        """Hold one of the leases."""
        number = context.dice.randrange(context.settings.keys)
        lease = self._acquire(context, f"lease/{number}")
        if lease is None:
            return

        def body(txn: occamdb.Transaction) -> bool:
            try:
                txn.leases.require(lease)
            except LeaseLost:
                return False
            if txn.get(f"token/{number}") > lease.token:
                txn.kv.increment("backwards")  # a later holder has committed already
            txn.put(f"token/{number}", lease.token)
            txn.kv.increment("fenced")
            return True

        for _ in range(context.dice.randrange(1, 4)):
            if context.dice.random() < 0.05:
                time.sleep(LIMIT * 1.5)  # a slow holder: somebody else gets the lease
            context.attempt(body, sums_of=lambda held: {"fenced": 1} if held else {"lost": 1})

        def release(txn: occamdb.Transaction) -> None:
            if txn.leases.is_held(lease):
                txn.leases.release(lease)

        context.retried(release)

    def _acquire(self, context: Context, name: str) -> Any:
        context.tally.add("begun")
        try:
            lease = context.db.leases.acquire(RUN, name, timeout=PATIENCE, lease=LIMIT)
        except TransactionTimeout:
            context.tally.add("waited")
            context.tally.add("ok")
            return None
        except OccamError as error:
            context.failed(error)
            return None
        context.tally.add("ok")
        return lease

    def verify(self, context: Context, counts: Counts, tallies: list[Counts]) -> list[Problem]:
        """Tokens never went back, every acknowledged commit is there, and nobody still waits."""
        db: Any = context.db
        problems = between("the number of commits of former holders", db.get(RUN, "backwards"), 0, 0)
        problems += between(
            "the number of fenced commits",
            db.get(RUN, "fenced", 0),
            counts["fenced"],
            counts["fenced"] + counts["unresolved"],
        )
        for number in range(context.settings.keys):
            holders = db.leases.holders(RUN, f"lease/{number}")
            problems += between(f"the number of holders of lease {number}", len(holders), 0, 1)
        return problems
