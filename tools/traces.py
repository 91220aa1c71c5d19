"""`occamdb traces`: what an agent did, as a list or as trees."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from occamdb.tools import console
from occamdb.tools.console import JsonOption, LimitOption, NamespaceOption, PathArgument, RunArgument

if TYPE_CHECKING:
    from occamdb import Database, RunId
    from occamdb.primitives import Trace, TraceTree


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command("traces", rich_help_panel="Agents")(traces)


def traces(
    path: PathArgument,
    run: RunArgument,
    trace_id: Annotated[
        str | None, typer.Argument(metavar="[TRACE]", help="One trace, or the tree below it.")
    ] = None,
    tree: Annotated[bool, typer.Option("--tree", help="As trees: of TRACE, or of every root.")] = False,
    trace_type: Annotated[
        str | None, typer.Option("--type", help="ToolCall, Decision, ..., or a custom name.")
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", help="Only with this tag; may be repeated.")
    ] = None,
    depth: Annotated[int | None, typer.Option(min=0, help="With --tree: how many levels.")] = None,
    children: Annotated[
        int | None, typer.Option(min=1, help="With --tree: how many children of each.")
    ] = None,
    limit: LimitOption = None,
    as_json: JsonOption = False,
    namespace: NamespaceOption = None,
) -> None:
    """Print the traces of a run in time order, or as trees."""
    with console.database(path, namespace) as db:
        run_id = console.run_of(db, run)
        if tree:
            roots = [trace_id] if trace_id else [t.id for t in db.traces.get_roots(run_id, limit=limit)]
            for root in roots:
                _show_tree(db.traces.get_tree(run_id, root), depth, children, as_json)
            return
        for trace in _found(db, run_id, trace_id, trace_type, tag or [], limit):
            _show(trace, as_json)


def _found(
    db: Database,
    run_id: RunId,
    trace_id: str | None,
    trace_type: str | None,
    tags: list[str],
    limit: int | None,
) -> list[Trace]:
    from occamdb import NotFoundError

    if trace_id is None:
        return db.traces.query(run_id, trace_type, tags=tags, limit=limit)
    trace = db.traces.get(run_id, trace_id)
    if trace is None:
        raise NotFoundError(f"there is no trace {trace_id} in this run", hint="leave it out to list them all")
    return [trace]


def _show_tree(tree: TraceTree, depth: int | None, children: int | None, as_json: bool) -> None:
    from occamdb.tools.trace_view import show

    if as_json:
        for level, trace in tree.walk():
            console.echo(console.to_json({"depth": level} | _as_dict(trace)))
    else:
        show(tree, console.out(), children_max=children, depth_max=depth)


def _show(trace: Trace, as_json: bool) -> None:
    from occamdb.tools.trace_view import label

    if as_json:
        console.echo(console.to_json(_as_dict(trace)))
    else:
        moment = trace.timestamp.isoformat(timespec="milliseconds")
        console.out().print(f"[dim]{trace.id}  {moment}[/]  {label(trace)}")


def _as_dict(trace: Trace) -> dict[str, Any]:
    return {
        "id": trace.id,
        "parent_id": trace.parent_id,
        "type": trace.type_name,
        "content": asdict(trace.trace_type),
        "timestamp": trace.timestamp,
        "tags": trace.tags,
        "metadata": trace.metadata,
    }
