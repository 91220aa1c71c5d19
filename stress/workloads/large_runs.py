"""Large runs that come and go: readers see each whole or gone, and the others' commits do not wait for it.

A run is filled in one transaction with a number of keys, all of one generation, and deleted in one. Meanwhile the
other workers read whole runs and commit small transactions elsewhere, whose latency they note.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING

from occamdb.stress.workloads.base import RUN, Counts, Problem, Workload, between

if TYPE_CHECKING:
    import occamdb
    from occamdb.stress.worker import Context, Settings

KEYS_IN_RUN = 2000  # more than the engine deletes key by key
SLOW = 0.02  # seconds; commits that take longer are counted, including those slowed by the machine's load


def run_id(number: int) -> uuid.UUID:
    """The run of that number; each has one name for the whole workload, so it is filled again and again."""
    return uuid.UUID(int=RUN.int + 1 + number)


class LargeRuns(Workload):
    """Fill, delete, read whole, and commit beside it."""

    name = "large_runs"
    summary = "large runs deleted beside other traffic: each whole or gone, nobody else waits"
    counters = ("added", "filled", "deleted", "quick", "slow", "slowest_us")
    keys = 4

    def prepare(self, db: occamdb.Database, settings: Settings) -> None:
        """Runs start absent."""

    def step(self, context: Context) -> None:
        """Worker 0 of two fills and deletes; the others read and commit."""
        dice = context.dice
        number = dice.randrange(context.settings.keys)
        chance = dice.random()
        if context.worker % 2 == 0 and chance < 0.05:
            self._replace(context, number)
        elif chance < 0.15:
            self._read(context, number)
        else:
            self._commit(context)

    def _replace(self, context: Context, number: int) -> None:
        """Delete the run if it is there, else fill it; both in one transaction."""
        generation = f"{context.worker}-{context.next_count()}"

        def body(txn: occamdb.Transaction) -> bool:
            if txn.exists("k0000"):
                txn.delete_run_range()
                return True
            for one in range(KEYS_IN_RUN):
                txn.put(f"k{one:04d}", generation)
            return False

        context.attempt(
            body, run=run_id(number), sums_of=lambda gone: {"deleted": 1} if gone else {"filled": 1}
        )

    def _read(self, context: Context, number: int) -> None:
        """A run has all its keys, of one generation, or none; by scan, by count and by single reads."""

        def body(txn: occamdb.Transaction) -> str | None:
            return _partial(txn, context.dice.randrange(KEYS_IN_RUN))

        outcome = context.attempt(body, run=run_id(number), read_only=True)
        if outcome.ok and outcome.result:
            context.problem(f"run {number}: {outcome.result}")

    def _commit(self, context: Context) -> None:
        """A small transaction elsewhere."""
        name = f"count/{context.worker}"

        def body(txn: occamdb.Transaction) -> None:
            txn.put(name, txn.get(name, 0) + 1)

        began = time.monotonic()
        outcome = context.attempt(body, added=1)
        if not outcome.ok:
            return
        took = time.monotonic() - began
        context.tally.add("slow" if took > SLOW else "quick")
        longest = max(context.state.get("slowest", 0), int(took * 1e6))
        context.tally.add("slowest_us", longest - context.state.get("slowest", 0))
        context.state["slowest"] = longest

    def verify(self, context: Context, counts: Counts, tallies: list[Counts]) -> list[Problem]:
        """Every run is whole or gone, and no acknowledged commit is missing."""
        problems: list[Problem] = []
        for number in range(context.settings.keys):
            with context.db.begin(run_id(number), read_only=True) as txn:
                wrong = _partial(txn, 0)
            if wrong:
                problems.append(Problem(f"run {number}: {wrong}"))
        with context.db.begin(RUN, read_only=True) as txn:
            total = sum(found.value for _, found in txn.scan("count/"))
        return problems + between(
            "the sum of all counts", total, counts["added"], counts["added"] + counts["unresolved"]
        )

    def account(self, counts: Counts, tallies: list[Counts]) -> list[str]:
        """How long the others' commits took."""
        measured = counts["slow"] + counts["quick"] or 1
        slowest = max((one["slowest_us"] for one in tallies), default=0) / 1000
        return [
            f"{counts['filled']:,} runs of {KEYS_IN_RUN:,} keys filled, {counts['deleted']:,} deleted; beside it "
            f"{counts['slow'] / measured:.3%} of the commits took over {SLOW * 1000:.0f} ms, "
            f"the slowest {slowest:.1f} ms"
        ]


def _partial(txn: occamdb.Transaction, one: int) -> str | None:
    """What is wrong with a run that is neither whole nor gone."""
    rows = [found.value for _, found in txn.scan()]
    single = txn.get(f"k{one:04d}")
    if not rows:
        return None if single is None else f"a scan finds nothing, but key {one} holds {single}"
    if len(rows) != KEYS_IN_RUN or len(set(rows)) != 1:
        return f"{len(rows)} of {KEYS_IN_RUN} keys, of {len(set(rows))} generations"
    if single != rows[0]:
        return f"a scan finds generation {rows[0]}, but key {one} holds {single}"
    return None
