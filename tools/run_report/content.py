"""What a report tells of a run, read from one snapshot.

What cannot be read, since the database is damaged, is replaced by what was wrong with it; the rest is still told. What
is too much is cut, and the number that there are is kept, so that the page can say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Generic, TypeVar
from uuid import UUID

from occamdb.engine.model.errors import OccamError
from occamdb.engine.model.public_types import TypeTag
from occamdb.primitives import layout

if TYPE_CHECKING:
    from occamdb import Database, RunId
    from occamdb.engine.model.public_types import VersionedValue
    from occamdb.primitives import (
        ChainVerification,
        Event,
        LeaseHolder,
        QueueStats,
        RunMetadata,
        Snapshot,
        State,
        Step,
        Task,
        Trace,
    )

__all__ = ["Limits", "Part", "Queue", "RunContent", "read_run"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a run a report holds.

    Attributes:
      traces: so many are read, and drawn in the timeline.
      rows: so many of everything else.
    """

    traces: int = 50_000
    rows: int = 1_000


@dataclass(frozen=True, slots=True)
class Part(Generic[T]):
    """The rows of a section.

    Attributes:
      rows: those that the report has.
      count: how many there are; None: more than there are rows, and nobody counted.
      error: why the others could not be read; None: they could.
    """

    rows: Sequence[T]
    count: int | None
    error: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left out."""
        return self.error is None and self.count == len(self.rows)


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue of tasks: its numbers, and the first tasks of it."""

    name: str
    stats: QueueStats
    tasks: Sequence[Task]


@dataclass(frozen=True, slots=True)
class RunContent:
    """A run at one version.

    Attributes:
      run_id: its id.
      version: of the database, when it was read.
      read_at: when that was.
      metadata: what the index has of it, one row; none: it is not in the index.
      children: the runs below it.
      chain: whether the chain of its events holds; None: that could not be found out.
    """

    run_id: RunId
    version: int
    read_at: datetime
    metadata: Part[RunMetadata]
    children: Part[RunMetadata]
    traces: Part[Trace]
    events: Part[Event]
    chain: ChainVerification | None
    cells: Part[tuple[str, State]]
    keys: Part[tuple[str, VersionedValue]]
    queues: Part[Queue]
    leases: Part[tuple[LeaseHolder, int]]
    steps: Part[Step]


def read_run(db: Database, run_id: RunId, limits: Limits | None = None) -> RunContent:
    """Read a run from one snapshot. One pass over each of its primitives."""
    most = Limits() if limits is None else limits
    rows = most.rows
    with db.snapshot(run_id) as view:
        return RunContent(
            run_id=run_id,
            version=view.version,
            read_at=datetime.now(UTC),
            metadata=_part(lambda: [found] if (found := view.runs.get_run(run_id)) else [], 1),
            children=_part(lambda: view.runs.get_child_runs(run_id, limit=rows + 1), rows),
            traces=_traces(view, most.traces),
            events=_events(view, rows),
            chain=_one(lambda: view.events.verify_chain()),
            cells=_part(lambda: view.cells.list_with_values(limit=rows + 1), rows),
            keys=_part(lambda: view.kv.scan(limit=rows + 1), rows, lambda: view.kv.count()),
            queues=_part(lambda: _queues(view, rows), rows),
            leases=_part(
                lambda: [(each, view.leases.waiting(each.name)) for each in view.leases.list()], rows
            ),
            steps=_part(lambda: view.steps.list(), rows),
        )


def _one(read: Callable[[], T | None]) -> T | None:
    try:
        return read()
    except OccamError:
        return None


def _part(read: Callable[[], Iterable[T]], most: int, count: Callable[[], int] | None = None) -> Part[T]:
    """What `read` gives, up to a number, and up to what is damaged."""
    rows: list[T] = []
    more = False
    try:
        found = iter(read())
        rows += islice(found, most)
        more = next(found, None) is not None
        known = len(rows) if not more else None
        return Part(rows, known if count is None else count())
    except OccamError as error:
        return Part(rows, None, error.message)


def _traces(view: Snapshot, most: int) -> Part[Trace]:
    """All traces. If one is damaged, the others are read one by one."""
    found = _part(lambda: view.traces.query(limit=most), most, lambda: view.traces.count())
    if found.error is None:
        return found
    rows: list[Trace] = []
    damaged = 0
    keys = view.transaction().space(TypeTag.TRACE, raw=True).keys(layout.TRACE)
    for key in islice(keys, most):
        try:
            trace = view.traces.get(UUID(bytes=bytes(key[-layout.ID_SIZE :])))
        except OccamError:
            damaged += 1
        else:
            rows += [] if trace is None else [trace]
    return Part(rows, None, f"{damaged:,} unreadable, the first of them: {found.error}")


def _events(view: Snapshot, most: int) -> Part[Event]:
    """The first and the last events, as many of each; all of them if they are few enough."""
    try:
        length = view.events.len()
        if length <= most:
            return _part(lambda: view.events.iterate(), most, lambda: length)
        first = _part(lambda: view.events.iterate(0, most // 2), most, lambda: length)
        if first.error is not None:
            return first
        last = _part(lambda: view.events.iterate(length - (most - most // 2)), most, lambda: length)
        return Part([*first.rows, *last.rows], length, last.error)
    except OccamError as error:
        return Part([], None, error.message)


def _queues(view: Snapshot, most: int) -> list[Queue]:
    """All queues. The tasks of all together are at most so many."""
    found = []
    for name in view.tasks.queues():
        tasks = view.tasks.list(name, limit=most)
        most -= len(tasks)
        found.append(Queue(name, view.tasks.stats(name), tasks))
    return found
