"""`occamdb events` and `cells`: the event log and the state cells of a run."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from occamdb.tools import console
from occamdb.tools.console import JsonOption, LimitOption, NamespaceOption, PlaceArgument, RunArgument
from occamdb.tools.naming import run_of
from occamdb.tools.printable import markup, printable

if TYPE_CHECKING:
    from occamdb import Database, RunId
    from occamdb.primitives import Event


def register(app: typer.Typer) -> None:
    """Mount the commands."""
    panel = "Agents"
    app.command("events", rich_help_panel=panel)(events)
    app.command("cells", rich_help_panel=panel)(cells)


def events(
    path: PlaceArgument,
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
    """Print the events of a run, or verify their chain (exit code 1 if it is broken).

    With --follow, a run that is deleted and begins another log is followed from the first event of the new one.
    """
    if verify:
        console.refuse("with --verify", type=event_type, start=start or None, limit=limit, follow=follow)
    opened = console.database if follow else console.reading  # new events come through a coordinator
    with opened(path, namespace) as db:
        run_id = run_of(db, run)
        if verify:
            _verify(db, run_id, as_json)
            return
        for event in _events(db, run_id, event_type, start, limit, follow):
            _show_event(event, as_json)


def _events(
    db: Database, run_id: RunId, event_type: str | None, start: int, limit: int | None, follow: bool
) -> Iterator[Event]:
    """What is to be shown, while it comes."""
    if follow:
        return islice(db.events.follow(run_id, start - 1, event_type), limit)
    if event_type is not None:
        return iter(db.events.read_by_type(run_id, event_type, start=start, limit=limit))
    return db.events.iterate(run_id, start, None if limit is None else start + limit)


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
        console.out().print(f"[red]broken[/] at event {found.first_invalid}: {markup(found.error or '')}")
    if not found.is_valid:
        raise typer.Exit(1)


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
        console.echo(console.to_json(row))
    else:
        moment = event.timestamp.isoformat(timespec="milliseconds")
        payload = console.to_json(event.payload)
        kind = printable(event.event_type)
        console.echo(f"{event.sequence:>6}  {moment}  {kind}  {payload}  {event.hash.hex()[:12]}")


def cells(
    path: PlaceArgument,
    run: RunArgument,
    prefix: Annotated[
        str, typer.Argument(metavar="[PREFIX]", help="Only cells whose name begins with it.")
    ] = "",
    limit: LimitOption = None,
    as_json: JsonOption = False,
    namespace: NamespaceOption = None,
) -> None:
    """Print the state cells of a run with their versions."""
    with console.reading(path, namespace) as db:
        run_id = run_of(db, run)
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
                    console.echo(console.to_json(row))
                else:
                    console.echo(f"{console.show_key(name)}\t{state.version}\t{console.to_json(state.value)}")
