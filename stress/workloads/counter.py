"""Counters: every acknowledged increment is there, and none twice.

`counter` reads and writes (conflicts under contention), `increment` merges in the coordinator (never conflicts).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from occamdb.stress.workloads.base import RUN, Counts, Problem, Workload, between

if TYPE_CHECKING:
    import occamdb
    from occamdb.stress.worker import Context, Settings


class Counter(Workload):
    """Read-modify-write on a few counters, half of it with the database's retries and half without."""

    name = "counter"
    summary = "read-modify-write increments of a few counters; the sum must be exact"
    counters = ("added",)
    keys = 4

    def prepare(self, db: occamdb.Database, settings: Settings) -> None:
        """Counters start absent, so that creation is contended too."""

    def step(self, context: Context) -> None:
        """Add one to a counter."""
        key = f"counter/{context.dice.randrange(context.settings.keys)}"

        def body(txn: occamdb.Transaction) -> None:
            txn.put(key, txn.get(key, 0) + 1)

        if context.dice.random() < 0.5:
            context.attempt(body, added=1)
        else:
            context.retried(body, added=1)

    def verify(self, context: Context, counts: Counts, tallies: list[Counts]) -> list[Problem]:
        """The counters sum up to the acknowledged increments, plus at most the unresolved ones."""
        with context.db.begin(RUN, read_only=True) as txn:
            total = sum(found.value for _, found in txn.scan("counter/"))
        return between(
            "the sum of all counters", total, counts["added"], counts["added"] + counts["unresolved"]
        )


class Increment(Counter):
    """Merged increments: no conflict ever."""

    name = "increment"
    summary = "merged increments of a few counters; exact and without a single conflict"
    keys = 1

    def step(self, context: Context) -> None:
        """Increment a counter, alone or together with another in one transaction."""
        dice, keys = context.dice, context.settings.keys
        first, second = f"counter/{dice.randrange(keys)}", f"counter/{dice.randrange(keys)}"

        def body(txn: occamdb.Transaction) -> None:
            txn.kv.increment(first)
            txn.kv.increment(second, 2)

        context.attempt(body, added=3)

    def verify(self, context: Context, counts: Counts, tallies: list[Counts]) -> list[Problem]:
        """The sum is exact and nothing conflicted."""
        with context.db.begin(RUN, read_only=True) as txn:
            total = sum(int(txn.kv.get(f"counter/{one}", 0)) for one in range(context.settings.keys))
        problems = between("the sum", total, counts["added"], counts["added"] + 3 * counts["unresolved"])
        if counts["conflict"]:
            problems.append(Problem(f"{counts['conflict']} increments conflicted; merges never do"))
        return problems
