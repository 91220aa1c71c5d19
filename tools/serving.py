"""`occamdb serve`, `stop`, `status`: the coordinator of a directory; `status` of a server too."""

from __future__ import annotations

import contextlib
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from occamdb.tools import console
from occamdb.tools.console import JsonOption, PathArgument, PlaceArgument
from occamdb.tools.printable import markup

PANEL = "Coordinator"


def register(app: typer.Typer) -> None:
    """Mount the commands."""
    app.command("serve", rich_help_panel=PANEL)(serve)
    app.command("stop", rich_help_panel=PANEL)(stop)
    app.command("status", rich_help_panel=PANEL)(status)


def parse_settings(assignments: list[str]) -> dict[str, Any]:
    """`name=value` pairs; a value is a TOML number or plain text such as 64MiB.

    Raises:
      SettingsError: no `=`, an unknown setting or a value that is not allowed.
    """
    from occamdb.engine.model.errors import SettingsError
    from occamdb.engine.model.settings import Settings

    found: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise SettingsError(
                f"{assignment!r} is not NAME=VALUE", setting=name, hint="as in --set ring_size=1MiB"
            )
        try:
            found[name.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            found[name.strip()] = text.strip()
    Settings.of(found)
    return found


def serve(
    path: PathArgument,
    durability: Annotated[str, typer.Option(help="none, standard or always.")] = "standard",
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting; may be repeated.")
    ] = None,
) -> None:
    """Run the coordinator in the foreground until Ctrl-C, SIGTERM or `occamdb stop`. Creates the database."""
    import os

    from occamdb.engine.coordinator.coordinator import Coordinator

    coordinator = Coordinator(str(path.resolve()), durability, parse_settings(setting or []), auto=False)
    coordinator.start()
    # So that the directory it was called in can be removed or unmounted while it serves.
    os.chdir("/")
    # Standard error may be a file on a full disk: the database is served nevertheless.
    with contextlib.suppress(OSError):
        console.echo(f"serving {path} (pid {os.getpid()}, durability {durability}); Ctrl-C stops", err=True)
    raise typer.Exit(coordinator.serve())


def stop(
    path: PathArgument,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for it.")] = 30.0,
    kill: Annotated[bool, typer.Option("--kill", help="By SIGKILL; the next open recovers.")] = False,
) -> None:
    """End the coordinator, which finishes the work it has begun and makes a checkpoint."""
    from occamdb.tools.coordinator import stop_coordinator

    pid = stop_coordinator(console.require_database(path), timeout=timeout, kill=kill)
    console.echo(f"stopped (pid {pid})" if pid else "no coordinator was running")


def status(path: PlaceArgument, as_json: JsonOption = False) -> None:
    """Tell whether the directory is served and how it was left. Starts nothing; exit code 3 if nobody serves it.

    Of a server: its version, our role and schema there, durability, namespaces and sizes. Exit code 3 if there is no
    schema, or an older one.
    """
    if isinstance(path, str):
        _server_status(path, as_json)
        return
    found = describe(console.require_database(path))
    if as_json:
        console.print_json(found)
    else:
        _show(found)
    if found["coordinator"] is None:
        raise typer.Exit(3)


def _server_status(url: str, as_json: bool) -> None:
    from occamdb.tools.server_status import describe_server, show_facts

    found = describe_server(url)
    if as_json:
        console.print_json(found)
    else:
        show_facts(found)
    if found.get("format") != found.get("format_known"):
        console.echo("the schema has to be made or upgraded: occamdb migrate URL", err=True)
        raise typer.Exit(3)


def describe(path: Path) -> dict[str, Any]:
    """What can be seen of a database without opening it."""
    from occamdb.engine.disk.directory import read_meta
    from occamdb.ipc.stale import list_incarnations
    from occamdb.tools.coordinator import coordinator_of
    from occamdb.tools.log_size import log_size

    meta = read_meta(path)
    assert meta is not None, "require_database found it"
    holder = coordinator_of(path)
    segments = list_incarnations(meta.database_id)
    log = log_size(path)
    return {
        "path": str(path.resolve()),
        "database_id": meta.database_id.hex(),
        "created_at": datetime.fromtimestamp(meta.created_at / 1e9, UTC),
        "coordinator": None if holder is None else holder.pid,
        "incarnation": meta.incarnation,
        "durability": meta.durability,
        "stopped_cleanly": meta.clean if holder is None else None,
        "log_bytes": log.used + log.set_aside,
        "log_used_bytes": log.used,
        "log_set_aside_bytes": log.set_aside,
        "checkpoint_bytes": _bytes_below(path / "checkpoints"),
        "shared_memory_bytes": sum(item.allocated_size for item in segments),
        "segments": [name for item in segments for name in item.names],
    }


def _bytes_below(directory: Path) -> int:
    """Bytes of the files in a directory; those that vanish meanwhile do not count."""
    total = 0
    for path in directory.glob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def _show(found: dict[str, Any]) -> None:
    pid = found["coordinator"]
    if pid is not None:
        state = f"[green]running[/], pid {pid}"
    else:
        state = (
            "stopped"
            if found["stopped_cleanly"]
            else "[yellow]not running[/]; the next open recovers from the log"
        )
    rows = {
        "database": f"{markup(found['path'])} ({found['database_id']})",
        "coordinator": f"{state} (incarnation {found['incarnation']})",
        "durability": found["durability"] or "not decided yet",
        "created": f"{found['created_at']:%Y-%m-%d %H:%M:%S} UTC",
        "log": f"used {console.size(found['log_used_bytes'])}, "
        f"set aside {console.size(found['log_set_aside_bytes'])}",
        "checkpoints": console.size(found["checkpoint_bytes"]),
        "shared memory": f"{console.size(found['shared_memory_bytes'])} in {len(found['segments'])} segments",
    }
    for name, text in rows.items():
        console.out().print(f"[bold]{name:<14}[/]{text}")
