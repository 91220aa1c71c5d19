"""Scan and insert: a room takes a limited number of guests, and nothing but scans counts them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from occamdb.stress.workloads.base import RUN, Counts, Problem, Workload, between

if TYPE_CHECKING:
    import occamdb
    from occamdb.stress.worker import Context, Settings

SEATS = 5


class Phantoms(Workload):
    """Insert a key if a scan finds fewer than the limit, else delete the first one found."""

    name = "phantoms"
    summary = "scan-and-insert below a limit; a phantom overfills a room"
    counters = ("guests",)
    keys = 4

    def prepare(self, db: occamdb.Database, settings: Settings) -> None:
        """Rooms start empty."""

    def step(self, context: Context) -> None:
        """Enter a room, or clear a seat of a full one."""
        room = f"room/{context.dice.randrange(context.settings.keys)}/"
        name = f"{room}{context.worker:04d}-{context.next_count():08d}"

        def body(txn: occamdb.Transaction) -> int:
            guests = [key for key, _ in txn.scan(room)]
            if len(guests) < SEATS:
                txn.put(name, context.worker)
            else:
                txn.delete(guests[0])
            return len(guests)

        outcome = context.attempt(body, sums_of=lambda found: {"guests": 1 if found < SEATS else -1})
        if outcome.ok and outcome.result > SEATS:
            context.problem(f"{room} holds {outcome.result} guests, more than {SEATS}")

    def verify(self, context: Context, counts: Counts, tallies: list[Counts]) -> list[Problem]:
        """No room is overfilled, and the guests are those that entered and were not cleared."""
        problems: list[Problem] = []
        total = 0
        with context.db.begin(RUN, read_only=True) as txn:
            for room in range(context.settings.keys):
                guests = sum(1 for _ in txn.scan(f"room/{room}/"))
                total += guests
                problems += between(f"the number of guests of room {room}", guests, 0, SEATS)
        doubt = counts["unresolved"]
        return problems + between(
            "the number of guests", total, counts["guests"] - doubt, counts["guests"] + doubt
        )
