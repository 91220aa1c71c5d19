"""The nine tools of the reference memory server: its cases one by one, and the deployment that corrupts its file."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
from mcp import Client, StdioServerParameters
from mcp_types import TextContent, TextResourceContents

import occamdb
import occamdb.aio
from occamdb.plugins.mcp_server import KnowledgeGraph, make_server

SERVERS = 8
ADA = {"name": "ada", "entityType": "person", "observations": ["writes programs"]}
BOB = {"name": "bob", "entityType": "person", "observations": ["likes tea"]}
TEA = {"name": "tea", "entityType": "drink", "observations": []}
KNOWS = {"from": "ada", "to": "bob", "relationType": "knows"}
DRINKS = {"from": "bob", "to": "tea", "relationType": "drinks"}


def served(test: Callable[[Client], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """A test with a client, which has to be opened and closed in the task of the test."""

    async def run() -> None:
        async with occamdb.aio.open_in_memory(max_store_size="32MiB") as db:
            async with Client(make_server(db, memory=True), cache=None) as client:
                await test(client)

    run.__name__ = test.__name__
    return run


async def call(client: Client, tool: str, **arguments: Any) -> Any:
    """What a tool gives, checked to be the same as text, as the reference server gives it."""
    result = await client.call_tool(tool, arguments)
    (content,) = result.content
    assert isinstance(content, TextContent)
    assert not result.is_error, content.text
    structured = result.structured_content
    assert isinstance(structured, dict)
    if "message" in structured:
        assert structured == {"success": True, "message": content.text}
        return content.text
    shown = json.loads(content.text)
    assert structured == shown or list(structured.values()) == [shown]
    return shown


async def refused(client: Client, tool: str, **arguments: Any) -> str:
    result = await client.call_tool(tool, arguments)
    (content,) = result.content
    assert result.is_error and isinstance(content, TextContent)
    return content.text


async def filled(client: Client) -> None:
    await call(client, "create_entities", entities=[ADA, BOB, TEA])
    await call(client, "create_relations", relations=[KNOWS, DRINKS])


@served
async def test_the_nine_tools(client: Client) -> None:
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert sorted(tools) == [
        "add_observations",
        "create_entities",
        "create_relations",
        "delete_entities",
        "delete_observations",
        "delete_relations",
        "open_nodes",
        "read_graph",
        "search_nodes",
    ]
    relation = tools["create_relations"].input_schema["$defs"]["Relation"]
    assert relation["required"] == ["from", "to", "relationType"]
    assert tools["delete_entities"].input_schema["required"] == ["entityNames"]
    assert tools["read_graph"].output_schema is not None


@served
async def test_creating_entities(client: Client) -> None:
    assert await call(client, "create_entities", entities=[ADA, BOB]) == [ADA, BOB]
    other = {**ADA, "observations": ["something else"]}
    assert await call(client, "create_entities", entities=[other, TEA, TEA]) == [TEA], "names that exist stay"
    assert await call(client, "create_entities", entities=[]) == []
    assert await call(client, "read_graph") == {"entities": [ADA, BOB, TEA], "relations": []}


@served
async def test_creating_relations(client: Client) -> None:
    await call(client, "create_entities", entities=[ADA, BOB])
    assert await call(client, "create_relations", relations=[KNOWS, KNOWS]) == [KNOWS]
    assert await call(client, "create_relations", relations=[KNOWS]) == []
    back = {"from": "bob", "to": "ada", "relationType": "knows"}
    error = await refused(client, "create_relations", relations=[back, DRINKS])
    assert "Entity with name tea not found" in error
    assert (await call(client, "read_graph"))["relations"] == [KNOWS], "all of them or none"
    assert "Entity with name nobody not found" in await refused(
        client, "create_relations", relations=[{**KNOWS, "from": "nobody"}]
    )


@served
async def test_adding_observations(client: Client) -> None:
    await call(client, "create_entities", entities=[ADA, TEA])
    additions = [
        {"entityName": "ada", "contents": ["writes programs", "is precise"]},
        {"entityName": "tea", "contents": []},
    ]
    assert await call(client, "add_observations", observations=additions) == [
        {"entityName": "ada", "addedObservations": ["is precise"]},
        {"entityName": "tea", "addedObservations": []},
    ]
    lost = [*additions[:1], {"entityName": "nobody", "contents": ["x"]}]
    lost[0] = {"entityName": "ada", "contents": ["never kept"]}
    assert "Entity with name nobody not found" in await refused(client, "add_observations", observations=lost)
    (ada,) = (await call(client, "open_nodes", names=["ada"]))["entities"]
    assert ada["observations"] == ["writes programs", "is precise"]


@served
async def test_deleting_entities(client: Client) -> None:
    await filled(client)
    assert await call(client, "delete_entities", entityNames=["ada"]) == "Entities deleted successfully"
    graph = await call(client, "read_graph")
    assert graph == {"entities": [BOB, TEA], "relations": [DRINKS]}, "its relations go with it"
    text = await call(client, "delete_entities", entityNames=["bob", "nobody"])
    assert text == "Deleted 1 of 2 entities. Not found: nobody"
    assert await call(client, "read_graph") == {"entities": [TEA], "relations": []}


@served
async def test_deleting_observations(client: Client) -> None:
    await filled(client)
    given = [{"entityName": "ada", "observations": ["writes programs"]}]
    assert await call(client, "delete_observations", deletions=given) == "Observations deleted successfully"
    text = await call(client, "delete_observations", deletions=given)
    assert text == "Deleted 0 of 1 observations."
    given.append({"entityName": "nobody", "observations": ["x"]})
    text = await call(client, "delete_observations", deletions=given)
    assert text == "Deleted 0 of 2 observations. Entities not found: nobody"


@served
async def test_deleting_relations(client: Client) -> None:
    await filled(client)
    assert await call(client, "delete_relations", relations=[KNOWS]) == "Relations deleted successfully"
    text = await call(client, "delete_relations", relations=[KNOWS, DRINKS])
    assert text == "Deleted 1 of 2 relations. The rest matched nothing."
    assert (await call(client, "read_graph"))["relations"] == []


@served
async def test_searching_and_opening(client: Client) -> None:
    assert await call(client, "read_graph") == {"entities": [], "relations": []}
    await filled(client)
    assert await call(client, "search_nodes", query="PERSON") == {
        "entities": [ADA, BOB],
        "relations": [KNOWS, DRINKS],
    }
    assert await call(client, "search_nodes", query="Tea") == {
        "entities": [BOB, TEA],
        "relations": [KNOWS, DRINKS],
    }
    assert await call(client, "search_nodes", query="PROGRAMS") == {"entities": [ADA], "relations": [KNOWS]}
    assert await call(client, "search_nodes", query="coffee") == {"entities": [], "relations": []}
    assert "at most 2048" in await refused(client, "search_nodes", query="a" * 2049)
    assert await call(client, "open_nodes", names=["tea", "nobody"]) == {
        "entities": [TEA],
        "relations": [DRINKS],
    }
    assert await call(client, "open_nodes", names=[]) == {"entities": [], "relations": []}


@served
async def test_the_graph_is_a_resource(client: Client) -> None:
    await filled(client)
    (content,) = (await client.read_resource("memory://knowledge-graph")).contents
    assert isinstance(content, TextResourceContents)
    assert json.loads(content.text) == await call(client, "read_graph")


@served
async def test_names_of_any_kind(client: Client) -> None:
    names = ['quo"te', "sl/ash", "世界", "new\nline", "[1,2]", "relation/x"]
    entities = [{"name": name, "entityType": "t", "observations": []} for name in names]
    await call(client, "create_entities", entities=entities)
    relations = [{"from": one, "to": two, "relationType": 'of "some" kind'} for one in names for two in names]
    assert await call(client, "create_relations", relations=relations) == relations
    assert await call(client, "read_graph") == {"entities": entities, "relations": relations}
    error = await refused(client, "create_entities", entities=[{**ADA, "name": "n" * 10_000}])
    assert "key_size_max" in error


async def test_graphs_are_runs() -> None:
    async with occamdb.aio.open_in_memory(max_store_size="32MiB") as db:
        for name in ("default", "other"):
            async with Client(make_server(db, memory=True, graph=name)) as client:
                await call(client, "create_entities", entities=[{**ADA, "name": name}])
        runs = db.runs.query_runs(tag="mcp-memory")
        assert [run.name for run in runs] == ["mcp-memory/default", "mcp-memory/other"]
        assert [entity["name"] for entity in KnowledgeGraph(db, "other").read()["entities"]] == ["other"]


# --- One database, many servers ------------------------------------------------------------------


async def work(path: Path, number: int) -> None:
    """A client with a server process of its own: entities of its own, and observations of one that all share."""
    command = [sys.executable, "-m", "occamdb", "mcp", str(path), "--memory"]
    server = StdioServerParameters(
        command=command[0], args=command[1:], env={**os.environ, "PYTHONPATH": "src"}
    )
    async with Client(server) as client:
        await call(client, "create_entities", entities=[{**TEA, "name": "shared"}])
        for n in range(10):
            name = f"{number}/{n}"
            await call(client, "create_entities", entities=[{**TEA, "name": name}])
            additions = [{"entityName": "shared", "contents": [name]}]
            await call(client, "add_observations", observations=additions)
            relation = {"from": name, "to": "shared", "relationType": "is part of"}
            await call(client, "create_relations", relations=[relation])


async def test_eight_servers_lose_nothing(database_path: Path) -> None:
    with occamdb.open(database_path) as db:
        await asyncio.wait_for(asyncio.gather(*[work(database_path, n) for n in range(SERVERS)]), 120)
        graph = KnowledgeGraph(occamdb.aio.wrap(db)).read()
    names = {f"{number}/{n}" for number in range(SERVERS) for n in range(10)}
    assert {entity["name"] for entity in graph["entities"]} == names | {"shared"}
    assert len(graph["entities"]) == len(names) + 1
    (shared,) = [entity for entity in graph["entities"] if entity["name"] == "shared"]
    assert sorted(shared["observations"]) == sorted(names), "no server lost what another one added"
    assert {relation["from"] for relation in graph["relations"]} == names


async def add_until_killed(path: Path, number: int, acknowledged: set[str], under_way: asyncio.Event) -> None:
    """A client that adds observations until its server is gone; notes what was acknowledged."""
    command = [sys.executable, "-m", "occamdb", "mcp", str(path), "--memory"]
    server = StdioServerParameters(
        command=command[0], args=command[1:], env={**os.environ, "PYTHONPATH": "src"}
    )
    with contextlib.suppress(Exception):
        async with Client(server) as client:
            await call(client, "create_entities", entities=[{**TEA, "name": "shared"}])
            for n in itertools.count():
                text = f"{number}/{n}"
                await call(
                    client, "add_observations", observations=[{"entityName": "shared", "contents": [text]}]
                )
                acknowledged.add(text)
                if n == 5:
                    under_way.set()


async def test_servers_that_are_killed_lose_nothing_acknowledged(database_path: Path) -> None:
    with occamdb.open(database_path) as db:
        acknowledged: list[set[str]] = [set() for _ in range(4)]
        under_way = [asyncio.Event() for _ in range(4)]
        clients = [
            asyncio.create_task(add_until_killed(database_path, n, acknowledged[n], under_way[n]))
            for n in range(4)
        ]
        await asyncio.wait_for(asyncio.gather(*[event.wait() for event in under_way]), 60)
        servers = [
            child for child in psutil.Process().children(recursive=True) if "--memory" in child.cmdline()
        ]
        assert len(servers) >= 4
        for server in servers:
            server.kill()
        await asyncio.wait_for(asyncio.gather(*clients), 60)
        (shared,) = KnowledgeGraph(occamdb.aio.wrap(db)).read()["entities"]
    found = shared["observations"]
    assert len(found) == len(set(found)), "nothing twice"
    for number, sent in enumerate(acknowledged):
        own = [text for text in found if text.startswith(f"{number}/")]
        assert sent <= set(own)
        assert own == [f"{number}/{n}" for n in range(len(own))], "in the order in which they were sent"
        assert len(own) <= len(sent) + 1, "and at most the one that was under way"
