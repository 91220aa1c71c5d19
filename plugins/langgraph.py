"""Checkpoints and long-term memory of LangGraph in a database that many processes share.

    import occamdb
    from langgraph.graph import StateGraph
    from occamdb.plugins.langgraph import OccamSaver

    builder = StateGraph(int)
    builder.add_node("add", lambda count: count + 1)
    builder.set_entry_point("add")
    with occamdb.open("agents.db") as db:
        graph = builder.compile(checkpointer=OccamSaver(db))
        graph.invoke(1, {"configurable": {"thread_id": "thread-1"}})

`OccamSaver` keeps checkpoints, `OccamStore` is the `BaseStore` of LangGraph. See docs/plugins/langgraph.md.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Self, TypeVar, cast

from ._support import AnyDatabase, Engine, WithEngine, missing_extra, warn_if_newer

try:
    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import (
        WRITES_IDX_MAP,
        BaseCheckpointSaver,
        ChannelVersions,
        Checkpoint,
        CheckpointMetadata,
        CheckpointTuple,
        DeltaChannelHistory,
        get_checkpoint_id,
        get_checkpoint_metadata,
    )
    from langgraph.checkpoint.serde.base import SerializerProtocol
except ImportError as error:
    missing_extra("langgraph", error)

from . import _langgraph_threads as threads
from . import _langgraph_upkeep as upkeep
from ._gate import ISOLATION, Gate
from ._langgraph_listing import Listing
from ._langgraph_store import OccamStore
from ._langgraph_threads import CheckpointConflict, NewCheckpoint, NewWrites, StaleWriteOwner, Stored, Txn

__all__ = ["CheckpointConflict", "OccamSaver", "OccamStore", "StaleWriteOwner"]

T = TypeVar("T")

warn_if_newer("langgraph-checkpoint", "4.3")

# A configuration that this saver gave tells it, when it comes back, how many children the checkpoint had. LangGraph
# hands on what is in `configurable`, and keeps names that begin with two underscores out of the metadata.
_CHILDREN = "__occamdb_children"


class OccamSaver(WithEngine, BaseCheckpointSaver[int]):
    """A checkpointer for any number of processes. Every thread is a run, and every call one commit.

    Of two processes that continue a thread from one checkpoint, the first wins, and the other gets
    `CheckpointConflict`; so does the second of two that begin one thread. Going back to an earlier checkpoint by its id
    makes a branch, as always.

    Args:
      db: an open database, or the path of one, which is then closed by `close`.
      serde: how values are stored; None: as LangGraph does by default.
      allow_forks: store what would be a conflict as a further branch, as other checkpointers do.
    """

    def __init__(
        self, db: AnyDatabase, *, serde: SerializerProtocol | None = None, allow_forks: bool = False
    ) -> None:
        super().__init__(serde=serde)
        self.engine, self._gate = Engine(db), Gate()
        self._allow_forks = allow_forks
        self._owned: tuple[str, str] | None = None

    # --- What is asked and what is answered ---

    def _owner(self, thread_id: str) -> str | None:
        if self._owned is None:
            return None
        if self._owned[0] != thread_id:
            raise ValueError(
                f"this saver owns thread {self._owned[0]!r} and writes to it only, not to {thread_id!r}"
            )
        return self._owned[1]

    def _new_checkpoint(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> NewCheckpoint:
        thread_id, ns, parent = _place(config)
        given: dict[str, Any] = config["configurable"]
        known_id, children = given.get(_CHILDREN) or (None, 0)
        rest: dict[str, Any] = {**checkpoint}
        values = rest.pop("channel_values")
        counters = metadata.get("counters_since_delta_snapshot") or {}
        source, whole = metadata.get("source"), get_checkpoint_metadata(config, metadata)
        run_id = whole.get("run_id")
        # A graph, or `update_state`, that found no checkpoint begins the namespace. A subgraph of a replay may find
        # none before the point that is replayed.
        begins = (metadata.get("step", 0) < 0 or source == "update" or "__pregel_runtime" in given) and (
            "__pregel_replay_state" not in given
        )
        return NewCheckpoint(
            thread_id=thread_id,
            owner=self._owner(thread_id),
            ns=ns,
            checkpoint_id=checkpoint["id"],
            parent=parent,
            children_seen=children if known_id == parent else 0,
            begins=begins,
            may_fork=self._allow_forks or source == "fork",
            values=values,
            versions=checkpoint["channel_versions"],
            deltas=list(counters),
            run_id=None if run_id is None else str(run_id),
            checkpoint=self.serde.dumps_typed(rest),
            metadata=self.serde.dumps_typed(whole),
            dumps=self.serde.dumps_typed,
        )

    def _new_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str
    ) -> NewWrites:
        thread_id, ns, checkpoint_id = _place(config)
        if checkpoint_id is None:
            raise ValueError(
                "writes belong to a checkpoint: config['configurable']['checkpoint_id'] is missing"
            )
        rows = [
            (WRITES_IDX_MAP.get(channel, index), channel, self.serde.dumps_typed(value))
            for index, (channel, value) in enumerate(writes)
        ]
        return NewWrites(thread_id, self._owner(thread_id), ns, checkpoint_id, task_id, task_path, rows)

    def _tuple(self, stored: Stored, config: RunnableConfig | None = None) -> CheckpointTuple:
        loads, row = self.serde.loads_typed, stored.row
        values = {channel: loads(_typed(value)) for channel, value in stored.values.items()}
        given = _config(stored.thread_id, stored.ns, stored.checkpoint_id)
        if stored.children:
            given["configurable"][_CHILDREN] = [stored.checkpoint_id, stored.children]
        return CheckpointTuple(
            config=given,
            checkpoint=cast(Checkpoint, {**loads(_typed(row.checkpoint)), "channel_values": values}),
            metadata=loads(_typed(row.metadata)),
            parent_config=None if row.parent is None else _config(stored.thread_id, stored.ns, row.parent),
            pending_writes=[(task, channel, loads(_typed(value))) for task, channel, value in stored.writes],
        )

    def _history(self, found: Mapping[str, Any]) -> dict[str, DeltaChannelHistory]:
        loads, answer = self.serde.loads_typed, {}
        for channel, (seed, writes) in found.items():
            entry: DeltaChannelHistory = {
                "writes": [(task, name, loads(_typed(value))) for task, name, value in writes]
            }
            if seed is not None:
                entry["seed"] = loads(_typed(seed))
            answer[channel] = entry
        return answer

    # --- Reading ---

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint that a configuration names, or the latest one, with the writes that are pending at it."""
        place = _place(config)
        with self.engine.db.begin(threads.thread_run(place[0]), read_only=True) as txn:
            stored = threads.load(txn, *place)
        return None if stored is None else self._tuple(stored)

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """`get_tuple` in an event loop."""
        place = _place(config)
        async with self.engine.aio.begin(threads.thread_run(place[0]), read_only=True) as txn:
            stored = threads.load(txn, *place)
        return None if stored is None else self._tuple(stored)

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """The checkpoints of a thread, or of all threads without a configuration, the latest first.

        Nothing is held while it is iterated: a checkpoint that is deleted meanwhile is left out.

        Args:
          config: names a thread, and perhaps a namespace and a checkpoint.
          filter: what the metadata must have.
          before: only what is earlier than this checkpoint.
          limit: the most checkpoints.
        """
        wanted = self._listing(config, filter, before, limit)
        with self.engine.db.begin(wanted.run, read_only=True) as txn:
            wanted.begin(txn)
        while wanted.pages:
            with self.engine.db.begin(wanted.run, read_only=True) as txn:
                page = wanted.next_page(txn)
            yield from map(self._tuple, wanted.matching(page))

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """`list` in an event loop."""
        wanted = self._listing(config, filter, before, limit)
        async with self.engine.aio.begin(wanted.run, read_only=True) as txn:
            wanted.begin(txn)
        while wanted.pages:
            async with self.engine.aio.begin(wanted.run, read_only=True) as txn:
                page = wanted.next_page(txn)
            for stored in wanted.matching(page):
                yield self._tuple(stored)

    def _listing(
        self,
        config: RunnableConfig | None,
        filter: dict[str, Any] | None,
        before: RunnableConfig | None,
        limit: int | None,
    ) -> Listing:
        given: Mapping[str, Any] = {} if config is None else config["configurable"]
        thread_id, _, checkpoint_id = (None, "", None) if config is None else _place(config)
        return Listing(
            thread_id,
            given.get("checkpoint_ns"),
            checkpoint_id,
            None if before is None else get_checkpoint_id(before),
            filter or {},
            None if limit is None else max(0, limit),
            lambda row: self.serde.loads_typed(_typed(row.metadata)),
        )

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """For each channel the nearest stored value above a checkpoint, and the writes since, from one snapshot."""
        thread_id, ns, checkpoint_id = _place(config)
        with self.engine.db.begin(threads.thread_run(thread_id), read_only=True) as txn:
            found = threads.history(txn, ns, checkpoint_id, channels)
        return self._history(found)

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """`get_delta_channel_history` in an event loop."""
        thread_id, ns, checkpoint_id = _place(config)
        async with self.engine.aio.begin(threads.thread_run(thread_id), read_only=True) as txn:
            found = threads.history(txn, ns, checkpoint_id, channels)
        return self._history(found)

    # --- Writing ---

    def _write(self, thread_id: str, change: Callable[[Txn], T]) -> T:
        return self.engine.db.transaction(threads.thread_run(thread_id), change, isolation=ISOLATION)

    async def _awrite(self, thread_id: str, change: Callable[[Txn], T]) -> T:
        run = threads.thread_run(thread_id)
        return await self._gate.through(self.engine.aio.transaction, run, change, isolation=ISOLATION)

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint that continues the one that `config` names; gives its own configuration.

        Raises:
          CheckpointConflict: the thread has moved on since that one was read.
          StaleWriteOwner: another saver has claimed the thread.
        """
        new = self._new_checkpoint(config, checkpoint, metadata, new_versions)
        self._write(new.thread_id, lambda txn: threads.put(txn, new))
        return _config(new.thread_id, new.ns, new.checkpoint_id)

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """`put` in an event loop."""
        new = self._new_checkpoint(config, checkpoint, metadata, new_versions)
        await self._awrite(new.thread_id, lambda txn: threads.put(txn, new))
        return _config(new.thread_id, new.ns, new.checkpoint_id)

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store what a task wrote after a checkpoint, so that it does not run again when the graph is resumed."""
        new = self._new_writes(config, writes, task_id, task_path)
        self._write(new.thread_id, lambda txn: threads.put_writes(txn, new))

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """`put_writes` in an event loop."""
        new = self._new_writes(config, writes, task_id, task_path)
        await self._awrite(new.thread_id, lambda txn: threads.put_writes(txn, new))

    # --- Whole threads ---

    def delete_thread(self, thread_id: str) -> None:
        """Remove a thread: its checkpoints, its writes and its entry among the runs, in one commit."""
        self.engine.db.runs.delete_run(threads.thread_run(thread_id))

    async def adelete_thread(self, thread_id: str) -> None:
        """`delete_thread` in an event loop."""
        await self.engine.aio.runs.delete_run(threads.thread_run(thread_id))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Remove the checkpoints whose metadata name one of these runs, in each thread in one commit.

        A checkpoint that a delta channel of a later one is computed from can no longer be read, but is kept as long as
        that one.
        """
        for run_id in run_ids:
            for thread_id in self._threads_of(run_id):
                self._write(thread_id, partial(upkeep.delete_for_run, run_id=run_id))

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """`delete_for_runs` in an event loop."""
        for run_id in run_ids:
            for thread_id in self._threads_of(run_id):
                await self._awrite(thread_id, partial(upkeep.delete_for_run, run_id=run_id))

    def _threads_of(self, run_id: str) -> Sequence[str]:
        with self.engine.db.begin(threads.ANY_RUN, read_only=True) as txn:
            return threads.threads_of(txn, run_id)

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy all checkpoints and writes of a thread into a new one, in one commit.

        Raises:
          CheckpointConflict: the target has checkpoints.
        """
        self._write(source_thread_id, lambda txn: upkeep.copy_thread(txn, source_thread_id, target_thread_id))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """`copy_thread` in an event loop."""
        await self._awrite(
            source_thread_id, lambda txn: upkeep.copy_thread(txn, source_thread_id, target_thread_id)
        )

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Remove all but the latest checkpoint of each namespace, or everything; each thread in one commit.

        With delta channels the checkpoints stay that the latest one is computed from.

        Args:
          thread_ids: the threads.
          strategy: "keep_latest" or "delete".
        """
        keep = _keeps_latest(strategy)
        for thread_id in thread_ids:
            if keep:
                self._write(thread_id, upkeep.prune)
            else:
                self.delete_thread(thread_id)

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """`prune` in an event loop."""
        keep = _keeps_latest(strategy)
        for thread_id in thread_ids:
            if keep:
                await self._awrite(thread_id, upkeep.prune)
            else:
                await self.adelete_thread(thread_id)

    # --- Ownership ---

    def _owning(self, thread_id: str, token: str) -> Self:
        owner = copy.copy(self)
        owner._owned = (thread_id, token)
        return owner

    def claim_write_ownership(self, thread_id: str) -> Self:
        """Become the owner of a thread: gives a saver that writes to it until another one claims it.

            saver = OccamSaver(db).claim_write_ownership("thread-1")
            builder.compile(checkpointer=saver).invoke(None, config)

        A former owner gets `StaleWriteOwner` from everything it writes. A saver that never claimed the thread is not
        affected.
        """
        token = uuid.uuid4().hex
        self._write(thread_id, lambda txn: threads.claim(txn, thread_id, token))
        return self._owning(thread_id, token)

    async def aclaim_write_ownership(self, thread_id: str) -> Self:
        """`claim_write_ownership` in an event loop."""
        token = uuid.uuid4().hex
        await self._awrite(thread_id, lambda txn: threads.claim(txn, thread_id, token))
        return self._owning(thread_id, token)

    def check_write_ownership(self) -> None:
        """Do nothing while this saver owns its thread, or never claimed one.

        Raises:
          StaleWriteOwner: another saver has claimed it.
        """
        if self._owned is not None:
            with self.engine.db.begin(threads.thread_run(self._owned[0]), read_only=True) as txn:
                threads.check_owner(txn, *self._owned)

    async def acheck_write_ownership(self) -> None:
        """`check_write_ownership` in an event loop."""
        if self._owned is not None:
            async with self.engine.aio.begin(threads.thread_run(self._owned[0]), read_only=True) as txn:
                threads.check_owner(txn, *self._owned)


def _place(config: RunnableConfig) -> tuple[str, str, str | None]:
    """The thread, the namespace and the checkpoint that a configuration names."""
    given: Mapping[str, Any] = config.get("configurable") or {}
    if "thread_id" not in given:
        raise ValueError('a checkpointer needs a thread: {"configurable": {"thread_id": "..."}}')
    thread_id, ns, checkpoint_id = (
        given["thread_id"],
        given.get("checkpoint_ns") or "",
        get_checkpoint_id(config),
    )
    threads.thread_run(thread_id)
    for name, value in (("checkpoint_ns", ns), ("checkpoint_id", checkpoint_id or "")):
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a str, got {type(value).__name__}: {value!r}")
    return thread_id, ns, checkpoint_id or None


def _config(thread_id: str, ns: str, checkpoint_id: str) -> RunnableConfig:
    return {
        "configurable": {"thread_id": thread_id, "checkpoint_ns": ns, "checkpoint_id": checkpoint_id},
    }


def _typed(value: Sequence[Any]) -> tuple[str, bytes]:
    return value[0], value[1]


def _keeps_latest(strategy: str) -> bool:
    if strategy not in ("keep_latest", "delete"):
        raise ValueError(f"strategy must be 'keep_latest' or 'delete', got {strategy!r}")
    return strategy == "keep_latest"
