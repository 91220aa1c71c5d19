"""A database as large as one that agents have used for a while: 100,000 traces, 10,000 runs, 100,000 events.

    python -m tests.support.large_database PATH

One run has 10,000 of the traces and one has 50,000 of the events; the others have some of everything. The same numbers
every time; only ids and times differ.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import occamdb
from occamdb import Decision, RunId, Thought, ToolCall
from occamdb.primitives import Query

__all__ = ["LARGE_NAME", "LONG_NAME", "Sizes", "fill"]

LARGE_NAME, LONG_NAME = "ten thousand traces", "fifty thousand events"
RUNS_A_COMMIT = 50


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much there is of everything."""

    runs: int = 10_000
    traces: int = 100_000
    traces_of_one: int = 10_000
    events: int = 100_000
    events_of_one: int = 50_000


@dataclass(frozen=True, slots=True)
class Made:
    """The two runs that are large by themselves."""

    large: RunId
    long: RunId


def fill(db: occamdb.Database, sizes: Sizes | None = None) -> Made:
    """Write everything, many runs or traces to a commit."""
    wanted = Sizes() if sizes is None else sizes
    choices = random.Random(7)
    large = db.runs.create_run(LARGE_NAME, tags=["large"]).run_id
    long = db.runs.create_run(LONG_NAME, tags=["large"]).run_id
    _fill_large(db, large, wanted.traces_of_one, choices)
    _fill_long(db, long, wanted.events_of_one)
    others = wanted.runs - 2
    traces = _shares(wanted.traces - wanted.traces_of_one, others)
    events = _shares(wanted.events - wanted.events_of_one, others)
    numbers = iter(zip(range(others), traces, events, strict=True))
    parent: list[RunId] = []
    while batch := list(islice(numbers, RUNS_A_COMMIT)):
        db.transaction(large, partial(_write_runs, batch=batch, parent=parent, choices=choices))
    db.runs.complete_run(large)
    db.runs.complete_run(long)
    return Made(large, long)


def _shares(total: int, count: int) -> Iterator[int]:
    """`total` in `count` whole parts as equal as they can be."""
    return ((total * (at + 1)) // count - (total * at) // count for at in range(count))


def _write_runs(
    txn: occamdb.Transaction,
    batch: Iterable[tuple[int, int, int]],
    parent: list[RunId],
    choices: random.Random,
) -> None:
    """Some runs: every hundredth is the parent of those that follow."""
    for number, traces, events in batch:
        above = parent[-1] if parent and number % 100 else None
        made = txn.runs.create_run_with_options(
            f"agent {number}", parent=above, tags=[f"batch {number // 1000}"]
        )
        if above is None:
            parent[:] = [made.run_id]
        inside = txn.for_run(made.run_id)
        top = inside.traces.begin_span(Thought(f"goal of agent {number}"), tags=["goal"])
        for at in range(traces - 1):
            inside.traces.record_child(top, _content(at, choices))
        inside.traces.end_span(top, duration_ms=choices.uniform(1, 5_000))
        inside.events.append_many(("step", {"n": at, "agent": number}) for at in range(events))
        inside.cells.init("progress", {"done": traces})
        inside.kv.put("summary", {"agent": number, "words": choices.randrange(10_000)})
        match choices.randrange(10):
            case 0:
                txn.runs.fail_run(made.run_id, f"TimeoutError: no answer to call {number}")
            case 1:
                pass  # still active
            case _:
                txn.runs.complete_run(made.run_id)


def _fill_large(db: occamdb.Database, run: RunId, count: int, choices: random.Random) -> None:
    """Turns of an agent: in each a decision, calls below it and queries below those. Spans, commit by commit."""
    left = count

    def turn(txn: occamdb.Transaction) -> int:
        top = txn.traces.begin_span(Decision("what next?", ["search", "read", "answer"], "search", "by plan"))
        made = 1
        for at in range(4):
            if made == left:
                break
            call = txn.traces.begin_span(ToolCall("search", {"q": f"question {at}"}), parent_id=top)
            made += 1
            for _ in range(min(3, left - made)):
                txn.traces.record_child(call, _content(made, choices))
                made += 1
            failed = "TimeoutError: no answer" if choices.randrange(100) == 0 else None
            txn.traces.end_span(call, result={"hits": at}, error=failed, duration_ms=choices.uniform(0.1, 2))
        txn.traces.end_span(top, duration_ms=choices.uniform(2, 10))
        return made

    while left > 0:
        left -= db.transaction(run, turn)


def _fill_long(db: occamdb.Database, run: RunId, count: int) -> None:
    for start in range(0, count, 1_000):
        numbers = range(start, min(start + 1_000, count))
        db.events.append_many(run, (("tick" if n % 10 else "checkpoint", {"n": n}) for n in numbers))


def _content(at: int, choices: random.Random) -> occamdb.TraceType:
    kinds = (
        ToolCall(
            "read", {"file": f"notes/{at}.md"}, {"words": choices.randrange(5_000)}, choices.uniform(0.1, 90)
        ),
        Query("sql", f"select * from facts where n = {at}", [at, at + 1]),
        Thought("three hits will do", choices.random()),
    )
    return kinds[at % len(kinds)]


if __name__ == "__main__":
    began = time.monotonic()
    with occamdb.open(Path(sys.argv[1])) as database:
        print(fill(database), f"{time.monotonic() - began:.1f} s")
