"""`occamdb report`: everything about one run in one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from occamdb.tools import console
from occamdb.tools.console import NamespaceOption, PlaceArgument, RunArgument
from occamdb.tools.naming import run_of
from occamdb.tools.picture_files import ForceOption, write_file


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command("report", rich_help_panel="Agents")(report)


def report(
    path: PlaceArgument,
    run: RunArgument,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Where to write it; without this, run-ID.html in the current directory.",
            parser=console.path_given,
        ),
    ] = None,
    force: ForceOption = False,
    namespace: NamespaceOption = None,
) -> None:
    """Write one HTML file with everything about a run, to look at without the database or to send to somebody.

    It has the timeline, the trace tree with inputs and outputs, the events with their chain verified, cells, keys,
    tasks, leases and steps, all of one version. It loads nothing and runs no script. Large runs are cut, which it says.
    """
    from occamdb.tools.run_report.content import read_run
    from occamdb.tools.run_report.page import report_page

    with console.reading(path, namespace) as db:
        run_id = run_of(db, run)
        found = read_run(db, run_id)
    target = output or Path(f"run-{run_id}.html")
    size = write_file(target, report_page(found, _name_of(path)), force=force)
    traces, events = len(found.traces.rows), len(found.events.rows)
    console.echo(f"{target}: {console.size(size)}, {traces:,} traces and {events:,} events of run {run_id}")


def _name_of(place: Path | str) -> str:
    """What the report calls the database: neither the folders of this machine nor the address of a server."""
    if isinstance(place, Path):
        return place.absolute().name
    parts = urlsplit(place)
    return f"{parts.path.strip('/')} ({parts.scheme})"
