"""Campaigns end with a verdict: clean on a sound engine, and with every fault able to act."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest
from typer.testing import CliRunner

from occamdb.engine.client.launcher import LOG_NAME
from occamdb.stress import worker
from occamdb.stress.bench.command import app as bench_app
from occamdb.stress.campaigns import crash
from occamdb.stress.campaigns.chaos import ChaosVerdict, chaos_campaign
from occamdb.stress.campaigns.crash import crash_campaign
from occamdb.stress.campaigns.faults import NAMES
from occamdb.stress.campaigns.scene import Scene
from occamdb.stress.campaigns.worker_kills import kill_campaign
from occamdb.stress.command import app
from occamdb.stress.coordinators import coordinator_of, leaked_segments, stop_coordinator
from occamdb.stress.history import LIST_APPEND
from occamdb.stress.runner import Runner
from occamdb.stress.worker import Place, Settings
from occamdb.stress.workloads import get_workload
from tests.support.histories import t, write
from tests.support.processes import stop_process


def test_crash_campaign_is_clean(tmp_path: Path) -> None:
    verdict = crash_campaign(4, tmp_path, workers=2, seed=3)
    assert verdict.valid, verdict.text()
    assert verdict.kills == 4 and verdict.transactions > 0 and sum(verdict.by_place.values()) == 4
    assert (tmp_path / "campaign.log").read_text().startswith("seed 3")


@pytest.mark.parametrize("name", ["tasks", "leases"])
def test_workers_are_killed_and_the_workload_holds(name: str, tmp_path: Path) -> None:
    result, done = kill_campaign(name, 6, tmp_path, workers=2, seed=3)
    assert result.valid, result.text()
    assert len(done) == 6 and all(done)


def test_chaos_campaign_is_clean(tmp_path: Path) -> None:
    verdict = chaos_campaign(
        0.03,
        tmp_path,
        workers=2,
        seed=5,
        workloads=["ledger"],
        faults=["kill-worker", "stop-worker", "hold-snapshot"],
    )
    assert verdict.valid, verdict.text()
    assert verdict.sessions >= 1 and verdict.transactions > 0 and verdict.faults
    assert not any(tmp_path.iterdir()), "a session that passed is removed"


def test_a_failing_session_is_kept(tmp_path: Path) -> None:
    verdict = ChaosVerdict(sessions=1, lost=1, problems=["session-0000: lost"], kept=[str(tmp_path)])
    assert not verdict.valid
    assert verdict.text().endswith("NOT CLEAN") and str(tmp_path) in verdict.text()


def test_runner_notices_a_worker_that_dies(tmp_path: Path) -> None:
    settings = Settings(str(tmp_path / "db"), workers=1, seconds=30.0, keys=4)
    runner = Runner(get_workload("counter"), settings, tmp_path / "files")
    try:
        runner.start()
        process = runner.processes[0]
        assert runner.progress(0) >= 0
        process.kill()  # not through the runner, which would then expect it
        process.join()
        runner.stop()
        result = runner.verify(1.0)
        assert any("ended with code -9" in problem for problem in result.problems)
        assert coordinator_of(settings.path) is not None
    finally:
        runner.kill_all()
        assert stop_coordinator(settings.path)
    assert coordinator_of(settings.path) is None
    assert leaked_segments(settings.path) == []


def test_runner_says_where_a_worker_hangs(tmp_path: Path) -> None:
    """Its coordinator stands still, so it waits in a commit. The stop ends all the same, and tells where it stood."""
    settings = Settings(str(tmp_path / "db"), workers=1, keys=4, options={"timeout": 60.0})
    runner = Runner(get_workload("ledger"), settings, tmp_path / "files")
    try:
        runner.start()
        identity = coordinator_of(settings.path)
        assert identity is not None
        stop_process(identity.pid)
        runner.stop(timeout=2.0)
        assert runner.alive() == []
        os.kill(identity.pid, signal.SIGCONT)
        problems = [problem for problem in runner.verify(1.0).problems if "hangs" in problem]
        assert len(problems) == 1 and "in submit" in problems[0] and "in _loop" in problems[0], problems
    finally:
        runner.kill_all()
        assert stop_coordinator(settings.path)


@pytest.mark.parametrize(("check_seconds", "steps"), [(0.0, 1), (3600.0, 32)])
def test_a_worker_notices_the_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check_seconds: float, steps: int
) -> None:
    """After 32 quick steps, or after one that took long: each may wait for as long as the database's timeout."""
    monkeypatch.setattr(worker, "CHECK_SECONDS", check_seconds)
    place, done = Place(tmp_path, 0), []

    def step(_: Any) -> None:
        done.append(1)
        place.stop.touch()

    worker._loop(step, cast(Any, None), Settings(seconds=0.0), place)
    assert len(done) == steps


def test_a_campaign_ends_at_its_first_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each further kill would wait for the same stuck worker again. It says what coordinators complain of."""

    def stuck(scene: Scene, timeout: float) -> list[int]:
        Path(scene.path, LOG_NAME).write_text("recovery: so and so\ncould not start: so it is\n")
        return [1]

    monkeypatch.setattr(Scene, "carried_on", stuck)
    verdict = crash.crash_campaign(4, tmp_path, workers=2, seed=3)
    assert verdict.kills == 1 and not verdict.valid
    (problem,) = verdict.problems
    assert "workers [1] did not carry on" in problem and problem.endswith("could not start: so it is")


def test_faults_have_names() -> None:
    assert {"kill-worker", "kill-coordinator", "fill-store", "fill-disk", "fail-sync"} <= set(NAMES)
    assert Random(1).choice(sorted(NAMES))


def test_command_line(tmp_path: Path) -> None:
    runner = CliRunner()
    listed = runner.invoke(app, ["list"])
    assert listed.exit_code == 0 and "list-append" in listed.output and "ycsb-f" in listed.output
    good = write(tmp_path / "good", LIST_APPEND, [t("a x 1", 1, 2), t("r x 1", 3, 4)])
    bad = write(tmp_path / "bad", LIST_APPEND, [t("a x 1", 1, 2, "conflict"), t("r x 1", 3, 4)])
    assert runner.invoke(app, ["check", str(good)]).exit_code == 0
    judged = runner.invoke(app, ["check", str(bad)])
    assert judged.exit_code == 1 and "G1a" in judged.output
    assert runner.invoke(app, ["check", str(tmp_path / "nothing")]).exit_code == 2
    assert runner.invoke(app, ["check", str(good), "--level", "none"]).exit_code == 2
    assert runner.invoke(app, ["run", "no-such-workload"]).exit_code == 2
    assert runner.invoke(app, ["run", "counter", "--seconds", "0"]).exit_code == 2
    assert runner.invoke(app, ["chaos", "--faults", "earthquake"]).exit_code == 2
    assert runner.invoke(app, ["crash", "--dir", str(tmp_path)]).exit_code == 2


def test_run_on_the_command_line(tmp_path: Path) -> None:
    place = tmp_path / "kept"
    arguments = ["run", "bank", "--workers", "2", "--seconds", "0", "--count", "60", "--dir", str(place)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "PASSED" in done.output
    assert coordinator_of(str(place / "bank" / "db")) is None


def test_bench_on_the_command_line(tmp_path: Path) -> None:
    runner = CliRunner()
    listed = runner.invoke(bench_app, ["--list"])
    assert listed.exit_code == 0 and "commits-none-16" in listed.output
    assert runner.invoke(bench_app, ["--rows", "nothing-of-the-kind"]).exit_code == 2
    assert runner.invoke(bench_app, ["--peers", "oracle"]).exit_code == 2
    out = tmp_path / "out.json"
    arguments = ["--rows", "begin-1k", "--quick", "--repeat", "1", "--seconds", "0.05", "--json", str(out)]
    measured = runner.invoke(bench_app, arguments)
    assert measured.exit_code == 0, measured.output
    assert "begin-1k" in measured.output and out.exists()
