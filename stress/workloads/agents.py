"""Agents: each step touches all five primitives in one transaction, and afterwards everything must tally.

Every agent is a run. A finding moves a shared topic cell, is appended to the agent's event log, recorded as a
trace under the agent's previous one, counted in a shared counter, and noted in its own keys. The shared cells are
where agents meet; the rest is theirs alone, which is what agents look like.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from occamdb.primitives.run_types import RunStatus
from occamdb.primitives.trace_types import Thought, ToolCall
from occamdb.stress.workloads.base import RUN, Counts, Problem, Workload, between

if TYPE_CHECKING:
    import occamdb
    from occamdb.stress.worker import Context, Settings

STEPS = 25  # findings of one agent before it completes its run and the worker starts another


class Agents(Workload):
    """The pipeline: create a run, make findings, complete it."""

    name = "agents"
    summary = "runs, cells, events, traces and counters in one transaction each; all tallies agree"
    counters = ("findings", "runs")
    keys = 64

    def prepare(self, db: occamdb.Database, settings: Settings) -> None:
        """The shared topics."""
        with db.begin(RUN) as txn:
            for topic in range(settings.keys):
                txn.cells.init(f"topic/{topic}", 0)
            txn.kv.put("findings", 0)

    def step(self, context: Context) -> None:
        """Start an agent, let it make a finding, or let it complete."""
        run: uuid.UUID | None = context.state.get("run")
        if run is None:
            self._start(context)
        elif context.state["steps"] >= STEPS:
            self._complete(context, run)
        else:
            self._finding(context, run)

    def _start(self, context: Context) -> None:
        run = uuid.UUID(int=context.dice.getrandbits(128))

        def body(txn: occamdb.Transaction) -> str:
            name = f"agent {context.worker}"
            txn.runs.create_run_with_options(name, tags=["agent"], run_id=run)
            txn.events.append("started", {"worker": context.worker})
            trace: str = txn.traces.record(Thought("where to begin"), tags=["start"])
            return trace

        outcome = context.attempt(body, run=run, runs=1)
        if outcome.ok:
            context.state.update(run=run, steps=0, trace=outcome.result)

    def _finding(self, context: Context, run: uuid.UUID) -> None:
        topic = f"topic/{context.dice.randrange(context.settings.keys)}"
        parent = context.state["trace"]

        def body(txn: occamdb.Transaction) -> str:
            board = txn.for_run(RUN)
            seen: int = board.cells.transition(topic, lambda state: (state.value + 1, state.value + 1))
            board.kv.increment("findings")
            txn.events.append("finding", {"topic": topic, "seen": seen})
            step = txn.kv.get("steps", 0) + 1
            txn.kv.put("steps", step)
            trace: str = txn.traces.record_child(
                parent, ToolCall("look", {"topic": topic}, seen), tags=[topic]
            )
            return trace

        outcome = context.attempt(body, run=run, findings=1)
        if outcome.ok:
            context.state["steps"] += 1
            context.state["trace"] = outcome.result
        elif outcome.name == "unknown":
            context.state["run"] = None  # whether the step counts is for `verify` to see

    def _complete(self, context: Context, run: uuid.UUID) -> None:
        def body(txn: occamdb.Transaction) -> None:
            txn.events.append("completed", {"steps": txn.kv.get("steps")})
            txn.runs.complete_run(run)

        if context.attempt(body, run=run).name in ("ok", "unknown"):
            context.state["run"] = None

    def verify(self, context: Context, counts: Counts, tallies: list[Counts]) -> list[Problem]:
        """Everything against everything."""
        db: Any = context.db
        with db.begin(RUN, read_only=True) as txn:
            names = list(txn.cells.list("topic/"))
            topics = sum(txn.cells.read(name).value for name in names)
            counter = txn.kv.get("findings")
        problems = between("the sum of the topics", topics, counter, counter)
        problems += between(
            "the counter", counter, counts["findings"], counts["findings"] + counts["unresolved"]
        )
        total = 0
        runs = db.runs.query_runs(tag="agent")
        problems += between(
            "the number of runs", len(runs), counts["runs"], counts["runs"] + counts["unresolved"]
        )
        for run in runs:
            found, said = _check_run(db, run)
            total += found
            problems += said
        return problems + between("the findings in all runs", total, counter, counter)


def _check_run(db: Any, run: Any) -> tuple[int, list[Problem]]:
    """One agent's findings, and what does not agree among its events, traces, keys and status."""
    chain = db.events.verify_chain(run.run_id)
    events = db.events.read_range(run.run_id)
    findings = sum(1 for event in events if event.event_type == "finding")
    problems: list[Problem] = []
    if not chain.is_valid:
        problems.append(
            Problem(f"run {run.run_id}: the chain breaks at {chain.first_invalid}: {chain.error}")
        )
    steps = db.kv.get(run.run_id, "steps", 0)
    traces = db.traces.query_by_type(run.run_id, "ToolCall")
    if not findings == steps == len(traces):
        problems.append(Problem(f"run {run.run_id}: {findings} events, {steps} steps, {len(traces)} traces"))
    (root,) = db.traces.get_roots(run.run_id)
    tree = db.traces.get_tree(run.run_id, root.id)
    if tree.size != findings + 1:
        problems.append(Problem(f"run {run.run_id}: its trace tree holds {tree.size} of {findings + 1}"))
    completed = events[-1].event_type == "completed"
    if completed != (run.status is RunStatus.COMPLETED):
        problems.append(Problem(f"run {run.run_id}: status {run.status}, last event {events[-1].event_type}"))
    return findings, problems
