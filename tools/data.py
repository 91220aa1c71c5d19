"""`occamdb get`, `put`, `delete`, `list`, `scan`: a run's keys and values, one command a transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from occamdb.tools import console
from occamdb.tools.console import JsonOption, LimitOption, NamespaceOption, PathArgument, RunArgument

if TYPE_CHECKING:
    from occamdb import Database

KeyArgument = Annotated[str, typer.Argument(metavar="KEY")]
PrefixArgument = Annotated[str, typer.Argument(metavar="[PREFIX]", help="Only keys that begin with it.")]
StartOption = Annotated[str | None, typer.Option("--start", help="The first key that may come.")]
EndOption = Annotated[str | None, typer.Option("--end", help="The first key that may not.")]
ReverseOption = Annotated[bool, typer.Option("--reverse", help="From the last key to the first.")]


def register(app: typer.Typer) -> None:
    """Mount the commands."""
    panel = "Data"
    app.command("get", rich_help_panel=panel)(get)
    app.command("put", rich_help_panel=panel)(put)
    app.command("delete", rich_help_panel=panel)(delete)
    app.command("list", rich_help_panel=panel)(list_keys)
    app.command("scan", rich_help_panel=panel)(scan)


def get(
    path: PathArgument,
    run: RunArgument,
    key: KeyArgument,
    as_json: JsonOption = False,
    namespace: NamespaceOption = None,
) -> None:
    """Print a value as JSON; exit code 1 if the key is absent.

    With --json: the value with its version, time of writing and expiry.
    """
    with console.database(path, namespace) as db:
        found = db.kv.get_versioned(console.run_of(db, run), key)
    if found is None:
        typer.echo(f"no key {key!r}", err=True)
        raise typer.Exit(1)
    if as_json:
        console.print_json(
            {
                "key": key,
                "value": found.value,
                "version": found.version,
                "timestamp": found.timestamp,
                "expires_at": found.expires_at,
            }
        )
    else:
        typer.echo(console.to_json(found.value))


def put(
    path: PathArgument,
    run: RunArgument,
    key: KeyArgument,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="JSON; '-' reads it from standard input.")],
    ttl: Annotated[float | None, typer.Option(help="Seconds after which the key is absent again.")] = None,
    expect: Annotated[
        int | None, typer.Option(metavar="VERSION", help="Only if the key has this version (0: is absent).")
    ] = None,
    create_run: Annotated[
        bool, typer.Option("--create-run", help="Make a run of this name if there is none.")
    ] = False,
    namespace: NamespaceOption = None,
) -> None:
    """Set a key to a JSON value and print the new version.

    Creates the database if there is none and RUN is an id, or with --create-run.
    """
    parsed = console.parse_value(console.read_stdin() if value == "-" else value)

    def write(db: Database) -> int:
        run_id = console.run_of(db, run, create=create_run)
        if expect is None:
            return db.kv.put(run_id, key, parsed, ttl=ttl)
        return db.kv.cas(run_id, key, expect, parsed, ttl=ttl)

    if not console.has_database(path):
        with console.rehearsal(path, namespace) as db:
            write(db)
    with console.database(path, namespace, create=True) as db:
        version = write(db)
    typer.echo(f"version {version}")


def delete(path: PathArgument, run: RunArgument, key: KeyArgument, namespace: NamespaceOption = None) -> None:
    """Remove a key; exit code 1 if it was absent."""
    with console.database(path, namespace) as db:
        was_there = db.kv.delete(console.run_of(db, run), key)
    if not was_there:
        typer.echo(f"no key {key!r}", err=True)
        raise typer.Exit(1)


def list_keys(
    path: PathArgument,
    run: RunArgument,
    prefix: PrefixArgument = "",
    start: StartOption = None,
    end: EndOption = None,
    limit: LimitOption = None,
    reverse: ReverseOption = False,
    namespace: NamespaceOption = None,
) -> None:
    """Print the keys of a run, one a line, in byte order."""
    with console.database(path, namespace) as db:
        run_id = console.run_of(db, run)
        for key in db.kv.keys(run_id, prefix, start=start, end=end, limit=limit, reverse=reverse):
            typer.echo(console.show_key(key))


def scan(
    path: PathArgument,
    run: RunArgument,
    prefix: PrefixArgument = "",
    start: StartOption = None,
    end: EndOption = None,
    limit: LimitOption = None,
    reverse: ReverseOption = False,
    as_json: JsonOption = False,
    namespace: NamespaceOption = None,
) -> None:
    """Print keys with versions and values, from one snapshot. With --json: one object a line."""
    with console.database(path, namespace) as db:
        run_id = console.run_of(db, run)
        rows = db.kv.scan(run_id, prefix, start=start, end=end, limit=limit, reverse=reverse)
        for key, found in rows:
            if as_json:
                row = {
                    "key": key,
                    "version": found.version,
                    "value": found.value,
                    "expires_at": found.expires_at,
                }
                typer.echo(console.to_json(row))
            else:
                typer.echo(f"{console.show_key(key)}\t{found.version}\t{console.to_json(found.value)}")
