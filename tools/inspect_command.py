"""`occamdb inspect`: a local web page that shows a database as it changes."""

from __future__ import annotations

from typing import Annotated

import typer

from occamdb.tools import console
from occamdb.tools.console import NamespaceOption

_PACKAGES = frozenset({"starlette", "uvicorn", "jinja2", "markupsafe", "anyio", "h11"})


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command("inspect", rich_help_panel="Agents")(inspect)


def inspect(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="The database directory, or the address of a server.")
    ],
    host: Annotated[
        str, typer.Option(help="The address to listen on. Any but a loopback one lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="The port; 0: any free one. [default: 8790 if it is free]"),
    ] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the address.")] = False,
    namespace: NamespaceOption = None,
) -> None:
    """Look at a database in a browser: runs, traces, events, conflicts, commits, as they happen. It cannot write.

    Prints the address, which holds a secret token, and serves until Ctrl-C. Starts no coordinator.
    """
    if "://" not in path:
        console.require_database(console.path_given(path))
    try:
        from occamdb.tools.inspector import serve
        from occamdb.tools.inspector.source import source_of
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _PACKAGES:
            raise
        console.echo(
            f"occamdb: `inspect` needs the package {error.name!r}: pip install 'occamdb[inspect]'", err=True
        )
        raise typer.Exit(2) from None
    source = source_of(path, namespace)
    opened = serve.listen(host, port)
    if not serve.is_loopback(host):
        console.echo(
            f"Whoever can reach {host} and has the address below can read the database; what they see is not "
            "encrypted on the way.",
            err=True,
        )

    def say(address: str) -> None:
        console.echo(f"inspect: {address}  (Ctrl-C stops)", err=True)

    serve.serve(source, opened, host, browse=not no_browser, say=say)
