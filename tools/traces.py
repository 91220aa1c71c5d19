"""`occamdb traces`: what an agent did, as a list, as trees or as a timeline, and one trace in full."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from occamdb.tools import console
from occamdb.tools.console import (
    FullOption,
    JsonOption,
    LimitOption,
    NamespaceOption,
    PlaceArgument,
    RunArgument,
)
from occamdb.tools.naming import run_of, short_ids, trace_of
from occamdb.tools.picture_files import ForceOption, write_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from occamdb import Database, RunId
    from occamdb.primitives import Trace, TraceTree


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command("traces", rich_help_panel="Agents")(traces)


def traces(
    path: PlaceArgument,
    run: RunArgument,
    trace_id: Annotated[
        str | None,
        typer.Argument(
            metavar="[TRACE]", help="One trace, or the tree below it; the beginning of its id will do."
        ),
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
    svg: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw them as a timeline instead, into this SVG file; with TRACE the tree below it.",
            parser=console.path_given,
        ),
    ] = None,
    force: ForceOption = False,
    full: FullOption = False,
    as_json: JsonOption = False,
    namespace: NamespaceOption = None,
) -> None:
    """Print the traces of a run in time order, or as trees; with TRACE everything about that one.

    In a pipe: one line a trace, with id, start, milliseconds it took, state (ok, error, open), type, text and tags
    between tabs. With --tree the drawn tree comes first, then start, milliseconds, state and id.
    """
    if tree:
        console.refuse("with --tree", type=trace_type, tag=tag)
    else:
        console.refuse("without --tree", depth=depth, children=children)
    if svg is not None:
        console.refuse("with --svg", tree=tree, full=full, json=as_json)
    else:
        console.refuse("without --svg", force=force)
    if trace_id is not None:
        console.refuse(
            "when one TRACE is named", type=trace_type, tag=tag, limit=limit, full=full and not tree
        )
    if as_json:
        console.refuse("with --json, which is always whole", full=full)
    with console.reading(path, namespace) as db:
        run_id = run_of(db, run)
        top = None if trace_id is None else trace_of(db, run_id, trace_id)
        if svg is not None:
            listed: Iterable[Trace] = (
                db.traces.query(run_id, trace_type, tags=tag or [], limit=limit)
                if top is None
                else db.traces.get_tree(run_id, top)
            )
            _draw(list(listed), svg, f"run {run}", force)
        elif tree:
            roots = [top] if top else [each.id for each in db.traces.get_roots(run_id, limit=limit)]
            for root in roots:
                _show_tree(db.traces.get_tree(run_id, root), depth, children, full, as_json)
        elif top is not None:
            _show_one(db, run_id, top, as_json)
        else:
            _show_list(db.traces.query(run_id, trace_type, tags=tag or [], limit=limit), full, as_json)


def _draw(found: Sequence[Trace], target: Path, title: str, force: bool) -> None:
    """Write a timeline that is a file of its own."""
    from occamdb.tools.pictures import timeline, timeline_svg

    layout = timeline(found)
    size = write_file(target, [timeline_svg(layout, title=title, standalone=True)], force=force)
    console.echo(f"{target}: {console.size(size)}, {len(found):,} traces in {len(list(layout.bars)):,} bars")


def _show_tree(tree: TraceTree, depth: int | None, children: int | None, full: bool, as_json: bool) -> None:
    from occamdb.tools import trace_view

    if as_json:
        for level, trace in tree.walk():
            console.echo(console.to_json({"depth": level} | _as_dict(trace)))
        return
    limits: Any = {"children_max": children, "depth_max": depth}
    if console.is_terminal():
        ids = None if full else short_ids(trace.id for _, trace in tree.walk())
        trace_view.show(tree, console.out(), **limits, detail=trace_view.Detail(ids, full))
    else:
        for line in trace_view.plain_lines(tree, **limits):
            console.echo(line)


def _show_list(found: Sequence[Trace], full: bool, as_json: bool) -> None:
    from occamdb.tools import trace_view

    if as_json:
        for trace in found:
            console.echo(console.to_json(_as_dict(trace)))
    elif console.is_terminal():
        ids: Mapping[str, str] | None = None if full else short_ids(trace.id for trace in found)
        for trace in found:
            shown = trace_view.Detail(ids, full)
            console.out().print(f"{trace_view.label(trace, full)}  {shown.of(trace)}")
    else:
        for trace in found:
            console.echo_row(*trace_view.fields(trace))


def _show_one(db: Database, run_id: RunId, trace_id: str, as_json: bool) -> None:
    """Everything about one trace."""
    trace = db.traces.get(run_id, trace_id)
    assert trace is not None, "its id was found in the run"
    row = _as_dict(trace)
    if as_json:
        console.echo(console.to_json(row))
        return
    row |= {"root_id": trace.root_id, "children": len(db.traces.get_children(run_id, trace_id))}
    content = {f"content.{name}": value for name, value in row.pop("content").items()}
    for name, value in (row | content).items():
        text = value if isinstance(value, str) else console.to_json(value)
        console.echo_row(name, text)


def _as_dict(trace: Trace) -> dict[str, Any]:
    from occamdb.tools.trace_view import state

    return {
        "id": trace.id,
        "parent_id": trace.parent_id,
        "type": trace.type_name,
        "content": asdict(trace.trace_type),
        "timestamp": trace.timestamp,
        "ended_at": trace.ended_at,
        "duration_ms": trace.duration_ms,
        "state": state(trace),
        "error": trace.error,
        "result": trace.result,
        "tags": trace.tags,
        "metadata": trace.metadata,
    }
