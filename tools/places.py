"""What a command works on: a directory of this machine, or a server that a URL names.

1. A directory is a `Path`, the URL of a server a `str`. A URL may hold a password, so no message repeats it: what
   may be shown is the location that the server's backend gives.
2. A command that reads, or asks for figures, makes no schema on a server and upgrades none.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

__all__ = [
    "PLACE",
    "PathArgument",
    "Place",
    "PlaceArgument",
    "described",
    "path_given",
    "place_given",
    "require_schema",
    "url_given",
]

Place: TypeAlias = Path | str

# What is meant as a URL although it is none: the slashes are missing.
_ALMOST = re.compile(r"(postgres|postgresql|etcd):(?!//)", re.IGNORECASE)


def path_given(text: str) -> Path:
    """The directory that was typed. Empty text is refused, although `Path` takes it for the current directory.

    Raises:
      BadParameter: the text is empty, as of a shell variable that is not set, or names a server.
    """
    from occamdb.engine.remote.urls import is_url

    _require_text(text)
    if is_url(text):
        raise typer.BadParameter(
            "it names a server, and this command works on the directory of a database. "
            "A server has `occamdb status`, `migrate`, `copy` and the commands on data and agents"
        )
    return Path(text)


def place_given(text: str) -> Place:
    """The directory, or the URL of a server, that was typed.

    Raises:
      BadParameter: the text is empty, or a URL without its slashes.
    """
    from occamdb.engine.remote.urls import is_url

    _require_text(text)
    if is_url(text):
        return text
    almost = _ALMOST.match(text)
    if almost is not None and not Path(text).exists():
        scheme = almost[1].lower()
        raise typer.BadParameter(
            f"the URL of a server begins with {scheme}://, and a directory of that name with ./{scheme}:"
        )
    return Path(text)


def url_given(text: str) -> str:
    """The URL of a server that was typed.

    Raises:
      BadParameter: it is a directory, or empty.
    """
    place = place_given(text)
    if isinstance(place, Path):
        raise typer.BadParameter("it is a directory; a server is named by a URL: postgresql://… or etcd://…")
    return place


def _require_text(text: str) -> None:
    if not text:
        raise typer.BadParameter('it is empty: is a shell variable not set? The current directory is "."')


PathArgument = Annotated[
    Path, typer.Argument(metavar="PATH", help="The database directory.", parser=path_given)
]
PLACE = typer.Argument(
    metavar="PATH", help="The database directory, or the URL of a server.", parser=place_given
)
if TYPE_CHECKING:
    PlaceArgument: TypeAlias = Place
else:
    PlaceArgument = Annotated[Any, PLACE]  # typer takes no union, although the parser makes the value


def described(url: str) -> dict[str, Any]:
    """What is at the URL of a server, found out without writing anything; nothing for a kind that has no schema.

    Raises:
      InvalidArgumentError, UnsupportedError: the URL cannot be read, or the driver is not installed.
      ServerUnavailable, ServerSetupError: the server cannot be reached, or holds no database of ours.
    """
    from occamdb.engine.remote.opening import module_of

    describe = getattr(module_of(url), "describe", None)
    found: dict[str, Any] = {} if describe is None else describe(url)
    return found


def require_schema(url: str, *, current: bool = False) -> None:
    """Refuse a server without a database, where opening would make one.

    Args:
      current: refuse an older schema too, which opening would upgrade.

    Raises:
      NotFoundError: there is none.
      ServerSetupError: it is older.
    """
    from occamdb.engine.model.errors import NotFoundError, ServerSetupError

    found = described(url)
    have, known = found.get("format"), found.get("format_known")
    if have == 0:
        raise NotFoundError(
            f"there is no occamdb database at {found['location']}",
            hint="`occamdb migrate URL` makes its schema, and so does the first `occamdb.open` or `occamdb put`",
        )
    if current and have is not None and have != known:
        raise ServerSetupError(
            f"the database at {found['location']} has format {have}, older than {known}",
            hint="`occamdb migrate URL` upgrades it",
        )
