"""The crash campaign: SIGKILL for the coordinator, at random instants and at failpoints, under load.

Invariants checked, after every round and at the end:
1. every acknowledged commit is there, with the version that was acknowledged;
2. none is there twice or in part, and none that was refused;
3. the workers carried on after every kill, without one error;
4. after a clean stop no shared memory is left behind.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from occamdb.engine.disk import failpoints
from occamdb.ipc.process import ProcessIdentity, is_alive
from occamdb.stress.campaigns.scene import Scene
from occamdb.stress.coordinators import (
    coordinator_of,
    last_complaint,
    leaked_segments,
    signal_coordinator,
    stop_coordinator,
    wait_until,
)
from occamdb.stress.runner import STOP_TIMEOUT, STUCK_STOP_TIMEOUT, Runner, RunResult
from occamdb.stress.tally import totals
from occamdb.stress.worker import Settings
from occamdb.stress.workloads import get_workload
from occamdb.stress.workloads.ledger import forget

ROUND = 40  # kills between two verifications
CARRY_ON_TIMEOUT = 60.0
FAILPOINT_TIMEOUT = 2.0  # when an armed failpoint is not passed in this time, a plain kill replaces it
# Rotate and checkpoint often. The timeout is long, because a loaded machine may take many seconds to start a
# process and the campaign looks for lost commits, not for slowness.
OPTIONS = {"wal_segment_size": 256 * 1024, "checkpoint_bytes": 2 * 1024 * 1024, "timeout": 60.0}

# Passed by every commit, or brought about by asking for a checkpoint. Those of workers, files and recovery have
# tests of their own; a kill soon after a kill hits recovery here.
COORDINATOR_POINTS = tuple(
    name for name in failpoints.NAMES if name.split(".")[0] in ("wal", "commit", "checkpoint")
)


@dataclass(slots=True)
class CrashVerdict:
    """What a crash campaign found."""

    kills: int = 0
    transactions: int = 0
    refused: int = 0
    unknown: int = 0
    by_place: dict[str, int] = field(default_factory=dict)
    pauses_ms: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)
    lost: int = 0
    directory: str = ""

    @property
    def valid(self) -> bool:
        """True when everything promised was kept."""
        return not self.problems and not self.leaked

    def text(self) -> str:
        """The verdict for people."""
        pauses = sorted(self.pauses_ms) or [0.0]
        lines = [
            f"{self.kills} kills of the coordinator: "
            + ", ".join(f"{name} {count}" for name, count in sorted(self.by_place.items())),
            f"{self.transactions:,} acknowledged transactions, {self.refused:,} refused, {self.unknown:,} unknown",
            f"from a kill until every worker had committed again: median {pauses[len(pauses) // 2]:.0f} ms, "
            f"longest {pauses[-1]:.0f} ms",
            f"acknowledged commits lost: {self.lost}, leaked segments: {len(self.leaked)}",
            *(f"PROBLEM: {problem}" for problem in self.problems[:20]),
            "CLEAN" if self.valid else f"NOT CLEAN; kept in {self.directory}",
        ]
        return "\n".join(lines)


def crash_campaign(
    kills: int,
    directory: Path,
    *,
    workers: int = 4,
    seed: int = 1,
    durability: str = "standard",
    points: Sequence[str] = COORDINATOR_POINTS,
    progress: Callable[[str], None] = lambda _: None,
) -> CrashVerdict:
    """Kill the coordinator `kills` times under load and verify.

    Args:
      kills: how often.
      directory: for the database and the workers' files; kept.
      workers: writers of the ledger.
      seed: draws instants and places.
      durability: `standard` or `always`; `none` promises nothing here.
      points: failpoints to use for half of the kills; without any all kills come at random instants.
      progress: called with a line of text now and then.
    """
    settings = Settings(
        str(directory / "db"), workers, 0.0, seed=seed, durability=durability, options=dict(OPTIONS)
    )
    runner = Runner(get_workload("ledger"), settings, directory / "files")
    verdict = CrashVerdict(directory=str(directory))
    scene = Scene(runner, Random(seed), settings.open())
    try:
        while verdict.kills < kills and not verdict.problems:
            runner.start()
            for _ in range(min(ROUND, kills - verdict.kills)):
                _one_kill(scene, verdict, points)
                progress(f"{verdict.kills} of {kills} kills")
                if verdict.problems:
                    break
            runner.stop(STUCK_STOP_TIMEOUT if verdict.problems else STOP_TIMEOUT)
            if verdict.problems:
                # Perhaps no coordinator can serve this directory: nothing here waits for one again.
                verdict.problems += runner.exit_problems()
                verdict.transactions = totals(runner.tallies())["ok"]
                break
            progress("verifying")
            _take(verdict, runner.verify(time.monotonic() - scene.began))
            if verdict.kills < kills and not verdict.problems:
                forget(scene.db, directory / "files")
        scene.db.close()
        if not stop_coordinator(settings.path):
            verdict.problems.append("the coordinator did not end within 30 s of SIGTERM")
        verdict.leaked = leaked_segments(settings.path)
        verdict.by_place = scene.done
    finally:
        runner.kill_all()
        scene.db.close()
        (directory / "campaign.log").write_text(
            "\n".join([f"seed {seed}", *scene.notes, verdict.text()]) + "\n"
        )
    return verdict


def _one_kill(scene: Scene, verdict: CrashVerdict, points: Sequence[str]) -> None:
    time.sleep(min(1.0, scene.dice.expovariate(1 / 0.08)))  # short pauses most often
    victim = coordinator_of(scene.path)
    place = scene.dice.choice(points) if points and scene.dice.random() < 0.5 else ""
    if victim is not None and place and _kill_at(scene, place, victim):
        scene.count(place)
    else:
        identity = signal_coordinator(scene.path, signal.SIGKILL)
        if identity is None:
            wait_until(lambda: coordinator_of(scene.path) is not None, CARRY_ON_TIMEOUT)
            identity = signal_coordinator(scene.path, signal.SIGKILL)
        if identity is not None:
            wait_until(lambda: not is_alive(identity), 5.0)
        scene.count("random instant")
    verdict.kills += 1
    if scene.dice.random() < 0.15:
        return  # the next kill comes soon: during the restart or the recovery
    began = time.monotonic()
    stuck = scene.carried_on(CARRY_ON_TIMEOUT)
    verdict.pauses_ms.append((time.monotonic() - began) * 1e3)
    if stuck:
        verdict.problems.append(
            f"workers {stuck} did not carry on within {CARRY_ON_TIMEOUT:.0f} s of a kill; "
            f"the coordinators' log ends with: {last_complaint(scene.path)}"
        )


def _kill_at(scene: Scene, place: str, victim: ProcessIdentity) -> bool:
    """Arm a failpoint and wait until it has struck; False when it was not passed."""
    if not scene.admin(kind="failpoint", name=place, action=f"kill@{scene.dice.randint(1, 20)}"):
        return False
    if place.startswith("checkpoint"):
        scene.admin(kind="failpoint", name=place, action="kill@1")
        scene.admin(kind="checkpoint")
    return wait_until(lambda: not is_alive(victim), FAILPOINT_TIMEOUT)


def _take(verdict: CrashVerdict, result: RunResult) -> None:
    verdict.transactions = result.counts["ok"]
    verdict.refused = result.counts["refused"]
    verdict.unknown = result.counts["unresolved"]
    verdict.problems += result.problems
    verdict.lost += result.lost
    if result.counts["refused"] or result.counts["unknown"]:
        verdict.problems.append(f"workers saw errors across restarts: {'; '.join(result.errors[:3])}")
