"""Eight memory servers on one memory: how much of what their clients wrote is there afterwards.

    npm install --prefix /tmp/ref @modelcontextprotocol/server-memory
    python stress/comparisons/mcp_memory.py /tmp/ref/node_modules/@modelcontextprotocol/server-memory/dist/index.js

Without the path only ours is measured. Each client starts a server process of its own over stdio, as the applications
do, and creates 10 entities.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

SERVERS, ENTITIES = 8, 10


async def client(command: list[str], environment: dict[str, str], number: int) -> tuple[float, int]:
    """Seconds for the calls of one client, and how many of them failed."""
    from mcp import Client, StdioServerParameters

    failed = 0
    server = StdioServerParameters(command=command[0], args=command[1:], env={**os.environ, **environment})
    async with Client(server, mode="legacy") as session:
        begin = time.perf_counter()
        for n in range(ENTITIES):
            entity = {"name": f"{number}/{n}", "entityType": "test", "observations": ["seen"]}
            result = await session.call_tool("create_entities", {"entities": [entity]})
            failed += bool(result.is_error)
        return time.perf_counter() - begin, failed


async def measure(name: str, command: list[str], environment: dict[str, str]) -> float:
    """Run the clients and say what is left; calls a second."""
    from mcp import Client, StdioServerParameters

    results = await asyncio.gather(*[client(command, environment, n) for n in range(SERVERS)])
    server = StdioServerParameters(command=command[0], args=command[1:], env={**os.environ, **environment})
    async with Client(server, mode="legacy") as session:
        graph = (await session.call_tool("read_graph", {})).structured_content or {}
    kept = len({entity["name"] for entity in graph.get("entities", [])})
    wanted, failed = SERVERS * ENTITIES, sum(failed for _, failed in results)
    rate = wanted / max(seconds for seconds, _ in results)
    print(f"{name:18} {kept:3} of {wanted} entities kept, {failed} calls failed, {rate:8,.0f} calls/s")
    return rate


def main() -> None:
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    with tempfile.TemporaryDirectory() as directory:
        if len(sys.argv) > 1:
            file = {"MEMORY_FILE_PATH": str(Path(directory) / "memory.jsonl")}
            theirs = asyncio.run(measure("reference server", ["node", sys.argv[1]], file))
        command = [sys.executable, "-m", "occamdb", "mcp", str(Path(directory) / "db"), "--memory"]
        ours = asyncio.run(measure("occamdb --memory", command, {}))
        if len(sys.argv) > 1:
            print(f"occamdb / reference server: calls x {ours / theirs:.1f}")


if __name__ == "__main__":
    main()
