"""`occamdb events` and `cells`: the event log and the state cells of a run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from occamdb.tools import console
from occamdb.tools.console import JsonOption, LimitOption, NamespaceOption, PathArgument, RunArgument

if TYPE_CHECKING:
    from occamdb import Database, RunId
    from occamdb.primitives import Event

FOLLOW_INTERVAL_S = 0.2


def register(app: typer.Typer) -> None:
    """Mount the commands."""
    panel = "Agents"
    app.command("events", rich_help_panel=panel)(events)
    app.command("cells", rich_help_panel=panel)(cells)


def events(
    path: PathArgument,
    run: RunArgument,
    event_type: Annotated[str | None, typer.Option("--type", help="Only events of this type.")] = None,
    start: Annotated[int, typer.Option(min=0, help="The first sequence to show.")] = 0,
    limit: LimitOption = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check the hash chain instead.")] = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new events until Ctrl-C.")
    ] = False,
    as_json: JsonOption = False,
    namespace: NamespaceOption = None,
) -> None:
    """Print the events of a run, or verify their chain (exit code 1 if it is broken)."""
    with console.database(path, namespace) as db:
        run_id = console.run_of(db, run)
        if verify:
            _verify(db, run_id, as_json)
        elif event_type is not None:
            for event in db.events.read_by_type(run_id, event_type, start=start, limit=limit):
                _show_event(event, as_json)
        else:
            end = None if limit is None else start + limit
            start = _show_events(db, run_id, start, end, as_json)
            while follow and (end is None or start < end):
                time.sleep(FOLLOW_INTERVAL_S)
                start = _show_events(db, run_id, start, end, as_json)


def _verify(db: Database, run_id: RunId, as_json: bool) -> None:
    found = db.events.verify_chain(run_id)
    if as_json:
        console.print_json(
            {
                "is_valid": found.is_valid,
                "length": found.length,
                "first_invalid": found.first_invalid,
                "error": found.error,
            }
        )
    elif found.is_valid:
        console.out().print(f"[green]valid[/]: {found.length:,} events, every hash as it must be")
    else:
        console.out().print(f"[red]broken[/] at event {found.first_invalid}: {found.error}", markup=True)
    if not found.is_valid:
        raise typer.Exit(1)


def _show_events(db: Database, run_id: RunId, start: int, end: int | None, as_json: bool) -> int:
    """Print events from `start` on; returns the sequence after the last one."""
    for event in db.events.iterate(run_id, start, end):
        _show_event(event, as_json)
        start = event.sequence + 1
    return start


def _show_event(event: Event, as_json: bool) -> None:
    if as_json:
        row: dict[str, Any] = {
            "sequence": event.sequence,
            "type": event.event_type,
            "payload": event.payload,
            "timestamp": event.timestamp,
            "prev_hash": event.prev_hash.hex(),
            "hash": event.hash.hex(),
        }
        typer.echo(console.to_json(row))
    else:
        moment = event.timestamp.isoformat(timespec="milliseconds")
        payload = console.to_json(event.payload)
        typer.echo(f"{event.sequence:>6}  {moment}  {event.event_type}  {payload}  {event.hash.hex()[:12]}")


def cells(
    path: PathArgument,
    run: RunArgument,
    prefix: Annotated[
        str, typer.Argument(metavar="[PREFIX]", help="Only cells whose name begins with it.")
    ] = "",
    limit: LimitOption = None,
    as_json: JsonOption = False,
    namespace: NamespaceOption = None,
) -> None:
    """Print the state cells of a run with their versions."""
    with console.database(path, namespace) as db:
        run_id = console.run_of(db, run)
        with db.begin(run_id, read_only=True) as txn:
            for name in txn.cells.list(prefix, limit=limit):
                state = txn.cells.read(name)
                if state is None:
                    continue
                if as_json:
                    row = {
                        "name": name,
                        "version": state.version,
                        "value": state.value,
                        "updated_at": state.updated_at,
                    }
                    typer.echo(console.to_json(row))
                else:
                    typer.echo(f"{console.show_key(name)}\t{state.version}\t{console.to_json(state.value)}")
