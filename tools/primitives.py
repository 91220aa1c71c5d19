"""`occamdb events` and `cells`: the event log and the state cells of a run."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from occamdb.tools import console
from occamdb.tools.console import JsonOption, LimitOption, NamespaceOption, PathArgument, RunArgument
from occamdb.tools.naming import run_of
from occamdb.tools.printable import markup, printable

if TYPE_CHECKING:
    from occamdb import Database, RunId, Transaction
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
        viewer = _Viewer(db, run_id, event_type, start, limit, as_json)
        viewer.show_new()
        while follow and viewer.wants_more:
            time.sleep(FOLLOW_INTERVAL_S)
            viewer.show_new()


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


@dataclass
class _Viewer:
    """Shows each event of a run once, in order, however often it looks.

    Attributes:
      event_type: show only these; None: all.
      next_sequence: the first that may be shown.
      left: how many more may be; None: any number.
      last: the latest one shown, to recognise the log by.
    """

    db: Database
    run_id: RunId
    event_type: str | None
    next_sequence: int
    left: int | None
    as_json: bool
    last: Event | None = None

    @property
    def wants_more(self) -> bool:
        """Whether another event may be shown."""
        return self.left is None or self.left > 0

    def show_new(self) -> None:
        """Print what came since the last look, from one snapshot."""
        with self.db.begin(self.run_id, read_only=True) as txn:
            if self._is_another_log(txn):
                self.next_sequence = 0
            for event in self._unseen(txn):
                _show_event(event, self.as_json)
                self.last, self.next_sequence = event, event.sequence + 1
                self.left = None if self.left is None else self.left - 1

    def _is_another_log(self, txn: Transaction) -> bool:
        """Whether the run was deleted since. By hash: a new log may have grown as long as the old one was."""
        if self.last is None:
            return False
        found = txn.events.read(self.last.sequence)
        return found is None or found.hash != self.last.hash

    def _unseen(self, txn: Transaction) -> Iterable[Event]:
        if self.event_type is not None:
            return txn.events.read_by_type(self.event_type, start=self.next_sequence, limit=self.left)
        end = None if self.left is None else self.next_sequence + self.left
        return txn.events.iterate(self.next_sequence, end)


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
