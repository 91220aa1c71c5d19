"""The tools and resources of the MCP server, by the real client: what they read and write, and what they refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from mcp import Client, MCPError
from mcp_types import TextContent, TextResourceContents

import occamdb.aio
from occamdb import RunId, Thought, ToolCall
from occamdb.aio import AsyncDatabase
from occamdb.plugins.mcp_server import make_server

READING = {
    "get_run", "get_value", "list_cells", "list_runs", "list_tasks", "list_traces", "list_values", "queue_stats",
    "read_events", "trace_tree",
}  # fmt: skip
WRITING = {
    "append_event", "claim_task", "complete_task", "create_run", "delete_value", "fail_task", "increment_value",
    "put_task", "put_value", "record_trace", "set_cell", "set_run_status",
}  # fmt: skip


@pytest.fixture
async def db() -> AsyncIterator[AsyncDatabase]:
    async with occamdb.aio.open_in_memory(max_store_size="32MiB") as opened:
        yield opened


@asynccontextmanager
async def connected(db: AsyncDatabase, **options: Any) -> AsyncIterator[Client]:
    async with Client(make_server(db, **options), cache=None) as client:
        yield client


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    assert isinstance(result.structured_content, dict)
    (content,) = result.content
    assert isinstance(content, TextContent)
    assert json.loads(content.text) == result.structured_content, "models that read text see the same"
    return result.structured_content


async def refused(client: Client, tool: str, **arguments: Any) -> str:
    result = await client.call_tool(tool, arguments)
    assert result.is_error
    (content,) = result.content
    assert isinstance(content, TextContent)
    return content.text


async def read(client: Client, uri: str) -> Any:
    (content,) = (await client.read_resource(uri)).contents
    assert isinstance(content, TextResourceContents) and content.mime_type == "application/json"
    return json.loads(content.text)


async def test_without_write_no_tool_changes_anything(db: AsyncDatabase) -> None:
    async with connected(db) as client:
        tools = (await client.list_tools()).tools
        assert {tool.name for tool in tools} == READING
        assert all(tool.annotations is not None and tool.annotations.read_only_hint for tool in tools)
        assert "Unknown tool" in await refused(client, "put_value", run="r", key="k", value=1)
        assert await call(client, "list_runs") == {"runs": []}
    assert db.runs.list_runs() == []


async def test_with_write(db: AsyncDatabase) -> None:
    async with connected(db, write=True) as client:
        tools = (await client.list_tools()).tools
        assert {tool.name for tool in tools} == READING | WRITING
        for tool in tools:
            assert tool.description, f"{tool.name} says what it is for"
            assert tool.annotations is not None
            assert tool.annotations.read_only_hint == (tool.name in READING)


async def test_values(db: AsyncDatabase) -> None:
    async with connected(db, write=True) as client:
        assert await call(client, "get_value", run="trip", key="plan") == {"found": False}
        await call(client, "put_value", run="trip", key="plan", value={"steps": ["think", "act"]})
        found = await call(client, "get_value", run="trip", key="plan")
        assert found["value"] == {"steps": ["think", "act"]} and found["expires_at"] is None
        await call(client, "put_value", run="trip", key="plan", value=2, expected_version=found["version"])
        error = await refused(
            client, "put_value", run="trip", key="plan", value=3, expected_version=found["version"]
        )
        assert "version" in error, "the model is told that another agent changed the value"
        assert (await call(client, "get_value", run="trip", key="plan"))["value"] == 2
        assert await call(client, "increment_value", run="trip", key="n", by=5) == {"value": 5}
        assert await call(client, "increment_value", run="trip", key="n") == {"value": 6}
        await call(client, "put_value", run="trip", key="soon", value=1, ttl=100)
        assert (await call(client, "get_value", run="trip", key="soon"))["expires_at"] is not None
        page = await call(client, "list_values", run="trip", limit=2)
        assert [item["key"] for item in page["items"]] == ["n", "plan"] and page["next_start"] == "soon"
        rest = await call(client, "list_values", run="trip", start="soon")
        assert [item["key"] for item in rest["items"]] == ["soon"] and rest["next_start"] is None
        assert await call(client, "delete_value", run="trip", key="n") == {"deleted": True}
        assert await call(client, "delete_value", run="trip", key="n") == {"deleted": False}
    (run,) = db.runs.list_runs()
    assert run.name == "trip" and run.tags == ("mcp",), "writing to a name makes its run"
    assert run.run_id == RunId.named("trip")


async def test_runs(db: AsyncDatabase) -> None:
    async with connected(db, write=True) as client:
        made = await call(client, "create_run", name="agent 7", tags=["nightly"], metadata={"model": "m1"})
        child = await call(client, "create_run", name="child", parent="agent 7")
        assert child["parent_run_id"] == made["run_id"]
        assert made["tags"] == ["mcp", "nightly"] and made["metadata"] == {"model": "m1"}
        assert await call(client, "get_run", run="agent 7") == made
        assert await call(client, "get_run", run=made["run_id"]) == made
        await call(client, "put_value", run="agent 7", key="k", value=1)
        assert db.get(RunId(made["run_id"]), "k") == 1, "a name that a run has means this run"
        failed = await call(client, "set_run_status", run="child", status="failed", error="no answer")
        assert failed["status"] == "failed" and failed["error"] == "no answer"
        listed = await call(client, "list_runs", status="active")
        assert [run["name"] for run in listed["runs"]] == ["agent 7"]
        assert "cannot go from failed to active" in await refused(
            client, "set_run_status", run="child", status="active"
        )
        assert "has no run 'nobody'" in await refused(client, "get_run", run="nobody")


async def test_events_cells_and_traces(db: AsyncDatabase) -> None:
    async with connected(db, write=True) as client:
        for number in range(3):
            event = await call(client, "append_event", run="r", event_type="step", payload={"n": number})
            assert event["sequence"] == number
        await call(client, "append_event", run="r", event_type="done")
        found = await call(client, "read_events", run="r", event_type="step", start=1)
        assert [event["payload"] for event in found["events"]] == [{"n": 1}, {"n": 2}]
        found = await call(client, "read_events", run="r", latest=True, limit=1)
        assert [event["event_type"] for event in found["events"]] == ["done"]
        await call(client, "set_cell", run="r", name="state", value="busy", expected_version=0)
        assert "version" in await refused(
            client, "set_cell", run="r", name="state", value="idle", expected_version=0
        )
        (cell,) = (await call(client, "list_cells", run="r"))["cells"]
        assert (cell["name"], cell["value"]) == ("state", "busy")
        thought = await call(
            client, "record_trace", run="r", kind="thought", fields={"content": "hm"}, tags=["plan"]
        )
        tool = await call(
            client, "record_trace", run="r", kind="tool_call", fields={"tool": "search", "args": {"q": 1}},
            parent_id=thought["id"],
        )  # fmt: skip
        tree = await call(client, "trace_tree", run="r", trace_id=thought["id"])
        assert [(row["depth"], row["type"]) for row in tree["traces"]] == [(0, "Thought"), (1, "ToolCall")]
        assert tree["traces"][1]["fields"] == {
            "tool": "search",
            "args": {"q": 1},
            "result": None,
            "duration_ms": None,
        }
        roots = await call(client, "list_traces", run="r", roots=True)
        assert [row["id"] for row in roots["traces"]] == [thought["id"]]
        latest = await call(client, "list_traces", run="r", limit=1)
        assert [row["id"] for row in latest["traces"]] == [tool["id"]]
        assert "the fields of a thought are content, confidence" in await refused(
            client, "record_trace", run="r", kind="thought", fields={"text": "hm"}
        )
    run = RunId.named("r")
    assert db.events.verify_chain(run).is_valid
    assert [trace.trace_type for trace in db.traces.query(run)] == [
        Thought("hm"),
        ToolCall("search", {"q": 1}),
    ]


async def test_tasks(db: AsyncDatabase) -> None:
    async with connected(db, write=True) as client:
        put = await call(client, "put_task", run="r", queue="pages", payload={"url": "a.html"}, key="a")
        again = await call(client, "put_task", run="r", queue="pages", payload={"url": "a.html"}, key="a")
        assert again["id"] == put["id"]
        claimed = (await call(client, "claim_task", run="r", queue="pages"))["task"]
        assert claimed["payload"] == {"url": "a.html"} and claimed["state"] == "claimed"
        assert await call(client, "claim_task", run="r", queue="pages") == {"task": None}
        wrong = {"run": "r", "task_id": put["id"], "claim": claimed["claim"] + 1}
        assert "no longer" in await refused(client, "complete_task", **wrong)
        state = await call(
            client, "fail_task", run="r", task_id=put["id"], claim=claimed["claim"], error="no answer"
        )
        assert state == {"state": "ready"}
        claimed = (await call(client, "claim_task", run="r", queue="pages"))["task"]
        await call(
            client, "complete_task", run="r", task_id=put["id"], claim=claimed["claim"], result={"size": 5}
        )
        (done,) = (await call(client, "list_tasks", run="r", queue="pages", state="done"))["tasks"]
        assert done["result"] == {"size": 5} and done["attempts"] == 2
        counts = (await call(client, "queue_stats", run="r"))["queues"]["pages"]
        assert counts == {"ready": 0, "delayed": 0, "claimed": 0, "done": 1, "dead": 0}


async def test_resources(db: AsyncDatabase) -> None:
    run = (await db.runs.create_run("a/b ü")).run_id
    await db.put(run, "../plan", {"n": 1})
    await db.put(run, b"\xff", b"\x00\xff")
    await db.events.append(run, "began", {"by": "ada"})
    await db.cells.set(run, "state", "idle")
    await db.traces.record(run, Thought("hm"))
    await db.tasks.put(run, "pages", 1)
    async with connected(db) as client:
        listed = (await client.list_resources()).resources
        assert [str(resource.uri) for resource in listed] == ["occamdb://runs"]
        assert len((await client.list_resource_templates()).resource_templates) == 8
        assert [found["name"] for found in await read(client, "occamdb://runs")] == ["a/b ü"]
        named = "occamdb://runs/a%2Fb%20%C3%BC"
        assert (await read(client, named))["run_id"] == str(run)
        assert (await read(client, f"occamdb://runs/{run}"))["run_id"] == str(run)
        assert await read(client, f"{named}/keys") == ["../plan", "?"]
        assert (await read(client, f"{named}/keys/..%2Fplan"))["value"] == {"n": 1}
        assert [event["payload"] for event in await read(client, f"{named}/events")] == [{"by": "ada"}]
        assert (await read(client, f"{named}/cells"))["state"]["value"] == "idle"
        assert (await read(client, f"{named}/cells/state"))["value"] == "idle"
        assert [trace["type"] for trace in await read(client, f"{named}/traces")] == ["Thought"]
        assert (await read(client, f"{named}/tasks"))["pages"]["ready"] == 1
        for missing in (
            "occamdb://runs/nobody",
            f"{named}/keys/none",
            f"{named}/cells/none",
            f"{named}/nothing",
        ):
            with pytest.raises(MCPError):
                await client.read_resource(missing)


@pytest.mark.parametrize(
    ("tool", "arguments", "words"),
    [
        ("get_value", {"run": "", "key": "k"}, "at least 1 character"),
        ("get_value", {"run": 7, "key": "k"}, "string"),
        ("get_value", {"run": "r"}, "Field required"),
        ("list_values", {"run": "r", "limit": 0}, "greater than or equal to 1"),
        ("list_values", {"run": "r", "limit": 10**9}, "less than or equal to 1000"),
        ("get_value", {"run": "r", "key": "k" * 20_000}, "key_size_max"),
        ("put_value", {"run": "r", "key": "k", "value": 2**70}, "an int of 71 bits"),
        ("put_value", {"run": "r", "key": "k", "value": 1, "ttl": -1}, "out of range"),
        ("append_event", {"run": "r", "event_type": ""}, "type"),
        ("trace_tree", {"run": "r", "trace_id": "x"}, "UUID"),
        ("list_runs", {"status": "asleep"}, "active"),
        ("complete_task", {"run": "r", "task_id": "x", "claim": 1}, "32 hex digits"),
    ],
)
async def test_bad_input(db: AsyncDatabase, tool: str, arguments: dict[str, Any], words: str) -> None:
    async with connected(db, write=True) as client:
        assert words in await refused(client, tool, **arguments)
    assert db.runs.list_runs() == [], "what was refused made no run"


def test_things_that_are_no_database() -> None:
    wrong: Any = 7
    with pytest.raises(TypeError, match="the path of a database, got int"):
        make_server(wrong)


def test_without_the_extra() -> None:
    program = "import sys; sys.modules['mcp.server.mcpserver'] = None\nimport occamdb.plugins.mcp_server\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1 and "pip install 'occamdb[mcp]'" in done.stderr
