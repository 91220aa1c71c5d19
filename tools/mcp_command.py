"""`occamdb mcp`: a database for clients of the Model Context Protocol."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from occamdb.tools import console
from occamdb.tools.console import NamespaceOption, PlaceArgument


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command("mcp", rich_help_panel="Data")(mcp)


def mcp(
    path: PlaceArgument,
    write: Annotated[bool, typer.Option("--write", help="Let clients change data too.")] = False,
    memory: Annotated[
        bool,
        typer.Option("--memory", help="Serve a knowledge graph: the tools of the reference memory server."),
    ] = False,
    graph: Annotated[str, typer.Option(help="With --memory: the name of the graph.")] = "default",
    http: Annotated[
        bool, typer.Option("--http", help="Serve streamable HTTP at /mcp, instead of one client on stdio.")
    ] = False,
    host: Annotated[str, typer.Option(help="With --http: the address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="With --http: the port.")] = 8000,
    namespace: NamespaceOption = None,
) -> None:
    """Serve the database to agents over the Model Context Protocol: read-only without --write or --memory."""
    try:
        from occamdb.plugins import mcp_server
    except ImportError as error:
        console.echo(f"occamdb: {error}", err=True)
        raise typer.Exit(2) from None
    if memory:
        console.refuse("with --memory, whose tools read and write", write=write)
    with console.database(path, namespace, create=write or memory) as db:
        server = mcp_server.make_server(db, write=write, memory=memory, graph=graph)
        if http:
            # A server that only reads keeps no events either, so its clients cannot resume a stream.
            store = mcp_server.OccamEventStore(db) if write or memory else None
            console.echo(f"serving http://{host}:{port}/mcp; Ctrl-C stops", err=True)
            asyncio.run(mcp_server.serve_http(server, host=host, port=port, event_store=store))
        else:
            server.run("stdio")
