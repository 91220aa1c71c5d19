"""FastMCP keeps its sessions' state in the store: what one server process writes, the next one reads."""

from __future__ import annotations

from pathlib import Path

from fastmcp import Client, Context, FastMCP
from fastmcp.server.middleware.caching import ResponseCachingMiddleware

import occamdb.aio
from occamdb.plugins.key_value import OccamKeyValueStore


async def test_responses_are_cached_for_every_server(database_path: Path) -> None:
    """Two servers, as two workers of one deployment: the second answers from what the first one cached."""
    calls: list[str] = []

    def server(store: OccamKeyValueStore) -> FastMCP:
        made = FastMCP("cached", session_state_store=store)
        made.add_middleware(ResponseCachingMiddleware(cache_storage=store))

        @made.tool
        def price(name: str) -> str:
            calls.append(name)
            return f"{name}: {len(calls)}"

        return made

    for _ in range(2):
        async with OccamKeyValueStore(database_path) as store:
            async with Client(server(store)) as client:
                result = await client.call_tool("price", {"name": "tea"})
                assert result.data == "tea: 1"
    assert calls == ["tea"], "the second server's store had the answer of the first"
    async with occamdb.aio.open(database_path) as db:
        assert db.runs.query_runs(tag="key-value"), "its collections are runs"


async def test_state_of_a_session(database_path: Path) -> None:
    async with OccamKeyValueStore(database_path) as store:
        server = FastMCP("remembering", session_state_store=store)

        @server.tool
        async def remember(name: str, ctx: Context) -> str:
            await ctx.set_state("name", name)
            return str(await ctx.get_state("name"))

        async with Client(server) as client:
            assert (await client.call_tool("remember", {"name": "ada"})).data == "ada"
        (collection,) = await store.collections()
        (key,) = await store.keys(collection)
        assert key.endswith("name")
        value, seconds = await store.ttl(key, collection=collection)
        assert value is not None and "ada" in value.values()
        assert seconds is not None and seconds > 60, "FastMCP lets state expire"
