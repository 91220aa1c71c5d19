"""The tools of the MCP server over the primitives: those that read, and those of `--write`.

A run is named by its id or by its name. Tools that write create a run of a name that is new, in their own transaction.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from itertools import islice
from typing import Annotated, Any, Literal, TypeVar

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations
from pydantic import Field

import occamdb
from occamdb import RunId, Task
from occamdb.aio import AsyncDatabase, AsyncTransaction

from ._mcp_fields import (
    LIMIT_MAX,
    Found,
    event_fields,
    guarded,
    id_of,
    plain,
    queue_counts,
    run_fields,
    run_named_or_id,
    task_fields,
    trace_fields,
)

__all__ = ["TAG", "ReadingTools", "WritingTools"]

T = TypeVar("T")
TAG = "mcp"

Run = Annotated[str, Field(description="A run's id, or its name", min_length=1)]
Key = Annotated[str, Field(description="A key of the run", min_length=1)]
Limit = Annotated[int, Field(description="At most so many", ge=1, le=LIMIT_MAX)]
Tool = Callable[..., Awaitable[Found]]
TRACES: Mapping[str, type[Any]] = {
    "thought": occamdb.Thought,
    "tool_call": occamdb.ToolCall,
    "decision": occamdb.Decision,
    "query": occamdb.Query,
    "error": occamdb.Error,
    "custom": occamdb.Custom,
}
TraceKind = Literal["thought", "tool_call", "decision", "query", "error", "custom"]
RunStatusName = Literal["active", "completed", "failed", "cancelled", "paused", "archived"]
TaskStateName = Literal["ready", "delayed", "claimed", "done", "dead"]


# --- Reading -------------------------------------------------------------------------------------


class ReadingTools:
    """Tools that change nothing: each reads one snapshot."""

    def __init__(self, db: AsyncDatabase) -> None:
        self._db = db

    def register(self, server: MCPServer[Any]) -> None:
        """Add them to a server."""
        hints = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)
        tools: tuple[Tool, ...] = (
            self.list_runs,
            self.get_run,
            self.get_value,
            self.list_values,
            self.read_events,
            self.list_cells,
            self.list_traces,
            self.trace_tree,
            self.list_tasks,
            self.queue_stats,
        )
        for tool in tools:
            server.add_tool(guarded(tool), annotations=hints)

    def _run(self, run: str) -> RunId:
        return run_named_or_id(self._db, run)

    async def list_runs(
        self,
        status: RunStatusName | None = None,
        tag: str | None = None,
        name: str | None = None,
        limit: Limit = 50,
    ) -> Found:
        """List the runs of the database, the latest first: one a thread, session or agent."""
        runs = self._db.runs.query_runs(status=status, tag=tag, name=name, limit=limit, reverse=True)
        return {"runs": [run_fields(run) for run in runs]}

    async def get_run(self, run: Run) -> Found:
        """Read the name, status, tags and metadata of a run."""
        found = self._db.runs.get_run(self._run(run))
        if found is None:
            raise ToolError(f"the index has no run {run!r}; list_runs lists them")
        return run_fields(found)

    async def get_value(self, run: Run, key: Key) -> Found:
        """Read the value of a key, with its version, which put_value can expect."""
        found = self._db.kv.get_versioned(self._run(run), key)
        if found is None:
            return {"found": False}
        expires = found.expires_at
        return {
            "found": True,
            "value": plain(found.value),
            "version": found.version,
            "expires_at": None if expires is None else expires.isoformat(),
        }

    async def list_values(
        self,
        run: Run,
        prefix: str = "",
        start: Annotated[str | None, Field(description="The first key that may come")] = None,
        limit: Limit = 100,
    ) -> Found:
        """List the keys of a run with their values, in byte order."""
        with self._db.begin(self._run(run), read_only=True) as txn:
            rows = list(txn.kv.scan(prefix, start=start, limit=limit + 1))
        return {
            "items": [
                {"key": plain(key), "value": plain(found.value), "version": found.version}
                for key, found in rows[:limit]
            ],
            "next_start": plain(rows[limit][0]) if len(rows) > limit else None,
        }

    async def read_events(
        self,
        run: Run,
        start: Annotated[int, Field(description="The first sequence number that may come", ge=0)] = 0,
        event_type: str | None = None,
        latest: Annotated[
            bool, Field(description="The newest events, instead of the first from start")
        ] = False,
        limit: Limit = 100,
    ) -> Found:
        """Read the event log of a run."""
        run_id = self._run(run)
        if event_type is None:
            events = self._db.events.read_range(run_id, start, limit=limit, reverse=latest)
        else:
            events = self._db.events.read_by_type(
                run_id, event_type, start=start, limit=limit, reverse=latest
            )
        return {"events": [event_fields(event) for event in events]}

    async def list_cells(self, run: Run, prefix: str = "", limit: Limit = 100) -> Found:
        """List the state cells of a run with their values and versions."""
        rows = self._db.cells.list_with_values(self._run(run), prefix, limit=limit)
        return {
            "cells": [
                {"name": plain(name), "value": plain(state.value), "version": state.version}
                for name, state in rows
            ]
        }

    async def list_traces(
        self,
        run: Run,
        type: str | None = None,
        tag: str | None = None,
        roots: Annotated[bool, Field(description="Only those without a parent")] = False,
        limit: Limit = 50,
    ) -> Found:
        """List what an agent did: its thoughts, tool calls, decisions and errors, the latest first."""
        run_id = self._run(run)
        if roots:
            traces = self._db.traces.get_roots(run_id, limit=limit, reverse=True)
        else:
            traces = self._db.traces.query(run_id, type, tag=tag, limit=limit, reverse=True)
        return {"traces": [trace_fields(trace) for trace in traces]}

    async def trace_tree(self, run: Run, trace_id: str, limit: Limit = LIMIT_MAX) -> Found:
        """Read a trace with everything under it, parents first."""
        tree = self._db.traces.get_tree(self._run(run), trace_id)
        shown = islice(tree.walk(), limit)
        rows = [{"depth": depth, **trace_fields(trace)} for depth, trace in shown]
        return {"traces": rows, "size": tree.size}

    async def list_tasks(
        self, run: Run, queue: str, state: TaskStateName | None = None, limit: Limit = 100
    ) -> Found:
        """List the tasks of a queue."""
        tasks = self._db.tasks.list(self._run(run), queue, state=state, limit=limit)
        return {"tasks": [task_fields(task) for task in tasks]}

    async def queue_stats(self, run: Run) -> Found:
        """Count the tasks of each queue of a run by their state."""
        return {"queues": queue_counts(self._db, self._run(run))}


# --- Writing -------------------------------------------------------------------------------------


class WritingTools:
    """Tools that change something: each is one transaction."""

    def __init__(self, db: AsyncDatabase) -> None:
        self._db = db

    def register(self, server: MCPServer[Any]) -> None:
        """Add them to a server."""
        harmless = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False)
        destructive = ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=False)
        adding: tuple[Tool, ...] = (
            self.create_run,
            self.increment_value,
            self.append_event,
            self.record_trace,
            self.put_task,
            self.claim_task,
            self.complete_task,
            self.fail_task,
        )
        replacing: tuple[Tool, ...] = (
            self.set_run_status,
            self.put_value,
            self.delete_value,
            self.set_cell,
        )
        for hints, tools in ((harmless, adding), (destructive, replacing)):
            for tool in tools:
                server.add_tool(guarded(tool), annotations=hints)

    async def _change(self, run: str, write: Callable[[AsyncTransaction], T]) -> T:
        known = id_of(run)
        if known is not None:
            return await self._db.transaction(known, write)

        def create_and_write(txn: AsyncTransaction) -> T:
            return write(txn.for_run(txn.runs.get_or_create(run, tags=[TAG]).run_id))

        return await self._db.transaction(RunId.named(run), create_and_write)

    async def create_run(
        self,
        name: str,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        parent: Annotated[str | None, Field(description="The id or name of the run it belongs under")] = None,
    ) -> Found:
        """Create a run; give its id."""
        above = None if parent is None else run_named_or_id(self._db, parent)
        return run_fields(
            await self._db.runs.create_run(name, parent=above, tags=[TAG, *(tags or ())], metadata=metadata)
        )

    async def set_run_status(self, run: Run, status: RunStatusName, error: str | None = None) -> Found:
        """Change the status of a run."""
        run_id = run_named_or_id(self._db, run)
        return run_fields(await self._db.runs.update_status(run_id, status, error=error))

    async def put_value(
        self,
        run: Run,
        key: Key,
        value: Any,
        ttl: Annotated[float | None, Field(description="Seconds after which the key is gone")] = None,
        expected_version: Annotated[
            int | None, Field(description="Refuse unless the key has this version; 0: unless it is absent")
        ] = None,
    ) -> Found:
        """Set a key of a run to a JSON value."""

        def write(txn: AsyncTransaction) -> None:
            if expected_version is None:
                txn.kv.put(key, value, ttl=ttl)
            else:
                txn.kv.cas(key, expected_version, value, ttl=ttl)

        await self._change(run, write)
        return {"ok": True}

    async def delete_value(self, run: Run, key: Key) -> Found:
        """Remove a key of a run."""
        return {"deleted": await self._change(run, lambda txn: txn.kv.delete(key))}

    async def increment_value(self, run: Run, key: Key, by: int = 1) -> Found:
        """Add to an integer; an absent key counts as 0."""

        def write(txn: AsyncTransaction) -> int:
            txn.kv.increment(key, by)
            total: int = txn.kv.get(key)
            return total

        return {"value": await self._change(run, write)}

    async def append_event(self, run: Run, event_type: str, payload: dict[str, Any] | None = None) -> Found:
        """Append an event to the hash-chained log of a run."""
        return event_fields(await self._change(run, lambda txn: txn.events.append(event_type, payload or {})))

    async def set_cell(
        self,
        run: Run,
        name: str,
        value: Any,
        expected_version: Annotated[
            int | None, Field(description="Refuse unless the cell has this version; 0: unless it is absent")
        ] = None,
    ) -> Found:
        """Set a state cell of a run."""

        def write(txn: AsyncTransaction) -> None:
            if expected_version is None:
                txn.cells.set(name, value)
            else:
                txn.cells.cas(name, expected_version, value)

        await self._change(run, write)
        return {"ok": True}

    async def record_trace(
        self,
        run: Run,
        kind: TraceKind,
        fields: Annotated[dict[str, Any], Field(description="As in {'tool': 'search', 'args': {}}")],
        parent_id: str | None = None,
        tags: list[str] | None = None,
    ) -> Found:
        """Record what an agent did: a thought, tool call, decision, query, error or custom step."""
        try:
            trace = TRACES[kind](**fields)
        except TypeError as error:
            names = ", ".join(TRACES[kind].__dataclass_fields__)
            raise ToolError(f"the fields of a {kind} are {names}: {error}") from error
        labels: Iterable[str] = tags or ()
        return {
            "id": await self._change(
                run, lambda txn: txn.traces.record(trace, parent_id=parent_id, tags=labels)
            )
        }

    async def put_task(
        self,
        run: Run,
        queue: str,
        payload: Any = None,
        key: Annotated[str | None, Field(description="Makes the call idempotent")] = None,
        priority: int = 0,
        delay: float = 0,
    ) -> Found:
        """Put a task into a queue that agents and workers share."""
        put = await self._change(
            run, lambda txn: txn.tasks.put(queue, payload, key=key, priority=priority, delay=delay)
        )
        return task_fields(put)

    async def claim_task(self, run: Run, queue: str, lease: float = 300) -> Found:
        """Claim the first ready task of a queue for some seconds; complete_task and fail_task end it."""
        task = await self._db.tasks.claim(run_named_or_id(self._db, run), queue, lease=lease)
        return {"task": None if task is None else task_fields(task)}

    def _claimed(self, run_id: RunId, task_id: str, claim: int) -> Task:
        task = self._db.tasks.get(run_id, task_id)
        if task is None:
            raise ToolError(f"there is no task {task_id!r} in this run")
        # Whether it still has this claim is decided by the commit.
        return task._replace(claim=claim, state=occamdb.TaskState.CLAIMED)

    async def complete_task(self, run: Run, task_id: str, claim: int, result: Any = None) -> Found:
        """Record that a claimed task is done. `claim` is what claim_task gave."""
        run_id = run_named_or_id(self._db, run)
        await self._db.tasks.complete(run_id, self._claimed(run_id, task_id, claim), result)
        return {"state": "done"}

    async def fail_task(self, run: Run, task_id: str, claim: int, error: str, retry: bool = True) -> Found:
        """Record that a claimed task failed: it is ready again, or dead when no attempt is left."""
        run_id = run_named_or_id(self._db, run)
        state = await self._db.tasks.fail(run_id, self._claimed(run_id, task_id, claim), error, retry)
        return {"state": str(state.value)}
