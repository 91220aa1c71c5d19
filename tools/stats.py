"""`occamdb stats` and `top`: the coordinator's figures, once or live. Asking never starts a coordinator.

`figure_words` explains every word of them. In a pipe, stats prints one line a figure and top one line an update.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from occamdb.tools import console
from occamdb.tools.console import JsonOption, PlaceArgument
from occamdb.tools.places import PLACE, Place
from occamdb.tools.printable import markup

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

HOT_KEYS_SHOWN = 5
if TYPE_CHECKING:
    OptionalPlace: TypeAlias = Place | None
else:
    OptionalPlace = Annotated[Any, PLACE]  # see places.py
SPACES = ("used", "nodes", "records", "superseded", "index", "quarantine", "free")


def register(app: typer.Typer) -> None:
    """Mount the commands."""
    app.command("stats", rich_help_panel="Coordinator")(stats)
    app.command("top", rich_help_panel="Coordinator")(top)


def stats(
    path: OptionalPlace = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what every figure of stats and top means instead.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Print the running coordinator's figures: commits, conflicts, latencies, store, log, workers.

    Of a server: the figures that its backend gives.
    """
    if explain:
        _explain(as_json)
        return
    if path is None:
        raise typer.BadParameter("it is missing; only --explain needs none", param_hint="PATH")
    if isinstance(path, str):
        from occamdb.tools.server_status import show_server_figures

        show_server_figures(path, as_json)
        return
    figures = figures_of(path)
    if as_json:
        console.print_json(figures)
    elif console.is_terminal():
        console.out().print(render(figures, None))
    else:
        for row in rows(figures, None):
            console.echo_row(*row)


def _explain(as_json: bool) -> None:
    from occamdb.tools.figure_words import WORDS

    if as_json:
        console.print_json(WORDS)
    elif console.is_terminal():
        from rich.table import Table

        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(no_wrap=True, style="bold")
        for word, meaning in WORDS.items():
            table.add_row(word, markup(meaning))
        console.out().print(table)
    else:
        for word, meaning in WORDS.items():
            console.echo_row(word, meaning)


def top(
    path: PlaceArgument,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between updates.")] = 1.0,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many updates.")] = None,
) -> None:
    """Show the figures live, with rates and sparklines, until Ctrl-C. In a pipe: one line an update, without them."""
    if isinstance(path, str):
        from occamdb.tools.server_status import watch_server_figures

        watch_server_figures(path, interval, count)
        return
    before = figures_of(path)
    if not console.is_terminal():
        for figures in _updates(path, interval, count):
            _print_update(figures, before)
            before = figures
        return
    from rich.live import Live

    from occamdb.tools.top_history import History

    history = History()
    history.add(before)
    shown = render(before, None)
    with Live(shown, console=console.out(), auto_refresh=False, screen=True) as live:
        for figures in _updates(path, interval, count):
            history.add(figures)
            shown = render(figures, before, history.lines(console.out().options.ascii_only))
            live.update(shown, refresh=True)
            before = figures
    # The screen that showed it is gone; the last figures stay.
    console.out().print(shown)


def _updates(path: Path, interval: float, count: int | None) -> Iterator[dict[str, Any]]:
    shown = 0
    while count is None or shown < count:
        time.sleep(interval)
        yield figures_of(path)
        shown += 1


def _print_update(figures: dict[str, Any], before: dict[str, Any]) -> None:
    conflicts = sum(figures["conflicts"].values())
    moment = datetime.fromtimestamp(figures["read_at"], UTC)
    fields = [
        moment.isoformat(timespec="milliseconds"),
        f"version {figures['version']}",
        f"commits {figures['commits']}{rate('commits', figures, before)}",
        f"batches {figures['batches']}{rate('batches', figures, before)}",
        f"conflicts {conflicts}",
        f"refused {figures['refused']}",
        f"keys {figures['keys']}",
        f"store.used {figures['store']['used']}",
        f"workers {len(figures['workers'])}",
    ]
    if figures["log"]:
        fields.append(f"log.used {figures['log']['used']}")
    console.echo_row(*fields)
    sys.stdout.flush()


def figures_of(path: Path) -> dict[str, Any]:
    """What the coordinator answers, with the log's size on the disk, which `status` reads in the same way."""
    from occamdb.tools.coordinator import ask
    from occamdb.tools.log_size import log_size

    figures = ask(console.require_database(path), "stats")
    if figures["log"]:
        size = log_size(path)
        figures["log"] |= {"used": size.used, "set_aside": size.set_aside}
    return figures | {"read_at": time.time()}


def rate(name: str, figures: dict[str, Any], before: dict[str, Any] | None) -> str:
    """How fast a counter grew between two readings: "1,234/s"; empty without a first one."""
    if before is None:
        return ""
    seconds = max(figures["read_at"] - before["read_at"], 1e-9)
    return f" ({(figures[name] - before[name]) / seconds:,.0f}/s)"


def render(
    figures: dict[str, Any], before: dict[str, Any] | None, sparklines: dict[str, str] | None = None
) -> RenderableType:
    """All of it, for people.

    Args:
      figures: what the coordinator answered.
      before: the reading before, for rates.
      sparklines: more lines of the summary, each under its name.
    """
    from rich.console import Group

    return Group(_summary(figures, before, sparklines or {}), "", _workers(figures), *_hot_keys(figures))


def rows(figures: dict[str, Any], before: dict[str, Any] | None) -> Iterator[list[str]]:
    """All of it, for a pipe: a name and its text."""
    from rich.text import Text

    for name, text in _lines(figures, before).items():
        yield [name, Text.from_markup(text).plain]
    for worker in _sorted_workers(figures):
        held = worker["snapshot_version"]
        snapshot = (
            "no snapshot"
            if held is None
            else f"oldest snapshot {worker['snapshot_age']:,.1f} s, holds back {console.size(worker['held_bytes'])}"
        )
        counts = f"commits {worker['commits']:,}, conflicts {worker['conflicts']:,}"
        yield ["worker", f"pid {worker['pid']}, {counts}, {snapshot}"]
    for item in figures["hot_keys"][:HOT_KEYS_SHOWN]:
        yield ["hot key", f"{item['conflicts']:,} conflicts", item["key"]]


def _summary(figures: dict[str, Any], before: dict[str, Any] | None, sparklines: dict[str, str]) -> Table:
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    for name, text in (_lines(figures, before) | sparklines).items():
        table.add_row(f"[bold]{name}[/]", text)
    return table


def _lines(figures: dict[str, Any], before: dict[str, Any] | None) -> dict[str, str]:
    """The summary, each line under its name, in rich's markup."""
    conflicts, store, log = figures["conflicts"], figures["store"], figures["log"]
    latency, group = figures["latency_us"], figures["group_commit"]
    mean = figures["commits"] / figures["batches"] if figures["batches"] else 0.0
    lines = {
        "database": f"{markup(figures['path'])}, pid {figures['pid']}, up {figures['uptime']:,.0f} s, "
        f"durability {figures['durability']}",
        "version": f"{figures['version']:,}",
        "commits": f"{figures['commits']:,}{rate('commits', figures, before)} in {figures['batches']:,} batches, "
        f"{mean:.1f} each; refused {figures['refused']:,}",
        "group size": f"p50 <= {group['p50']:,}, p99 <= {group['p99']:,} commits a batch (buckets)",
        "latency": f"p50 <= {_microseconds(latency['p50'])}, p99 <= {_microseconds(latency['p99'])} "
        "a batch (buckets: up to twice the true value)",
        "conflicts": ", ".join(f"{kind} {number:,}" for kind, number in conflicts.items())
        + f"; retries {figures['retries']:,}, snapshots revoked {figures['snapshots_revoked']:,}",
        "turns": ", ".join(f"{kind} {number:,}" for kind, number in figures["turns"].items()),
        "keys": f"{figures['keys']:,} with index entries, expired {figures['expired']:,}, "
        f"to expire {figures['pending_expiries']:,}, bound to sessions {figures['session_keys']:,}",
        "store": f"of {console.size(store['size'])}: "
        + ", ".join(f"{name} {console.size(store[name])}" for name in SPACES),
    }
    if log:
        lines["log"] = (
            f"used {console.size(log['used'])}, set aside {console.size(log['set_aside'])}, "
            f"written {console.size(log['bytes'])} in {log['flushes']:,} writes, {log['syncs']:,} syncs, "
            f"{log['rotations']:,} rotations, {figures['log_errors']:,} errors"
        )
        lines["checkpoint"] = _checkpoint(figures)
    return lines


def _microseconds(value: float) -> str:
    return f"{value:.1f} us" if value < 1000 else console.duration(value / 1e6)


def _checkpoint(figures: dict[str, Any]) -> str:
    last = figures["durable"]["checkpoint"]
    behind = figures["version"] - last["version"]
    text = f"of version {last['version']:,}, {behind:,} behind"
    if figures["log"]["poisoned"]:
        saved = (
            "everything acknowledged is saved" if last["saved"] else "what it acknowledged is NOT SAVED YET"
        )
        text += f"; [red]the log failed: no commits until a restart, {saved}[/]"
    if last["failures"]:
        text += f"; [red]{last['failures']:,} failed in a row: {markup(last['error'])}[/]"
    return text


def _workers(figures: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(
        box=None, pad_edge=False, title=f"{len(figures['workers'])} connections", title_justify="left"
    )
    for column in ("pid", "commits", "conflicts", "oldest snapshot", "holds back"):
        table.add_column(column, justify="right")
    for worker in _sorted_workers(figures):
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


def _sorted_workers(figures: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted(figures["workers"], key=lambda item: (item["pid"], item["session"]))


def _hot_keys(figures: dict[str, Any]) -> list[RenderableType]:
    if not figures["hot_keys"]:
        return []
    lines = [
        f"{item['conflicts']:>8,}  {markup(item['key'])}" for item in figures["hot_keys"][:HOT_KEYS_SHOWN]
    ]
    return ["", "[bold]conflicts by key[/]", *lines]
