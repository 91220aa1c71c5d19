"""What the tools and the resources of the MCP server have in common: runs by name, and records as JSON."""

from __future__ import annotations

import base64
import functools
import math
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from enum import Enum
from typing import Any, ParamSpec, TypeVar

from mcp.server.mcpserver.exceptions import ToolError

from occamdb import Event, OccamError, RunId, RunMetadata, Task, Trace
from occamdb.aio import AsyncDatabase

__all__ = [
    "LIMIT_MAX",
    "Found",
    "event_fields",
    "guarded",
    "id_of",
    "plain",
    "queue_counts",
    "run_fields",
    "run_named_or_id",
    "task_fields",
    "trace_fields",
]

P = ParamSpec("P")
T = TypeVar("T")
Found = dict[str, Any]
LIMIT_MAX = 1000


def guarded(tool: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """The tool, with what occamdb raises as an error that the model reads: message and hint."""

    @functools.wraps(tool)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await tool(*args, **kwargs)
        except OccamError as error:
            raise ToolError(str(error)) from error

    return call


# --- What JSON can carry -------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """A stored value for JSON: bytes as {"$bytes": base64}, floats it has no number for as {"$float": "nan"}."""
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # keys that are bytes come as lone surrogates
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return str(value)


def run_fields(run: RunMetadata) -> Found:
    """A run for JSON."""
    return {
        "run_id": str(run.run_id),
        "name": run.name,
        "status": run.status.value,
        "parent_run_id": None if run.parent_run_id is None else str(run.parent_run_id),
        "tags": list(run.tags),
        "metadata": plain(run.metadata),
        "created_at": run.created_at.isoformat(),
        "updated_at": run.updated_at.isoformat(),
        "completed_at": None if run.completed_at is None else run.completed_at.isoformat(),
        "error": run.error,
    }


def event_fields(event: Event) -> Found:
    """An event for JSON."""
    return {
        "sequence": event.sequence,
        "event_type": event.event_type,
        "payload": plain(event.payload),
        "timestamp": event.timestamp.isoformat(),
    }


def trace_fields(trace: Trace) -> Found:
    """A trace for JSON."""
    kind = trace.trace_type
    return {
        "id": trace.id,
        "parent_id": trace.parent_id,
        "type": trace.type_name,
        "fields": plain({name: getattr(kind, name) for name in type(kind).__dataclass_fields__}),
        "status": trace.status,
        "started_at": trace.timestamp.isoformat(),
        "duration_ms": trace.duration_ms,
        "error": trace.error,
        "tags": list(trace.tags),
        "metadata": plain(trace.metadata),
    }


def task_fields(task: Task) -> Found:
    """A task for JSON; `claim` is what completes it."""
    until = task.lease_until
    return {
        "id": task.id,
        "queue": task.queue,
        "payload": plain(task.payload),
        "state": task.state.value,
        "priority": task.priority,
        "key": task.key,
        "attempts": task.attempts,
        "max_attempts": task.max_attempts,
        "claim": task.claim,
        "created_at": task.created_at.isoformat(),
        "lease_until": None if until is None else until.isoformat(),
        "result": plain(task.result),
        "error": task.error,
    }


def id_of(run: str) -> RunId | None:
    """The run of an id; None for a name."""
    try:
        return RunId(run)
    except ValueError:
        return None


def run_named_or_id(db: AsyncDatabase, run: str) -> RunId:
    """The run that a client means; one that the index does not know reads as empty."""
    known = id_of(run)
    if known is not None:
        return known
    found = db.runs.get_run(RunId.named(run)) or db.runs.find(run)
    return RunId.named(run) if found is None else found.run_id


def queue_counts(db: AsyncDatabase, run_id: RunId) -> Found:
    """The queues of a run, with how many tasks are in each state."""
    with db.begin(run_id, read_only=True) as txn:
        return {
            queue: {
                state: getattr(txn.tasks.stats(queue), state)
                for state in ("ready", "delayed", "claimed", "done", "dead")
            }
            for queue in txn.tasks.queues()
        }
