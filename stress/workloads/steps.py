"""Pipelines of steps that many workers run at once: each step takes effect once, and all see one result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from occamdb.engine.model.errors import LeaseLost, OccamError
from occamdb.stress.workloads.base import RUN, Counts, Problem, Workload, between

if TYPE_CHECKING:
    import occamdb
    from occamdb.stress.worker import Context, Settings


def advance(txn: Any, pipeline: int, number: int) -> int:
    """A step in a transaction: moves the pipeline on, and counts itself."""
    txn.put(f"at/{pipeline}", number + 1)
    txn.kv.increment(f"effects/{pipeline}")
    return number


class Pipelines(Workload):
    """Run the next step of a pipeline, as other workers do at the same time."""

    name = "steps"
    summary = "steps that many workers run at once: effects once, one result for all"
    counters = ("stepped", "differing")
    keys = 8

    def prepare(self, db: occamdb.Database, settings: Settings) -> None:
        """Pipelines at their beginning."""
        with db.begin(RUN) as txn:
            for pipeline in range(settings.keys):
                txn.put(f"at/{pipeline}", 0)

    def step(self, context: Context) -> None:
        """First draw a number in a plain step, then move the pipeline on in a transaction."""
        pipeline = context.dice.randrange(context.settings.keys)
        number = context.db.get(RUN, f"at/{pipeline}")
        draws: list[int] = []

        def draw() -> int:
            draws.append(context.dice.getrandbits(30))
            return draws[-1]

        drawn = self._run(context, f"draw/{pipeline}/{number}", draw)
        recorded = context.db.steps.get(RUN, f"draw/{pipeline}/{number}")
        if drawn is not None and (recorded is None or recorded.result != drawn):
            context.tally.add("differing")
        if (
            drawn is not None
            and self._run(context, f"move/{pipeline}/{number}", advance, pipeline, number) is not None
        ):
            context.tally.add("stepped")

    def _run(self, context: Context, name: str, fn: Any, *args: Any) -> Any:
        context.tally.add("begun")
        try:
            result = context.db.steps.run(RUN, name, fn, *args)
        except LeaseLost:
            result = None  # this worker was taken for dead while the coordinator was away
        except OccamError as error:
            context.failed(error)
            return None
        context.tally.add("ok")
        return result

    def verify(self, context: Context, counts: Counts, tallies: list[Counts]) -> list[Problem]:
        """As many effects as steps, no step without its predecessor, and one result for each."""
        db: Any = context.db
        problems = between(
            "the number of results that differ from the recorded one", counts["differing"], 0, 0
        )
        done: dict[str, int] = {}
        for step in db.steps.list(RUN):
            kind, pipeline, _ = step.name.split("/")
            if kind == "move" and step.state == "done":
                done[pipeline] = done.get(pipeline, 0) + 1
        for pipeline in range(context.settings.keys):
            at = db.get(RUN, f"at/{pipeline}")
            effects = db.get(RUN, f"effects/{pipeline}", 0)
            problems += between(f"the effects of pipeline {pipeline}", effects, at, at)
            problems += between(f"the steps of pipeline {pipeline}", done.get(str(pipeline), 0), at, at)
        return problems
