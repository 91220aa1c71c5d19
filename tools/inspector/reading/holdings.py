"""What a run holds beside its traces and events: keys, cells, tasks, leases and steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import occamdb
from occamdb import QueueStats, Snapshot, Step, Task, TypeTag
from occamdb.engine.model.errors import InvalidArgumentError, OccamError
from occamdb.engine.model.keys import decode_user_key, encode_user_key
from occamdb.primitives import LeaseHolder, layout
from occamdb.tools.inspector.reading.safely import PAGE_ROWS, Part, part, problem

__all__ = [
    "Counts",
    "KeyRow",
    "KeysPage",
    "LeaseRow",
    "TasksPage",
    "counts_of",
    "keys_page",
    "leases_of",
    "steps_of",
    "tasks_page",
]

STEPS_MAX = 1_000


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A key, or a cell.

    Attributes:
      key: as the database gives keys back.
      found: value, version and times; None if it cannot be read.
      error: why.
    """

    key: str
    found: Any
    error: str | None = None


@dataclass(slots=True)
class KeysPage:
    """Some keys in order.

    Attributes:
      rows: the keys.
      next: the cursor of the next page; "" if there is none.
    """

    rows: list[KeyRow] = field(default_factory=list)
    next: str = ""


def keys_page(
    view: Snapshot, tag: TypeTag, *, prefix: str = "", after: str = "", rows_max: int = PAGE_ROWS
) -> KeysPage:
    """The keys of a run, or the names of its cells, a page of them.

    Args:
      prefix: what they begin with, as it was typed: text, or 0x and hexadecimal digits.
      after: the cursor: the last key of the page before, in hexadecimal.

    Raises:
      InvalidArgumentError: the prefix or the cursor is no key.
    """
    space = view.transaction().space(tag)
    start = _key_after(after) if after else None
    page = KeysPage()
    for key in space.keys(_prefix(prefix), start=start, limit=rows_max + 1):
        if len(page.rows) == rows_max:
            page.next = encode_user_key(page.rows[-1].key).hex()
            break
        try:
            page.rows.append(KeyRow(key, space.get_versioned(key)))
        except (OccamError, ValueError, TypeError, LookupError, RecursionError) as error:
            page.rows.append(KeyRow(key, None, problem(error)))
    return page


def _prefix(text: str) -> str:
    if text[:2] not in ("0x", "0X"):
        return text
    try:
        return decode_user_key(bytes.fromhex(text[2:]))
    except ValueError:
        return text


def _key_after(cursor: str) -> bytes:
    try:
        return bytes.fromhex(cursor) + b"\0"
    except ValueError:
        raise InvalidArgumentError(
            "this address has a wrong cursor", hint="begin at the first page"
        ) from None


@dataclass(frozen=True, slots=True)
class TasksPage:
    """The queues of a run, and the tasks of one of them.

    Attributes:
      queues: the numbers of each queue.
      queue: the one whose tasks are listed; "" for none.
      tasks: its tasks; or why they cannot be read.
      next: the id of the last task, after which the next page begins; "" if there is none.
    """

    queues: dict[str, Part[QueueStats]]
    queue: str
    tasks: Part[list[Task]]
    next: str


def tasks_page(view: Snapshot, *, queue: str = "", state: str = "", after: str = "") -> TasksPage:
    """The queues, and the tasks of the named one, or of the only one."""
    names = view.tasks.queues()
    if not queue and len(names) == 1:
        queue = names[0]
    found: Part[list[Task]] = Part([])
    if queue:
        found = part(view.tasks.list, queue, state=state or None, after=after or None, limit=PAGE_ROWS)
    full = found.value is not None and len(found.value) == PAGE_ROWS
    last = found.value[-1].id if found.value and full else ""
    return TasksPage({name: part(view.tasks.stats, name) for name in names}, queue, found, last)


@dataclass(frozen=True, slots=True)
class LeaseRow:
    """The holder of a slot, and how many wait for the lease."""

    holder: LeaseHolder
    waiting: int


def leases_of(view: Snapshot) -> list[LeaseRow]:
    """The leases of a run that are held."""
    return [LeaseRow(holder, view.leases.waiting(holder.name)) for holder in view.leases.list()[:PAGE_ROWS]]


def steps_of(view: Snapshot) -> tuple[list[Step], int]:
    """The steps of a run by name, and how many there are."""
    every = view.steps.list()
    return every[:STEPS_MAX], len(every)


@dataclass(frozen=True, slots=True)
class Counts:
    """How much of each kind a run has; None: it cannot be told."""

    traces: int | None
    events: int | None
    cells: int | None
    keys: int | None
    tasks: int | None
    leases: int | None
    steps: int | None


def counts_of(view: Snapshot) -> Counts:
    """How much a run holds."""

    def count(tag: TypeTag, prefix: bytes = b"") -> int | None:
        try:
            return view.transaction().space(tag, raw=True).count(prefix)
        except occamdb.SnapshotExpired:
            raise
        except occamdb.OccamError:
            return None

    events = part(lambda: len(view.events)).value
    return Counts(
        count(TypeTag.TRACE, layout.TRACE),
        events,
        count(TypeTag.STATE),
        count(TypeTag.KV),
        count(TypeTag.TASK, layout.TASK),
        count(TypeTag.LEASE, layout.LEASE_CLAIM),
        count(TypeTag.STEP, layout.STEP),
    )
