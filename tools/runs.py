"""`occamdb runs`: the index of runs, and one run in full."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from occamdb.tools import console
from occamdb.tools.console import JsonOption, LimitOption, NamespaceOption, PathArgument
from occamdb.tools.printable import markup

if TYPE_CHECKING:
    from occamdb.primitives import RunMetadata

_COLOURS = {
    "active": "cyan",
    "completed": "green",
    "failed": "red",
    "cancelled": "yellow",
    "paused": "magenta",
}


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command("runs", rich_help_panel="Agents")(runs)


def runs(
    path: PathArgument,
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Show this one in full.")] = None,
    status: Annotated[
        str | None, typer.Option(help="active, completed, failed, cancelled, paused, archived.")
    ] = None,
    tag: Annotated[str | None, typer.Option(help="Only runs with this tag.")] = None,
    parent: Annotated[str | None, typer.Option(metavar="RUN", help="Only the children of this run.")] = None,
    limit: LimitOption = None,
    as_json: JsonOption = False,
    namespace: NamespaceOption = None,
) -> None:
    """List the runs in the index, or show one with its metadata."""
    with console.database(path, namespace) as db:
        if run is not None:
            _show_one(db.runs.get_run(console.run_of(db, run)), run)
            return
        parent_id = None if parent is None else console.run_of(db, parent)
        found = db.runs.query_runs(status=status, tag=tag, parent=parent_id, limit=limit)
    if as_json:
        for item in found:
            console.echo(console.to_json(asdict(item)))
    else:
        _show_table(found)


def _show_one(run: RunMetadata | None, name: str) -> None:
    from occamdb import NotFoundError

    if run is None:
        raise NotFoundError(
            f"run {name} is not in the index",
            hint="it may still have data: a run need not be registered to be used",
        )
    console.print_json(asdict(run))


def _show_table(found: list[RunMetadata]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("run", "name", "status", "tags", "created", "error"):
        table.add_column(column, no_wrap=column in ("run", "status"))
    for run in found:
        colour = _COLOURS.get(run.status.value, "dim")
        table.add_row(
            str(run.run_id),
            markup(run.name),
            f"[{colour}]{run.status.value}[/]",
            markup(", ".join(run.tags)),
            console.ago(run.created_at),
            markup(run.error or ""),
        )
    console.out().print(table)
