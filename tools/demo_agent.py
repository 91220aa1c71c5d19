"""One agent of the demo: a process that claims files, counts their words and merges them into the shared index.

Every agent is a run of its own beneath the shared run. For each file one transaction spans both runs:

    shared run   word counts      KV increments: merged by the coordinator, never a conflict
                 batch claim      state cell: how far the batch is done
                 progress         state cell, read and written by everybody: conflicts, so the transaction retries
                 findings         event log: batches finished, the largest file so far
    agent's run  its own events and traces of what it did and why

1. A file is counted exactly once: its counts and the progress of its claim are one commit.
2. Only the agent that created a batch's claim cell works on that batch.
3. Nothing is kept outside the database but the figures of the agent itself.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from occamdb.tools.corpus import count_words

if TYPE_CHECKING:
    from occamdb import Database, RunId, Transaction
    from occamdb.primitives import State

WORD = "word/"
PROGRESS = "progress"
FIGURES = "figures"
NOTHING_DONE = {"files": 0, "words": 0, "largest": 0, "largest_file": ""}


@dataclass(frozen=True)
class Plan:
    """What all agents share. Pickles.

    Attributes:
      shared: the run of the index.
      directory: what is indexed.
      files: relative paths, in the order of the work.
      batch_size: how many files one claim covers.
    """

    shared: RunId
    directory: Path
    files: list[str]
    batch_size: int

    @property
    def batch_count(self) -> int:
        """How many claims there are to make."""
        return -(-len(self.files) // self.batch_size)

    def batch(self, number: int) -> list[str]:
        """The files of one claim."""
        return self.files[number * self.batch_size : (number + 1) * self.batch_size]


@dataclass
class Figures:
    """What one agent did, kept under `FIGURES` in its run."""

    files: int = 0
    words: int = 0
    key_updates: int = 0
    batches: int = 0
    claims_lost: int = 0
    commits: int = 0
    conflicts: int = 0
    retries: int = 0
    seconds: float = 0.0

    def __add__(self, other: Figures) -> Figures:
        mine, theirs = asdict(self), asdict(other)
        return Figures(**{name: mine[name] + theirs[name] for name in mine})


def claim_name(batch: int) -> str:
    """The cell of one batch."""
    return f"claim/{batch:06}"


def prepare(db: Database, plan: Plan) -> None:
    """Create what every agent reads; once, before the first agent starts."""
    db.cells.init(plan.shared, PROGRESS, dict(NOTHING_DONE))


def run_agent(db: Database, plan: Plan, number: int) -> Figures:
    """Work until every batch is claimed. The main function of an agent process; also runs in the parent's.

    Args:
      db: attached anew in this process when it was sent to one.
      plan: the same for all agents.
      number: which agent this is.

    Returns:
      What it did; the same figures are in its run.
    """
    tags = ["demo", "agent"]
    with db.runs.start(f"indexer-{number}", parent=plan.shared, tags=tags) as run:
        agent = _Agent(db, plan, number, run.run_id)
        for batch in range(plan.batch_count):
            if agent.claim(batch):
                agent.index_batch(batch)
        agent.finish()
    return agent.figures


@dataclass
class _Agent:
    db: Database
    plan: Plan
    number: int
    run_id: RunId
    figures: Figures = field(default_factory=Figures)
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        from occamdb.primitives import Thought

        goal = f"index {len(self.plan.files)} files of {self.plan.directory} with the others"
        self.root = self.db.traces.record(self.run_id, Thought(content=goal, confidence=1.0), tags=["goal"])

    def claim(self, batch: int) -> bool:
        """Claim a batch by creating its cell; an agent that is too late gets a conflict."""
        from occamdb import AlreadyExistsError, CASConflict

        name, shared = claim_name(batch), self.plan.shared
        if self.db.cells.exists(shared, name):
            return False
        try:
            self.db.cells.init(shared, name, {"agent": self.number, "done": 0})
        except (AlreadyExistsError, CASConflict):
            self.figures.claims_lost += 1
            self.figures.conflicts += 1
            return False
        self.figures.commits += 1
        self.figures.batches += 1
        return True

    def index_batch(self, batch: int) -> None:
        """Count and merge each file of a batch that is ours, then say so."""
        from occamdb.primitives import Decision

        files = self.plan.batch(batch)
        decision = Decision(
            question="which batch next?",
            options=[claim_name(b) for b in range(batch, min(batch + 3, self.plan.batch_count))],
            chosen=claim_name(batch),
            reasoning="the first one nobody has claimed",
        )
        parent = self.db.traces.record_child(self.run_id, self.root, decision, tags=["batch"])
        self.figures.commits += 1
        for position, name in enumerate(files):
            self._index_file(batch, position, name, parent)
        self.figures.seconds = time.monotonic() - self.started
        summary = {"agent": self.number, "batch": batch, "files": len(files)}
        self._commit(lambda txn: self._report(txn, summary))

    def finish(self) -> None:
        """Leave the final figures."""
        self.figures.seconds = time.monotonic() - self.started
        self.figures.commits += 1  # the one that stores them
        self.db.kv.put(self.run_id, FIGURES, asdict(self.figures))

    def _index_file(self, batch: int, position: int, name: str, parent: Any) -> None:
        started = time.perf_counter()
        counts = count_words(self.plan.directory / name)
        duration_ms = (time.perf_counter() - started) * 1000
        self._commit(lambda txn: self._merge(txn, batch, position, name, counts, parent, duration_ms))
        self.figures.files += 1
        self.figures.words += counts.total()
        self.figures.key_updates += len(counts)

    def _merge(
        self,
        txn: Transaction,
        batch: int,
        position: int,
        name: str,
        counts: Counter[str],
        parent: Any,
        duration_ms: float,
    ) -> None:
        """Everything one file changes, in both runs."""
        from occamdb.primitives import ToolCall

        words = counts.total()
        shared = txn.for_run(self.plan.shared)
        for word, count in counts.items():
            shared.kv.increment(WORD + word, count)
        shared.cells.set(claim_name(batch), {"agent": self.number, "done": position + 1})
        if shared.cells.transition(PROGRESS, lambda state: _advanced(state, name, words)):
            shared.events.append("largest-file", {"file": name, "words": words, "agent": self.number})
        txn.events.append("indexed", {"file": name, "words": words, "distinct": len(counts)})
        call = ToolCall(
            tool="count_words",
            args={"file": name},
            result={"words": words, "distinct": len(counts)},
            duration_ms=duration_ms,
        )
        txn.traces.record_child(parent, call, tags=["file"])

    def _report(self, txn: Transaction, summary: dict[str, Any]) -> None:
        txn.kv.put(FIGURES, asdict(self.figures))
        txn.for_run(self.plan.shared).events.append("batch-indexed", summary)

    def _commit(self, work: Any) -> None:
        """Run one transaction to its commit, counting how often it had to be tried again."""
        attempts = 0

        def attempt(txn: Transaction) -> None:
            nonlocal attempts
            attempts += 1
            work(txn)

        self.db.transaction(self.run_id, attempt)
        self.figures.commits += 1
        self.figures.conflicts += attempts - 1
        self.figures.retries += attempts - 1


def _advanced(state: State, name: str, words: int) -> tuple[dict[str, Any], bool]:
    """The shared progress with one more file; whether that is the largest one so far."""
    done = state.value
    is_largest = words > done["largest"]
    after = {
        "files": done["files"] + 1,
        "words": done["words"] + words,
        "largest": words if is_largest else done["largest"],
        "largest_file": name if is_largest else done["largest_file"],
    }
    return after, is_largest
