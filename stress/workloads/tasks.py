"""Queues of tasks: every task's effect happens exactly once, whoever dies, hangs or is late."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from occamdb import InvalidTransition, LeaseLost, NotFoundError
from occamdb.stress.workloads.base import RUN, Counts, Problem, Workload, between

if TYPE_CHECKING:
    import occamdb
    from occamdb.stress.worker import Context, Settings

QUEUE = "work"
LEASE = 0.05  # seconds; short, so that leases do run out while their holder works
ATTEMPTS = 1_000_000


class Tasks(Workload):
    """Claim a task, now and then too slowly; its effect, its completion and the next task's put are one commit."""

    name = "tasks"
    summary = "tasks with leases; effects in the transaction that completes the task happen once"
    counters = ("done", "lost", "failed", "released")
    keys = 64

    def prepare(self, db: occamdb.Database, settings: Settings) -> None:
        """A first stock of tasks."""
        db.tasks.put_many(
            RUN, QUEUE, [f"first-{number}" for number in range(settings.keys)], max_attempts=ATTEMPTS
        )

    def step(self, context: Context) -> None:
        """Do one task."""
        claimed = context.attempt(lambda txn: txn.tasks.claim(QUEUE, lease=LEASE))
        if not claimed.ok or claimed.result is None:
            return
        task, fate = claimed.result, context.dice.random()
        if fate < 0.02:
            time.sleep(LEASE * 1.5)  # a hung worker: somebody else takes the task over
        made = f"{context.worker}-{context.next_count()}"
        priority = context.dice.randrange(3)

        def body(txn: occamdb.Transaction) -> str:
            try:
                if 0.02 <= fate < 0.04:
                    txn.tasks.fail(task, "on purpose", delay=LEASE if fate < 0.03 else 0)
                    return "failed"
                if 0.04 <= fate < 0.06:
                    txn.tasks.release(task)
                    return "released"
                txn.tasks.complete(task, made)
            except (LeaseLost, InvalidTransition, NotFoundError):
                return "lost"
            key = f"done/{task.payload}"
            txn.put(key, txn.get(key, 0) + 1)
            txn.tasks.put(QUEUE, made, priority=priority, max_attempts=ATTEMPTS)
            return "done"

        context.attempt(body, sums_of=lambda outcome: {outcome: 1})

    def verify(self, context: Context, counts: Counts, tallies: list[Counts]) -> list[Problem]:
        """Every effect was had once, by a task that is done; as many are open as were put at first."""
        problems: list[Problem] = []
        with context.db.begin(RUN, read_only=True) as txn:
            effects = {key: found.value for key, found in txn.scan("done/")}
            found = txn.tasks.list(QUEUE, limit=None)
        twice = [key for key, times in effects.items() if times != 1]
        if twice:
            problems.append(Problem(f"{len(twice)} effects happened more than once, {twice[0]} among them"))
        done = {f"done/{task.payload}" for task in found if task.state == "done"}
        odd = done ^ effects.keys()
        if odd:
            problems.append(
                Problem(f"{len(odd)} tasks are done without their effect or the reverse: {min(odd)}")
            )
        open_tasks = [task for task in found if task.state not in ("done", "dead")]
        most = counts["done"] + counts["unresolved"]
        problems += between("the number of tasks done", len(done), counts["done"], most)
        return problems + between(
            "the number of open tasks", len(open_tasks), context.settings.keys, context.settings.keys
        )
