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

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from occamdb import OccamError, RunId, Transaction
from occamdb.aio import AsyncTransaction

from ._support import run_named

__all__ = [
    "ANY_RUN",
    "CheckpointConflict",
    "NewCheckpoint",
    "NewWrites",
    "Row",
    "StaleWriteOwner",
    "Stored",
    "all_threads",
    "check_owner",
    "claim",
    "copy_thread",
    "delete_for_run",
    "history",
    "latest_id",
    "listed",
    "load",
    "prune",
    "put",
    "put_writes",
    "thread_run",
    "threads_of",
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
      latest_child: the checkpoint that did so already; None: the parent is gone.
    """

    code = "occam.langgraph.conflict"
    default_hint = "load the thread's latest checkpoint and run again: graph.invoke(..., config) does both"

    def __init__(
        self, thread_id: str, checkpoint_ns: str, parent_id: str | None, latest_child: str | None
    ) -> None:
        where = f"thread {thread_id!r}" + (f", namespace {checkpoint_ns!r}" if checkpoint_ns else "")
        if parent_id is None:
            what = f"it was begun by checkpoint {latest_child} meanwhile"
        elif latest_child is None:
            what = f"checkpoint {parent_id}, which was to be continued, is not there"
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


def _part(text: str) -> str:
    """A part of a key, without a slash."""
    if "%" in text or "/" in text:
        return text.replace("%", "%25").replace("/", "%2F")
    return text


def _whole(part: str) -> str:
    return part.replace("%2F", "/").replace("%25", "%") if "%" in part else part


def _at(kind: str, ns: str, checkpoint_id: str) -> str:
    return f"{kind}/{_part(ns)}/{_part(checkpoint_id)}"


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
    return run_named(KIND, thread_id)


def _ensure_thread(txn: Txn, thread_id: str) -> None:
    if txn.get("thread") is None:
        txn.runs.get_or_create(f"{KIND}/{thread_id}", tags=[KIND], metadata={"thread_id": thread_id})
        txn.put("thread", thread_id)


def _row(txn: Txn, ns: str, checkpoint_id: str, *, hidden: bool = False) -> Row | None:
    found = txn.get(_at("row", ns, checkpoint_id))
    if found is None and hidden:
        found = txn.get(_at("hidden", ns, checkpoint_id))
    return None if found is None else Row(*found)


def _save(txn: Txn, kind: str, ns: str, checkpoint_id: str, row: Row) -> None:
    txn.put(_at(kind, ns, checkpoint_id), [*row[:2], list(row.deltas), row.run_id, *map(list, row[4:])])


def check_owner(txn: Txn, thread_id: str, owner: str | None) -> None:
    """Refuse a saver that is no longer the owner; the commit checks it again, because the token is read here.

    Raises:
      StaleWriteOwner: it is not.
    """
    if owner is not None and txn.get("owner") != owner:
        raise StaleWriteOwner(thread_id)


def claim(txn: Txn, thread_id: str, owner: str) -> None:
    """Make a token the thread's owner. Tokens are never used twice, so a former owner stays one."""
    _ensure_thread(txn, thread_id)
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
    _ensure_thread(txn, new.thread_id)
    ns, checkpoint_id = new.ns, new.checkpoint_id
    old = _row(txn, ns, checkpoint_id)
    above = None if new.parent is None else _row(txn, ns, new.parent, hidden=True)
    if old is None or old.parent != new.parent:
        _descend(txn, new, above)
    inherited = {} if above is None else above.values
    values: dict[str, Sequence[Any]] = {}
    for channel, version in new.versions.items():
        theirs = inherited.get(channel)
        if theirs is not None and theirs[0] == version:
            values[channel] = theirs
        elif channel in new.values:
            values[channel] = [version, checkpoint_id]
            txn.put(f"{_at('value', ns, checkpoint_id)}/{_part(channel)}", list(new.dump(channel)))
    if old is not None and old.run_id not in (None, new.run_id):
        txn.delete(_by_run(old.run_id, ns, checkpoint_id))
    if new.run_id is not None:
        txn.put(_by_run(new.run_id, ns, checkpoint_id), True)
    deltas = [channel for channel in new.deltas if channel not in values]
    row = Row(new.parent, values, deltas, new.run_id, new.checkpoint, new.metadata)
    _save(txn, "row", ns, checkpoint_id, row)


def _by_run(run_id: str | None, ns: str, checkpoint_id: str) -> str:
    return f"by-run/{_part(run_id or '')}/{_part(ns)}/{_part(checkpoint_id)}"


def _descend(txn: Txn, new: NewCheckpoint, above: Row | None) -> None:
    """Count a child of its parent, unless that has children that the caller does not know of (invariant 3).

    A parent that is gone may have had some: the thread was pruned or deleted.
    """
    if new.parent is None:
        first = latest_id(txn, new.ns) if new.begins and not new.may_fork else None
        if first is not None:
            raise CheckpointConflict(new.thread_id, new.ns, None, first)
        return
    key = _at("child", new.ns, new.parent)
    count, last = txn.get(key) or (0, None)
    if (count > new.children_seen or above is None) and not new.may_fork:
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
    _ensure_thread(txn, new.thread_id)
    task = f"{_at('write', new.ns, new.checkpoint_id)}/{_part(new.task_id)}"
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
    for key in txn.keys(f"row/{_part(ns)}/", reverse=True, limit=1):
        return _whole(key.rpartition("/")[2])
    return None


def load(txn: Txn, thread_id: str, ns: str, checkpoint_id: str | None) -> Stored | None:
    """A checkpoint, the latest one without an id."""
    found = checkpoint_id if checkpoint_id is not None else latest_id(txn, ns)
    row = None if found is None else _row(txn, ns, found)
    if found is None or row is None:
        return None
    values = {channel: _value(txn, ns, row, channel) for channel in row.values}
    children = txn.get(_at("child", ns, found))
    return Stored(thread_id, ns, found, row, values, _writes(txn, ns, found), children[0] if children else 0)


def _value(txn: Txn, ns: str, row: Row, channel: str) -> Typed:
    found: Typed = txn.get(f"{_at('value', ns, row.values[channel][1])}/{_part(channel)}")
    return found


def _writes(txn: Txn, ns: str, checkpoint_id: str) -> list[tuple[str, str, Typed]]:
    rows = [found.value for _, found in txn.scan(f"{_at('write', ns, checkpoint_id)}/")]
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
    prefix = "row/" if ns is None else f"row/{_part(ns)}/"
    end = prefix + _part(before) if ns is not None and before is not None else None
    found = []
    for key in txn.keys(prefix, end=end, reverse=True, limit=None if ns is None else limit):
        _, space, last = key.split("/")
        one = _whole(last)
        if (before is None or one < before) and checkpoint_id in (None, one):
            found.append((_whole(space), one))
    return sorted(found, key=lambda pair: pair[1], reverse=True)


def all_threads(txn: Txn) -> list[str]:
    """The ids of all threads, in the order in which they began."""
    found = [txn.for_run(run).get("thread") for run in txn.runs.query_runs(tag=KIND)]
    return [thread_id for thread_id in found if thread_id is not None]


def threads_of(txn: Txn, run_id: str) -> list[str]:
    """The threads that have checkpoints of a run."""
    prefix = f"by-run/{_part(run_id)}/"
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


# --- Removing and copying ------------------------------------------------------------------------

Place: TypeAlias = tuple[str, str]
"""A namespace and the id of a checkpoint."""


def _rows(txn: Txn, kind: str) -> dict[Place, Row]:
    rows = {}
    for key, found in txn.scan(f"{kind}/"):
        _, ns, checkpoint_id = key.split("/")
        rows[_whole(ns), _whole(checkpoint_id)] = Row(*found.value)
    return rows


def _sources(rows: Mapping[Place, Row], place: Place) -> Iterator[Place]:
    """The ancestors that the channels of a checkpoint are computed from, up to the values that they begin with."""
    wanted, ns, row, seen = set(rows[place].deltas), place[0], rows[place], {place}
    while wanted and row.parent is not None:
        at = ns, row.parent
        if at in seen or at not in rows:
            return
        seen.add(at)
        yield at
        row = rows[at]
        wanted -= row.values.keys()


def _remove(txn: Txn, rows: Mapping[Place, Row], kept: set[Place]) -> None:
    """Remove rows with their writes, and the values that no other row names (invariant 4)."""
    named = {(ns, values[1], channel) for ns, at in kept for channel, values in rows[ns, at].values.items()}
    for (ns, checkpoint_id), row in rows.items():
        for channel, values in row.values.items():
            if (ns, values[1], channel) not in named:
                txn.delete(f"{_at('value', ns, values[1])}/{_part(channel)}")
        if (ns, checkpoint_id) in kept:
            continue
        for kind in ("row", "hidden", "child"):
            txn.delete(_at(kind, ns, checkpoint_id))
        if row.run_id is not None:
            txn.delete(_by_run(row.run_id, ns, checkpoint_id))
        for key in list(txn.keys(f"{_at('write', ns, checkpoint_id)}/")):
            txn.delete(key)


def prune(txn: Txn) -> None:
    """Remove all but the latest checkpoint of each namespace, and what its channels are computed from."""
    visible = _rows(txn, "row")
    rows = {**_rows(txn, "hidden"), **visible}
    latest = {(ns, max(at for space, at in visible if space == ns)) for ns in {ns for ns, _ in visible}}
    kept = latest | {source for place in latest for source in _sources(rows, place)}
    _remove(txn, rows, kept)


def delete_for_run(txn: Txn, run_id: str) -> None:
    """Remove the checkpoints of a run. What later checkpoints are computed from is only hidden."""
    doomed = set()
    for key in txn.keys(f"by-run/{_part(run_id)}/"):
        ns, checkpoint_id = key.split("/")[2:]
        doomed.add((_whole(ns), _whole(checkpoint_id)))
    if not doomed:
        return
    visible = _rows(txn, "row")
    rows = {**_rows(txn, "hidden"), **visible}
    left = visible.keys() - doomed
    sources = {source for place in left for source in _sources(rows, place)}
    _remove(txn, rows, left | sources)
    for ns, checkpoint_id in sources & doomed:
        row = rows[ns, checkpoint_id]
        txn.delete(_at("row", ns, checkpoint_id))
        txn.delete(_by_run(row.run_id, ns, checkpoint_id))
        _save(txn, "hidden", ns, checkpoint_id, row._replace(run_id=None))


def copy_thread(txn: Txn, source: str, target: str) -> None:
    """Copy everything of a thread but its owner into one that has no checkpoints.

    Raises:
      CheckpointConflict: it has some.
    """
    new = txn.for_run(thread_run(target))
    taken = next(iter(new.keys("row/", limit=1)), None)
    if taken is not None:
        ns, at = taken.split("/")[1:]
        raise CheckpointConflict(target, _whole(ns), None, _whole(at))
    for key, found in txn.for_run(thread_run(source)).scan():
        if key not in ("thread", "owner"):
            _ensure_thread(new, target)
            new.put(key, found.value)
