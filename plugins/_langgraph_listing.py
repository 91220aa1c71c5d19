"""Listing the checkpoints of threads page by page, with no snapshot held between the pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from occamdb import RunId

from . import _langgraph_threads as threads
from ._langgraph_threads import Row, Stored, Txn

__all__ = ["Listing", "field_of"]

_PAGE = 64


@dataclass(slots=True)
class Listing:
    """One call of `list`: which checkpoints it asks for, and how far it is.

    Attributes:
      thread_id, ns, checkpoint_id: where to look; None: everywhere.
      before: only checkpoints with a smaller id.
      filter: what the metadata must have.
      limit: the most checkpoints.
      metadata: reads the metadata of a row.
      pages: whether there may be more.
    """

    thread_id: str | None
    ns: str | None
    checkpoint_id: str | None
    before: str | None
    filter: Mapping[str, Any]
    limit: int | None
    metadata: Callable[[Row], Mapping[str, Any]]
    pages: bool = True
    _places: list[tuple[str, str, str]] = field(default_factory=list)
    _at: int = 0

    @property
    def run(self) -> RunId:
        """The run in which its transactions begin."""
        return threads.ANY_RUN if self.thread_id is None else threads.thread_run(self.thread_id)

    def begin(self, txn: Txn) -> None:
        """Find out which checkpoints there are."""
        at_most = None if self.filter else self.limit
        named = threads.all_threads(txn) if self.thread_id is None else [self.thread_id]
        for thread_id in named:
            there = txn.for_run(threads.thread_run(thread_id))
            found = threads.listed(there, self.ns, self.checkpoint_id, self.before, at_most)
            self._places += [(thread_id, *place) for place in found]
        if len(named) > 1:
            self._places.sort(key=lambda place: place[2], reverse=True)
        self._look()

    def _look(self) -> None:
        self.pages = self._at < len(self._places) and self.limit != 0

    def next_page(self, txn: Txn) -> list[Stored]:
        """The next checkpoints, without those that were deleted since."""
        size = _PAGE if self.limit is None or self.filter else min(_PAGE, self.limit)
        page = self._places[self._at : self._at + size]
        self._at += len(page)
        found = [
            threads.load(txn.for_run(threads.thread_run(thread_id)), thread_id, ns, checkpoint_id)
            for thread_id, ns, checkpoint_id in page
        ]
        self._look()
        return [stored for stored in found if stored is not None]

    def matching(self, page: list[Stored]) -> Iterator[Stored]:
        """Those that the filter lets through, as many as the limit allows."""
        for stored in page:
            if self.filter:
                metadata = self.metadata(stored.row)
                if any(field_of(metadata, key) != value for key, value in self.filter.items()):
                    continue
            if self.limit is not None:
                self.limit -= 1
            self.pages = self.pages and self.limit != 0
            yield stored
            if self.limit == 0:
                return


def field_of(value: object, name: str) -> Any:
    """A field of what a filter looks at; "user.name" is the name in the user, unless there is a field called so."""
    if not isinstance(value, dict):
        return None
    if name in value or "." not in name:
        return value.get(name)
    outer, _, inner = name.partition(".")
    return field_of(value.get(outer), inner)
