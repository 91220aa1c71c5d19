"""`occamdb stress`: workloads, the checker and the fault campaigns on the command line."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Container
from pathlib import Path
from typing import Annotated

import typer

from occamdb.stress.campaigns.chaos import CHOICES, chaos_campaign
from occamdb.stress.campaigns.cluster import CHOICES as CLUSTER_CHOICES
from occamdb.stress.campaigns.cluster import ENGINES, cluster_campaign
from occamdb.stress.campaigns.crash import crash_campaign
from occamdb.stress.campaigns.faults import NAMES
from occamdb.stress.campaigns.worker_kills import kill_campaign
from occamdb.stress.checker import check_history
from occamdb.stress.clusters import ClusterError
from occamdb.stress.history import HistoryFormatError
from occamdb.stress.runner import run_workload
from occamdb.stress.worker import Settings
from occamdb.stress.workloads import WORKLOADS

_LINE_SECONDS = 20.0  # between two lines about progress
_next_line = 0.0

app = typer.Typer(help="Find out whether occamdb keeps its word on this machine.", no_args_is_help=True)


@app.command("list")
def list_workloads() -> None:
    """List the workloads."""
    for workload in WORKLOADS.values():
        note = " [recorded]" if workload.history_kind else ""
        typer.echo(f"{workload.name:<12} {workload.summary}{note}")


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="A workload, as `occamdb stress list` names it, or `all`.")],
    workers: Annotated[int, typer.Option(min=1, max=1000, help="Worker processes.")] = 4,
    seconds: Annotated[float, typer.Option(min=0, help="How long to run; 0 with --count: until that.")] = 5.0,
    count: Annotated[int, typer.Option(min=0, help="Steps per worker; 0: as many as fit.")] = 0,
    seed: Annotated[int, typer.Option(help="Draws everything.")] = 1,
    keys: Annotated[
        int, typer.Option(min=0, help="Number of keys; fewer are more contention; 0: its own.")
    ] = 0,
    reads: Annotated[float, typer.Option(min=0, max=1, help="Share of read-only transactions.")] = 0.3,
    durability: Annotated[str, typer.Option(help="none, standard or always.")] = "standard",
    isolation: Annotated[str, typer.Option(help="serializable or snapshot.")] = "serializable",
    directory: Annotated[Path | None, typer.Option("--dir", help="Keep database and histories here.")] = None,
) -> None:
    """Run a workload over real processes and verify its invariant; exit code 1 when it is broken."""
    if name != "all" and name not in WORKLOADS:
        raise typer.BadParameter(f"no workload is called {name!r}; see occamdb stress list")
    if not seconds and not count:
        raise typer.BadParameter("--seconds 0 needs --count: something must end the run")
    base = _empty_base(directory, "stress")
    valid = True
    for one in WORKLOADS if name == "all" else [name]:
        place = base / one
        place.mkdir(parents=True, exist_ok=True)
        wanted = keys or WORKLOADS[one].keys
        settings = Settings(
            str(place / "db"), workers, seconds, count, seed, wanted, reads, durability, isolation
        )
        result = run_workload(one, settings, place / "files")
        typer.echo(result.text())
        valid = valid and result.valid
    _finish(base, valid, keep=directory is not None)


@app.command()
def check(
    history: Annotated[Path, typer.Argument(help="A history file, or a directory of one history's files.")],
    level: Annotated[
        str, typer.Option(help="strict-serializable, serializable or snapshot.")
    ] = "strict-serializable",
) -> None:
    """Check a recorded history for anomalies; exit code 1 when the level forbids what is found."""
    try:
        report = check_history(history, level)
    except (HistoryFormatError, ValueError, OSError) as error:
        typer.echo(f"cannot check: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(report.text())
    raise typer.Exit(0 if report.valid else 1)


@app.command()
def crash(
    kills: Annotated[int, typer.Option(min=1, help="How often to kill the coordinator.")] = 200,
    workers: Annotated[int, typer.Option(min=1, help="Workers under whose load it dies.")] = 4,
    seed: Annotated[int, typer.Option(help="Draws instants and places.")] = 1,
    durability: Annotated[str, typer.Option(help="standard or always.")] = "standard",
    directory: Annotated[Path | None, typer.Option("--dir", help="Keep database and log here.")] = None,
) -> None:
    """Kill the coordinator at random instants and at failpoints, and verify that nothing is lost."""
    base = _empty_base(directory, "crash")
    verdict = crash_campaign(
        kills, base, workers=workers, seed=seed, durability=durability, progress=_progress
    )
    _progress("")
    typer.echo(verdict.text())
    _finish(base, verdict.valid, keep=directory is not None)


@app.command("kill-workers")
def kill_workers(
    name: Annotated[str, typer.Argument(help="A workload, as `occamdb stress list` names it.")] = "tasks",
    kills: Annotated[int, typer.Option(min=1, help="How often to kill a worker.")] = 1000,
    workers: Annotated[int, typer.Option(min=2, help="Workers at a time.")] = 4,
    seed: Annotated[int, typer.Option(help="Draws victims and instants.")] = 1,
    directory: Annotated[Path | None, typer.Option("--dir", help="Keep database and histories here.")] = None,
) -> None:
    """Kill workers of a workload at random instants, replace them, and verify its invariant."""
    if name not in WORKLOADS:
        raise typer.BadParameter(f"no workload is called {name!r}; see occamdb stress list")
    base = _empty_base(directory, "kills")
    result, done = kill_campaign(name, kills, base, workers=workers, seed=seed, progress=_progress)
    _progress("")
    typer.echo(result.text())
    typer.echo(
        f"  {len(done)} workers were killed, after {min(done):,} to {max(done):,} commits, "
        f"{sum(done):,} in all"
    )
    _finish(base, result.valid, keep=directory is not None)


@app.command()
def chaos(
    minutes: Annotated[float, typer.Option(min=0.01, help="For how long.")] = 10.0,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes at a time.")] = 4,
    seed: Annotated[int, typer.Option(help="Draws sessions and faults.")] = 1,
    workloads: Annotated[str, typer.Option(help="Workloads to draw from, comma separated.")] = "",
    faults: Annotated[str, typer.Option(help=f"Faults to draw from: {', '.join(NAMES)}.")] = "",
    directory: Annotated[Path | None, typer.Option("--dir", help="Keep failing sessions here.")] = None,
) -> None:
    """Run random workloads under random faults, and end with one verdict."""
    loads, chosen = _names(workloads, WORKLOADS) or CHOICES, _names(faults, NAMES)
    base = _empty_base(directory, "chaos")
    verdict = chaos_campaign(
        minutes,
        base,
        workers=workers,
        seed=seed,
        workloads=loads,
        faults=chosen,
        progress=_progress,
    )
    _progress("")
    typer.echo(verdict.text())
    _finish(base, verdict.valid, keep=directory is not None)


@app.command()
def cluster(
    engine: Annotated[str, typer.Option(help=" or ".join(ENGINES))] = "postgres",
    minutes: Annotated[float, typer.Option(min=0.01, help="For how long.")] = 10.0,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes at a time.")] = 4,
    seed: Annotated[int, typer.Option(help="Draws sessions and faults.")] = 1,
    workloads: Annotated[str, typer.Option(help="Workloads to draw from, comma separated.")] = "",
    directory: Annotated[Path | None, typer.Option("--dir", help="Keep failing sessions here.")] = None,
) -> None:
    """Kill, stop and cut off the servers of a cluster under workloads, and verify that nothing is lost."""
    if engine not in ENGINES:
        raise typer.BadParameter(f"{engine!r} is not an engine with a cluster: {', '.join(ENGINES)}")
    loads = _names(workloads, WORKLOADS) or CLUSTER_CHOICES
    base = _empty_base(directory, "cluster")
    try:
        verdict = cluster_campaign(
            engine, minutes, base, workers=workers, seed=seed, workloads=loads, progress=_progress
        )
    except ClusterError as error:
        typer.echo(f"no cluster of {engine}: {error}", err=True)
        raise typer.Exit(2) from None
    _progress("")
    typer.echo(verdict.text())
    _finish(base, verdict.valid, keep=directory is not None)


def _empty_base(directory: Path | None, what: str) -> Path:
    if directory is None:
        return Path(tempfile.mkdtemp(prefix=f"occam-{what}-"))
    if directory.exists() and any(directory.iterdir()):
        raise typer.BadParameter(f"{directory} is not empty; what an earlier run kept is not overwritten")
    return directory


def _names(text: str, known: Container[str]) -> list[str]:
    names = [name for name in text.split(",") if name]
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is not known here")
    return names


def _progress(text: str) -> None:
    """Show where a campaign is: in place on a terminal, a line now and then in a file."""
    global _next_line
    if sys.stderr.isatty():
        typer.echo(f"\r\x1b[K{text}", nl=False, err=True)
    elif text and time.monotonic() >= _next_line:
        _next_line = time.monotonic() + _LINE_SECONDS
        typer.echo(text, err=True)


def _finish(base: Path, valid: bool, *, keep: bool) -> None:
    if valid and not keep:
        shutil.rmtree(base, ignore_errors=True)
    raise typer.Exit(0 if valid else 1)
