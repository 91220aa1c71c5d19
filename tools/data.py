"""`occamdb get`, `put`, `delete`, `list`, `scan`: a run's keys and values, one command a transaction."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from occamdb.tools import console
from occamdb.tools.console import JsonOption, LimitOption, NamespaceOption, PlaceArgument, RunArgument
from occamdb.tools.naming import run_of

if TYPE_CHECKING:
    from occamdb import Database

KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="Text, or with --hex bytes.")]
HexOption = Annotated[bool, typer.Option("--hex", help="KEY is bytes in hexadecimal, as in 0xff00.")]
HexRangeOption = Annotated[
    bool, typer.Option("--hex", help="PREFIX, --start and --end are bytes in hexadecimal, as in 0xff00.")
]
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
    path: PlaceArgument,
    run: RunArgument,
    key: KeyArgument,
    as_json: JsonOption = False,
    in_hex: HexOption = False,
    namespace: NamespaceOption = None,
) -> None:
    """Print a value as JSON; exit code 1 if the key is absent.

    With --json: the value with its version, time of writing, expiry, and the session that an ephemeral key is bound to.
    """
    wanted = console.key_given(key, in_hex)
    with console.reading(path, namespace) as db:
        found = db.kv.get_versioned(run_of(db, run), wanted)
    if found is None:
        raise _absent(wanted)
    if as_json:
        console.print_json(
            {
                "key": wanted,
                "value": found.value,
                "version": found.version,
                "timestamp": found.timestamp,
                "expires_at": found.expires_at,
                "session": found.session or None,
            }
        )
    else:
        console.echo(console.to_json(found.value))


def put(
    path: PlaceArgument,
    run: RunArgument,
    key: KeyArgument,
    value: Annotated[
        str,
        typer.Argument(
            metavar="VALUE",
            help="JSON; '-' reads it from standard input. A negative number comes after '--'.",
        ),
    ],
    ttl: Annotated[float | None, typer.Option(help="Seconds after which the key is absent again.")] = None,
    expect: Annotated[
        int | None, typer.Option(metavar="VERSION", help="Only if the key has this version (0: is absent).")
    ] = None,
    create_run: Annotated[
        bool, typer.Option("--create-run", help="Make a run of this name if there is none.")
    ] = False,
    in_hex: HexOption = False,
    namespace: NamespaceOption = None,
) -> None:
    """Set a key to a JSON value and print the new version.

    Creates the database if there is none and RUN is an id, or with --create-run.
    """
    wanted = console.key_given(key, in_hex)
    parsed = console.parse_value(console.read_stdin() if value == "-" else value)

    def write(db: Database) -> int:
        run_id = run_of(db, run, create=create_run)
        if expect is None:
            return db.kv.put(run_id, wanted, parsed, ttl=ttl)
        return db.kv.cas(run_id, wanted, expect, parsed, ttl=ttl)

    if isinstance(path, Path) and not console.has_database(path):
        # Opening creates the database, so what would be refused must be refused before it.
        with console.rehearsal(path, namespace) as db:
            write(db)
    with console.database(path, namespace, create=True) as db:
        version = write(db)
    console.echo(f"version {version}")


def delete(
    path: PlaceArgument,
    run: RunArgument,
    key: KeyArgument,
    in_hex: HexOption = False,
    namespace: NamespaceOption = None,
) -> None:
    """Remove a key; exit code 1 if it was absent."""
    wanted = console.key_given(key, in_hex)
    with console.database(path, namespace) as db:
        was_there = db.kv.delete(run_of(db, run), wanted)
    if not was_there:
        raise _absent(wanted)


def _absent(key: str) -> typer.Exit:
    """Says so; to be raised."""
    console.echo(
        f"no key {key!r}" if console.binary_key(key) is None else f"no key {console.show_key(key)}", err=True
    )
    return typer.Exit(1)


def list_keys(
    path: PlaceArgument,
    run: RunArgument,
    prefix: PrefixArgument = "",
    start: StartOption = None,
    end: EndOption = None,
    limit: LimitOption = None,
    reverse: ReverseOption = False,
    in_hex: HexRangeOption = False,
    namespace: NamespaceOption = None,
) -> None:
    """Print the keys of a run, one a line, in byte order; those that are not text as hexadecimal."""
    among = _range_given(prefix, start, end, in_hex)
    with console.reading(path, namespace) as db:
        run_id = run_of(db, run)
        for key in db.kv.keys(run_id, **among, limit=limit, reverse=reverse):
            console.echo(console.show_key(key))


def scan(
    path: PlaceArgument,
    run: RunArgument,
    prefix: PrefixArgument = "",
    start: StartOption = None,
    end: EndOption = None,
    limit: LimitOption = None,
    reverse: ReverseOption = False,
    as_json: JsonOption = False,
    in_hex: HexRangeOption = False,
    namespace: NamespaceOption = None,
) -> None:
    """Print keys with versions and values, from one snapshot. With --json: one object a line."""
    among = _range_given(prefix, start, end, in_hex)
    with console.reading(path, namespace) as db:
        run_id = run_of(db, run)
        rows = db.kv.scan(run_id, **among, limit=limit, reverse=reverse)
        for key, found in rows:
            if as_json:
                row = {
                    "key": key,
                    "version": found.version,
                    "value": found.value,
                    "expires_at": found.expires_at,
                    "session": found.session or None,
                }
                console.echo(console.to_json(row))
            else:
                console.echo(f"{console.show_key(key)}\t{found.version}\t{console.to_json(found.value)}")


class _Range(TypedDict):
    """Which keys to show, as the operations of `db.kv` take it."""

    prefix: str
    start: str | None
    end: str | None


def _range_given(prefix: str, start: str | None, end: str | None, in_hex: bool) -> _Range:
    return {
        "prefix": console.key_given(prefix, in_hex),
        "start": None if start is None else console.key_given(start, in_hex),
        "end": None if end is None else console.key_given(end, in_hex),
    }
