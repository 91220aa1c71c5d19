"""Which index a query reads: shared by the primitives that keep several.

An index group is a prefix; its keys go on with a time and an id, so any group can be cut to a time range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from heapq import merge
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

from ..engine.model.errors import InvalidArgumentError
from ..engine.model.keys import successor
from ..engine.transaction._transaction import Space
from . import layout
from .extension import to_microseconds

__all__ = ["Choice", "IndexRange", "Record", "Test", "beyond", "checked_limit", "choose", "window"]

Record: TypeAlias = list[Any]
Test: TypeAlias = Callable[[Record], bool]
FIRST_STEP = 32


class IndexRange(NamedTuple):
    """One group of an index between two times.

    Attributes:
      prefix: of the group.
      since: the first time, as in keys; empty: from the beginning.
      before: the first time past it; None: to the end.
      also: the prefix of a second group, which shares no entry with the first; None: there is none.
    """

    prefix: bytes
    since: bytes = b""
    before: bytes | None = None
    also: bytes | None = None

    def keys(self, space: Space, *, limit: int | None = None, reverse: bool = False) -> Iterator[bytes]:
        """Its keys in time order, fetched while iterated."""
        if self.also is None:
            return self._group(space, self.prefix, limit, reverse)
        rows = [self._group(space, prefix, limit, reverse) for prefix in (self.prefix, self.also)]
        return islice(merge(*rows, key=layout.suffix, reverse=reverse), limit)

    def _group(self, space: Space, prefix: bytes, limit: int | None, reverse: bool) -> Iterator[bytes]:
        end = successor(prefix) if self.before is None else prefix + self.before
        return space.keys(start=prefix + self.since, end=end, limit=limit, reverse=reverse)


class Choice(NamedTuple):
    """A filter: where its matches are listed, and how to tell a match by its record."""

    range: IndexRange
    test: Test


def window(
    start: datetime | None, end: datetime | None, names: tuple[str, str]
) -> tuple[bytes, bytes | None]:
    """The parts of an `IndexRange` from `start` up to but not including `end`."""
    since = b"" if start is None else layout.time_key(to_microseconds(start, names[0]))
    return since, None if end is None else layout.time_key(to_microseconds(end, names[1]))


def beyond(bounds: tuple[bytes, bytes | None], suffix: bytes, *, reverse: bool) -> tuple[bytes, bytes | None]:
    """The parts of an `IndexRange` that begin behind one entry, in the order in which they are read.

    An entry's place is its time and its id together, so a page ends and the next begins between any two entries, also
    between those of one time.

    Args:
      bounds: from `window`.
      suffix: of the entry, as in its key.
      reverse: the range is read from its end.
    """
    since, before = bounds
    if reverse:
        return since, suffix if before is None else min(before, suffix)
    return max(since, suffix + b"\x00"), before


def choose(space: Space, choices: Sequence[Choice]) -> tuple[IndexRange, list[Test]]:
    """The shortest index range, and the tests of the other filters.

    All ranges are walked side by side, each round twice as far, until one ends. So the cost is a small
    multiple of the shortest range, however long the others are.
    """
    best = 0 if len(choices) == 1 else _shortest(space, choices)
    return choices[best].range, [choice.test for at, choice in enumerate(choices) if at != best]


def _shortest(space: Space, choices: Sequence[Choice]) -> int:
    rows = [choice.range.keys(space) for choice in choices]
    step = FIRST_STEP
    while True:
        for at, row in enumerate(rows):
            if sum(1 for _ in islice(row, step)) < step:
                return at
        step *= 2


def checked_limit(limit: int | None) -> int | None:
    """A limit, or None for none.

    Raises:
      InvalidArgumentError: it is neither.
    """
    if limit is not None and (type(limit) is not int or limit < 0):
        raise InvalidArgumentError(f"limit must be an int from 0, got {limit!r}", hint="None for no limit")
    return limit
