"""The cluster campaign: workloads on a server's cluster while its servers are killed, stopped and cut off.

One cluster serves the whole campaign. Each session has a workload, a seed and a namespace of its own, and is verified
when its workers have ended: what was acknowledged is there, histories are strictly serializable, and each commit whose
outcome a worker did not learn has been asked for by its name.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import median

from occamdb.stress.campaigns.cluster_faults import ON_SERVERS, Fault, Stage, faults_of
from occamdb.stress.clusters import Cluster, ClusterError, EtcdCluster, PostgresCluster
from occamdb.stress.coordinators import wait_until
from occamdb.stress.runner import STUCK_STOP_TIMEOUT, Runner, RunResult
from occamdb.stress.tally import Tally
from occamdb.stress.worker import Place, Settings
from occamdb.stress.workloads import get_workload

__all__ = ["CHOICES", "ENGINES", "ClusterVerdict", "cluster_campaign"]

ENGINES = ("postgres", "etcd")
# Those whose histories are checked see most. None of these needs a coordinator.
CHOICES = (
    "list-append",
    "list-append",
    "list-append",
    "register",
    "register",
    "bank",
    "counter",
    "increment",
    "write-skew",
    "phantoms",
    "event-log",
)
SESSION_SECONDS = (40.0, 80.0)
FAULT_PAUSE = 0.3  # seconds between two faults on average
CARRY_ON_TIMEOUT = 60.0
STOP_TIMEOUT = 150.0  # a worker that asks for an outcome goes on until it has it
TIMEOUTS = (2.0, 5.0, 60.0)  # of the clients: with a short one some outcomes are unknown at first
FAILED_MAX = 5  # sessions; more of them tell nothing new
LOOK_SECONDS = 0.005


@dataclass(slots=True)
class ClusterVerdict:
    """The sums over all sessions."""

    engine: str = ""
    sessions: int = 0
    acknowledged: int = 0
    conflicts: int = 0
    refused: int = 0
    resolved: int = 0
    unknown: int = 0
    lost: int = 0
    anomalies: int = 0
    seconds: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)
    stalls: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    by_workload: dict[str, int] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    @property
    def server_faults(self) -> int:
        """Faults of servers, without those of the network alone."""
        names = {fault.__name__ for fault in ON_SERVERS}
        return sum(count for name, count in self.faults.items() if name in names)

    @property
    def valid(self) -> bool:
        """True when nothing was wrong in any session."""
        return not (self.lost or self.unknown or self.anomalies or self.problems)

    def text(self) -> str:
        """The verdict for people."""
        faults = ", ".join(f"{name} {count}" for name, count in sorted(self.faults.items()))
        loads = ", ".join(f"{name} {count}" for name, count in sorted(self.by_workload.items()))
        lines = [
            f"{self.engine}: {self.sessions} sessions ({loads}), {self.seconds / 60:.1f} minutes",
            f"faults: {sum(self.faults.values())}, of servers {self.server_faults} ({faults})",
            f"acknowledged: {self.acknowledged:,} (conflicts {self.conflicts:,}, refused {self.refused:,})",
            f"acknowledged commits lost: {self.lost}",
            f"outcomes that were unknown at first: {self.resolved + self.unknown}; left unknown: {self.unknown}",
            f"anomalies: {self.anomalies}",
        ]
        if self.stalls:
            lines.append(
                f"no commit after the end of a primary or leader: {max(self.stalls):.2f} s at most, "
                f"{median(self.stalls):.2f} s in the middle of {len(self.stalls)}"
            )
        lines += [f"workers saw {text}" for text in self.errors.values()]
        lines += [f"PROBLEM: {problem}" for problem in self.problems[:20]]
        lines += [f"kept: {place}" for place in self.kept]
        lines.append("CLEAN" if self.valid else "NOT CLEAN")
        return "\n".join(lines)


def make_cluster(engine: str) -> Cluster:
    """A primary with two quorum standbys, or three members."""
    return PostgresCluster(standbys=2) if engine == "postgres" else EtcdCluster(members=3)


def cluster_campaign(
    engine: str,
    minutes: float,
    directory: Path,
    *,
    workers: int = 4,
    seed: int = 1,
    workloads: Sequence[str] = CHOICES,
    progress: Callable[[str], None] = lambda _: None,
    make: Callable[[str], Cluster] = make_cluster,
    faults: Callable[[Cluster], Mapping[Fault, int]] = faults_of,
) -> ClusterVerdict:
    """Run sessions until the time is up; the last one is still finished and verified.

    Args:
      engine: "postgres" or "etcd".
      minutes: for how long.
      directory: for sessions; those that pass are removed.
      workers: worker processes at a time.
      seed: draws the sessions, and with the session's number everything in it.
      workloads: what to choose from.
      progress: called with a line of text now and then.
      make: makes the cluster.
      faults: those that it meets, with their weights.

    Raises:
      ClusterError: the servers could not be started.
    """
    verdict = ClusterVerdict(engine)
    began = time.monotonic()
    end = began + minutes * 60
    with make(engine) as cluster:
        chosen = faults(cluster)
        while verdict.sessions == 0 or time.monotonic() < end:
            dice = Random(f"{seed}/{verdict.sessions}")
            name = dice.choice(workloads)
            session = _Session(cluster, chosen, directory, dice, workers, name, verdict.sessions, seed)
            progress(
                f"session {verdict.sessions}: {session.name}; {verdict.acknowledged:,} commits, "
                f"{sum(verdict.faults.values())} faults so far"
            )
            left = end - time.monotonic()
            session.run(verdict, max(5.0, min(dice.uniform(*SESSION_SECONDS), left)))
            verdict.sessions += 1
            # A cluster that does not come back says nothing about the next session.
            if session.is_broken or len(verdict.kept) >= FAILED_MAX:
                break
    verdict.seconds = time.monotonic() - began
    return verdict


class _Session:
    """One workload under faults."""

    def __init__(
        self,
        cluster: Cluster,
        faults: Mapping[Fault, int],
        directory: Path,
        dice: Random,
        workers: int,
        name: str,
        number: int,
        seed: int,
    ) -> None:
        self.cluster = cluster
        self.faults = faults
        self.dice = dice
        self.name = name
        self.place = directory / f"session-{number:04d}"
        self.is_broken = False
        self.settings = Settings(
            path=cluster.url(),
            workers=workers,
            seconds=0.0,
            seed=seed * 1000 + number,
            keys=get_workload(name).keys,
            options={"tenant": f"stress-{seed}-{number}", "timeout": dice.choice(TIMEOUTS)},
        )

    def run(self, verdict: ClusterVerdict, seconds: float) -> None:
        """Run, verify and add up."""
        self.place.mkdir(parents=True)
        stage = Stage(self.cluster, self.dice)
        problems: list[str] = []
        try:
            runner = Runner(get_workload(self.name), self.settings, self.place / "files")
            try:
                result = self._torment(stage, runner, seconds, verdict, problems)
            finally:
                runner.kill_all()
            problems += result.problems
            self._add(verdict, result)
            if result.report is not None and not result.report.valid:
                problems += [anomaly.meaning for anomaly in result.report.forbidden]
        except Exception as error:  # a session that breaks down is a finding
            problems.append(f"{type(error).__name__}: {error}")
            self.is_broken = isinstance(error, ClusterError)
        for name, count in stage.done.items():
            verdict.faults[name] = verdict.faults.get(name, 0) + count
        verdict.by_workload[self.name] = verdict.by_workload.get(self.name, 0) + 1
        verdict.problems += [f"{self.place.name} ({self.name}): {problem}" for problem in problems]
        if problems:
            verdict.kept.append(str(self.place))
            self._keep(stage, problems)
        else:
            shutil.rmtree(self.place, ignore_errors=True)

    def _torment(
        self, stage: Stage, runner: Runner, seconds: float, verdict: ClusterVerdict, problems: list[str]
    ) -> RunResult:
        runner.start()
        end = time.monotonic() + seconds
        with _Pulse(runner) as pulse:
            while time.monotonic() < end:
                time.sleep(min(2.0, self.dice.expovariate(1 / FAULT_PAUSE)))
                stage.carry_out(self.dice.choices(list(self.faults), list(self.faults.values()))[0])
            stuck = self._carried_on(runner)
        verdict.stalls += [pulse.gap_after(moment) for moment in stage.killed]
        if stuck:
            problems.append(f"workers {stuck} did not commit again within {CARRY_ON_TIMEOUT:.0f} s")
        runner.stop(STUCK_STOP_TIMEOUT if stuck else STOP_TIMEOUT)
        return runner.verify(seconds)

    def _carried_on(self, runner: Runner) -> list[int]:
        """Wait until each worker commits something more; the workers that do not."""
        before = {number: runner.progress(number) for number in runner.alive()}

        def stuck() -> list[int]:
            alive = runner.alive()
            return [one for one, count in before.items() if one in alive and runner.progress(one) <= count]

        wait_until(lambda: not stuck(), CARRY_ON_TIMEOUT)
        return stuck()

    def _add(self, verdict: ClusterVerdict, result: RunResult) -> None:
        counts = result.counts
        verdict.acknowledged += counts["ok"]
        verdict.conflicts += counts["conflict"]
        verdict.refused += counts["refused"]
        verdict.resolved += counts["resolved"]
        verdict.unknown += counts["unresolved"]
        verdict.lost += result.lost
        for text in result.errors:
            verdict.errors.setdefault(text.split(": ")[1], text.split(": ", 1)[1])
        if result.report is not None:
            verdict.anomalies += sum(anomaly.count for anomaly in result.report.forbidden)

    def _keep(self, stage: Stage, problems: list[str]) -> None:
        """What is needed to understand a failure: what happened when, and the servers' logs."""
        notes = [f"workload {self.name}", f"seed {self.settings.seed}", *stage.notes, *problems]
        (self.place / "campaign.log").write_text("\n".join(notes) + "\n")
        for server in self.cluster.servers.values():
            if server.log.exists():
                shutil.copy(server.log, self.place)


class _Pulse:
    """Notes when commits are acknowledged, by looking at the workers' tallies every few milliseconds."""

    def __init__(self, runner: Runner) -> None:
        self._tallies = [
            Tally(Place(runner.directory, number).tally, runner.workload.counters)
            for number in range(runner.started)
        ]
        self._beats = [time.monotonic()]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="occamdb-stress-pulse")

    def __enter__(self) -> _Pulse:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for tally in self._tallies:
            tally.close()

    def _look(self) -> None:
        seen = 0
        while not self._over.wait(LOOK_SECONDS):
            count = sum(tally.get("ok") for tally in self._tallies)
            if count != seen:
                seen = count
                self._beats.append(time.monotonic())
        self._beats.append(time.monotonic())

    def gap_after(self, moment: float) -> float:
        """How long nothing was acknowledged from `moment` on: answers that were under way do not end it."""
        settled = moment + 0.05
        return next((beat for beat in self._beats if beat > settled), self._beats[-1]) - moment
