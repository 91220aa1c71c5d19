"""Following an event log: the page that was not seen yet, for programs with and without an event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from ..engine.model.errors import TransactionTimeout
from .extension import CONTENDED, RunLike, TransactionBase

__all__ = ["FOLLOW_PAGE", "Follower"]

FOLLOW_PAGE = 256


class Follower:
    """Where `follow` stands in a log.

    Args:
      log: makes the log of a transaction.
      after: the sequence of the last event that was seen; -1: none.
      event_type: only events of this type; None: all.
    """

    def __init__(self, log: Callable[[TransactionBase], Any], after: int, event_type: str | None) -> None:
        self._log = log
        self._after = after
        self._type = event_type
        self._last: Any = None

    def events(self, database: Any, run_id: RunLike, timeout: float | None) -> Iterator[Any]:
        """The events that it has not seen, for ever, or until none comes for `timeout` seconds."""
        while True:
            try:
                events = database.waiting_transaction(run_id, self._unseen, CONTENDED, timeout)
            except TransactionTimeout:
                return
            for event in events:
                self._last, self._after = event, event.sequence
                yield event

    async def awaited_events(
        self, database: Any, run_id: RunLike, timeout: float | None
    ) -> AsyncIterator[Any]:
        """The same of an asynchronous database."""
        while True:
            try:
                events = await database.waiting_transaction(run_id, self._unseen, CONTENDED, timeout)
            except TransactionTimeout:
                return
            for event in events:
                self._last, self._after = event, event.sequence
                yield event

    def _unseen(self, txn: TransactionBase) -> list[Any]:
        """The next page, never empty: it waits instead."""
        log = self._log(txn)
        start, last = self._after + 1, self._last
        # By hash: another log may have grown as long as the one before.
        if last is not None and getattr(log.read(last.sequence), "hash", None) != last.hash:
            start = 0
        found = (
            list(log._rows(start, start + FOLLOW_PAGE))
            if self._type is None
            else log.read_by_type(self._type, start=start, limit=FOLLOW_PAGE)
        )
        return found or txn.wait()
