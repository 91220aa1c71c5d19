"""`occamdb steps`: what became of the steps of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from occamdb.tools import console
from occamdb.tools.console import JsonOption, NamespaceOption, PlaceArgument, RunArgument
from occamdb.tools.naming import run_of

if TYPE_CHECKING:
    from occamdb.primitives import Step


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command("steps", rich_help_panel="Agents")(steps)


def steps(
    path: PlaceArgument, run: RunArgument, as_json: JsonOption = False, namespace: NamespaceOption = None
) -> None:
    """Print the steps of a run: name, state, attempts, seconds, and the result or the error."""
    with console.reading(path, namespace) as db:
        for step in db.steps.list(run_of(db, run)):
            _show(step, as_json)


def _show(step: Step, as_json: bool) -> None:
    seconds = None if step.ended is None else (step.ended - step.began).total_seconds()
    if as_json:
        console.print_json(
            {
                "name": step.name,
                "state": step.state,
                "function": step.function,
                "attempts": step.attempts,
                "began": step.began.isoformat(),
                "seconds": seconds,
                "result": console.plain(step.result),
                "error": step.error,
            }
        )
        return
    outcome = step.error if step.error is not None else console.to_json(console.plain(step.result))
    console.echo_row(
        step.name,
        step.state,
        f"{step.attempts} attempts" if step.attempts != 1 else "1 attempt",
        "-" if seconds is None else f"{seconds:.3f} s",
        outcome if step.state != "running" else "",
    )
