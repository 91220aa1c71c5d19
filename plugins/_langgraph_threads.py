"""How the checkpoints of a LangGraph thread are stored, and the transactions over them. See `langgraph.py`.

A thread is a run. Its keys begin with what they hold; N is a checkpoint namespace, C the id of a checkpoint:

    thread                  the id of the thread
    owner                   the token of the saver that owns it, if one does
    row/N/C                 a checkpoint: a `Row`
    hidden/N/C              a deleted checkpoint that channels of later ones are still computed from
    value/N/C/channel       a value of a channel, as it was first stored by checkpoint C
    write/N/C/task/index    a write that is pending at C
    child/N/C               how many checkpoints were put with C as their parent, and the last of them
    by-run/R/N/C            present if the metadata of C names the run R

1. The id of a checkpoint comes last in `row/`, and ids ascend with time: the last key of a namespace is its latest.
2. A row names each of its values by the checkpoint that stored it, together with the version of the channel. A value
   whose version is the parent's is the parent's, and is stored once. Versions are compared along one line of
   descent only, where they ascend, so branches may use one version for different values.
3. A count in `child/` never falls while its checkpoint exists. A put reads it and adds to it, so of two puts with one
   parent one conflicts, and finds the other when it is tried again.
4. Everything that a row, visible or hidden, names in `value/` exists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

from occamdb import OccamError, RunId, Transaction
from occamdb.aio import AsyncTransaction

from ._support import run_named

__all__ = [
    "ANY_RUN",
    "KIND",
    "CheckpointConflict",
    "NewCheckpoint",
    "NewWrites",
    "Row",
    "StaleWriteOwner",
    "Stored",
    "Txn",
    "all_threads",
    "check_owner",
    "claim",
    "ensure_thread",
    "history",
    "key_of",
    "latest_id",
    "listed",
    "load",
    "part",
    "put",
    "put_writes",
    "run_key",
    "save_row",
    "thread_run",
    "threads_of",
    "whole",
]

Txn: TypeAlias = Transaction | AsyncTransaction
Typed: TypeAlias = Sequence[Any]
"""A value as a serializer gives it: the name of its format, and bytes."""

KIND = "langgraph"
ANY_RUN = RunId.named(KIND)  # a transaction over several threads has to begin in some run


class CheckpointConflict(OccamError):
    """Another process has continued the thread meanwhile. The checkpoint was not stored.

    Attributes:
      thread_id, checkpoint_ns: where.
      parent_id: what was to be continued; None: the thread was to be begun.
      latest_child: the checkpoint that did so already, or a later one.
    """

    code = "occam.langgraph.conflict"
    default_hint = "load the thread's latest checkpoint and run again: graph.invoke(..., config) does both"

    def __init__(self, thread_id: str, checkpoint_ns: str, parent_id: str | None, latest_child: str) -> None:
        where = f"thread {thread_id!r}" + (f", namespace {checkpoint_ns!r}" if checkpoint_ns else "")
        if parent_id is None:
            what = f"it was begun by checkpoint {latest_child} meanwhile"
        else:
            what = f"checkpoint {parent_id} was continued by {latest_child} meanwhile"
        self.thread_id, self.checkpoint_ns = thread_id, checkpoint_ns
        self.parent_id, self.latest_child = parent_id, latest_child
        super().__init__(f"{where}: {what}", details=dict(vars(self)))


class StaleWriteOwner(OccamError):
    """Another saver has claimed the thread since. Nothing was stored."""

    code = "occam.langgraph.stale_owner"
    default_hint = "stop this run: the thread has another owner; claim_write_ownership takes it back"
    is_stale_write_owner_error = True

    def __init__(self, thread_id: str) -> None:
        self.thread_id = thread_id
        super().__init__(f"thread {thread_id!r} has another owner now", details={"thread_id": thread_id})


# --- Keys ----------------------------------------------------------------------------------------


def part(text: str) -> str:
    """A part of a key, without a slash."""
    if "%" in text or "/" in text:
        return text.replace("%", "%25").replace("/", "%2F")
    return text


def whole(part: str) -> str:
    return part.replace("%2F", "/").replace("%25", "%") if "%" in part else part


def key_of(kind: str, ns: str, checkpoint_id: str) -> str:
    return f"{kind}/{part(ns)}/{part(checkpoint_id)}"


class Row(NamedTuple):
    """A stored checkpoint without the values of its channels.

    Attributes:
      parent: the id of its parent.
      values: channel -> [version, the checkpoint that stored the value].
      deltas: the channels whose values are computed from writes at ancestors.
      run_id: the run that its metadata name.
      checkpoint, metadata: as the serializer gave them.
    """

    parent: str | None
    values: Mapping[str, Sequence[Any]]
    deltas: Sequence[str]
    run_id: str | None
    checkpoint: Typed
    metadata: Typed


def thread_run(thread_id: object) -> RunId:
    """The run of a thread."""
    # Every call names its thread, and hashing the name costs more than reading a key.
    return _run_of(thread_id) if isinstance(thread_id, str) else run_named(KIND, thread_id)


@lru_cache(maxsize=4096)
def _run_of(thread_id: str) -> RunId:
    return run_named(KIND, thread_id)


def ensure_thread(txn: Txn, thread_id: str) -> None:
    if txn.get("thread") is None:
        txn.runs.get_or_create(f"{KIND}/{thread_id}", tags=[KIND], metadata={"thread_id": thread_id})
        txn.put("thread", thread_id)


def _row(txn: Txn, ns: str, checkpoint_id: str, *, hidden: bool = False) -> Row | None:
    found = txn.get(key_of("row", ns, checkpoint_id))
    if found is None and hidden:
        found = txn.get(key_of("hidden", ns, checkpoint_id))
    return None if found is None else Row(*found)


def save_row(txn: Txn, kind: str, ns: str, checkpoint_id: str, row: Row) -> None:
    txn.put(key_of(kind, ns, checkpoint_id), [*row[:2], list(row.deltas), row.run_id, *map(list, row[4:])])


def check_owner(txn: Txn, thread_id: str, owner: str | None) -> None:
    """Refuse a saver that is no longer the owner; the commit checks it again, because the token is read here.

    Raises:
      StaleWriteOwner: it is not.
    """
    if owner is not None and txn.get("owner") != owner:
        raise StaleWriteOwner(thread_id)


def claim(txn: Txn, thread_id: str, owner: str) -> None:
    """Make a token the thread's owner. Tokens are never used twice, so a former owner stays one."""
    ensure_thread(txn, thread_id)
    txn.put("owner", owner)


# --- Writing -------------------------------------------------------------------------------------


@dataclass(slots=True)
class NewCheckpoint:
    """A checkpoint to be stored.

    Attributes:
      children_seen: how many children its parent had when the caller read the parent.
      begins: without a parent: it is the first of its namespace.
      may_fork: the parent may have other children.
      values, versions: of its channels.
      dumps: the serializer of values.
      dumped: values that are serialized already.
    """

    thread_id: str
    owner: str | None
    ns: str
    checkpoint_id: str
    parent: str | None
    children_seen: int
    begins: bool
    may_fork: bool
    values: Mapping[str, Any]
    versions: Mapping[str, Any]
    deltas: Sequence[str]
    run_id: str | None
    checkpoint: Typed
    metadata: Typed
    dumps: Callable[[Any], Typed]
    dumped: dict[str, Typed] = field(default_factory=dict)

    def dump(self, channel: str) -> Typed:
        """A value, serialized once however often the transaction is tried."""
        if channel not in self.dumped:
            self.dumped[channel] = self.dumps(self.values[channel])
        return self.dumped[channel]


def put(txn: Txn, new: NewCheckpoint) -> None:
    """Store a checkpoint; one of the same id and parent is replaced.

    Raises:
      CheckpointConflict: its parent has children that the caller does not know of.
      StaleWriteOwner: the thread has another owner.
    """
    check_owner(txn, new.thread_id, new.owner)
    ensure_thread(txn, new.thread_id)
    ns, checkpoint_id = new.ns, new.checkpoint_id
    old = _row(txn, ns, checkpoint_id)
    above = None if new.parent is None else _row(txn, ns, new.parent, hidden=True)
    if old is None or old.parent != new.parent:
        _descend(txn, new, above)
    inherited = {} if above is None else above.values
    values: dict[str, Sequence[Any]] = {}
    for channel in {**new.versions, **new.values}:
        version, theirs = new.versions.get(channel), inherited.get(channel)
        if theirs is not None and version is not None and theirs[0] == version:
            values[channel] = theirs
        elif channel in new.values:
            values[channel] = [version, checkpoint_id]
            txn.put(f"{key_of('value', ns, checkpoint_id)}/{part(channel)}", list(new.dump(channel)))
    if old is not None and old.run_id not in (None, new.run_id):
        txn.delete(run_key(old.run_id, ns, checkpoint_id))
    if new.run_id is not None:
        txn.put(run_key(new.run_id, ns, checkpoint_id), True)
    deltas = [channel for channel in new.deltas if channel not in values]
    row = Row(new.parent, values, deltas, new.run_id, new.checkpoint, new.metadata)
    save_row(txn, "row", ns, checkpoint_id, row)


def run_key(run_id: str | None, ns: str, checkpoint_id: str) -> str:
    return f"by-run/{part(run_id or '')}/{part(ns)}/{part(checkpoint_id)}"


def _descend(txn: Txn, new: NewCheckpoint, above: Row | None) -> None:
    """Count a child of its parent, unless that has children that the caller does not know of (invariant 3).

    A parent that is not there was removed, with its count, if the namespace has a later checkpoint.
    """
    if new.parent is None:
        first = latest_id(txn, new.ns) if new.begins and not new.may_fork else None
        if first is not None:
            raise CheckpointConflict(new.thread_id, new.ns, None, first)
        return
    key = key_of("child", new.ns, new.parent)
    count, last = txn.get(key) or (0, "")
    if above is None and not new.may_fork:
        latest = latest_id(txn, new.ns)
        if latest is not None and latest > new.parent:
            raise CheckpointConflict(new.thread_id, new.ns, new.parent, latest)
    if count > new.children_seen and not new.may_fork:
        raise CheckpointConflict(new.thread_id, new.ns, new.parent, last)
    txn.put(key, [count + 1, new.checkpoint_id])


@dataclass(slots=True)
class NewWrites:
    """Writes of a task to be stored: rows of index, channel and value."""

    thread_id: str
    owner: str | None
    ns: str
    checkpoint_id: str
    task_id: str
    task_path: str
    rows: Sequence[tuple[int, str, Typed]]


def put_writes(txn: Txn, new: NewWrites) -> None:
    """Store the writes of a task. One that is there stays; those of special channels (below 0) are replaced."""
    check_owner(txn, new.thread_id, new.owner)
    ensure_thread(txn, new.thread_id)
    task = f"{key_of('write', new.ns, new.checkpoint_id)}/{part(new.task_id)}"
    for index, channel, value in new.rows:
        key = f"{task}/{index}"
        if index < 0 or not txn.exists(key):
            txn.put(key, [new.task_path, new.task_id, index, channel, *value])


# --- Reading -------------------------------------------------------------------------------------


class Stored(NamedTuple):
    """What is stored of a checkpoint.

    Attributes:
      values: channel -> value.
      writes: (task id, channel, value) in the order in which they are applied.
      children: how many checkpoints were put with it as their parent.
    """

    thread_id: str
    ns: str
    checkpoint_id: str
    row: Row
    values: Mapping[str, Typed]
    writes: Sequence[tuple[str, str, Typed]]
    children: int


def latest_id(txn: Txn, ns: str) -> str | None:
    """The id of the latest checkpoint of a namespace."""
    for key in txn.keys(f"row/{part(ns)}/", reverse=True, limit=1):
        return whole(key.rpartition("/")[2])
    return None


def load(txn: Txn, thread_id: str, ns: str, checkpoint_id: str | None) -> Stored | None:
    """A checkpoint, the latest one without an id."""
    found = checkpoint_id if checkpoint_id is not None else latest_id(txn, ns)
    row = None if found is None else _row(txn, ns, found)
    if found is None or row is None:
        return None
    values = {channel: _value(txn, ns, row, channel) for channel in row.values}
    children = txn.get(key_of("child", ns, found))
    return Stored(thread_id, ns, found, row, values, _writes(txn, ns, found), children[0] if children else 0)


def _value(txn: Txn, ns: str, row: Row, channel: str) -> Typed:
    found: Typed = txn.get(f"{key_of('value', ns, row.values[channel][1])}/{part(channel)}")
    return found


def _writes(txn: Txn, ns: str, checkpoint_id: str) -> list[tuple[str, str, Typed]]:
    rows = [found.value for _, found in txn.scan(f"{key_of('write', ns, checkpoint_id)}/")]
    rows.sort(key=lambda row: row[:3])  # by path, task and index
    return [(row[1], row[3], row[4:]) for row in rows]


def listed(
    txn: Txn, ns: str | None, checkpoint_id: str | None, before: str | None, limit: int | None
) -> list[tuple[str, str]]:
    """The namespaces and ids of the checkpoints of a thread, the latest first.

    Args:
      ns: None: every namespace.
      checkpoint_id: only this one.
      before: only earlier ones.
      limit: the most, if that is cheaper than all of them.
    """
    if ns is not None and checkpoint_id is not None:
        return [(ns, checkpoint_id)] if before is None or checkpoint_id < before else []
    prefix = "row/" if ns is None else f"row/{part(ns)}/"
    end = prefix + part(before) if ns is not None and before is not None else None
    found = []
    for key in txn.keys(prefix, end=end, reverse=True, limit=None if ns is None else limit):
        _, space, last = key.split("/")
        one = whole(last)
        if (before is None or one < before) and checkpoint_id in (None, one):
            found.append((whole(space), one))
    return sorted(found, key=lambda pair: pair[1], reverse=True)


def all_threads(txn: Txn) -> list[str]:
    """The ids of all threads, in the order in which they began."""
    found = [txn.for_run(run).get("thread") for run in txn.runs.query_runs(tag=KIND)]
    return [thread_id for thread_id in found if thread_id is not None]


def threads_of(txn: Txn, run_id: str) -> list[str]:
    """The threads that have checkpoints of a run."""
    prefix = f"by-run/{part(run_id)}/"
    return [
        thread_id
        for thread_id in all_threads(txn)
        if any(True for _ in txn.for_run(thread_run(thread_id)).keys(prefix, limit=1))
    ]


def history(
    txn: Txn, ns: str, checkpoint_id: str | None, channels: Sequence[str]
) -> dict[str, tuple[Typed | None, list[tuple[str, str, Typed]]]]:
    """For each channel the value at the nearest ancestor that stores one, and the writes since, the oldest first."""
    found: dict[str, tuple[Typed | None, list[tuple[str, str, Typed]]]] = {
        each: (None, []) for each in channels
    }
    target = checkpoint_id if checkpoint_id is not None else latest_id(txn, ns)
    row = None if target is None else _row(txn, ns, target, hidden=True)
    wanted, seen = set(channels), {target}
    while row is not None and wanted and row.parent not in seen:
        at = row.parent
        seen.add(at)
        row = None if at is None else _row(txn, ns, at, hidden=True)
        if at is None or row is None:
            break
        for write in reversed(_writes(txn, ns, at)):
            if write[1] in wanted:
                found[write[1]][1].append(write)
        for channel in wanted & row.values.keys():
            found[channel] = (_value(txn, ns, row, channel), found[channel][1])
        wanted -= row.values.keys()
    for _, writes in found.values():
        writes.reverse()
    return found
