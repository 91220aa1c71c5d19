"""`occamdb wal dump` and `wal verify`: the log, read without opening the database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from occamdb.tools import console
from occamdb.tools.console import JsonOption, LimitOption, PathArgument
from occamdb.tools.printable import printable

if TYPE_CHECKING:
    from occamdb.engine.disk.directory import DatabaseDirectory
    from occamdb.engine.log.wal_reader import LogEntry

VALUE_LENGTH_MAX = 120
log = typer.Typer(help="Look into the write-ahead log.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Mount the commands."""
    app.add_typer(log, name="wal", rich_help_panel="Care")


@contextmanager
def _directory(path: Path) -> Iterator[DatabaseDirectory]:
    from occamdb.engine.disk.directory import DatabaseDirectory

    directory = DatabaseDirectory(console.require_database(path), create=False)
    try:
        yield directory
    finally:
        directory.close()


@log.command("dump")
def dump(
    path: PathArgument,
    start: Annotated[
        int, typer.Option("--from", metavar="VERSION", min=0, help="The first version to show.")
    ] = 0,
    limit: LimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the entries of the log; with -n those of at most so many transactions. A coordinator may be running."""
    from occamdb.engine.log.wal_format import CommitTxn
    from occamdb.engine.log.wal_reader import read_log

    count = 0
    with _directory(path) as directory:
        for item in read_log(directory, start_version=start):
            console.echo(console.to_json(_as_dict(item)) if as_json else _line(item))
            count += isinstance(item.entry, CommitTxn)
            if count == limit:
                break


@log.command("verify")
def verify(path: PathArgument, as_json: JsonOption = False) -> None:
    """Check every entry of the log: checksums, order, whole transactions; exit code 1 if one is damaged."""
    from occamdb.engine.log.wal_reader import list_segments, read_log

    with _directory(path) as directory:
        segments = list_segments(directory)
        counts: Counter[str] = Counter()
        last = 0
        for item in read_log(directory):
            counts[type(item.entry).__name__] += 1
            last = item.version
    size = sum(segment.size for segment in segments)
    found = {
        "segments": len(segments),
        "bytes": size,
        "entries": counts.total(),
        "transactions": counts["CommitTxn"],
        "writes": counts["Write"] + counts["BoundWrite"],
        "deletes": counts["Delete"] + counts["DeleteRange"],
        "first_version": segments[0].first_version if segments else None,
        "last_version": last or None,
    }
    if as_json:
        console.print_json(found)
    else:
        console.out().print(
            f"[green]sound[/]: {found['transactions']:,} transactions with {found['writes']:,} writes and "
            f"{found['deletes']:,} deletes, in {found['segments']} segments ({console.size(size)}), "
            f"up to version {last:,}"
        )


def _as_dict(item: LogEntry) -> dict[str, Any]:
    from occamdb.engine.log.wal_format import BeginTxn, BoundWrite, CommitTxn, Delete, DeleteRange, Write
    from occamdb.engine.model.public_types import RunId

    place = {
        "segment": item.segment,
        "offset": item.offset,
        "version": item.version,
        "type": type(item.entry).__name__,
    }
    match item.entry:
        case BeginTxn(session=session, sequence=sequence, run_id=run_id, timestamp=timestamp):
            moment = datetime.fromtimestamp(timestamp / 1e9, UTC)
            return place | {
                "txn_id": [session, sequence],
                "run_id": str(RunId(bytes=run_id)),
                "timestamp": moment,
            }
        case Write(key=key, value=value, expires_at=expires_at):
            expiry = datetime.fromtimestamp(expires_at / 1e9, UTC) if expires_at else None
            return place | show_key(key) | {"value": show_value(value), "expires_at": expiry}
        case BoundWrite(key=key, value=value, expires_at=expires_at, session=session):
            expiry = datetime.fromtimestamp(expires_at / 1e9, UTC) if expires_at else None
            shown = {"value": show_value(value), "expires_at": expiry, "session": session}
            return place | show_key(key) | shown
        case Delete(key=key, removed=removed):
            return place | show_key(key) | {"expired_version": removed or None}
        case DeleteRange(start=start, end=end):
            return place | show_range(start, end)
        case CommitTxn(session=session, sequence=sequence, count=count):
            return place | {"txn_id": [session, sequence], "count": count}


def _line(item: LogEntry) -> str:
    fields = _as_dict(item)
    kind = fields.pop("type")
    head = f"{fields.pop('segment')}:{fields.pop('offset'):<10} {fields.pop('version'):>12}  {kind:<12}"
    rest = [f"{name}={_short(value)}" for name, value in fields.items() if value is not None]
    return f"{head} {' '.join(rest)}"


def _short(value: Any) -> str:
    text = printable(value) if isinstance(value, str) else console.to_json(value)
    return text if len(text) <= VALUE_LENGTH_MAX else text[: VALUE_LENGTH_MAX - 1] + "…"


def show_key(key: bytes) -> dict[str, Any]:
    """A stored key taken apart; as it is when it is malformed."""
    from occamdb.engine.model.errors import CorruptionError
    from occamdb.engine.model.keys import decode_key

    try:
        decoded = decode_key(key)
    except CorruptionError:
        return {"key": key}
    name = getattr(decoded.tag, "name", f"{int(decoded.tag):#04x}")
    return {"run": str(decoded.namespace.run_id), "tag": name, "key": decoded.user_key}


def show_range(start: bytes, end: bytes) -> dict[str, Any]:
    """A range of stored keys, with its run: a range is never of more than one."""
    # A key of a run is at least its prefix, a tag and one byte; the lower bound may be the prefix alone.
    run = show_key(start + b"\x01\x01").get("run")
    return ({"run": run} if run is not None else {}) | {"start": start, "end": end}


def show_value(value: bytes) -> Any:
    """A stored value decoded; its bytes when they are not a value."""
    from occamdb.engine.model.errors import OccamError
    from occamdb.engine.model.values import decode_value

    try:
        return decode_value(value)
    except (OccamError, ValueError):
        return value
