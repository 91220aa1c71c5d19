"""The chaos campaign: sessions of random workloads under random faults, and one verdict.

Each session has a workload, a seed, a database and a mix of faults of its own; then everything is stopped and
verified, and shared memory is searched for leftovers. The directory of a session that fails is kept: seed,
history, log.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from occamdb.stress.campaigns.faults import COMMON, FILLING, NAMES, fill_disk, fill_store
from occamdb.stress.campaigns.scene import Scene
from occamdb.stress.coordinators import last_complaint, leaked_segments, stop_coordinator
from occamdb.stress.runner import STOP_TIMEOUT, STUCK_STOP_TIMEOUT, Runner, RunResult
from occamdb.stress.worker import Settings
from occamdb.stress.workloads import WORKLOADS, get_workload

SESSION_SECONDS = (8.0, 20.0)
FAULT_PAUSE = 0.4  # seconds between two faults on average
CARRY_ON_TIMEOUT = 60.0
SMALL_STORE = 384 << 20  # several times what a session writes, so that only the fault fills it
TMPFS_BYTES = 1 << 30  # room for two checkpoints of what a session writes, and the log between them
# The ledger and the recorded workloads see most; they are drawn more often than the others.
CHOICES = (
    *(name for name in WORKLOADS if not name.startswith("ycsb")),
    "list-append",
    "register",
    "ledger",
    "ledger",
)


@dataclass(slots=True)
class ChaosVerdict:
    """The sums over all sessions."""

    sessions: int = 0
    transactions: int = 0
    refused: int = 0
    unknown: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    anomalies: int = 0
    lost: int = 0
    leaked: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    skipped: set[str] = field(default_factory=set)
    by_workload: dict[str, int] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    @property
    def kills(self) -> int:
        """Processes that were killed."""
        return sum(count for name, count in self.faults.items() if name.startswith("kill"))

    @property
    def valid(self) -> bool:
        """True when nothing was wrong in any session."""
        return not (self.anomalies or self.lost or self.leaked or self.problems)

    def text(self) -> str:
        """The verdict for people."""
        faults = ", ".join(f"{name} {count}" for name, count in sorted(self.faults.items()))
        loads = ", ".join(f"{name} {count}" for name, count in sorted(self.by_workload.items()))
        lines = [
            f"{self.sessions} sessions ({loads})",
            f"faults: {faults}",
            *(f"left out: {reason}" for reason in sorted(self.skipped)),
            f"transactions acknowledged: {self.transactions:,} (refused {self.refused:,}, unknown {self.unknown:,})",
            f"kills: {self.kills:,}",
            f"anomalies: {self.anomalies}",
            f"acknowledged commits lost: {self.lost}",
            f"leaked segments: {len(self.leaked)}",
            *(f"workers saw {text}" for text in self.errors.values()),
            *(f"PROBLEM: {problem}" for problem in self.problems[:20]),
            *(f"kept: {place}" for place in self.kept),
            "CLEAN" if self.valid else "NOT CLEAN",
        ]
        return "\n".join(lines)


def chaos_campaign(
    minutes: float,
    directory: Path,
    *,
    workers: int = 4,
    seed: int = 1,
    workloads: Sequence[str] = CHOICES,
    faults: Sequence[str] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> ChaosVerdict:
    """Run sessions until the time is up; the last one is still finished and verified.

    Args:
      minutes: for how long.
      directory: for sessions; those that pass are removed.
      workers: worker processes at a time.
      seed: draws the sessions, and with the session's number everything in it.
      workloads: what to choose from.
      faults: names of `faults.NAMES`; all unless given.
      progress: called with a line of text now and then.
    """
    verdict = ChaosVerdict()
    end = time.monotonic() + minutes * 60
    while verdict.sessions == 0 or time.monotonic() < end:
        number = verdict.sessions
        place = directory / f"session-{number:04d}"
        dice = Random(f"{seed}/{number}")
        session = _Session(place, dice, workers, dice.choice(workloads), seed * 1000 + number, faults)
        progress(
            f"session {number}: {session.name}; {verdict.transactions:,} transactions, {verdict.kills} kills so far"
        )
        seconds = min(dice.uniform(*SESSION_SECONDS), max(3.0, end - time.monotonic()))
        clean = session.run(verdict, seconds)
        verdict.sessions += 1
        if clean:
            shutil.rmtree(place, ignore_errors=True)
        else:
            verdict.kept.append(str(place))
    return verdict


class _Session:
    """One workload under faults."""

    def __init__(self, place: Path, dice: Random, workers: int, name: str, seed: int, only: Sequence[str]):
        self.place = place
        self.dice = dice
        self.name = name
        self.mount: Path | None = None
        self.only = {NAMES[fault] for fault in only} or {*COMMON, *FILLING}
        self.faults = {fault: weight for fault, weight in COMMON.items() if fault in self.only}
        self.options: dict[str, object] = {
            "wal_segment_size": 1 << 20,
            "checkpoint_bytes": 8 << 20,
            "timeout": 60.0,  # as in crash.py
        }
        self.settings = Settings(
            workers=workers,
            seconds=0.0,
            seed=seed,
            keys=get_workload(name).keys,
            durability=dice.choice(("standard", "standard", "always")),
        )
        places = ["store" if fill_store in self.only else "", "disk" if fill_disk in self.only else ""]
        self.special = dice.choice([*(place for place in places if place), *([""] if self.faults else [])])

    def run(self, verdict: ChaosVerdict, seconds: float) -> bool:
        """Run, verify, add up; True when nothing was wrong."""
        self.place.mkdir(parents=True)
        problems: list[str] = []
        scene: Scene | None = None
        try:
            self._prepare(verdict)
            self.settings.options = dict(self.options)
            runner = Runner(get_workload(self.name), self.settings, self.place / "files")
            scene = Scene(runner, self.dice, self.settings.open(), scratch=self.mount or self.place)
            try:
                result = self._torment(scene, runner, seconds)
            finally:
                runner.kill_all()
                scene.db.close()
            problems = [*scene.problems, *result.problems]
            self._add(verdict, scene, result)
            if not stop_coordinator(self.settings.path):
                problems.append("the coordinator did not end within 30 s of SIGTERM")
            leaked = leaked_segments(self.settings.path)
            verdict.leaked += leaked
            clean = not problems and not leaked and result.valid
            if not clean:
                problems += [a.meaning for a in result.report.forbidden] if result.report else []
        except Exception as error:  # a session that breaks down is a finding; the campaign continues
            problems.append(f"{type(error).__name__}: {error}")
            clean = False
        finally:
            self._finish(scene, problems)
        verdict.problems += [f"{self.place.name} ({self.name}): {problem}" for problem in problems]
        return clean

    def _prepare(self, verdict: ChaosVerdict) -> None:
        home = self.place
        if self.special == "store":
            self.options["max_store_size"] = SMALL_STORE
            self.faults[fill_store] = FILLING[fill_store]
        elif self.special == "disk":
            self.mount = self.place / "mount"
            self.mount.mkdir()
            if _mount_tmpfs(self.mount):
                home = self.mount
                self.faults[fill_disk] = FILLING[fill_disk]
            else:
                self.mount = None
                verdict.skipped.add("filling the disk: mounting a tmpfs is not permitted")
        self.settings.path = str(home / "db")

    def _torment(self, scene: Scene, runner: Runner, seconds: float) -> RunResult:
        runner.start()
        end = time.monotonic() + seconds
        faults, weights = list(self.faults), list(self.faults.values())
        while time.monotonic() < end:
            time.sleep(min(2.0, self.dice.expovariate(1 / FAULT_PAUSE)))
            self.dice.choices(faults, weights)[0](scene)
        stuck = scene.carried_on(CARRY_ON_TIMEOUT)
        if stuck:
            scene.problems.append(
                f"workers {stuck} did not commit again within {CARRY_ON_TIMEOUT:.0f} s; "
                f"the coordinators' log ends with: {last_complaint(scene.path)}"
            )
        runner.stop(STUCK_STOP_TIMEOUT if stuck else STOP_TIMEOUT)
        return runner.verify(seconds)

    def _add(self, verdict: ChaosVerdict, scene: Scene, result: RunResult) -> None:
        for name, count in scene.done.items():
            verdict.faults[name] = verdict.faults.get(name, 0) + count
        verdict.by_workload[self.name] = verdict.by_workload.get(self.name, 0) + 1
        verdict.transactions += result.counts["ok"]
        verdict.refused += result.counts["refused"]
        verdict.unknown += result.counts["unresolved"]
        verdict.lost += result.lost
        for text in result.errors:
            code = text.split(": ")[1]
            verdict.errors.setdefault(code, text.split(": ", 1)[1])
        if result.report is not None:
            verdict.anomalies += sum(anomaly.count for anomaly in result.report.forbidden)
        verdict.anomalies += len(result.problems)

    def _finish(self, scene: Scene | None, problems: list[str]) -> None:
        notes = scene.notes if scene else []
        log = [
            f"workload {self.name}",
            f"settings {self.settings}",
            f"special {self.special}",
            *notes,
            *problems,
        ]
        if self.mount is not None:
            if problems:
                shutil.copytree(
                    self.mount,
                    self.place / "kept",
                    dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns("*.sock"),
                )
            subprocess.run(["umount", "-l", str(self.mount)], check=False, capture_output=True)
        (self.place / "campaign.log").write_text("\n".join(log) + "\n")


def _mount_tmpfs(place: Path) -> bool:
    """Mount a small file system of its own; False where that is not permitted."""
    if os.geteuid() != 0:
        return False
    command = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES},mode=0700", "occam-chaos", str(place)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0
