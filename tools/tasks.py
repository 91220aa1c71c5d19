"""`occamdb tasks`: the queues of a run in numbers, or the tasks of one queue."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from occamdb.tools import console
from occamdb.tools.console import FullOption, JsonOption, NamespaceOption, PlaceArgument, RunArgument
from occamdb.tools.naming import run_of
from occamdb.tools.printable import markup, printable

if TYPE_CHECKING:
    from occamdb import QueueStats, Task

_STATES = ("ready", "delayed", "claimed", "done", "dead")
_COLOURS = {"ready": "cyan", "delayed": "magenta", "claimed": "yellow", "done": "green", "dead": "red"}
_PAYLOAD_LENGTH = 60


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command("tasks", rich_help_panel="Agents")(tasks)


def tasks(
    path: PlaceArgument,
    run: RunArgument,
    queue: Annotated[
        str | None, typer.Argument(metavar="[QUEUE]", help="List the tasks of this queue.")
    ] = None,
    state: Annotated[
        str | None, typer.Option(help=f"Only tasks in this state: {', '.join(_STATES)}.")
    ] = None,
    after: Annotated[str | None, typer.Option(metavar="ID", help="Only tasks behind this one.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many tasks.")] = 100,
    full: FullOption = False,
    as_json: JsonOption = False,
    namespace: NamespaceOption = None,
) -> None:
    """Show how many tasks each queue of a run has in each state, or list the tasks of one queue.

    In a pipe: one line a queue, with its name and the numbers of ready, delayed, claimed, done and dead tasks between
    tabs; or one line a task, with id, state, priority, attempts of how many, payload, result or error, and key.
    """
    if queue is None:
        console.refuse("without a QUEUE", state=state, after=after, full=full)
    with console.reading(path, namespace) as db:
        run_id = run_of(db, run)
        if queue is None:
            with db.snapshot(run_id) as view:
                _show_queues({name: view.tasks.stats(name) for name in view.tasks.queues()}, as_json)
            return
        found = db.tasks.list(run_id, queue, state=state, after=after, limit=limit)
    if as_json:
        for task in found:
            console.echo(console.to_json(_plain(task)))
    elif console.is_terminal():
        _show_tasks(found, full)
    else:
        for task in found:
            console.echo_row(*_fields(task))


def _show_queues(found: dict[str, QueueStats], as_json: bool) -> None:
    rows = [[name, *(str(getattr(stats, state)) for state in _STATES)] for name, stats in found.items()]
    if as_json:
        for name, stats in found.items():
            console.echo(console.to_json({"queue": name} | asdict(stats)))
    elif console.is_terminal():
        _show_table(("queue", *_STATES), [[printable(cell) for cell in row] for row in rows])
    else:
        for row in rows:
            console.echo_row(*row)


def _plain(task: Task) -> dict[str, object]:
    """A task for programs: its times as times."""
    facts = {name: value for name, value in task._asdict().items() if not name.endswith("_us")}
    times = {name: getattr(task, name) for name in ("created_at", "due_at", "finished_at", "lease_until")}
    return facts | times


def _fields(task: Task) -> list[str]:
    outcome = task.error or ("" if task.result is None else console.to_json(task.result))
    attempts = f"{task.attempts}/{task.max_attempts}"
    payload = console.to_json(task.payload)
    return [task.id, str(task.state), str(task.priority), attempts, payload, outcome, task.key or ""]


def _show_tasks(found: list[Task], full: bool) -> None:
    rows = []
    for task in found:
        task_id, state, priority, attempts, *texts = (printable(field) for field in _fields(task))
        if not full:
            texts = [
                text if len(text) <= _PAYLOAD_LENGTH else text[: _PAYLOAD_LENGTH - 1] + "…" for text in texts
            ]
        rows.append([task_id, state, priority, attempts, *texts, console.ago(task.created_at)])
    names = ("task", "state", "priority", "attempts", "payload", "result or error", "key", "put")
    _show_table(names, rows, coloured=1)


def _show_table(names: tuple[str, ...], rows: list[list[str]], coloured: int | None = None) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name, overflow="fold")
    for row in rows:
        cells = [markup(text) for text in row]
        if coloured is not None:
            cells[coloured] = f"[{_COLOURS.get(row[coloured], 'dim')}]{cells[coloured]}[/]"
        table.add_row(*cells)
    console.out().print(table)
