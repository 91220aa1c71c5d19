"""The campaign against workers: SIGKILL at random instants of their work, each replaced by a new one.

What must hold is what the workload says: with `tasks`, that every effect happened once; with `leases`, that no commit
of a former holder landed. Besides, no worker that was left alone may end or stand still.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

from occamdb.stress.coordinators import leaked_segments, stop_coordinator, wait_until
from occamdb.stress.runner import Runner, RunResult
from occamdb.stress.worker import Settings
from occamdb.stress.workloads import get_workload

__all__ = ["kill_campaign"]

CARRY_ON_TIMEOUT = 60.0
WORK_SECONDS = 0.2  # on average, from a worker's start to its end


def kill_campaign(
    name: str,
    kills: int,
    directory: Path,
    *,
    workers: int = 4,
    seed: int = 1,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[RunResult, list[int]]:
    """Kill workers of a workload `kills` times, and verify it.

    Args:
      name: of the workload.
      kills: how often.
      directory: for the database and the workers' files; kept.
      workers: how many are at work at a time.
      seed: draws victims and instants.
      progress: called with a line of text now and then.

    Returns:
      What the workload's verification found, and how many commits each killed worker had acknowledged.
    """
    workload = get_workload(name)
    settings = Settings(str(directory / "db"), workers, 0.0, seed=seed, keys=workload.keys)
    runner = Runner(workload, settings, directory / "files")
    dice, done = Random(seed), list[int]()
    stuck = ""
    try:
        runner.start()
        began = time.monotonic()
        while len(done) < kills and not stuck:
            victim = dice.choice(runner.alive())
            # At any instant of its work: some are killed in their first transaction, some in their hundredth.
            time.sleep(dice.expovariate(workers / WORK_SECONDS) / workers)
            if not wait_until(partial(_has_committed, runner, victim), CARRY_ON_TIMEOUT):
                stuck = f"worker {victim} committed nothing within {CARRY_ON_TIMEOUT:.0f} s"
            runner.signal_worker(victim, signal.SIGKILL)
            wait_until(partial(_has_ended, runner, victim), CARRY_ON_TIMEOUT)
            done.append(runner.progress(victim))
            runner.start_worker()
            progress(f"{len(done)} of {kills} kills")
        runner.stop()
        progress("verifying")
        result = runner.verify(time.monotonic() - began)
        result.problems += [stuck] if stuck else []
    finally:
        runner.kill_all()
        stopped = stop_coordinator(settings.path)
    if not stopped:
        result.problems.append("the coordinator did not end within 30 s of SIGTERM")
    result.problems += [f"shared memory was left behind: {left}" for left in leaked_segments(settings.path)]
    return result, done


def _has_committed(runner: Runner, number: int) -> bool:
    return runner.progress(number) > 0


def _has_ended(runner: Runner, number: int) -> bool:
    return number not in runner.alive()
