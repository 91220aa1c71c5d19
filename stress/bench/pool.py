"""Worker processes that start measuring at the same instant.

Each worker opens what it needs, says so, and waits. A measurement sends all of them one start instant a
little ahead on CLOCK_MONOTONIC, which all processes share; each runs steps until the end instant and answers
with what it did. Work done outside the window is not counted, so a slow start costs nobody.

The processes come from a fork server, so none inherits an open database, and starting 16 is quick.
"""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any, Protocol

HEAD_START = 0.02  # seconds between the order and the start; enough for every worker to have read it
ANSWER_TIMEOUT = 120.0

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["occamdb.stress.bench.pool", "msgpack"])


class Task(Protocol):
    """What one worker does; pickled to it. All calls happen in the worker."""

    def open(self) -> None:
        """Open databases and draw keys; not measured."""

    def step(self) -> int:
        """Do a small fixed amount of work (well under 100 ms); returns the number of operations done."""

    def notes(self) -> dict[str, float]:
        """Counters since the last call; summed over workers. Lists go under a key of `samples`."""

    def close(self) -> None:
        """Let go of everything."""


class WorkerFailed(RuntimeError):
    """A worker raised; the message is its traceback."""


class Pool:
    """A set of worker processes, one task each. Used by one thread."""

    def __init__(self, tasks: Sequence[Task]):
        """Start one process a task and wait until all are ready.

        Raises:
          WorkerFailed: a task's `open` raised.
        """
        self._workers: list[tuple[Any, Connection]] = []
        try:
            for task in tasks:
                mine, theirs = _context.Pipe()
                process = _context.Process(target=_serve, args=(theirs, task), daemon=True)
                process.start()
                theirs.close()
                self._workers.append((process, mine))
            for _, connection in self._workers:
                self._answer(connection)
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """The workers' process ids."""
        return [process.pid for process, _ in self._workers]

    def run(self, seconds: float) -> tuple[int, dict[str, Any]]:
        """Let all workers work for `seconds`; returns (operations done in the window, summed notes)."""
        start = time.monotonic() + HEAD_START
        for _, connection in self._workers:
            connection.send((start, seconds))
        total = 0
        notes: dict[str, Any] = {}
        for _, connection in self._workers:
            count, mine = self._answer(connection)
            total += count
            for name, value in mine.items():
                notes[name] = notes[name] + value if name in notes else value
        return total, notes

    def _answer(self, connection: Connection) -> Any:
        if not connection.poll(ANSWER_TIMEOUT):
            raise WorkerFailed(f"no answer from a worker within {ANSWER_TIMEOUT:.0f} s")
        try:
            kind, value = connection.recv()
        except EOFError:
            raise WorkerFailed("a worker died without a word") from None
        if kind == "error":
            raise WorkerFailed(value)
        return value

    def close(self) -> None:
        """Ask the workers to end, then end those that do not."""
        for _, connection in self._workers:
            try:
                connection.send(None)
            except OSError:
                continue
        for process, connection in self._workers:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()
            connection.close()
        self._workers = []


def _serve(connection: Connection, task: Task) -> None:
    try:
        task.open()
        connection.send(("ready", None))
        while (order := connection.recv()) is not None:
            connection.send(("done", _measure(task, *order)))
        task.close()
    except (EOFError, KeyboardInterrupt):
        return
    except BaseException:
        connection.send(("error", traceback.format_exc()))


def _measure(task: Task, start: float, seconds: float) -> tuple[int, dict[str, Any]]:
    clock, step, end = time.monotonic, task.step, start + seconds
    time.sleep(max(0.0, start - clock()))
    count = done = 0
    while clock() < end:
        count += done
        done = step()
    # The last step ran across the end of the window: on average half of it lay inside.
    return count + done // 2, task.notes()


class BusyCores:
    """Processes that compute without end, one a core: the noisy neighbour of the `busy` rows."""

    def __init__(self, count: int):
        """Start `count` busy loops."""
        self._processes = [_context.Process(target=_spin, daemon=True) for _ in range(count)]
        for process in self._processes:
            process.start()

    def close(self) -> None:
        """End them."""
        for process in self._processes:
            process.kill()
            process.join()


def _spin() -> None:
    while True:
        pass
