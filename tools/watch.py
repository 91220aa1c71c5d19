"""`occamdb watch`: the changes of a run, printed as they are committed."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from occamdb.tools import console
from occamdb.tools.console import JsonOption, LimitOption, NamespaceOption, PlaceArgument, RunArgument
from occamdb.tools.naming import run_of
from occamdb.tools.printable import printable

if TYPE_CHECKING:
    from occamdb import Change


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command("watch", rich_help_panel="Data")(watch)


def watch(
    path: PlaceArgument,
    run: RunArgument,
    prefix: Annotated[str, typer.Argument(metavar="[PREFIX]", help="Only keys that begin with it.")] = "",
    since: Annotated[
        int | None,
        typer.Option("--since", metavar="VERSION", min=0, help="Begin with the changes after this version."),
    ] = None,
    limit: LimitOption = None,
    as_json: JsonOption = False,
    namespace: NamespaceOption = None,
) -> None:
    """Print each change of a run's keys as it is committed, until Ctrl-C: version, time, kind, key and value."""
    with (
        console.database(path, namespace) as db,
        db.watch(run_of(db, run), prefix, since=since) as changes,
    ):
        for change in islice(changes, limit):
            _show(change, as_json)


def _show(change: Change, as_json: bool) -> None:
    if as_json:
        row: dict[str, Any] = {
            "version": change.version,
            "committed_at": change.committed_at,
            "kind": change.kind,
            "key": change.key,
            "value": change.value,
        }
        console.echo(console.to_json(row))
        return
    moment = change.committed_at.isoformat(timespec="milliseconds")
    value = f"  {console.to_json(change.value)}" if change.kind == "put" else ""
    console.echo(f"{change.version:>8}  {moment}  {change.kind:<6}  {printable(change.key)}{value}")
