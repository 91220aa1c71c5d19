"""What every command shares: consoles, JSON in and out, opening a database, errors shown as message and hint.

Imports stay inside functions where they are slow, so that `occamdb --help` does not wait for the engine.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import datetime
from enum import Enum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from occamdb.tools.places import PathArgument as PathArgument
from occamdb.tools.places import Place, require_schema
from occamdb.tools.places import PlaceArgument as PlaceArgument
from occamdb.tools.places import path_given as path_given
from occamdb.tools.printable import escape_json, markup, printable, without_controls

if TYPE_CHECKING:
    from rich.console import Console

    from occamdb import Database, OccamError
    from occamdb.engine.log.recovery import Progress


RunArgument = Annotated[
    str,
    typer.Argument(metavar="RUN", help="A run's id, its name in the run index, or the beginning of either."),
]
FullOption = Annotated[
    bool, typer.Option("--full", help="On a terminal: whole ids and texts, as they are in a pipe.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
LimitOption = Annotated[int | None, typer.Option("--limit", "-n", min=1, help="At most so many.")]
NamespaceOption = Annotated[
    str | None,
    typer.Option("--namespace", metavar="TENANT/APP/AGENT", help="Whose data; parts left out are 'default'."),
]
EXCERPT_LENGTH_MAX = 80


@cache
def out() -> Console:
    """The console of results."""
    from occamdb.tools.safe_console import make_console

    console = make_console()
    if not console.is_terminal:
        console.width = 120  # a file or a pipe has no width of its own
    return console


@cache
def err() -> Console:
    """The console of errors and progress."""
    from occamdb.tools.safe_console import make_console

    return make_console(stderr=True)


def show_error(error: OccamError) -> None:
    """Message, then what to do about it."""
    err().print(f"[bold red]error[/] {markup(error.message)} [dim]({markup(error.code)})[/]")
    if error.hint:
        err().print(f" [bold]hint[/] {markup(error.hint)}")


def show_system_error(error: OSError) -> None:
    """What the system refused, and where."""
    place = f"{error.filename}: " if error.filename else ""
    err().print(f"[bold red]error[/] {markup(place + (error.strerror or str(error)))}")


def parse_value(text: str) -> Any:
    """A value of the command line: JSON.

    Raises:
      InvalidArgumentError: the text is not JSON, nests too deep, or holds NaN, an infinity or too large a number.
    """
    from occamdb.engine.model.errors import InvalidArgumentError

    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except ValueError as error:
        raise InvalidArgumentError(
            f"{_excerpt(text)} is not a JSON value: {error}",
            hint='quote text twice, as in \'"hello"\'; numbers, true, null, [1, 2] and {"a": 1} go as they are',
        ) from None
    except RecursionError:
        from occamdb.engine.model.values import DEPTH_MAX

        raise InvalidArgumentError(
            f"{_excerpt(text)} nests deeper than can be read",
            hint=f"lists and objects may nest up to {DEPTH_MAX} levels",
        ) from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    """A number of a JSON text. One that is too large for a float, Python's infinity, is refused."""
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{_excerpt(text)} is beyond the largest float")
    return number


def _excerpt(text: str) -> str:
    """The text quoted for a message: whole if it is short, else its beginning."""
    return repr(text) if len(text) <= EXCERPT_LENGTH_MAX else f"{text[:EXCERPT_LENGTH_MAX]!r}..."


def read_stdin() -> str:
    """All of standard input.

    Raises:
      InvalidArgumentError: it is not UTF-8.
    """
    from occamdb.engine.model.errors import InvalidArgumentError

    raw = typer.get_binary_stream("stdin").read()
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(
            f"standard input is not UTF-8: byte {raw[error.start]:#04x} at position {error.start:,}, {error.reason}",
            hint="a value is JSON, which is UTF-8 text: convert it (iconv), or encode bytes (base64) as a string",
        ) from None


def plain(value: Any) -> Any:
    """What JSON can carry of a stored value.

    Bytes are {"$bytes": base64}; what JSON has no number for is {"$float": "nan"}, "inf" or "-inf"; times are ISO 8601.
    """
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {key if isinstance(key, str) else str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def to_json(value: Any, *, indent: int | None = None) -> str:
    """One value as JSON text. Control characters in it, those beyond ASCII too, are written as \\uXXXX."""
    return escape_json(json.dumps(plain(value), ensure_ascii=False, allow_nan=False, indent=indent))


def echo(text: str, *, err: bool = False) -> None:
    """Print a line, uncoloured, without control characters but tabs. `printable` makes stored text one line."""
    typer.echo(without_controls(text), err=err)


def is_terminal() -> bool:
    """Whether results go to a person. If not, commands print plain rows: whole, one a line, fields between tabs."""
    return out().is_terminal


def echo_row(*fields: str) -> None:
    """Print one row for programs: fields between tabs, on one line whatever they hold."""
    echo("\t".join(printable(field) for field in fields))


def refuse(why: str, **options: object) -> None:
    """Refuse options that would have no effect beside another one.

    Args:
      why: the other one, as in "with --tree".
      options: their values by name; those that were not given are None, False or empty.

    Raises:
      BadParameter: one of them was given.
    """
    given = ", ".join(f"--{name}" for name, value in options.items() if value not in (None, False, [], ()))
    if given:
        raise typer.BadParameter(f"{given} has no effect {why}: leave it out")


def duration(seconds: float | None) -> str:
    """A time span for people: "1.2 ms", "3.4 s", "5 min 6 s"; empty for none."""
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{seconds * 1000:,.1f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min"


def print_json(value: Any) -> None:
    """Print a value as indented JSON, uncoloured so that programs can read it."""
    echo(to_json(value, indent=2))


def has_database(path: Path) -> bool:
    """Whether a database was made in a directory."""
    return (path / "meta").exists()


def require_database(path: Path) -> Path:
    """The path, if a database is there.

    Raises:
      NotFoundError: there is nothing, or something that is not a database.
    """
    from occamdb.engine.model.errors import NotFoundError

    if not has_database(path):
        what = "is not an occamdb database" if path.exists() else "does not exist"
        raise NotFoundError(f"{path} {what}", hint="occamdb serve PATH and occamdb put PATH ... create one")
    return path


@contextmanager
def database(
    path: Place,
    namespace: str | None = None,
    *,
    create: bool = False,
    start: Literal["auto", "never"] = "auto",
) -> Iterator[Database]:
    """Open a database for one command, through its coordinator or on its server.

    Args:
      path: its directory, or the URL of its server.
      namespace: "tenant/app/agent", trailing parts optional.
      create: make it if there is none.
      start: "auto" starts a coordinator if none runs.

    Raises:
      NotFoundError: there is none, and `create` is false.
      CoordinatorUnavailable: none runs, and `start` is "never".
    """
    import occamdb
    from occamdb.engine.disk.directory import read_meta

    if isinstance(path, str):
        if not create:
            require_schema(path)
        with occamdb.open(path) as db:
            yield _in_namespace(db, namespace)
        return
    if not create:
        require_database(path)
    meta = read_meta(path)
    # With the durability that it has, since another one would be refused.
    durability = occamdb.Durability((meta and meta.durability) or "standard")
    with occamdb.open(path, durability=durability, start=start) as db:
        yield _in_namespace(db, namespace)


@contextmanager
def reading(
    path: Place, namespace: str | None = None, *, progress: Progress | None = None
) -> Iterator[Database]:
    """Open a database for a command that only reads, without starting a coordinator or changing a byte.

    A directory that is served is read through its coordinator. Any other one, such as a backup, is recovered into
    the memory of this process. A coordinator that starts or ends meanwhile makes it begin again.

    Args:
      path: its directory, or the URL of its server.
      namespace: as for `database`.
      progress: of the recovery, as `recovery.recover` calls it.

    Raises:
      NotFoundError: there is none.
      CoordinatorUnavailable: one holds the directory and does not answer.
    """
    if isinstance(path, str):
        require_schema(path, current=True)
        with database(path, namespace, create=True) as served:
            yield served
        return
    require_database(path)
    with ExitStack() as opened:
        while True:
            db = _attached(path, opened) if is_served(path) else _recovered(path, opened, progress)
            if db is not None:
                break
        yield _in_namespace(db, namespace)


def _attached(path: Path, opened: ExitStack) -> Database | None:
    """The database through the coordinator that serves it; None if that one has ended."""
    from occamdb.engine.model.errors import CoordinatorUnavailable

    try:
        return opened.enter_context(database(path, start="never"))
    except CoordinatorUnavailable:
        if is_served(path):
            raise
        return None


def _recovered(path: Path, opened: ExitStack, progress: Progress | None) -> Database | None:
    """The content of a directory in private memory; None if a coordinator may have changed files meanwhile."""
    import occamdb
    from occamdb.engine.client.offline import recovered_database
    from occamdb.engine.disk.directory import read_meta

    before = read_meta(path)
    with ExitStack() as attempt:
        try:
            db = attempt.enter_context(recovered_database(occamdb.Database, path, progress=progress))
        except (occamdb.OccamError, OSError):
            if is_served(path) or read_meta(path) != before:
                return None
            raise
        # A coordinator writes the next incarnation into `meta` before it touches the log.
        if is_served(path) or read_meta(path) != before:
            return None
        opened.push(attempt.pop_all())
    return db


def is_served(path: Path) -> bool:
    """Whether a coordinator holds the directory, or may be starting there."""
    from occamdb.ipc.errors import LockHeldError
    from occamdb.tools.coordinator import coordinator_of

    try:
        return coordinator_of(path) is not None
    except LockHeldError:
        return True


@contextmanager
def rehearsal(path: Path, namespace: str | None = None) -> Iterator[Database]:
    """An empty database in this process alone, with the limits that one made at `path` would have.

    It refuses what the real one would refuse, with the same error, and leaves nothing behind.

    Raises:
      SettingsError: `settings.toml` in the directory is wrong.
    """
    import occamdb
    from occamdb.engine.model.settings import load_settings

    with occamdb.open_in_memory(**asdict(load_settings(path))) as db:
        yield _in_namespace(db, namespace)


def _in_namespace(db: Database, namespace: str | None) -> Database:
    return db.namespace(*namespace.split("/", 2)) if namespace else db


def key_given(text: str, in_hex: bool) -> str:
    """The key, or the beginning of keys, that was typed.

    Args:
      text: the key itself, or with `in_hex` its bytes as `show_key` shows them; the 0x may be left out.
      in_hex: whether the text is hexadecimal.

    Returns:
      As the database gives keys back.

    Raises:
      InvalidArgumentError: the text is not hexadecimal.
    """
    from occamdb.engine.model.errors import InvalidArgumentError
    from occamdb.engine.model.keys import decode_user_key

    if not in_hex:
        return text
    try:
        return decode_user_key(bytes.fromhex(text[2:] if text[:2] in ("0x", "0X") else text))
    except ValueError:
        raise InvalidArgumentError(
            f"{_excerpt(text)} is not hexadecimal",
            hint="with --hex keys are two digits of 0-9 and a-f a byte, as in 0xff00",
        ) from None


def show_key(key: str) -> str:
    """A key on one line: text as it is unless it has control characters, bytes that are not UTF-8 as hexadecimal."""
    if (binary := binary_key(key)) is not None:
        return "0x" + binary.hex()
    return key if key.isprintable() and printable(key) == key else repr(key)


def binary_key(key: str) -> bytes | None:
    """The bytes of a key that are not UTF-8; None for text."""
    try:
        key.encode()
    except UnicodeEncodeError:
        return key.encode("utf-8", "surrogateescape")
    return None


def ago(moment: datetime | None) -> str:
    """How long ago, for people."""
    from datetime import UTC

    if moment is None:
        return ""
    seconds = max(0.0, (datetime.now(UTC) - moment).total_seconds())
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def size(count: float) -> str:
    """A number of bytes for people: "1.5 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024 or unit == "GiB":
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    raise AssertionError
