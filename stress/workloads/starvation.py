"""One long transaction among tight writers of all that it reads: it commits, and the writers keep going.

The writers move amounts between keys by merged increments, which never conflict. The long transaction adds up all
keys: the sum is always 0. Half of the time it rests, so that the rate of the writers beside it can be held against
their rate without it.
"""

from __future__ import annotations

import itertools
import statistics
import time
from typing import TYPE_CHECKING

from occamdb.stress.workloads.base import RUN, Counts, Problem, Workload

if TYPE_CHECKING:
    import occamdb
    from occamdb.stress.worker import Context, Settings

THINKING = 0.005  # seconds between the reads and the commit
ATTEMPTS_MAX = 5
TURN_SECONDS = 0.020
SHORT = 0.75 * TURN_SECONDS  # an attempt that takes this long is surely back before its turn is over
PHASE = 0.25  # seconds; odd phases belong to the long transaction
PHASES = 16
REST = 0.005
PHASES_MIN = 4


def phase_now() -> int:
    """Which phase it is; the same in every process."""
    return int(time.monotonic() / PHASE) % PHASES


class Starvation(Workload):
    """Worker 0 of each team runs the long transaction; the others write."""

    name = "starvation"
    summary = (
        "a long transaction among tight writers of its keys commits soon, and they keep half of their rate"
    )
    counters = ("long", "attempts", "most", *(f"phase{number}" for number in range(PHASES)))
    keys = 1000

    def prepare(self, db: occamdb.Database, settings: Settings) -> None:
        """All keys are there, with a sum of 0."""
        with db.begin(RUN) as txn:
            for number in range(settings.keys):
                txn.put(f"starvation/{number}", 0)

    def step(self, context: Context) -> None:
        """One write, or one long transaction."""
        if context.worker % context.settings.workers == 0 and context.settings.workers > 1:
            if phase_now() % 2:
                self._add_up(context)
            else:
                time.sleep(REST)
            return
        dice, keys = context.dice, context.settings.keys
        giver, taker = dice.randrange(keys), dice.randrange(keys)

        def move(txn: occamdb.Transaction) -> None:
            txn.kv.increment(f"starvation/{giver}", -1)
            txn.kv.increment(f"starvation/{taker}", 1)

        phase = phase_now()
        if context.attempt(move).ok:
            context.tally.add(f"phase{phase}")

    def _add_up(self, context: Context) -> None:
        keys = context.settings.keys
        ends: list[float] = []

        def body(txn: occamdb.Transaction) -> int:
            total = sum(int(txn.kv.get(f"starvation/{number}", 0)) for number in range(keys))
            time.sleep(THINKING)
            txn.put("starvation/sum", total)
            ends.append(time.monotonic())
            return total

        outcome = context.retried(body, long=1)
        if not outcome.ok:
            return
        if outcome.result != 0:
            context.problem(f"a transaction saw a sum of {outcome.result}, not 0")
        tally, attempts = context.tally, len(ends)
        tally.add("attempts", attempts)
        tally.add("most", max(0, attempts - tally.get("most")))
        # Nothing is promised to a transaction that the machine has kept from coming back in time.
        last = [after - before for before, after in itertools.pairwise(ends)][2:]
        if attempts > ATTEMPTS_MAX and max(last) < SHORT:
            context.problem(f"{attempts} attempts, although each was short")

    def verify(self, context: Context, counts: Counts, tallies: list[Counts]) -> list[Problem]:
        """The sum is 0, and the writers were at least half as fast beside the long transaction."""
        with context.db.begin(RUN, read_only=True) as txn:
            total = sum(int(txn.kv.get(f"starvation/{one}", 0)) for one in range(context.settings.keys))
        problems = [] if total == 0 else [Problem(f"the sum of all keys is {total}, not 0")]
        rates = _rates(counts)
        if rates is not None and rates[1] < rates[0] / 2:
            problems.append(
                Problem(
                    f"writers made {rates[1]:,.0f}/s beside a long transaction, {rates[0]:,.0f}/s without"
                )
            )
        return problems

    def account(self, counts: Counts, tallies: list[Counts]) -> list[str]:
        """Attempts, and the two rates."""
        most = max((tally["most"] for tally in tallies), default=0)
        long = counts["long"]
        lines = [
            f"{long:,} long transactions, {counts['attempts'] / (long or 1):.1f} attempts each, at most {most}"
        ]
        rates = _rates(counts)
        if rates is not None:
            lines.append(
                f"writers: {rates[0]:,.0f}/s without it, {rates[1]:,.0f}/s beside it ({rates[1] / rates[0]:.0%})"
            )
        return lines


def _rates(counts: Counts) -> tuple[float, float] | None:
    """The writers' rates without and beside the long transaction; None when there was too little time to tell.

    Medians over phases: a phase in which the machine or a campaign stopped somebody does not decide.
    """
    if counts["long"] == 0:
        return None
    found = [[counts[f"phase{number}"] for number in range(half, PHASES, 2)] for half in (0, 1)]
    some = [[count for count in half if count] for half in found]
    if min(len(half) for half in some) < PHASES_MIN:
        return None
    alone, beside = (statistics.median(half) / PHASE for half in some)
    return alone, beside
