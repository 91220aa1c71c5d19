"""The events of a run, with their chain verified."""

from __future__ import annotations

from dataclasses import dataclass, field

from occamdb import ChainVerification, Event, Snapshot
from occamdb.engine.model.errors import OccamError
from occamdb.primitives import layout
from occamdb.primitives.event_log import FIRST_PREV_HASH, HASH_SIZE, decode_event, event_fault
from occamdb.tools.inspector.reading.safely import PAGE_ROWS, problem

__all__ = ["EventRow", "EventsPage", "events_page"]

# Hashing so many takes a tenth of a second or two; a longer log is verified when that is asked for.
VERIFIED_AT_ONCE = 20_000


@dataclass(frozen=True, slots=True)
class EventRow:
    """An event on a page.

    Attributes:
      sequence: its place.
      event: None if it cannot be read.
      fault: what is wrong with it or with its link to the event before; None if nothing is.
    """

    sequence: int
    event: Event | None
    fault: str | None


@dataclass(slots=True)
class EventsPage:
    """A page of a log.

    Attributes:
      length: of the log, as its head says.
      start: the sequence that the page begins with.
      rows: the events.
      chain: what verifying the whole log found; None: it was not verified, since it is long.
    """

    length: int = 0
    start: int = 0
    rows: list[EventRow] = field(default_factory=list)
    chain: ChainVerification | None = None

    @property
    def previous(self) -> int | None:
        """Where the page before begins; None if there is none."""
        return max(0, self.start - PAGE_ROWS) if self.start else None

    @property
    def next(self) -> int | None:
        """Where the next page begins; None if there is none."""
        after = self.start + PAGE_ROWS
        return after if after < self.length or len(self.rows) >= PAGE_ROWS else None


def events_page(view: Snapshot, *, start: int | None, whole: bool, event_type: str = "") -> EventsPage:
    """A page of the events of a run.

    Args:
      start: the first sequence; None: the last page.
      whole: verify the whole log, however long it is.
      event_type: only events of this type; "" for all.
    """
    space = view.events.space
    length = len(view.events)
    if start is None:
        start = max(0, (length - 1) // PAGE_ROWS * PAGE_ROWS)
    page = EventsPage(length, start)
    if whole or length <= VERIFIED_AT_ONCE:
        page.chain = view.events.verify_chain()
    if event_type:
        for each in view.events.read_by_type(event_type, start=start, limit=PAGE_ROWS):
            page.rows.append(EventRow(each.sequence, each, None))
        return page
    expected = start
    previous = FIRST_PREV_HASH if start == 0 else _hash_at(view, start - 1)
    for key, found in space.scan(layout.EVENT, start=layout.event(start), limit=PAGE_ROWS):
        sequence = layout.event_sequence(key)
        fault = None if previous is None else event_fault(expected, sequence, previous, found.value)
        try:
            event: Event | None = decode_event(sequence, found.value, space.codec)
        except (OccamError, ValueError, TypeError, LookupError) as error:
            event, fault = None, fault or problem(error)
        page.rows.append(EventRow(sequence, event, fault))
        expected = sequence + 1
        previous = found.value[:HASH_SIZE] if isinstance(found.value, bytes) else None
    return page


def _hash_at(view: Snapshot, sequence: int) -> bytes | None:
    """The stored hash of an event; None if the event is missing or is no event."""
    stored = view.events.space.get(layout.event(sequence))
    return stored[:HASH_SIZE] if isinstance(stored, bytes) and len(stored) > HASH_SIZE else None
