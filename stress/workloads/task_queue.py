"""A queue of tasks with leases: each task is done exactly once, though leases run out and workers die."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from occamdb.stress.workloads.base import RUN, Counts, Problem, Workload, between

if TYPE_CHECKING:
    import occamdb
    from occamdb.stress.worker import Context, Settings

LEASE = 0.02  # seconds; short, so that leases do run out while their holder works
LOOK_AHEAD = 8


class TaskQueue(Workload):
    """Claim the first free task by CAS, work, and complete it if the lease is still one's own."""

    name = "queue"
    summary = "tasks claimed by CAS with leases that run out; each is done once"
    counters = ("done", "claimed", "expired")
    keys = 64

    def prepare(self, db: occamdb.Database, settings: Settings) -> None:
        """A first stock of tasks."""
        with db.begin(RUN) as txn:
            for task in range(settings.keys):
                txn.put(f"todo/first-{task:08d}", {"owner": None, "until": 0.0})

    def step(self, context: Context) -> None:
        """Claim and complete a task; make a new one for each that is done."""
        claimed = self._claim(context)
        if claimed is None:
            return
        key, version = claimed
        if context.dice.random() < 0.02:
            time.sleep(LEASE * 1.5)  # a slow worker: somebody else takes the task over
        made = f"todo/{context.worker:04d}-{context.next_count():08d}"

        def body(txn: occamdb.Transaction) -> bool:
            found = txn.get_versioned(key)
            if found is None or found.version != version:
                return False
            txn.delete(key)
            task = key.removeprefix("todo/")
            txn.put(f"done/{task}", txn.get(f"done/{task}", 0) + 1)
            txn.put(made, {"owner": None, "until": 0.0})
            return True

        context.attempt(body, sums_of=lambda mine: {"done": 1} if mine else {"expired": 1})

    def _claim(self, context: Context) -> tuple[str, int] | None:
        """Look for free tasks in a snapshot, then take one of them by CAS alone."""
        now = time.time()
        lease = {"owner": context.worker, "until": now + LEASE}

        def look(txn: occamdb.Transaction) -> list[tuple[str, int]]:
            found = txn.scan("todo/", limit=context.settings.keys)
            return [(key, task.version) for key, task in found if task.value["until"] < now]

        seen = context.attempt(look, read_only=True)
        if not seen.ok or not seen.result:
            return None
        key, version = context.dice.choice(seen.result[:LOOK_AHEAD])
        outcome = context.attempt(lambda txn: txn.cas(key, version, lease), claimed=1)
        return (key, outcome.version) if outcome.ok else None

    def verify(self, context: Context, counts: Counts, tallies: list[Counts]) -> list[Problem]:
        """Every done task was done once, and as many are done as were acknowledged."""
        problems: list[Problem] = []
        with context.db.begin(RUN, read_only=True) as txn:
            done = {key: found.value for key, found in txn.scan("done/")}
            waiting = [key for key, _ in txn.scan("todo/")]
        twice = [key for key, times in done.items() if times != 1]
        if twice:
            problems.append(
                Problem(f"{len(twice)} tasks were done more than once, {twice[0]} {done[twice[0]]} times")
            )
        both = [key for key in waiting if key.replace("todo/", "done/") in done]
        if both:
            problems.append(Problem(f"{len(both)} tasks are done and still to do, {both[0]} among them"))
        problems += between(
            "the number of tasks done", len(done), counts["done"], counts["done"] + counts["unresolved"]
        )
        return problems + between(
            "the number of tasks waiting", len(waiting), context.settings.keys, context.settings.keys
        )
