"""Every example in a docstring is run."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

import occamdb
from occamdb import (
    Database,
    Decision,
    Error,
    Query,
    RunMetadata,
    Thought,
    ToolCall,
    VersionedValue,
    primitives,
)
from occamdb.primitives import EventLog, KVStore, Leases, RunIndex, Span, StateCell, Steps, TraceStore
from occamdb.primitives.operations import Operation
from occamdb.primitives.tasks import Tasks
from tests.support.processes import stop_coordinator

FACADES: dict[str, Any] = {
    "kv": KVStore,
    "events": EventLog,
    "cells": StateCell,
    "traces": TraceStore,
    "runs": RunIndex,
    "tasks": Tasks,
    "leases": Leases,
    "steps": Steps,
}
OTHERS: dict[str, Any] = {
    "open": occamdb.open,
    "open_in_memory": occamdb.open_in_memory,
    "value_hooks": occamdb.value_hooks,
    "Span": Span,
    "Snapshot": occamdb.Snapshot,
    "Transaction": occamdb.Transaction,
    "Database": Database,
    "Database.attempts": Database.attempts,
    "Primitive": primitives.Primitive,
}


@dataclass
class Point:
    x: int


@dataclass
class Customer:
    name: str


def changed_plan(db: Database, run: RunMetadata) -> VersionedValue | None:
    """The plan as it was before a change."""
    plan = db.kv.get_versioned(run, "plan")
    db.kv.put(run, "plan", ["think", "act"])
    return plan


# What an example needs to find in the database.
PREPARATIONS: dict[str, Callable[[Database, RunMetadata, dict[str, Any]], Any]] = {
    "runs.resume_run": lambda db, run, names: db.runs.pause_run(run),
    "tasks.requeue": lambda db, run, names: db.tasks.fail(run, names["task"], "broken", retry=False),
    "cells.init": lambda db, run, names: db.cells.delete(run, "task"),
    # What is waited for has come already.
    "cells.wait": lambda db, run, names: db.cells.set(run, "task", "done"),
    "events.follow": lambda db, run, names: db.events.append(run, "finished"),
    "kv.wait": lambda db, run, names: names.update(plan=changed_plan(db, run)),
    "runs.wait": lambda db, run, names: db.runs.complete_run(run),
}


def code_of(documented: Any) -> str:
    """The example in a docstring: what stands below "Example:", and paragraphs that are indented."""
    found = []
    for paragraph in (inspect.getdoc(documented) or "").split("\n\n"):
        title, _, rest = paragraph.partition("\n")
        if title == "Example:":
            found.append(textwrap.dedent(rest))
        elif all(line.startswith("    ") for line in paragraph.split("\n")):
            found.append(textwrap.dedent(paragraph))
    return "\n".join(found)


def documented() -> Iterator[tuple[str, Any]]:
    for name, facade in FACADES.items():
        for key, value in vars(facade).items():
            if isinstance(value, Operation) or (inspect.isfunction(value) and key[0] != "_"):
                yield f"{name}.{key}", value
    yield from OTHERS.items()


EXAMPLES = {name: code for name, item in documented() if (code := code_of(item))}


def prepared(db: Database) -> dict[str, Any]:
    """The names that examples use, with something behind them in every primitive."""
    run = db.runs.create_run("agent 7", tags=["nightly"])
    db.runs.create_run("below", parent=run)
    db.runs.update_status(db.runs.create_run("failed", tags=["nightly"]), "failed", error="e")
    db.kv.put_many(run, {"plan": ["think"], "a": 1, "task/1": {}, "lease": "x"})
    db.events.append_many(run, [("started", {}), ("asked", {})])
    db.cells.set(run, "task", "idle")
    db.cells.set(run, "queue", ["first"])
    step = db.traces.record(run, Thought("first"), tags=["plan"])
    db.traces.record(run, ToolCall("search"), parent_id=step, tags=["plan"])
    db.tasks.put_many(run, "pages", ["a.html", "b.html"])
    return {
        "db": db,
        "task": db.tasks.claim(run, "pages"),
        "run": run,
        "run_id": run.run_id,
        "step": step,
        "call": db.traces.begin_span(run, ToolCall("search")),
        "found": db.kv.get_versioned(run, "plan"),
        "state": db.cells.read(run, "task"),
        "search": lambda text: [text],
        "lease": db.leases.acquire(run, "gpu 0", lease=60),
        "url": "https://example.org",
        "fetch": lambda url: "page",
        "pay": lambda txn, amount: amount,
        "RetryPolicy": occamdb.RetryPolicy,
        "now": datetime.now(UTC),
        "Point": Point,
        "Customer": Customer,
        "occamdb": occamdb,
        "datetime": datetime,
        "timedelta": timedelta,
        "UTC": UTC,
        **{kind.__name__: kind for kind in (Decision, Error, Query, Thought, ToolCall)},
    }


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with occamdb.open_in_memory(max_store_size="16MiB") as db:
        names = prepared(db)
        if name in PREPARATIONS:
            PREPARATIONS[name](db, names["run"], names)
        with redirect_stdout(StringIO()):
            exec(compile(EXAMPLES[name], f"<example of {name}>", "exec"), names)
        for opened in names.values():
            if isinstance(opened, Database):
                opened.close()
        for directory in tmp_path.glob("*.db"):
            stop_coordinator(directory)


def test_there_is_an_example_of_every_operation() -> None:
    operations = {
        f"{name}.{value.body.__name__}"
        for name, facade in FACADES.items()
        for key, value in vars(facade).items()
        if isinstance(value, Operation) and key[0] != "_"
    }
    assert operations <= set(EXAMPLES)
