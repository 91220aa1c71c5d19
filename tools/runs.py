"""`occamdb runs`: the index of runs as a list or as trees, and one run in full."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from occamdb.tools import console
from occamdb.tools.console import FullOption, JsonOption, LimitOption, NamespaceOption, PlaceArgument
from occamdb.tools.naming import run_of, short_ids
from occamdb.tools.printable import markup, printable

if TYPE_CHECKING:
    from occamdb import Database, RunId
    from occamdb.primitives import RunMetadata

_COLOURS = {
    "active": "cyan",
    "completed": "green",
    "failed": "red",
    "cancelled": "yellow",
    "paused": "magenta",
}

# The columns of the table, and whether one may be cut where the terminal is narrow.
_COLUMNS = {
    "run": False,
    "name": True,
    "status": False,
    "parent": True,
    "duration": False,
    "created": False,
    "tags": True,
    "error": True,
}


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command("runs", rich_help_panel="Agents")(runs)


def runs(
    path: PlaceArgument,
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="Show this one in full, or the tree below it.")
    ] = None,
    status: Annotated[
        str | None, typer.Option(help="active, completed, failed, cancelled, paused, archived.")
    ] = None,
    tag: Annotated[str | None, typer.Option(help="Only runs with this tag.")] = None,
    parent: Annotated[str | None, typer.Option(metavar="RUN", help="Only the children of this run.")] = None,
    tree: Annotated[bool, typer.Option("--tree", help="As trees of parents and children.")] = False,
    limit: LimitOption = None,
    full: FullOption = False,
    as_json: JsonOption = False,
    namespace: NamespaceOption = None,
) -> None:
    """List the runs in the index, or show one with its metadata.

    In a pipe: one line a run, with id, name, status, parent, seconds it took, creation, tags and error between tabs.
    With --tree its depth comes first. A run that has not ended took the time until now.
    """
    if tree:
        console.refuse("with --tree", status=status, tag=tag, parent=parent)
    if run is not None:
        why = "when one RUN is named"
        console.refuse(why, status=status, tag=tag, parent=parent, limit=limit, full=full and not tree)
    if as_json:
        console.refuse("with --json, which is always whole", full=full)
    with console.reading(path, namespace) as db:
        if run is not None and not tree:
            _show_one(db.runs.get_run(run_of(db, run)), run)
            return
        if tree:
            rows = list(_in_trees(db, None if run is None else run_of(db, run), limit))
        else:
            parent_id = None if parent is None else run_of(db, parent)
            found = db.runs.query_runs(status=status, tag=tag, parent=parent_id, limit=limit)
            rows = [(0, item) for item in found]
    if as_json:
        for depth, item in rows:
            taken = {"duration_s": _seconds(item)}
            console.echo(console.to_json(({"depth": depth} if tree else {}) | asdict(item) | taken))
    elif console.is_terminal():
        _show_table(rows, full)
    else:
        for depth, item in rows:
            console.echo_row(*([str(depth)] if tree else []), *_fields(item))


def _show_one(run: RunMetadata | None, name: str) -> None:
    from occamdb import NotFoundError

    if run is None:
        raise NotFoundError(
            f"run {name} is not in the index",
            hint="it may still have data: a run need not be registered to be used",
        )
    console.print_json(asdict(run) | {"duration_s": _seconds(run)})


def _in_trees(db: Database, top: RunId | None, limit: int | None) -> Iterator[tuple[int, RunMetadata]]:
    """Each run with its depth, parents first: of the tree below one, or of the first so many trees.

    A run whose parent is not in the index is the top of a tree.
    """
    every = {run.run_id: run for run in db.runs.list_runs()}
    below: dict[RunId | None, list[RunMetadata]] = {}
    for run in every.values():
        known = run.parent_run_id if run.parent_run_id in every else None
        below.setdefault(known, []).append(run)
    if top is None:
        tops = below.get(None, [])[:limit]
    elif top in every:
        tops = [every[top]]
    else:
        _show_one(None, str(top))
        return
    stack = [(0, run) for run in reversed(tops)]
    while stack:
        depth, run = stack.pop()
        yield depth, run
        stack += [(depth + 1, child) for child in reversed(below.get(run.run_id, []))]


def _seconds(run: RunMetadata) -> float | None:
    """How long a run took, or has been going on; None if it was archived without an outcome."""
    if run.completed_at is not None:
        return (run.completed_at - run.created_at).total_seconds()
    if run.status.value == "archived":
        return None
    return max(0.0, (datetime.now(UTC) - run.created_at).total_seconds())


def _fields(run: RunMetadata) -> list[str]:
    """One run for programs."""
    seconds = _seconds(run)
    return [
        str(run.run_id),
        run.name,
        run.status.value,
        str(run.parent_run_id or ""),
        "" if seconds is None else f"{seconds:.3f}",
        run.created_at.isoformat(timespec="milliseconds"),
        ", ".join(run.tags),
        run.error or "",
    ]


def _cells(depth: int, run: RunMetadata, ids: Mapping[str, str], names: Mapping[RunId, str]) -> list[str]:
    """One run for people, as text of `_COLUMNS`."""
    parent = run.parent_run_id
    going_on = " so far" if run.status.value in ("active", "paused") else ""
    return [
        ids[str(run.run_id)],
        "  " * depth + printable(run.name),
        run.status.value,
        "" if parent is None else printable(names.get(parent) or ids[str(parent)]),
        console.duration(_seconds(run)) + going_on,
        console.ago(run.created_at),
        printable(", ".join(run.tags)),
        printable(run.error or ""),
    ]


def _show_table(rows: list[tuple[int, RunMetadata]], full: bool) -> None:
    from rich.table import Table

    ids = [str(each) for _, run in rows for each in (run.run_id, run.parent_run_id) if each]
    shown: Mapping[str, str] = {each: each for each in ids} if full else short_ids(ids)
    names = {run.run_id: run.name for _, run in rows}
    table = Table(box=None, pad_edge=False)
    cells = [_cells(depth, run, shown, names) for depth, run in rows]
    for at, (column, may_shrink) in enumerate(_COLUMNS.items()):
        width = None if may_shrink and not full else max([len(column), *(len(row[at]) for row in cells)])
        table.add_column(column, no_wrap=True, overflow="ellipsis", min_width=width)
    for row, (_, run) in zip(cells, rows, strict=True):
        colour = _COLOURS.get(run.status.value, "dim")
        row = [markup(text) for text in row]
        row[2] = f"[{colour}]{row[2]}[/]"
        table.add_row(*row)
    out = console.out()
    if full:
        out.width = max(out.width, out.measure(table, options=out.options.update(max_width=1 << 20)).maximum)
    out.print(table)
