"""`occamdb check`: read a whole database directory and say what is damaged; salvage it on request."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from occamdb.tools import console
from occamdb.tools.bars import bars, stages
from occamdb.tools.console import JsonOption, PathArgument
from occamdb.tools.printable import markup

if TYPE_CHECKING:
    from occamdb.engine.check import CheckReport
    from occamdb.engine.salvage import RepairReport


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command("check", rich_help_panel="Care")(check)


def check(
    path: PathArgument,
    rebuild: Annotated[
        bool,
        typer.Option("--rebuild", help="Also recover everything into private memory and audit its indices."),
    ] = False,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="First salvage what is provably in order; damaged files are set aside."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Read every byte of log and checkpoints and report damage (exit code 1). A coordinator may be running.

    --repair needs it stopped. It deletes nothing: what is damaged, or behind damage, stays as NAME.damaged.
    """
    _require_remains(path)
    done = _repair(path) if repair else None
    report = _check(path, rebuild)
    if as_json:
        console.print_json({"check": _as_dict(report), "repair": asdict(done) if done else None})
    else:
        if done is not None:
            _show_repair(done)
        _show(report)
    if not report.sound:
        raise typer.Exit(1)


def _require_remains(path: Path) -> None:
    """Also a directory that lost its meta file can be looked at."""
    if not (path / "wal").is_dir() and not (path / "checkpoints").is_dir():
        console.require_database(path)


def _check(path: Path, rebuild: bool) -> CheckReport:
    from occamdb.engine import check as engine_check

    with bars() as progress:
        return engine_check.check(path, rebuild=rebuild, progress=stages(progress))


def _repair(path: Path) -> RepairReport:
    from occamdb.engine import salvage

    with bars() as progress:
        return salvage.repair(path, progress=stages(progress))


def _as_dict(report: CheckReport) -> dict[str, Any]:
    return asdict(report) | {"sound": report.sound}


def _show_repair(done: RepairReport) -> None:
    out = console.out()
    for action in done.actions:
        out.print(f"[bold]repair[/]  {markup(action)}")
    for name in done.set_aside:
        out.print(f"[bold]repair[/]  set aside as {markup(name)}.damaged")
    if not done.actions and not done.set_aside:
        out.print("[bold]repair[/]  nothing to do")


def _show(report: CheckReport) -> None:
    out = console.out()
    for checkpoint in report.checkpoints:
        mark = "[green]sound[/]  " if checkpoint.sound else "[red]damaged[/]"
        what = f"{checkpoint.rows:,} rows, {console.size(checkpoint.size)}"
        out.print(f"{mark} checkpoint {checkpoint.version}: {what}")
    for segment in report.segments:
        mark = "[green]sound[/]  " if segment.sound else "[red]damaged[/]"
        torn = f", {segment.torn:,} bytes of an unfinished write" if segment.torn else ""
        what = f"{segment.transactions:,} transactions, {console.size(segment.size)}{torn}"
        out.print(f"{mark} log {segment.first_version} to {segment.last_version}: {what}")
    for finding in report.findings:
        colour = "red" if finding.level == "damage" else "yellow"
        out.print(f"[{colour}]{finding.level}[/] {markup(finding.message)}")
    keys = f", {report.keys:,} keys rebuilt and audited" if report.keys is not None else ""
    verdict = "[green]sound[/]" if report.sound else "[red]damaged[/]: `occamdb check --repair` salvages it"
    out.print(f"version {report.version}{keys}: {verdict}")
