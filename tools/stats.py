"""`occamdb stats` and `top`: the coordinator's figures, once or live. Asking never starts a coordinator."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from occamdb.tools import console
from occamdb.tools.console import JsonOption, PathArgument
from occamdb.tools.printable import markup

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

HOT_KEYS_SHOWN = 5
SPACES = ("used", "nodes", "records", "superseded", "index", "quarantine", "free")


def register(app: typer.Typer) -> None:
    """Mount the commands."""
    app.command("stats", rich_help_panel="Coordinator")(stats)
    app.command("top", rich_help_panel="Coordinator")(top)


def stats(path: PathArgument, as_json: JsonOption = False) -> None:
    """Print the running coordinator's figures: commits, conflicts, latencies, store, log, workers."""
    figures = _figures(path)
    if as_json:
        console.print_json(figures)
    else:
        console.out().print(render(figures, None))


def top(
    path: PathArgument,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between updates.")] = 1.0,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many updates.")] = None,
) -> None:
    """Show the figures live, with rates, until Ctrl-C."""
    from rich.live import Live

    out, before = console.out(), _figures(path)
    with Live(render(before, None), console=out, auto_refresh=False, screen=out.is_terminal) as live:
        shown = 0
        while count is None or shown < count:
            time.sleep(interval)
            figures = _figures(path)
            live.update(render(figures, before), refresh=True)
            before, shown = figures, shown + 1


def _figures(path: Path) -> dict[str, Any]:
    from occamdb.tools.coordinator import ask

    figures = ask(console.require_database(path), "stats")
    return figures | {"read_at": time.time()}


def rate(name: str, figures: dict[str, Any], before: dict[str, Any] | None) -> str:
    """How fast a counter grew between two readings: "1,234/s"; empty without a first one."""
    if before is None:
        return ""
    seconds = max(figures["read_at"] - before["read_at"], 1e-9)
    return f" ({(figures[name] - before[name]) / seconds:,.0f}/s)"


def render(figures: dict[str, Any], before: dict[str, Any] | None) -> RenderableType:
    """All of it, for people.

    Args:
      figures: what the coordinator answered.
      before: the reading before, for rates.
    """
    from rich.console import Group

    return Group(_summary(figures, before), "", _workers(figures), *_hot_keys(figures))


def _summary(figures: dict[str, Any], before: dict[str, Any] | None) -> Table:
    from rich.table import Table

    conflicts, store, log = figures["conflicts"], figures["store"], figures["log"]
    latency, group = figures["latency_us"], figures["group_commit"]
    rows = {
        "database": f"{markup(figures['path'])}, pid {figures['pid']}, up {figures['uptime']:,.0f} s, "
        f"durability {figures['durability']}",
        "version": f"{figures['version']:,}",
        "commits": f"{figures['commits']:,}{rate('commits', figures, before)} in {figures['batches']:,} batches; "
        f"batch p50 {group['p50']}, p99 {group['p99']} commits, {latency['p50']:,.0f} / {latency['p99']:,.0f} us",
        "conflicts": ", ".join(f"{kind} {number:,}" for kind, number in conflicts.items())
        + f"; refused {figures['refused']:,}, snapshots revoked {figures['snapshots_revoked']:,}",
        "keys": f"{figures['keys']:,}, expired {figures['expired']:,}, to expire {figures['pending_expiries']:,}",
        "store": f"of {console.size(store['size'])}: "
        + ", ".join(f"{name} {console.size(store[name])}" for name in SPACES),
    }
    if log:
        rows["log"] = (
            f"{console.size(log['bytes'])}, {log['flushes']:,} writes, {log['syncs']:,} syncs, "
            f"{log['rotations']:,} rotations, {figures['log_errors']:,} errors"
        )
        rows["checkpoint"] = _checkpoint(figures)
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, text in rows.items():
        table.add_row(f"[bold]{name}[/]", text)
    return table


def _checkpoint(figures: dict[str, Any]) -> str:
    from rich.markup import escape

    last = figures["durable"]["checkpoint"]
    behind = figures["version"] - last["version"]
    text = f"of version {last['version']:,}, {behind:,} behind"
    if figures["log"]["poisoned"]:
        saved = (
            "everything acknowledged is saved" if last["saved"] else "what it acknowledged is NOT SAVED YET"
        )
        text += f"; [red]the log failed: no commits until a restart, {saved}[/]"
    if last["failures"]:
        text += f"; [red]{last['failures']:,} failed in a row: {escape(last['error'])}[/]"
    return text


def _workers(figures: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(
        box=None, pad_edge=False, title=f"{len(figures['workers'])} connections", title_justify="left"
    )
    for column in ("pid", "commits", "conflicts", "oldest snapshot", "holds back"):
        table.add_column(column, justify="right")
    for worker in sorted(figures["workers"], key=lambda item: (item["pid"], item["session"])):
        held = worker["snapshot_version"]
        age = "" if held is None else f"{worker['snapshot_age']:,.1f} s"
        table.add_row(
            str(worker["pid"]),
            f"{worker['commits']:,}",
            f"{worker['conflicts']:,}",
            age,
            "" if held is None else console.size(worker["held_bytes"]),
        )
    return table


def _hot_keys(figures: dict[str, Any]) -> list[RenderableType]:
    if not figures["hot_keys"]:
        return []
    lines = [
        f"{item['conflicts']:>8,}  {markup(item['key'])}" for item in figures["hot_keys"][:HOT_KEYS_SHOWN]
    ]
    return ["", "[bold]conflicts by key[/]", *lines]
