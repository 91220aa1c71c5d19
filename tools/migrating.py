"""`occamdb migrate`: the schema of a database on a server, made or brought up to date."""

from __future__ import annotations

from typing import Annotated

import typer

from occamdb.tools import console
from occamdb.tools.places import url_given


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command("migrate", rich_help_panel="Care")(migrate)


def migrate(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="The server: postgresql://… or etcd://…", parser=url_given)
    ],
    print_sql: Annotated[
        bool,
        typer.Option("--print-sql", help="Print what would be run, for an administrator, and run nothing."),
    ] = False,
) -> None:
    """Make the schema of a database on a server, or bring it up to date. It is one transaction.

    A first `occamdb.open` does the same where the role may.
    """
    from occamdb.engine.model.errors import UnsupportedError
    from occamdb.engine.remote.opening import kind_of, module_of

    module, kind = module_of(url), kind_of(url).package
    if print_sql:
        script = getattr(module, "migration_script", None)
        if script is None:
            raise UnsupportedError(f"databases on {kind} have no SQL", hint="leave --print-sql out")
        console.echo(script(url).rstrip())
        return
    run = getattr(module, "migrate", None)
    if run is None:
        console.echo(f"databases on {kind} have no schema: there is nothing to do")
        return
    before, now = run(url)
    if before == now:
        console.echo(f"the schema has format {now} already")
    elif before == 0:
        console.echo(f"made the schema, format {now}")
    else:
        console.echo(f"upgraded the schema from format {before} to {now}")
