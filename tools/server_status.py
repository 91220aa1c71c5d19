"""What `status`, `stats` and `top` show of a database on a server: facts and figures as its backend gives them.

Each kind of server has facts of its own, so nothing here knows one by name: a fact is shown under its name, a fact of
facts with a dot in between.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from occamdb.tools import console
from occamdb.tools.places import described, require_schema
from occamdb.tools.printable import markup

if TYPE_CHECKING:
    from occamdb import Database

__all__ = ["describe_server", "show_facts", "show_server_figures", "watch_server_figures"]

_NAMESPACES_NAMED = 100


def describe_server(url: str) -> dict[str, Any]:
    """What can be seen of a server, and of the database on it if there is one. Writes nothing.

    Raises:
      ServerUnavailable, ServerSetupError: it cannot be reached, or refuses us.
    """
    import occamdb

    found = {"reachable": True} | described(url)
    if found.get("format") != found.get("format_known"):
        return found  # opening would make or upgrade the schema
    with occamdb.open(url) as db:
        names = [_namespace_text(base) for base in _backend_of(db).namespaces()]
        return (
            found
            | db.stats()
            | {
                "location": db.path,
                "durability": str(db.durability),
                "namespaces": len(names),
                "namespace_names": names[:_NAMESPACES_NAMED],
            }
        )


def _backend_of(db: Database) -> Any:
    handle: Any = db.handle
    return handle.backend


def _namespace_text(base: bytes) -> str:
    """A namespace as `--namespace` takes it, of what stored keys begin with."""
    return "/".join(part.decode("utf-8", "replace") or "default" for part in base.split(b"\0")[:3])


def show_facts(found: Mapping[str, Any]) -> None:
    """Facts for people or for a pipe: one a line."""
    rows = list(_flat(found))
    if not console.is_terminal():
        for name, text in rows:
            console.echo_row(name, text)
        return
    width = max(len(name) for name, _ in rows) + 2
    for name, text in rows:
        console.out().print(f"[bold]{name:<{width}}[/]{markup(text)}")


def _flat(found: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and texts, also of facts in facts."""
    for key, value in found.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        elif isinstance(value, bool):
            yield name.replace("_", " "), "yes" if value else "no"
        elif isinstance(value, int):
            yield (
                name.replace("_", " "),
                console.size(value) if name.endswith(("size", "size_in_use", "bytes")) else f"{value:,}",
            )
        elif isinstance(value, (list, tuple)):
            yield name.replace("_", " "), ", ".join(map(str, value)) or "none"
        else:
            yield name.replace("_", " "), "none" if value is None else str(console.plain(value))


def _figures_of(db: Database) -> dict[str, Any]:
    return db.stats() | {"version": _backend_of(db).newest(), "read_at": time.time()}


def show_server_figures(url: str, as_json: bool) -> None:
    """`occamdb stats` of a server."""
    require_schema(url, current=True)
    with console.database(url, create=True) as db:
        found = _figures_of(db)
    if as_json:
        console.print_json(found)
    else:
        show_facts({name: value for name, value in found.items() if name != "read_at"})


def watch_server_figures(url: str, interval: float, count: int | None) -> None:
    """`occamdb top` of a server: the figures again and again, with the rate of each counter that grows."""
    require_schema(url, current=True)
    with console.database(url, create=True) as db:
        before = _figures_of(db)
        shown = 0
        while count is None or shown < count:
            time.sleep(interval)
            figures = _figures_of(db)
            _show_update(figures, before)
            before, shown = figures, shown + 1


def _show_update(figures: dict[str, Any], before: dict[str, Any]) -> None:
    seconds = max(figures["read_at"] - before["read_at"], 1e-9)
    fields = [datetime.fromtimestamp(figures["read_at"], UTC).isoformat(timespec="milliseconds")]
    for name, value in figures.items():
        if isinstance(value, int) and not isinstance(value, bool):
            grown = value - before.get(name, value)
            fields.append(f"{name} {value}" + (f" ({grown / seconds:,.0f}/s)" if grown else ""))
    console.echo_row(*fields)
    sys.stdout.flush()
