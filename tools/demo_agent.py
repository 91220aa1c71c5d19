"""One agent of the demo: a process that claims batches of files, counts their words and merges them into the index.

Every agent is a run of its own beneath the shared run. For each file one transaction spans both runs:

    shared run   word counts      KV increments: merged by the coordinator, never a conflict
                 batch            a task: its claim is extended, and with the last file the task is completed
                 batch's cell     state cell: how many of its files are done
                 progress         state cell, read and written by everybody: conflicts, so the transaction retries
                 findings         event log: batches finished, the largest file so far
    agent's run  its own events and traces of what it did and why

1. A file is counted exactly once: its counts and the progress of its batch are one commit, and that commit is refused
   unless the batch is still claimed by this agent.
2. An agent that goes, goes in the middle of a batch: its task is ready again at once. The agent that claims it next
   goes on behind the last file that was committed.
3. Nothing is kept outside the database.
4. In a demo with several agents, the one that would index the first file of the second half says so and waits for its
   death. Its parent process kills it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from occamdb.tools.corpus import count_words

if TYPE_CHECKING:
    from occamdb import Database, RunId, Task, Transaction
    from occamdb.primitives import State

T = TypeVar("T")

WORD = "word/"
PROGRESS = "progress"
FIGURES = "figures"
BATCHES = "batches"
VICTIM = "victim"
TAKEN_OVER = "taken-over"
NOTHING_DONE = {"files": 0, "words": 0, "largest": 0, "largest_file": ""}


@dataclass(frozen=True)
class Plan:
    """What all agents share. Pickles.

    Attributes:
      shared: the run of the index.
      directory: what is indexed.
      files: relative paths, in the order of the work.
      batch_size: how many files one claim covers.
      kills: one agent is to be killed half-way.
    """

    shared: RunId
    directory: Path
    files: list[str]
    batch_size: int
    kills: bool = False

    @property
    def batch_count(self) -> int:
        """How many claims there are to make."""
        return -(-len(self.files) // self.batch_size)

    def batch(self, number: int) -> list[str]:
        """The files of one claim."""
        return self.files[number * self.batch_size : (number + 1) * self.batch_size]


@dataclass
class Figures:
    """What one agent did, kept under `FIGURES` in its run; each commit that indexes a file brings it up to date."""

    files: int = 0
    words: int = 0
    key_updates: int = 0
    batches: int = 0
    taken_over: int = 0
    commits: int = 0
    conflicts: int = 0
    retries: int = 0
    seconds: float = 0.0

    def __add__(self, other: Figures) -> Figures:
        mine, theirs = asdict(self), asdict(other)
        return Figures(**{name: mine[name] + theirs[name] for name in mine})


def cell_name(batch: int) -> str:
    """The cell of one batch."""
    return f"batch/{batch:06}"


def prepare(db: Database, plan: Plan) -> None:
    """Create what every agent reads; once, before the first agent starts."""
    db.cells.init(plan.shared, PROGRESS, dict(NOTHING_DONE))
    db.tasks.put_many(plan.shared, BATCHES, range(plan.batch_count))


def run_agent(db: Database, plan: Plan, number: int) -> Figures:
    """Work until every batch is done. The main function of an agent process; also runs in the parent's.

    Args:
      db: attached anew in this process when it was sent to one.
      plan: the same for all agents.
      number: which agent this is.

    Returns:
      What it did; the same figures are in its run.
    """
    from occamdb import LeaseLost

    tags = ["demo", "agent"]
    with db.runs.start(f"indexer-{number}", parent=plan.shared, tags=tags) as run:
        agent = _Agent(db, plan, number, run.run_id)
        while (task := agent.claim()) is not None:
            # Lost: this process was stopped for longer than the lease, and another agent goes on.
            with contextlib.suppress(LeaseLost):
                agent.index_batch(task)
        agent.finish()
    return agent.figures


@dataclass(frozen=True)
class _File:
    """A file that was counted: where it is in which batch."""

    task: Task
    position: int
    name: str
    counts: Counter[str]
    duration_ms: float


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

    def claim(self) -> Task | None:
        """Claim a batch; wait for one while others work on theirs, since they may be killed. None: all are done."""
        shared = self.plan.shared
        while True:
            task = self.db.tasks.claim(shared, BATCHES)
            if task is not None:
                self.figures.commits += 1
                return task
            if not self.db.transaction(shared, _more_to_come):
                return None

    def index_batch(self, task: Task) -> None:
        """Count and merge each file of a batch that is ours; the last one completes it."""
        from occamdb.primitives import Decision

        batch: int = task.payload
        files = self.plan.batch(batch)
        done = self._begun(task, len(files))
        decision = Decision(
            question="which batch next?",
            options=[cell_name(b) for b in range(batch, min(batch + 3, self.plan.batch_count))],
            chosen=cell_name(batch),
            reasoning="the first one that is ready" if not done else "another agent left it unfinished",
        )
        parent = self.db.traces.record_child(self.run_id, self.root, decision, tags=["batch"])
        self.figures.commits += 1
        for position in range(done, len(files)):
            self._index_file(task, position, files[position], parent)

    def finish(self) -> None:
        """Leave the final figures."""
        self.figures.seconds = time.monotonic() - self.started
        self.figures.commits += 1  # the one that stores them
        self.db.kv.put(self.run_id, FIGURES, asdict(self.figures))

    def _begun(self, task: Task, files: int) -> int:
        """How many files of the batch an agent before us has indexed; takes note of it if there was one."""
        if task.attempts == 1:
            return 0
        cell = self.db.cells.read(self.plan.shared, cell_name(task.payload))
        done: int = cell.value["done"] if cell else 0
        note = {"agent": self.number, "batch": task.payload, "done": done, "files": files}
        self.db.events.append(self.plan.shared, TAKEN_OVER, note)
        self.figures.commits += 1
        self.figures.taken_over += 1
        return done

    def _index_file(self, task: Task, position: int, name: str, parent: Any) -> None:
        started = time.perf_counter()
        counts = count_words(self.plan.directory / name)
        file = _File(task, position, name, counts, (time.perf_counter() - started) * 1000)
        if self._commit(lambda txn: self._merge(txn, file, parent)):
            self.figures = self._with(file)
            return
        while True:
            signal.pause()  # until we are killed, with the claim in our hands

    def _with(self, file: _File) -> Figures:
        """Our figures behind the commit of a file."""
        ends = file.position + 1 == len(self.plan.batch(file.task.payload))
        seconds = time.monotonic() - self.started - self.figures.seconds
        words = file.counts.total()
        more = Figures(files=1, words=words, key_updates=len(file.counts), batches=int(ends), seconds=seconds)
        return self.figures + more

    def _merge(self, txn: Transaction, file: _File, parent: Any) -> bool:
        """Everything one file changes, in both runs. False: nothing, since this agent is the one to be killed."""
        from occamdb.primitives import ToolCall

        task, batch, words, distinct = file.task, file.task.payload, file.counts.total(), len(file.counts)
        shared = txn.for_run(self.plan.shared)
        if self.plan.kills and self._is_victim(shared, file):
            return False
        for word, count in file.counts.items():
            shared.kv.increment(WORD + word, count)
        files = len(self.plan.batch(batch))
        shared.cells.set(cell_name(batch), {"agent": self.number, "done": file.position + 1})
        if file.position + 1 < files:
            shared.tasks.extend(task)
        else:
            shared.tasks.complete(task, {"agent": self.number})
            summary = {"agent": self.number, "batch": batch, "files": files}
            shared.events.append("batch-indexed", summary)
        if shared.cells.transition(PROGRESS, lambda state: _advanced(state, file.name, words)):
            shared.events.append("largest-file", {"file": file.name, "words": words, "agent": self.number})
        txn.kv.put(FIGURES, asdict(self._with(file)))
        txn.events.append("indexed", {"file": file.name, "words": words, "distinct": distinct})
        call = ToolCall(
            tool="count_words",
            args={"file": file.name},
            result={"words": words, "distinct": distinct},
            duration_ms=file.duration_ms,
        )
        txn.traces.record_child(parent, call, tags=["file"])
        return True

    def _is_victim(self, shared: Transaction, file: _File) -> bool:
        """Whether half of the files are done, and nobody else is the one to be killed: then it is us."""
        progress = shared.cells.read(PROGRESS)
        if (
            progress is None
            or progress.value["files"] < len(self.plan.files) // 2
            or shared.kv.exists(VICTIM)
        ):
            return False
        victim = {"agent": self.number, "pid": os.getpid(), "batch": file.task.payload, "done": file.position}
        shared.kv.put(VICTIM, victim | {"run": self.run_id})
        return True

    def _commit(self, work: Callable[[Transaction], T]) -> T:
        """Run one transaction to its commit, counting how often it had to be tried again."""
        attempts = 0

        def attempt(txn: Transaction) -> T:
            nonlocal attempts
            attempts += 1
            return work(txn)

        result = self.db.transaction(self.run_id, attempt)
        self.figures.commits += 1
        self.figures.conflicts += attempts - 1
        self.figures.retries += attempts - 1
        return result


def _more_to_come(txn: Transaction) -> bool:
    """Wait for a change while others work on the last batches. Whether there is still something to do."""
    stats = txn.tasks.stats(BATCHES)
    if not stats.ready and stats.claimed:
        txn.wait()
    return stats.ready > 0


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
