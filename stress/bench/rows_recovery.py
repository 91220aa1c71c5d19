"""Rows on what happens around commits: recovery, replay, failover, checkpoints beside commits."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

from occamdb.ipc.errors import OccamError
from occamdb.ipc.process import is_alive
from occamdb.stress.bench.model import OCCAM, Row, Scale, Target, own_row
from occamdb.stress.bench.occam import SoloSide, fill, open_db
from occamdb.stress.bench.stores import RUN, key_name, value_of
from occamdb.stress.bench.tasks import StoreTask
from occamdb.stress.coordinators import signal_coordinator, stop_coordinator, wait_until

NO_CHECKPOINTS: dict[str, Any] = {"checkpoint_bytes": 64 << 30, "checkpoint_interval": 0.0}
PER_TRANSACTION = 10
VALUE = "v" * 97  # with its msgpack head 99 bytes


def kill_coordinator(path: Path) -> None:
    """SIGKILL, and wait until it is gone."""
    identity = signal_coordinator(str(path / "occam"), signal.SIGKILL)
    if identity is not None:
        wait_until(lambda: not is_alive(identity), 10.0)


class _StartUp(SoloSide):
    """Base: how long `open` takes on a directory, starting a coordinator each time."""

    options = NO_CHECKPOINTS

    def timed_open(self) -> float:
        """Open, time it, and kill the coordinator again, so that nothing on disk changes."""
        began = time.perf_counter()
        db = open_db(self.path, **self.options)
        took = time.perf_counter() - began
        db.close()
        kill_coordinator(self.path)
        return took

    def measure(self, scale: Scale) -> float:
        """Seconds."""
        return self.timed_open()


class EmptyOpen(_StartUp):
    """Opening an empty database: what starting a process costs."""

    def setup(self, scratch: Path, scale: Scale) -> None:
        """Make the directory."""
        super().setup(scratch, scale)
        self.timed_open()


class CheckpointRecovery(_StartUp):
    """Opening a database that lies in a checkpoint."""

    def setup(self, scratch: Path, scale: Scale) -> None:
        """Fill, checkpoint, end."""
        super().setup(scratch, scale)
        count = scale.count(1_000_000)
        db = open_db(self.path, **self.options)
        fill(db, ((key_name(index), VALUE) for index in range(count)))
        db.checkpoint()
        db.close()
        kill_coordinator(self.path)
        self._notes["keys"] = count


class LogReplay(_StartUp):
    """Opening a database that lies in its log; entries a second, process start subtracted."""

    def setup(self, scratch: Path, scale: Scale) -> None:
        """Fill without a checkpoint, kill; and an empty database for comparison."""
        super().setup(scratch, scale)
        transactions = scale.count(100_000)
        db = open_db(self.path, **self.options)
        for start in range(0, transactions * PER_TRANSACTION, PER_TRANSACTION):
            with db.begin(RUN) as txn:
                for index in range(start, start + PER_TRANSACTION):
                    txn.put(key_name(index), VALUE)
        db.close()
        kill_coordinator(self.path)
        self.entries = transactions * (PER_TRANSACTION + 2)  # with BeginTxn and CommitTxn
        self._notes["entries"] = self.entries
        self._empty = EmptyOpen()
        (scratch / "empty").mkdir()
        self._empty.setup(scratch / "empty", scale)

    def measure(self, scale: Scale) -> float:
        """Entries a second."""
        start_up = self._empty.measure(scale)
        return self.entries / max(1e-3, self.timed_open() - start_up)


class Failover(SoloSide):
    """From SIGKILL of the coordinator to the next commit of a worker that waits for it."""

    def setup(self, scratch: Path, scale: Scale) -> None:
        """100,000 keys, half of them in a checkpoint and half in the log."""
        super().setup(scratch, scale)
        count = scale.count(100_000)
        self.db = self.opened(open_db(self.path))
        fill(self.db, ((key_name(index), value_of(index)) for index in range(count // 2)))
        self.db.checkpoint()
        fill(self.db, ((key_name(index), value_of(index)) for index in range(count // 2, count)))

    def measure(self, scale: Scale) -> float:
        """Milliseconds."""
        time.sleep(0.3)  # let the new coordinator settle from the sample before
        identity = signal_coordinator(str(self.path / "occam"), signal.SIGKILL)
        began = time.perf_counter()
        if identity is None:
            raise RuntimeError("no coordinator runs that could be killed")
        with self.db.begin(RUN) as txn:
            txn.put("failover", time.time())
        return (time.perf_counter() - began) * 1e3


class CheckpointInterference(SoloSide):
    """The share of its commit rate that a worker keeps while a large checkpoint is written."""

    def setup(self, scratch: Path, scale: Scale) -> None:
        """Fill and start one committing worker."""
        super().setup(scratch, scale)
        count = scale.count(1_000_000)
        self.db = self.opened(open_db(self.path))
        fill(self.db, ((key_name(index), VALUE) for index in range(count)))
        fill(self.db, ((key_name(index), value_of(index)) for index in range(1000)))
        self.workers = self.pool([StoreTask(OCCAM, scratch, "update", "standard", range(1000))])
        self.workers.run(scale.warm_up)
        self._notes["keys"] = count

    def measure(self, scale: Scale) -> float:
        """Commits during back-to-back checkpoints over commits without."""
        quiet, _ = self.workers.run(scale.seconds)
        ended = threading.Event()
        made: list[float] = []

        def checkpoints() -> None:
            while not ended.is_set():
                began = time.perf_counter()
                try:
                    self.db.checkpoint()
                except OccamError:
                    continue
                made.append(time.perf_counter() - began)

        thread = threading.Thread(target=checkpoints)
        thread.start()
        try:
            busy, _ = self.workers.run(scale.seconds)
        finally:
            ended.set()
            thread.join()
        self._notes["checkpoint_seconds"] = max(made, default=0.0)
        return busy / max(1, quiet)

    def close(self) -> None:
        """Also the coordinator, whose memory is large."""
        super().close()
        stop_coordinator(str(self.path / "occam"))


def recovery_rows() -> list[Row]:
    """The rows of recovery, in which no peer takes part."""
    return [
        own_row(
            "open-empty",
            "opening an empty database, coordinator start included",
            "s",
            {OCCAM: EmptyOpen},
            "recovery",
        ),
        own_row(
            "recovery-checkpoint",
            "opening 1,000,000 keys of 100 bytes from a checkpoint",
            "s",
            {OCCAM: CheckpointRecovery},
            "recovery",
            target=Target(absolute=2.0),
            repeat_max=5,
        ),
        Row(
            "replay",
            "log replay, 1,200,000 entries",
            "entries/s",
            {OCCAM: LogReplay},
            "recovery",
            baseline=None,
            target=Target(absolute=400_000),
            repeat_max=5,
        ),
        own_row(
            "failover",
            "SIGKILL of the coordinator to the next commit, 100,000 keys",
            "ms",
            {OCCAM: Failover},
            "recovery",
            target=Target(absolute=500),
        ),
        Row(
            "checkpoint-interference",
            "share of the commit rate kept during checkpoints of 1,000,000 keys",
            "of 1",
            {OCCAM: CheckpointInterference},
            "recovery",
            baseline=None,
            target=Target(absolute=0.7),
            repeat_max=5,
        ),
    ]
