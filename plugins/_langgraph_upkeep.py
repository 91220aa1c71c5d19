"""Removing checkpoints of a LangGraph thread, and copying a thread. The layout is in `_langgraph_threads.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

from . import _langgraph_threads as threads
from ._langgraph_threads import CheckpointConflict, Row, Txn

__all__ = ["copy_thread", "delete_for_run", "prune"]

Place: TypeAlias = tuple[str, str]
"""A namespace and the id of a checkpoint."""


def _rows(txn: Txn, kind: str) -> dict[Place, Row]:
    rows = {}
    for key, found in txn.scan(f"{kind}/"):
        _, ns, checkpoint_id = key.split("/")
        rows[threads.whole(ns), threads.whole(checkpoint_id)] = Row(*found.value)
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
                txn.delete(f"{threads.key_of('value', ns, values[1])}/{threads.part(channel)}")
        if (ns, checkpoint_id) in kept:
            continue
        for kind in ("row", "hidden", "child"):
            txn.delete(threads.key_of(kind, ns, checkpoint_id))
        if row.run_id is not None:
            txn.delete(threads.run_key(row.run_id, ns, checkpoint_id))
        for key in list(txn.keys(f"{threads.key_of('write', ns, checkpoint_id)}/")):
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
    for key in txn.keys(f"by-run/{threads.part(run_id)}/"):
        ns, checkpoint_id = key.split("/")[2:]
        doomed.add((threads.whole(ns), threads.whole(checkpoint_id)))
    if not doomed:
        return
    visible = _rows(txn, "row")
    rows = {**_rows(txn, "hidden"), **visible}
    left = visible.keys() - doomed
    sources = {source for place in left for source in _sources(rows, place)}
    _remove(txn, rows, left | sources)
    for ns, checkpoint_id in sources & doomed:
        row = rows[ns, checkpoint_id]
        txn.delete(threads.key_of("row", ns, checkpoint_id))
        txn.delete(threads.run_key(row.run_id, ns, checkpoint_id))
        threads.save_row(txn, "hidden", ns, checkpoint_id, row._replace(run_id=None))


def copy_thread(txn: Txn, source: str, target: str) -> None:
    """Copy everything of a thread but its owner into one that has no checkpoints.

    Raises:
      CheckpointConflict: it has some.
    """
    new = txn.for_run(threads.thread_run(target))
    taken = next(iter(new.keys("row/", limit=1)), None)
    if taken is not None:
        ns, at = taken.split("/")[1:]
        raise CheckpointConflict(target, threads.whole(ns), None, threads.whole(at))
    for key, found in txn.for_run(threads.thread_run(source)).scan():
        if key not in ("thread", "owner"):
            threads.ensure_thread(new, target)
            new.put(key, found.value)
