"""Runs a workload over real processes and judges it: prepare, start, wait, verify.

The runner owns the worker processes and the directory of tallies, histories and error files; campaigns use it
too, and kill processes that it started. Worker numbers are never used twice in a run, so a restarted worker
has a history and a tally of its own.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from occamdb.stress.checker import Report, check_history
from occamdb.stress.coordinators import leaked_segments, stop_coordinator, wait_until
from occamdb.stress.history import SUFFIX, HistoryWriter
from occamdb.stress.tally import Tally, totals
from occamdb.stress.worker import Context, Place, Settings, work
from occamdb.stress.workloads import Workload, get_workload

VERIFIER = 4095  # the worker number under which the runner itself reads at the end
START_TIMEOUT = 60.0
# A worker looks for the stop file after each step that took long, and a step takes no longer than the database's
# timeout, which is 60 s in the campaigns.
STOP_TIMEOUT = 90.0
STUCK_STOP_TIMEOUT = 10.0  # for workers that are known to make no progress
KILL_TIMEOUT = 10.0
STACK_TIMEOUT = 10.0
HUNG = -999  # in place of an exit code

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["occamdb.stress.worker", "occamdb.stress.workloads"])


@dataclass(slots=True)
class RunResult:
    """What came out of one run."""

    workload: str
    settings: Settings
    directory: Path
    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    lost: int = 0
    errors: list[str] = field(default_factory=list)
    report: Report | None = None
    account: list[str] = field(default_factory=list)

    @property
    def valid(self) -> bool:
        """True when every invariant held."""
        return not self.problems and (self.report is None or self.report.valid)

    def text(self) -> str:
        """An account for people."""
        counts = self.counts
        rate = counts["ok"] / self.seconds if self.seconds else 0.0
        tried = counts["ok"] + counts["conflict"] or 1
        lines = [
            f"{self.workload}: {self.settings.workers} workers, {self.seconds:.1f} s, seed {self.settings.seed}, "
            f"durability {self.settings.durability}, isolation {self.settings.isolation}",
            f"  {counts['ok']:,} committed ({rate:,.0f}/s), {counts['conflict']:,} conflicts "
            f"({counts['conflict'] / tried:.1%}), {counts['retries']:,} retries, {counts['refused']:,} refused, "
            f"{counts['unresolved']:,} with unknown outcome",
        ]
        lines += ["  " + line for line in self.account]
        lines += [f"  note: {error}" for error in self.errors[:10]]
        if self.report is not None:
            lines += ["  " + line for line in self.report.text().splitlines()]
        lines += [f"  PROBLEM: {problem}" for problem in self.problems[:20]]
        lines.append(f"  {'PASSED' if self.valid else 'FAILED; kept in ' + str(self.directory)}")
        return "\n".join(lines)


class Runner:
    """The processes and files of one run. Used by one thread."""

    def __init__(self, workload: Workload, settings: Settings, directory: Path):
        """Prepare the database and an empty directory for the workers' files.

        Args:
          workload: what to run.
          settings: with `path` set to the database's directory.
          directory: for tallies and histories; created, and emptied of an earlier run's files.
        """
        self.workload = workload
        self.settings = settings
        self.directory = directory
        if directory.exists():
            shutil.rmtree(directory)
        directory.mkdir(parents=True)
        self.processes: dict[int, BaseProcess] = {}
        self.started = 0
        self.exits: dict[int, int | None] = {}
        self.killed: set[int] = set()
        self.stacks: dict[int, str] = {}  # of workers that hung
        db = settings.open()
        try:
            workload.prepare(db, settings)
        finally:
            db.close()

    def start_worker(self) -> int:
        """Start one more worker; returns its number."""
        number = self.started
        self.started += 1
        place = Place(self.directory, number)
        process = _context.Process(
            target=work, args=(self.workload.name, self.settings, place), name=f"occam-stress-{number}"
        )
        process.start()
        self.processes[number] = process
        return number

    def start(self) -> None:
        """Start all workers and wait until they are at work; also again, after `stop`.

        Raises:
          RuntimeError: one did not come up; the message holds what it said.
        """
        Place(self.directory, 0).stop.unlink(missing_ok=True)
        for _ in range(self.settings.workers):
            self.start_worker()
        deadline = time.monotonic() + START_TIMEOUT
        for number, process in list(self.processes.items()):
            while not Place(self.directory, number).ready.exists():
                if not process.is_alive() or time.monotonic() > deadline:
                    said = self._errors_of(number)
                    self.kill_all()
                    raise RuntimeError(f"worker {number} did not start: {said or 'it said nothing'}")
                time.sleep(0.005)

    def alive(self) -> list[int]:
        """The numbers of the workers still running, after reaping the others."""
        for number, process in list(self.processes.items()):
            if not process.is_alive():
                process.join()
                self.exits[number] = process.exitcode
                del self.processes[number]
        return sorted(self.processes)

    def signal_worker(self, number: int, what: signal.Signals) -> None:
        """Send a signal to a worker this runner started; one that has ended is left alone."""
        process = self.processes.get(number)
        if process is None or not process.is_alive() or process.pid is None:
            return
        if what == signal.SIGKILL:
            self.killed.add(number)
        # `wait` in another thread may reap a worker that ended just now.
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, what)

    def wait(self, timeout: float, tick: Callable[[], None] = lambda: None) -> None:
        """Wait until every worker has ended; past `timeout` the rest are killed and reported as hung."""
        deadline = time.monotonic() + timeout
        while self.alive():
            tick()
            if time.monotonic() > deadline:
                self.exits.update(dict.fromkeys(self.processes, HUNG))
                self.stacks.update((number, self._stack_of(number)) for number in self.processes)
                self.kill_all()
                return
            time.sleep(0.01)

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """Ask the workers to end after their current transaction, and wait."""
        Place(self.directory, 0).stop.touch()
        for number in list(self.processes):
            self.signal_worker(number, signal.SIGCONT)
        self.wait(timeout)

    def kill_all(self) -> None:
        """End every worker at once. One that SIGKILL does not end within KILL_TIMEOUT counts as hung."""
        for process in self.processes.values():
            process.kill()
        deadline = time.monotonic() + KILL_TIMEOUT
        for number, process in self.processes.items():
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                self.exits[number] = HUNG
        self.processes.clear()

    def _stack_of(self, number: int) -> str:
        """Where a worker stands, as it tells when asked by a signal; empty if it does not."""
        place = Place(self.directory, number)
        self.signal_worker(number, signal.SIGUSR1)
        # Its outermost frame comes last.
        wait_until(lambda: "in <module>" in _text_of(place.stack), STACK_TIMEOUT)
        return _text_of(place.stack)

    def progress(self, number: int) -> int:
        """How many commits of a worker were acknowledged so far."""
        path = Place(self.directory, number).tally
        if not path.exists():
            return 0
        tally = Tally(path, self.workload.counters)
        try:
            return tally.get("ok")
        finally:
            tally.close()

    def tallies(self) -> list[dict[str, int]]:
        """The counters of every worker there ever was."""
        found = []
        for path in sorted(self.directory.glob("*.tally")):
            tally = Tally(path, self.workload.counters)
            found.append(tally.read())
            tally.close()
        return found

    def exit_problems(self) -> list[str]:
        """What is wrong with how the workers ended: one that hung, or that ended otherwise than it was told to."""
        problems = []
        for number, code in sorted(self.exits.items()):
            if code == HUNG:
                stack = self.stacks.get(number) or "it does not say where"
                problems.append(f"worker {number} did not end when asked to: it hangs\n{stack}")
            elif code and number not in self.killed:
                problems.append(f"worker {number} ended with code {code}: {self._errors_of(number)}")
        return problems

    def verify(self, seconds: float) -> RunResult:
        """Read the database back and judge everything; call it when no worker runs."""
        result = RunResult(self.workload.name, self.settings, self.directory, seconds)
        tallies = self.tallies()
        result.counts = totals(tallies)
        result.account = self.workload.account(result.counts, tallies)
        result.problems += self.exit_problems()
        for number in range(self.started):
            said = self._errors_of(number)
            if not self.exits.get(number) or number in self.killed:
                for line in said.splitlines():
                    listed = result.problems if line.startswith("problem: ") else result.errors
                    listed.append(f"worker {number}: {line}")
        db = self.settings.open()
        try:
            context = self._verifier(db)
            found = self.workload.verify(context, result.counts, tallies)
            result.problems += found
            result.lost = sum(problem.lost for problem in found)
            if context.history is not None:
                context.history.close()
        finally:
            db.close()
        if self.workload.history_kind and any(self.directory.glob(f"*{SUFFIX}")):
            level = "snapshot" if self.settings.isolation == "snapshot" else "strict-serializable"
            result.report = check_history(self.directory, level)
            if "vanished-write" in result.report.anomalies:
                result.lost += result.report.anomalies["vanished-write"].count
        return result

    def _verifier(self, db: Any) -> Context:
        place = Place(self.directory, VERIFIER)
        history = None
        if self.workload.history_kind:
            history = HistoryWriter(place.history, kind=self.workload.history_kind, worker=VERIFIER)
        tally = Tally(place.tally, self.workload.counters)
        return Context(db, self.settings, place, tally, history)

    def _errors_of(self, number: int) -> str:
        return _text_of(Place(self.directory, number).errors)


def _text_of(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


def run_workload(name: str, settings: Settings, directory: Path) -> RunResult:
    """Run a workload from start to verdict.

    Args:
      name: a name `occamdb stress list` shows.
      settings: with `path` set.
      directory: for the workers' files; kept.

    The database is left closed, its coordinator stopped.
    """
    runner = Runner(get_workload(name), settings, directory)
    try:
        runner.start()
        began = time.monotonic()
        limit = settings.seconds * 2 + STOP_TIMEOUT if settings.seconds else float("inf")
        runner.wait(limit)
        result = runner.verify(max(settings.seconds, time.monotonic() - began))
    finally:
        runner.kill_all()
        stopped = stop_coordinator(settings.path)
    if not stopped:
        result.problems.append("the coordinator did not end within 30 s of SIGTERM")
    result.problems += [f"shared memory was left behind: {name}" for name in leaked_segments(settings.path)]
    return result
