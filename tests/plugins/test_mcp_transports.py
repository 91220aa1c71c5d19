"""`occamdb mcp` over stdio and HTTP by the real client: both protocols, subscriptions, and streams that are resumed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.subscriptions import ResourceUpdated
from mcp.server.streamable_http import EventMessage
from mcp_types import JSONRPCNotification, JSONRPCResponse, ResourceUpdatedNotification, TextResourceContents

import occamdb
import occamdb.aio
from occamdb import RunId
from occamdb.plugins.mcp_server import OccamEventStore

Mode = Literal["auto", "legacy"]
MODES: list[Mode] = ["auto", "legacy"]
DEADLINE_S = 60
RUN = RunId.named("r")
VALUE_URI = "occamdb://runs/r/keys/k"


def command(path: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "occamdb", "mcp", str(path), *options]


def stdio(path: Path, *options: str) -> StdioServerParameters:
    program, *arguments = command(path, *options)
    return StdioServerParameters(command=program, args=arguments, env={**os.environ, "PYTHONPATH": "src"})


@contextlib.contextmanager
def http_server(path: Path, *options: str) -> Iterator[str]:
    """A server process, ended by SIGTERM; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": "src"}
    arguments = command(path, "--http", "--port", str(port), *options)
    with subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE) as server:
        try:
            end = time.monotonic() + DEADLINE_S
            while True:
                assert server.poll() is None and time.monotonic() < end, "the server did not start"
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.01)
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(DEADLINE_S)


async def value_of(client: Client, uri: str) -> Any:
    (content,) = (await client.read_resource(uri)).contents
    assert isinstance(content, TextResourceContents)
    return json.loads(content.text)["value"]


async def use(client: Client, mode: Mode) -> None:
    """What every transport must carry."""
    assert client.server_capabilities.tools is not None and client.server_capabilities.resources is not None
    assert client.server_capabilities.resources.subscribe
    assert (client.protocol_version < "2026") == (mode == "legacy")
    result = await client.call_tool("put_value", {"run": "r", "key": "k", "value": [1, "ü"]})
    assert not result.is_error
    assert await value_of(client, VALUE_URI) == [1, "ü"]


@pytest.mark.parametrize("mode", MODES)
async def test_stdio(database_path: Path, mode: Mode) -> None:
    async with Client(stdio(database_path, "--write"), mode=mode) as client:
        await use(client, mode)
    async with Client(stdio(database_path), mode=mode) as client:
        assert "put_value" not in {tool.name for tool in (await client.list_tools()).tools}
        assert await value_of(client, VALUE_URI) == [1, "ü"]


@pytest.mark.parametrize("mode", MODES)
async def test_http(database_path: Path, mode: Mode) -> None:
    with http_server(database_path, "--write") as url:
        async with Client(url, mode=mode) as client:
            await use(client, mode)
    with occamdb.open(database_path) as db:
        assert db.get(RUN, "k") == [1, "ü"]


def test_foreign_pages_are_refused(database_path: Path) -> None:
    """A page of another host must not reach the server through the browser of this machine."""
    with http_server(database_path, "--write") as url:
        for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
            answer = httpx.post(url, headers={**ACCEPT, **headers}, json=INITIALIZE)
            assert answer.status_code in (403, 421)


def test_a_database_that_is_not_there(tmp_path: Path) -> None:
    done = subprocess.run(command(tmp_path / "none"), capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 1 and "does not exist" in done.stderr
    done = subprocess.run(
        command(tmp_path, "--memory", "--write"), capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert done.returncode == 2 and "--write has no effect" in done.stderr


def test_the_command_without_the_extra(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['mcp.server.mcpserver'] = None\n"
        "from occamdb.tools.cli import main; sys.exit(main(['mcp', sys.argv[1]]))\n"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 2 and "pip install 'occamdb[mcp]'" in done.stderr
    assert "Traceback" not in done.stderr


# --- Subscriptions -------------------------------------------------------------------------------


def put_elsewhere(path: Path, values: list[Any]) -> None:
    """In a process of its own."""
    with occamdb.open(path) as db:
        for value in values:
            db.put(RUN, "k", value)


async def change(path: Path, *values: Any) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        await asyncio.wrap_future(pool.submit(put_elsewhere, path, list(values)))


@pytest.mark.parametrize("over", ["stdio", "http"])
async def test_streams_of_changes(database_path: Path, over: str) -> None:
    """The protocol of 2026: a change of another process reaches the client; what it did not ask for does not."""
    with contextlib.ExitStack() as stack:
        server: Any = stdio(database_path, "--write")
        if over == "http":
            server = stack.enter_context(http_server(database_path, "--write"))
        async with asyncio.timeout(DEADLINE_S), Client(server, cache=None) as client:
            async with client.listen(
                resource_subscriptions=[VALUE_URI, "occamdb://runs/r/nothing"]
            ) as events:
                await client.call_tool("put_value", {"run": "r", "key": "other", "value": 1})
                await change(database_path, 1)
                assert await anext(aiter(events)) == ResourceUpdated(uri=VALUE_URI)
                await change(database_path, *range(2000))
                while await value_of(client, VALUE_URI) != 1999:
                    assert await anext(aiter(events)) == ResourceUpdated(uri=VALUE_URI)


@pytest.mark.parametrize("part", ["", "/keys", "/events", "/cells", "/cells/c", "/traces", "/tasks"])
async def test_each_resource_is_watched(database_path: Path, part: str) -> None:
    writes = {
        "": ("create_run", {"name": "r"}),
        "/keys": ("put_value", {"run": "r", "key": "k", "value": 1}),
        "/events": ("append_event", {"run": "r", "event_type": "began"}),
        "/cells": ("set_cell", {"run": "r", "name": "c", "value": 1}),
        "/cells/c": ("set_cell", {"run": "r", "name": "c", "value": 1}),
        "/traces": ("record_trace", {"run": "r", "kind": "thought", "fields": {"content": "hm"}}),
        "/tasks": ("put_task", {"run": "r", "queue": "q"}),
    }
    from occamdb.plugins.mcp_server import make_server

    uri = f"occamdb://runs/{RUN}{part}"
    async with occamdb.aio.open(database_path) as db, asyncio.timeout(DEADLINE_S):
        if not part:
            uri = "occamdb://runs"
        async with Client(make_server(db, write=True), cache=None) as client:
            async with client.listen(resource_subscriptions=[uri]) as events:
                tool, arguments = writes[part]
                assert not (await client.call_tool(tool, arguments)).is_error
                assert await anext(aiter(events)) == ResourceUpdated(uri=uri)


@pytest.mark.filterwarnings("ignore:resources/(un)?subscribe is removed")
async def test_a_subscribed_connection(database_path: Path) -> None:
    """The protocol before: `resources/subscribe`, and notifications beside the answers."""
    told: asyncio.Queue[str] = asyncio.Queue()

    async def handle(message: Any) -> None:
        if isinstance(message, ResourceUpdatedNotification):
            await told.put(str(message.params.uri))

    server = stdio(database_path, "--write")
    async with asyncio.timeout(DEADLINE_S), Client(server, mode="legacy", message_handler=handle) as client:
        await client.subscribe_resource(VALUE_URI)
        await client.subscribe_resource(VALUE_URI)
        await client.subscribe_resource("occamdb://elsewhere")  # as in the other protocol: it never changes
        await change(database_path, 1)
        assert await told.get() == VALUE_URI
        await client.unsubscribe_resource(VALUE_URI)
        other = "occamdb://runs/r/keys"
        await client.subscribe_resource(other)
        await change(database_path, 2)
        assert await told.get() == other, "the first one is no longer told"


# --- Streams that are resumed --------------------------------------------------------------------

ACCEPT = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}


async def events_of(response: httpx.Response, count: int) -> list[tuple[str, str]]:
    """The next events of a stream: their ids and their data."""
    found: list[tuple[str, str]] = []
    event_id = ""
    async for line in response.aiter_lines():
        if line.startswith("id:"):
            event_id = line.removeprefix("id:").strip()
        elif line.startswith("data:"):
            found.append((event_id, line.removeprefix("data:").strip()))
            if len(found) == count:
                break
    return found


async def opened_session(http: httpx.AsyncClient, url: str) -> dict[str, str]:
    answer = await http.post(url, headers=ACCEPT, json=INITIALIZE)
    headers = {
        **ACCEPT,
        "mcp-session-id": answer.headers["mcp-session-id"],
        "mcp-protocol-version": "2025-11-25",
    }
    await http.post(url, headers=headers, json={"jsonrpc": "2.0", "method": "notifications/initialized"})
    return headers


def calling(key: str) -> dict[str, Any]:
    arguments = {"run": "r", "key": key, "value": key}
    return {
        "jsonrpc": "2.0",
        "id": 2,
        "method": "tools/call",
        "params": {"name": "put_value", "arguments": arguments},
    }


async def test_a_broken_stream_is_resumed_by_its_session_alone(database_path: Path) -> None:
    with http_server(database_path, "--write") as url:
        async with asyncio.timeout(DEADLINE_S), httpx.AsyncClient(timeout=DEADLINE_S) as http:
            first, second = await opened_session(http, url), await opened_session(http, url)
            streams = []
            for session in (first, second):  # both have a stream of the same name, that of request 2
                async with http.stream("POST", url, headers=session, json=calling("k")) as response:
                    streams.append(await events_of(response, 2))
            (mark, _), (_, answer) = streams[0]
            assert '"id":2' in answer, "the answer to the call"
            async with http.stream("GET", url, headers={**first, "Last-Event-ID": mark}) as response:
                assert (await events_of(response, 1))[0][1] == answer, "it comes again"
            async with http.stream("GET", url, headers={**second, "Last-Event-ID": mark}) as response:
                assert await events_of(response, 1) == [], "another session is given nothing"
    with occamdb.open(database_path) as db:
        (run,) = db.runs.query_runs(tag="mcp-events")
        assert run.name == "mcp-events/default"
        ttl = db.kv.ttl(run, db.kv.list(run)[0])
        assert ttl is not None and 0 < ttl <= 3600


@pytest.fixture
async def store() -> AsyncIterator[OccamEventStore]:
    async with occamdb.aio.open_in_memory(max_store_size="32MiB") as db:
        yield OccamEventStore(db)


async def replayed(store: OccamEventStore, event_id: str) -> tuple[str | None, list[EventMessage]]:
    sent: list[EventMessage] = []

    async def send(message: EventMessage) -> None:
        sent.append(message)

    return await store.replay_events_after(event_id, send), sent


async def test_events_are_replayed_in_order(store: OccamEventStore) -> None:
    mark = await store.store_event("a", None)
    messages = [JSONRPCNotification(jsonrpc="2.0", method="m", params={"n": n}) for n in range(20)]
    ids = []
    for number, message in enumerate(messages):
        ids.append(await store.store_event("a", message))
        await store.store_event("a~b", JSONRPCResponse(jsonrpc="2.0", id=number, result={}))
    assert sorted(ids) == ids and len(set(ids)) == 20
    stream, sent = await replayed(store, mark)
    assert stream == "a" and [event.message for event in sent] == messages
    assert [event.event_id for event in sent] == ids
    assert await replayed(store, ids[17]) == ("a", sent[18:])
    assert await replayed(store, ids[19]) == ("a", [])


@pytest.mark.parametrize(
    "event_id", ["", "a", "~", "/a~", "/a~x", "/none~00000000000000000001", "s/a~1", "\0"]
)
async def test_ids_that_are_none(store: OccamEventStore, event_id: str) -> None:
    await store.store_event("a", None)
    assert await replayed(store, event_id) == (None, [])


async def test_events_expire(database_path: Path) -> None:
    async with occamdb.aio.open(database_path) as db:
        store = OccamEventStore(db, ttl=0.05)
        message = JSONRPCNotification(jsonrpc="2.0", method="m")
        first = await store.store_event("a", message)
        end = time.monotonic() + DEADLINE_S
        while db.kv.list(store.run_id):
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
        assert await replayed(store, first) == (None, [])
        assert await store.store_event("a", message) > first, "numbers grow although nothing is left"
