"""Graphs and checkpoints for the tests of the LangGraph plug-in."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, TypedDict

from langchain_core.runnables import RunnableConfig
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import Checkpoint, CheckpointMetadata
from langgraph.checkpoint.base.id import uuid6
from langgraph.graph import END, START, StateGraph


class Log(TypedDict):
    """A list that nodes add to."""

    log: Annotated[list[str], operator.add]


def extended(old: list[str], writes: Sequence[list[str]]) -> list[str]:
    """The reducer of a delta channel: what is there, and every write in its order."""
    return [*old, *(item for write in writes for item in write)]


class DeltaLog(TypedDict):
    """The same in a delta channel, which stores its whole value at every fourth write only."""

    log: Annotated[list[str], DeltaChannel(extended, snapshot_frequency=4)]


def chain_of(state: Any, **nodes: Any) -> Any:
    """A graph whose nodes run one after the other."""
    builder: Any = StateGraph(state)
    previous = START
    for name, node in nodes.items():
        builder.add_node(name, node)
        builder.add_edge(previous, name)
        previous = name
    builder.add_edge(previous, END)
    return builder


def says(word: str) -> Callable[[Any], dict[str, list[str]]]:
    """A node that adds a word to the log."""
    return lambda state: {"log": [word]}


def thread(thread_id: str, ns: str = "", checkpoint_id: str | None = None) -> RunnableConfig:
    """The configuration that names a thread, or a checkpoint."""
    given = {"thread_id": thread_id, "checkpoint_ns": ns}
    return {"configurable": given if checkpoint_id is None else {**given, "checkpoint_id": checkpoint_id}}


def checkpoint(values: dict[str, Any] | None = None, versions: dict[str, Any] | None = None) -> Checkpoint:
    """A checkpoint with these values; every channel has version 1 unless `versions` says otherwise."""
    given = values or {}
    return Checkpoint(
        v=1,
        id=str(uuid6(clock_seq=-1)),
        ts=datetime.now(UTC).isoformat(),
        channel_values=given,
        channel_versions=dict.fromkeys(given, 1) if versions is None else versions,
        versions_seen={},
        updated_channels=None,
    )


def metadata(step: int = 0, **more: Any) -> CheckpointMetadata:
    """The metadata of a step of a loop."""
    found: Any = {"source": "loop", "step": step, "parents": {}, **more}
    given: CheckpointMetadata = found
    return given


def id_of(config: RunnableConfig) -> str:
    """The checkpoint that a configuration names."""
    found: str = config["configurable"]["checkpoint_id"]
    return found
