"""Writers of event logs: gapless sequences, an unbroken hash chain, each acknowledged event once."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from occamdb.stress.workloads.base import Counts, Problem, Workload, between

if TYPE_CHECKING:
    import occamdb
    from occamdb.stress.worker import Context, Settings


class EventLogWriters(Workload):
    """Several workers append to a few logs, one event or several at a time."""

    name = "event-log"
    summary = "appends to shared event logs; chains verify, nothing missing, nothing twice"
    counters = ("events",)
    keys = 2

    def prepare(self, db: occamdb.Database, settings: Settings) -> None:
        """Logs start empty."""

    def step(self, context: Context) -> None:
        """Append one to three events to a log."""
        run = log_run(context.dice.randrange(context.settings.keys))
        names = [f"{context.worker}/{context.next_count()}" for _ in range(context.dice.choice((1, 1, 1, 3)))]

        def body(txn: occamdb.Transaction) -> None:
            if len(names) == 1:
                txn.events.append("work", {"name": names[0]})
            else:
                txn.events.append_many([("work", {"name": name}) for name in names])

        if context.dice.random() < 0.5:
            context.attempt(body, run=run, events=len(names))
        else:
            context.retried(body, run=run, events=len(names))

    def verify(self, context: Context, counts: Counts, tallies: list[Counts]) -> list[Problem]:
        """Read every log from end to end."""
        problems: list[Problem] = []
        seen: set[str] = set()
        total = 0
        for number in range(context.settings.keys):
            log = context.db.events
            chain = log.verify_chain(log_run(number))
            if not chain.is_valid:
                problems.append(
                    Problem(f"the chain of log {number} breaks at {chain.first_invalid}: {chain.error}")
                )
            for place, event in enumerate(log.read_range(log_run(number), 0, chain.length)):
                if event.sequence != place:
                    problems.append(Problem(f"log {number} holds sequence {event.sequence} at place {place}"))
                    break
                name = event.payload["name"]
                if name in seen:
                    problems.append(Problem(f"event {name} was appended twice"))
                seen.add(name)
            total += chain.length
        return problems + between(
            "the number of events", total, counts["events"], counts["events"] + 3 * counts["unresolved"]
        )


def log_run(number: int) -> uuid.UUID:
    """The run that holds log `number`."""
    return uuid.UUID(int=0x0197C0DE000070008000_0000_0E00_0000 + number)
