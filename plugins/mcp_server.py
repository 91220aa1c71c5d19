"""An MCP server over a database: tools and resources for runs, keys, events, cells, traces and tasks.

    import occamdb
    from occamdb.plugins.mcp_server import make_server

    with occamdb.open("agents.db") as db:
        make_server(db, write=True).run("stdio")

`occamdb mcp PATH` is the same as a command. Any number of servers may serve one database, over stdio (a process for
each client) or over HTTP.

1. Without `write` there is no tool that changes anything.
2. `memory` serves the nine tools of the reference memory server in place of the others.
3. Clients that subscribe to a resource are told of its changes, whichever process made them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import occamdb
from occamdb import OccamError
from occamdb.aio import AsyncDatabase

from ._support import AnyDatabase, Engine, missing_extra, warn_if_newer

try:
    from mcp.server.mcpserver import MCPServer, ResourceSecurity
    from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError

    from ._mcp_events import OccamEventStore, SessionScope
    from ._mcp_fields import (
        LIMIT_MAX,
        event_fields,
        guarded,
        plain,
        queue_counts,
        run_fields,
        run_named_or_id,
        trace_fields,
    )
    from ._mcp_memory import GRAPH_URI, KnowledgeGraph, add_memory_tools
    from ._mcp_tools import ReadingTools, WritingTools
    from ._mcp_watch import RUNS_URI, Subscriptions
except ImportError as error:
    missing_extra("mcp", error)

if TYPE_CHECKING:
    from starlette.applications import Starlette

__all__ = ["KnowledgeGraph", "OccamEventStore", "SessionScope", "http_app", "make_server", "serve_http"]

RETRY_MS = 1000  # what clients are told to wait before they resume a stream
JSON = "application/json"
# Names of runs and keys are not paths, and may look like one.
_NAMES = ResourceSecurity(exempt_params={"run", "key", "name"})
_INSTRUCTIONS = (
    "A database that agents share. A run is a thread, session or agent, named by its id or name. Each run has keys "
    "with values, an event log, state cells, traces of what an agent did, and queues of tasks. Values are JSON. "
    "Pass expected_version to be refused if another agent changed a value since it was read."
)
_MEMORY_INSTRUCTIONS = (
    "A knowledge graph that agents share: entities with observations, and relations between entities."
)


def make_server(
    db: AnyDatabase, *, write: bool = False, memory: bool = False, graph: str = "default"
) -> MCPServer[Any]:
    """A server for `run("stdio")`, `http_app` or `serve_http`.

    Args:
      db: an open database of either form, which stays its owner's to close; or the path of one, which is opened here
        and stays open as long as the process lives.
      write: also serve the tools that change something.
      memory: serve the nine tools of the reference memory server instead, which read and write one graph.
      graph: the name of this graph.

    Raises:
      TypeError: `db` is of another type.
    """
    warn_if_newer("mcp", "2.3")
    aio = Engine(db).aio
    knowledge = KnowledgeGraph(aio, graph) if memory else None
    extra = {} if knowledge is None else {GRAPH_URI: (knowledge.run_id, "")}
    subscriptions = Subscriptions(aio, extra)
    server: MCPServer[Any] = MCPServer(
        "occamdb-memory" if memory else "occamdb",
        version=occamdb.__version__,
        instructions=_MEMORY_INSTRUCTIONS if memory else _INSTRUCTIONS,
        subscriptions=subscriptions.bus,
        resource_security=_NAMES,
        log_level="WARNING",  # standard error is what clients show when something is wrong
    )
    subscriptions.serve(server)
    if knowledge is not None:
        add_memory_tools(server, knowledge, guarded)
        return server
    ReadingTools(aio).register(server)
    if write:
        WritingTools(aio).register(server)
    _add_resources(server, aio)
    return server


def http_app(
    server: MCPServer[Any],
    *,
    host: str = "127.0.0.1",
    path: str = "/mcp",
    event_store: OccamEventStore | None = None,
) -> Starlette:
    """The server as an ASGI application, for uvicorn and the like.

    Args:
      server: what `make_server` gave.
      host: what it will be bound to. For one of this machine, requests of other hosts' pages are refused.
      path: of its one endpoint.
      event_store: keeps the events of streams, so that a client whose connection broke misses nothing.
    """
    retry = None if event_store is None else RETRY_MS
    app = server.streamable_http_app(
        streamable_http_path=path, event_store=event_store, host=host, retry_interval=retry
    )
    app.add_middleware(SessionScope)
    return app


async def serve_http(
    server: MCPServer[Any],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    path: str = "/mcp",
    event_store: OccamEventStore | None = None,
) -> None:
    """Serve streamable HTTP until Ctrl-C or SIGTERM. Arguments as for `http_app`."""
    import uvicorn

    app = http_app(server, host=host, path=path, event_store=event_store)
    await uvicorn.Server(uvicorn.Config(app, host=host, port=port, log_level="warning")).serve()


# --- Resources -----------------------------------------------------------------------------------


def _json(read: Callable[[], Any]) -> str:
    try:
        return json.dumps(read(), ensure_ascii=False, indent=2)
    except OccamError as error:
        raise ResourceError(str(error)) from error


def _found(value: Mapping[str, Any] | None, what: str) -> Mapping[str, Any]:
    if value is None:
        raise ResourceNotFoundError(f"there is no {what}")
    return value


def _add_resources(server: MCPServer[Any], db: AsyncDatabase) -> None:
    @server.resource(RUNS_URI, name="runs", mime_type=JSON)
    def runs() -> str:
        """The runs of the database, the latest first."""
        return _json(lambda: [run_fields(run) for run in db.runs.list_runs(limit=LIMIT_MAX, reverse=True)])

    @server.resource(f"{RUNS_URI}/{{run}}", name="run", mime_type=JSON)
    async def one_run(run: str) -> str:
        """The name, status, tags and metadata of a run, by its id or name."""
        found = db.runs.get_run(run_named_or_id(db, run))
        return _json(lambda: _found(None if found is None else run_fields(found), f"run {run!r}"))

    @server.resource(f"{RUNS_URI}/{{run}}/keys", name="keys", mime_type=JSON)
    async def keys(run: str) -> str:
        """The keys of a run."""
        return _json(lambda: plain(db.kv.list(run_named_or_id(db, run), limit=LIMIT_MAX)))

    @server.resource(f"{RUNS_URI}/{{run}}/keys/{{key}}", name="value", mime_type=JSON)
    async def value(run: str, key: str) -> str:
        """The value of a key, with its version."""

        def read() -> Any:
            found = db.kv.get_versioned(run_named_or_id(db, run), key)
            fields = None if found is None else {"value": plain(found.value), "version": found.version}
            return _found(fields, f"key {key!r} in run {run!r}")

        return _json(read)

    @server.resource(f"{RUNS_URI}/{{run}}/events", name="events", mime_type=JSON)
    async def events(run: str) -> str:
        """The latest events of a run, in their order."""
        return _json(lambda: [event_fields(e) for e in db.events.last(run_named_or_id(db, run), LIMIT_MAX)])

    @server.resource(f"{RUNS_URI}/{{run}}/cells", name="cells", mime_type=JSON)
    async def cells(run: str) -> str:
        """The state cells of a run by name, with their values and versions."""

        def read() -> Any:
            rows = db.cells.list_with_values(run_named_or_id(db, run), limit=LIMIT_MAX)
            return {plain(name): {"value": plain(s.value), "version": s.version} for name, s in rows}

        return _json(read)

    @server.resource(f"{RUNS_URI}/{{run}}/cells/{{name}}", name="cell", mime_type=JSON)
    async def cell(run: str, name: str) -> str:
        """A state cell, with its version."""

        def read() -> Any:
            state = db.cells.read(run_named_or_id(db, run), name)
            fields = None if state is None else {"value": plain(state.value), "version": state.version}
            return _found(fields, f"cell {name!r} in run {run!r}")

        return _json(read)

    @server.resource(f"{RUNS_URI}/{{run}}/traces", name="traces", mime_type=JSON)
    async def traces(run: str) -> str:
        """The latest traces of a run, the latest first."""

        def read() -> Any:
            rows = db.traces.query(run_named_or_id(db, run), limit=LIMIT_MAX, reverse=True)
            return [trace_fields(trace) for trace in rows]

        return _json(read)

    @server.resource(f"{RUNS_URI}/{{run}}/tasks", name="tasks", mime_type=JSON)
    async def tasks(run: str) -> str:
        """The queues of a run, with how many tasks are in each state."""
        return _json(lambda: queue_counts(db, run_named_or_id(db, run)))
