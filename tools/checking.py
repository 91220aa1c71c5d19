"""`occamdb check`: read a whole database, its files and what primitives keep; say what is wrong, mend it on request."""

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
    from occamdb.engine.log.check import CheckReport
    from occamdb.engine.log.salvage import RepairReport
    from occamdb.tools.primitive_audit import AuditReport, Finding


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command("check", rich_help_panel="Care")(check)


def check(
    path: PathArgument,
    rebuild: Annotated[
        bool,
        typer.Option("--rebuild", help="Also recover everything into private memory and audit its indices."),
    ] = False,
    primitives: Annotated[
        bool,
        typer.Option(
            "--primitives/--files-only",
            help="Also audit the primitives' indices, chains and parents; takes as much memory as the content "
            "when no coordinator runs.",
        ),
    ] = True,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="First salvage what is provably in order; damaged files are set aside. Then rebuild indices.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Read every byte of log and checkpoints and report damage (exit code 1). A coordinator may be running.

    Then check what the primitives store for consistency: index entries, event chains, heads, parents. This
    part is left out when the files are damaged.

    --repair needs it stopped. It deletes no data: what is damaged, or behind damage, stays as NAME.damaged, and of
    what the primitives store it rebuilds only what follows from records.
    """
    _require_remains(path)
    done = _repair(path) if repair else None
    report = _check(path, rebuild)
    found = _audit(path, repair) if primitives and report.sound else None
    sound = report.sound and (found is None or found.sound)
    if as_json:
        console.print_json(
            {
                "check": _as_dict(report) | {"sound": sound},
                "primitives": asdict(found) | {"sound": found.sound} if found else None,
                "repair": asdict(done) if done else None,
            }
        )
    else:
        if done is not None:
            _show_repair(done, found)
        _show_files(report)
        if found is not None:
            _show_audit(found)
        _show_verdict(report, found)
    if not sound:
        raise typer.Exit(1)


def _require_remains(path: Path) -> None:
    """Also a directory that lost its meta file can be looked at."""
    if not (path / "wal").is_dir() and not (path / "checkpoints").is_dir():
        console.require_database(path)


def _check(path: Path, rebuild: bool) -> CheckReport:
    from occamdb.engine.log import check as engine_check

    with bars() as progress:
        return engine_check.check(path, rebuild=rebuild, progress=stages(progress))


def _repair(path: Path) -> RepairReport:
    from occamdb.engine.log import salvage

    with bars() as progress:
        return salvage.repair(path, progress=stages(progress))


def _audit(path: Path, repair: bool) -> AuditReport:
    from occamdb.tools.primitive_audit import audit

    with bars() as progress:
        return audit(path, repair=repair, progress=stages(progress))


def _as_dict(report: CheckReport) -> dict[str, Any]:
    return asdict(report) | {"sound": report.sound}


def _show_repair(done: RepairReport, found: AuditReport | None) -> None:
    out = console.out()
    for action in done.actions:
        out.print(f"[bold]repair[/]  {markup(action)}")
    for name in done.set_aside:
        out.print(f"[bold]repair[/]  set aside as {markup(name)}.damaged")
    for item in found.repairs if found is not None else ():
        out.print(f"[bold]repair[/]  {markup(_place(item))}: {markup(item.message)}: mended")
    repaired = found.repaired if found is not None else 0
    if found is not None and repaired > len(found.repairs):
        out.print(f"[bold]repair[/]  and {repaired - len(found.repairs):,} more")
    if not done.actions and not done.set_aside and not repaired:
        out.print("[bold]repair[/]  nothing to do")


def _place(item: Finding) -> str:
    where = "" if item.namespace == "default/default/default" else f"{item.namespace} "
    return f"{where}{item.run} {item.primitive} {item.key}".strip()


def _show_audit(found: AuditReport) -> None:
    out = console.out()
    for item in found.findings:
        out.print(f"[red]fault[/] {markup(_place(item))}: {markup(item.message)}")
    if found.faults > len(found.findings):
        out.print(f"[red]fault[/] and {found.faults - len(found.findings):,} more")
    mark = "[green]sound[/]  " if found.sound else "[red]faulty[/] "
    out.print(f"{mark} primitives: {found.parts:,} parts of runs, {found.faults:,} faults")
    if found.advised:
        what = f"adds {found.advised:,} index keys that an earlier version did not write"
        out.print(f"[yellow]note[/] `occamdb check --repair` {what}")


def _show_files(report: CheckReport) -> None:
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


def _show_verdict(report: CheckReport, found: AuditReport | None) -> None:
    keys = f", {report.keys:,} keys rebuilt and audited" if report.keys is not None else ""
    if not report.sound:
        verdict = "[red]damaged[/]: `occamdb check --repair` salvages it"
    elif found is None or found.sound:
        verdict = "[green]sound[/]"
    elif found.repairable:
        verdict = (
            f"[red]faulty[/]: `occamdb check --repair` mends {found.repairable:,} of {found.faults:,} faults"
        )
    else:
        verdict = "[red]faulty[/]: the records themselves are at fault, and only their authors can mend them"
    console.out().print(f"version {report.version}{keys}: {verdict}")
