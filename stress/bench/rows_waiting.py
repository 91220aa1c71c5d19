"""Rows on waiting: what followers and sleepers cost the commits of others, and how soon a waiter wakes."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from occamdb.engine.model.errors import WatchLagged
from occamdb.ipc.errors import OccamError
from occamdb.stress.bench.model import OCCAM, Row, Target, own_row
from occamdb.stress.bench.occam import OccamTask
from occamdb.stress.bench.pool import Task
from occamdb.stress.bench.rows_engine import PRIVATE_KEYS
from occamdb.stress.bench.stores import RUN
from occamdb.stress.bench.tasks import PoolSide, store_side
from occamdb.stress.bench.wake_up import WAYS, BlockedSide, WakeUpSide

SLEEPER_PROCESSES = 10
SLEEPERS_IN_EACH = 10
READ_SECONDS = 0.02  # how long a follower's step waits for more


@dataclass
class FollowerTask(OccamTask):
    """Reads every change of the run that the others write."""

    seen: int = field(init=False, default=0)
    lagged: int = field(init=False, default=0)

    def prepare(self) -> None:
        """From now on."""
        self.watch = self.db.watch(RUN, timeout=READ_SECONDS)

    def step(self) -> int:
        """What lies ready, or else what comes soon; these are not the operations that are counted."""
        try:
            found = self.watch.ready()
            if not found:
                found = next(self.watch.commits(), [])
        except WatchLagged as lag:
            self.lagged += 1
            self.watch.close()
            self.watch = self.db.watch(RUN, since=max(lag.oldest, self.watch.version), timeout=READ_SECONDS)
            return 0
        self.seen += len(found)
        return 0

    def notes(self) -> dict[str, Any]:
        """How far behind it is at the end of a window, as a list so that it is not summed."""
        with self.db.begin(RUN, read_only=True) as txn:
            newest = txn.start_version
        seen, lagged = self.seen, self.lagged
        self.seen = self.lagged = 0
        return {"behind": [newest - self.watch.version], "followed": seen, "lagged": lagged}

    def close(self) -> None:
        """Detach."""
        self.watch.close()
        super().close()


@dataclass
class SleepersTask(OccamTask):
    """Threads that wait in runs in which nothing happens."""

    def prepare(self) -> None:
        """Put them to sleep, and see that they are."""
        self.threads = [
            threading.Thread(target=self._sleep, args=(uuid.uuid4(),), daemon=True)
            for _ in range(SLEEPERS_IN_EACH)
        ]
        for thread in self.threads:
            thread.start()
        self.over = threading.Event()

    def _sleep(self, run: uuid.UUID) -> None:
        with contextlib.suppress(OccamError):  # closing the database ends it
            self.db.kv.wait(run, "never")

    def step(self) -> int:
        """Nothing."""
        self.over.wait(0.05)
        return 0

    def notes(self) -> dict[str, Any]:
        """How many of them still sleep."""
        return {"asleep": [sum(thread.is_alive() for thread in self.threads)]}


def _commits_side(
    processes: int, beside: Callable[[Path], Sequence[Task]] = lambda scratch: ()
) -> Callable[[], PoolSide]:
    """Read-modify-write commits of some processes, beside tasks that commit nothing."""
    base = store_side(OCCAM, "update", processes=processes, private=PRIVATE_KEYS, durability="standard")

    def side() -> PoolSide:
        writers = base()

        def metric(count: int, notes: dict[str, Any], seconds: float) -> float:
            shown = made.notes()
            for name in ("behind", "asleep"):
                if name in notes:
                    shown[name] = max(shown.get(name, 0), sum(notes[name]))
            return count / seconds

        made = PoolSide(
            lambda scratch, scale: [*writers.make(scratch, scale), *beside(scratch)], metric=metric
        )
        return made

    return side


def _follower(scratch: Path) -> Sequence[Task]:
    return [FollowerTask(scratch)]


def _sleepers(scratch: Path) -> Sequence[Task]:
    return [SleepersTask(scratch) for _ in range(SLEEPER_PROCESSES)]


def _beside_row(
    name: str, title: str, processes: int, beside: Callable[[Path], Sequence[Task]], least: float
) -> Row:
    plural = "es" if processes > 1 else ""
    return Row(
        f"{name}-{processes}",
        f"commits of {processes} process{plural} {title}",
        "commits/s",
        {OCCAM: _commits_side(processes, beside), "unwatched": _commits_side(processes)},
        "waiting",
        baseline="unwatched",
        target=Target(ratio=least),
    )


def waiting_rows() -> list[Row]:
    """Commits beside followers and sleepers, wake-ups beside peers, and what sleeping costs."""
    return [
        *(_beside_row("followed", "with one follower of everything", n, _follower, 0.85) for n in (1, 4)),
        *(_beside_row("beside-sleepers", "beside 100 sleeping waiters", n, _sleepers, 0.97) for n in (1, 4)),
        Row(
            "wake-up",
            "from before a commit until a waiter in another process has it",
            "us",
            {way: partial(WakeUpSide, way) for way in WAYS},
            "waiting",
            baseline="mp.Queue",
            more_is_better=False,
            target=Target(absolute=60.0, ratio=1.0, of_best=True),
        ),
        own_row(
            "blocked-wait",
            "processor time of a transaction that waits for 10 s",
            "ms",
            {OCCAM: BlockedSide},
            "waiting",
            target=Target(absolute=10.0),
            repeat_max=1,
        ),
    ]
