"""`occamdb leases`: who holds the leases of a run, and how many wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from occamdb.tools import console
from occamdb.tools.console import JsonOption, NamespaceOption, PlaceArgument, RunArgument
from occamdb.tools.naming import run_of

if TYPE_CHECKING:
    from occamdb.primitives import LeaseHolder


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command("leases", rich_help_panel="Agents")(leases)


def leases(
    path: PlaceArgument, run: RunArgument, as_json: JsonOption = False, namespace: NamespaceOption = None
) -> None:
    """Print the holders of a run's leases: name, slot, token, pid, since when, until when, how many wait."""
    with console.reading(path, namespace) as db:
        run_id = run_of(db, run)
        for holder in db.leases.list(run_id):
            _show(holder, db.leases.waiting(run_id, holder.name), as_json)


def _show(holder: LeaseHolder, waiting: int, as_json: bool) -> None:
    until = holder.expires_at
    row: dict[str, Any] = {
        "name": holder.name,
        "slot": holder.slot,
        "slots": holder.slots,
        "token": holder.token,
        "pid": holder.pid,
        "since": holder.since.isoformat(),
        "expires_at": None if until is None else until.isoformat(),
        "waiting": waiting,
    }
    if as_json:
        console.print_json(row)
        return
    console.echo_row(
        holder.name,
        f"slot {holder.slot} of {holder.slots}",
        f"token {holder.token}",
        f"pid {holder.pid}",
        f"since {row['since']}",
        f"until {row['expires_at']}" if until is not None else "no limit",
        f"{waiting} waiting",
    )
