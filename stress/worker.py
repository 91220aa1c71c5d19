"""One worker process of a workload: the loop, and the context a workload's steps run in.

Every step makes transactions through the context, which counts each outcome in the worker's tally (and, for
workloads that record, in its history) so that the run can be judged even after the worker was killed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import occamdb
from occamdb.engine.model.errors import CommitOutcomeUnknown, ConflictError
from occamdb.ipc.errors import OccamError
from occamdb.stress.history import HistoryWriter, Op
from occamdb.stress.tally import Tally
from occamdb.stress.workloads.base import RUN

CHECK_SECONDS = 0.5  # at most so long between two looks for the stop file, unless one step takes longer
RESOLVE_SECONDS = 120.0  # how long a server is asked for an outcome
PAUSE_AFTER_ERROR = 0.01  # seconds: a full store or a missing coordinator is not asked again at once


@dataclass(slots=True)
class Settings:
    """The options of `occamdb stress run`. Each workload has its own default for `keys`."""

    path: str = ""
    workers: int = 4
    seconds: float = 5.0
    count: int = 0  # transactions per worker; 0: as many as fit in `seconds`
    seed: int = 1
    keys: int = 16  # fewer keys are more contention
    reads: float = 0.3  # the share of read-only transactions, where a workload has them
    durability: str = "standard"
    isolation: str = "serializable"
    options: dict[str, Any] = field(default_factory=dict)  # further keywords of `occamdb.open`

    def open(self) -> occamdb.Database:
        """Attach to the workload's database."""
        return occamdb.open(
            self.path,
            durability=occamdb.Durability(self.durability),
            isolation=occamdb.Isolation(self.isolation),
            **self.options,
        )

    def meta(self) -> dict[str, Any]:
        """What a history keeps about its run."""
        return asdict(self)


@dataclass(slots=True)
class Place:
    """Where one worker keeps its files."""

    directory: Path
    worker: int

    @property
    def tally(self) -> Path:
        """Its counters."""
        return self.directory / f"{self.worker:04d}.tally"

    @property
    def history(self) -> Path:
        """Its history."""
        return self.directory / f"{self.worker:04d}.hist"

    @property
    def errors(self) -> Path:
        """What it has to say about errors, one a line."""
        return self.directory / f"{self.worker:04d}.errors"

    @property
    def stack(self) -> Path:
        """Where it stood when it got SIGUSR1."""
        return self.directory / f"{self.worker:04d}.stack"

    @property
    def ready(self) -> Path:
        """Exists once the worker is at work."""
        return self.directory / f"{self.worker:04d}.ready"

    @property
    def stop(self) -> Path:
        """All workers of the directory end soon after this file appears."""
        return self.directory / "stop"


@dataclass(slots=True)
class Outcome:
    """What became of one transaction. `version` is 0 unless it committed."""

    name: str
    version: int = 0
    result: Any = None

    @property
    def ok(self) -> bool:
        """True when it was acknowledged."""
        return self.name == "ok"


class Context:
    """What a step sees: the database, dice, and transactions that are counted."""

    def __init__(
        self,
        db: occamdb.Database,
        settings: Settings,
        place: Place,
        tally: Tally,
        history: HistoryWriter | None,
    ):
        """Wrap an attached database for the worker of `place`."""
        self.db = db
        self.settings = settings
        self.place = place
        self.worker = place.worker
        self.tally = tally
        self.history = history
        self.dice = random.Random(f"{settings.seed}/{place.worker}")
        self.count = 0  # unique within the worker, for values nobody else writes
        self.state: dict[str, Any] = {}
        self._said: set[str] = set()

    def next_count(self) -> int:
        """1, 2, 3, ... in this worker."""
        self.count += 1
        return self.count

    def attempt(
        self,
        body: Callable[[occamdb.Transaction], Any],
        *,
        run: Any = RUN,
        read_only: bool = False,
        sums_of: Callable[[Any], dict[str, int]] | None = None,
        **sums: int,
    ) -> Outcome:
        """Run one transaction without retries and count its outcome.

        Args:
          body: reads and writes in the transaction it is given; its result is `Outcome.result`.
          run: the run it works in.
          read_only: begin it so.
          sums_of: tells from the result which counters of the workload to raise if it commits.
          sums: counters to raise whatever the result is.
        """
        self.tally.add("begun")
        try:
            txn = self.db.begin(run, read_only=read_only)
            try:
                result = body(txn)
                receipt = txn.commit()
            except BaseException:
                _abort(txn)
                raise
            version = receipt.version
        except CommitOutcomeUnknown as error:
            found = self.resolved(error)
            if not found:
                return self.failed(error, resolved=found is not None)
            version = found
        except OccamError as error:
            return self.failed(error)
        if sums_of is not None:
            sums |= sums_of(result)
        for name, amount in sums.items():  # before `ok`: a kill in between leaves the transaction unresolved
            self.tally.add(name, amount)
        self.tally.add("ok")
        return Outcome("ok", version, result)

    def resolved(self, error: CommitOutcomeUnknown) -> int | None:
        """Ask a server what became of a commit: its version, 0: it did not happen; None: nobody can say."""
        backend = getattr(self.db.handle, "backend", None)
        if backend is None or error.txn_id is None:
            return None
        end = time.monotonic() + RESOLVE_SECONDS
        while time.monotonic() < end:
            try:
                found = backend.outcome(*error.txn_id)
            except OccamError as refusal:
                self._say(f"{refusal.code}: {refusal}", f"outcome {refusal.code}")
                time.sleep(PAUSE_AFTER_ERROR)
                continue
            self.tally.add("resolved")
            return int(found[0]) if found is not None else 0
        return None

    def retried(self, body: Callable[[occamdb.Transaction], Any], *, run: Any = RUN, **sums: int) -> Outcome:
        """Run one transaction with the database's own retries and count its outcome."""
        calls = 0

        def counted(txn: occamdb.Transaction) -> Any:
            nonlocal calls
            calls += 1
            return body(txn)

        self.tally.add("begun")
        try:
            result = self.db.transaction(run, counted)
        except CommitOutcomeUnknown as error:
            found = self.resolved(error)
            if not found:
                return self.failed(error, resolved=found is not None)
            result = None
        except OccamError as error:
            return self.failed(error)
        finally:
            self.tally.add("retries", max(0, calls - 1))
        for name, amount in sums.items():
            self.tally.add(name, amount)
        self.tally.add("ok")
        return Outcome("ok", 0, result)

    def failed(self, error: OccamError, *, resolved: bool = False) -> Outcome:
        """Count a transaction that ended with an error, by what the error promises.

        Args:
          resolved: it is known by now that the transaction did not happen.
        """
        if isinstance(error, CommitOutcomeUnknown) and not resolved:
            name = "unknown"
        elif isinstance(error, ConflictError):
            name = "conflict"
        else:
            name = "refused"
            self._say(f"{error.code}: {error}", error.code)
        self.tally.add(name)
        if name == "unknown":
            self._say(f"{error.code}: {error}", error.code)
        if name != "conflict":
            time.sleep(PAUSE_AFTER_ERROR)
        return Outcome(name)

    def recorded(self, ops: list[Op], body: Callable[[occamdb.Transaction], list[Any]]) -> Outcome:
        """Run a transaction whose body returns the results of its reads, and record it in the history."""
        number = self.history.invoke(ops) if self.history else 0
        outcome = self.attempt(body)
        if self.history is None:
            return outcome
        if outcome.ok:
            writes = any(op[0] != "r" for op in ops)
            self.history.ok(number, outcome.result, outcome.version if writes else 0)
        elif outcome.name == "unknown":
            self.history.unknown(number)
        else:
            self.history.conflict(number)
        return outcome

    def problem(self, text: str) -> None:
        """A broken invariant seen by this worker; the run fails with it."""
        self.tally.add("problems")
        self._say(f"problem: {text}", text[:40])

    def _say(self, line: str, once: str) -> None:
        """Write a line to the worker's error file at once, for it may be killed; one line of each kind."""
        if once not in self._said:
            self._said.add(once)
            with open(self.place.errors, "a") as file:
                file.write(line.replace("\n", " ") + "\n")


def _abort(txn: occamdb.Transaction) -> None:
    with contextlib.suppress(OccamError):  # already ended by the failure that brought us here
        txn.abort()


def work(workload_name: str, settings: Settings, place: Place) -> None:
    """The main function of a worker process: steps until time, count or the stop file ends it."""
    from occamdb.stress.workloads import get_workload

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the runner, which ends its workers in order
    stack = open(place.stack, "w")  # noqa: SIM115  open for as long as the process lives
    faulthandler.register(signal.SIGUSR1, stack)
    workload = get_workload(workload_name)
    tally = Tally(place.tally, workload.counters)
    history = None
    if workload.history_kind:
        history = HistoryWriter(
            place.history,
            kind=workload.history_kind,
            worker=place.worker,
            meta={"workload": workload_name, **settings.meta()},
        )
    context: Context | None = None
    try:
        context = Context(settings.open(), settings, place, tally, history)
        place.ready.touch()
        _loop(workload.step, context, settings, place)
    except Exception:
        tally.add("problems")
        with open(place.errors, "a") as file:
            file.write(traceback.format_exc())
        raise SystemExit(1) from None
    finally:
        if context is not None:
            context.db.close()


def _loop(step: Callable[[Context], None], context: Context, settings: Settings, place: Place) -> None:
    now = time.monotonic()
    end = now + settings.seconds if settings.seconds else float("inf")
    stop, done, next_check = place.stop, 0, now + CHECK_SECONDS
    while not (settings.count and done >= settings.count):
        step(context)
        done += 1
        now = time.monotonic()
        if now >= end:
            return
        # One stat in 32 steps keeps the stop file cheap, for a step is well under a millisecond on average. But one
        # that waits for a coordinator may take as long as the database's timeout.
        if done % 32 == 0 or now >= next_check:
            next_check = now + CHECK_SECONDS
            if os.path.exists(stop):
                return
