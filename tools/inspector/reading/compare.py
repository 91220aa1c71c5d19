"""Two runs side by side: what is the same and what differs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from occamdb import RunId, RunMetadata, Snapshot, TypeTag
from occamdb.engine.model.errors import OccamError
from occamdb.primitives import layout
from occamdb.primitives.event_log import decode_event
from occamdb.tools.inspector.reading.runs import seconds_of
from occamdb.tools.inspector.reading.safely import Part, part, problem

__all__ = ["Comparison", "Difference", "compare"]

COMPARED_MAX = 5_000  # of each kind
SHOWN_MAX = 200


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands for a value that cannot be read; it is equal to nothing."""

    why: str

    def __str__(self) -> str:
        return self.why


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that the two runs do not have alike.

    Attributes:
      name: what it is.
      left, right: what each has; None where it has nothing.
      has_left, has_right: whether each has it.
    """

    name: str
    left: Any
    right: Any
    has_left: bool
    has_right: bool


@dataclass(slots=True)
class Kind:
    """One kind of content.

    Attributes:
      same: how many are alike.
      differences: the first of those that are not.
      count: how many are not.
      complete: False if there was too much to compare all of it.
    """

    same: int = 0
    differences: list[Difference] = field(default_factory=list)
    count: int = 0
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Comparison:
    """The two runs.

    Attributes:
      left, right: their metadata; None for one that is not in the index.
      facts: what their metadata says: name, left, right, and whether these are alike.
      kinds: steps, events, cells and keys by name.
    """

    left: RunMetadata | None
    right: RunMetadata | None
    facts: tuple[tuple[str, Any, Any, bool], ...]
    kinds: dict[str, Part[Kind]]


def compare(view: Snapshot, other: Snapshot, left: RunId, right: RunId) -> Comparison:
    """Compare two runs, each by its own snapshot."""
    one, two = view.runs.get_run(left), other.runs.get_run(right)
    kinds: dict[str, Part[Kind]] = {}
    for name, rows in _ROWS.items():
        kinds[name] = part(_compare_rows, rows, view, other)
    return Comparison(one, two, tuple(_facts(one, two)), kinds)


def _facts(left: RunMetadata | None, right: RunMetadata | None) -> Iterator[tuple[str, Any, Any, bool]]:
    def both(
        name: str, read: Callable[[RunMetadata], Any], *, compared: bool = True
    ) -> tuple[str, Any, Any, bool]:
        one, two = (None if run is None else read(run) for run in (left, right))
        return name, one, two, not compared or one == two

    yield both("name", lambda run: run.name)
    yield both("status", lambda run: run.status.value)
    yield both("error", lambda run: run.error)
    yield both("tags", lambda run: list(run.tags))
    yield both("metadata", lambda run: run.metadata)
    yield both("seconds", seconds_of, compared=False)


def _compare_rows(
    rows: Callable[[Snapshot], Iterator[tuple[Any, str, Any]]], view: Snapshot, other: Snapshot
) -> Kind:
    """Merge two sequences of (place, name, value) in the order of their places."""
    found = Kind()
    left, right = rows(view), rows(other)
    one, two = next(left, None), next(right, None)
    compared = 0
    while one is not None or two is not None:
        compared += 1
        if compared > COMPARED_MAX:
            found.complete = False
            break
        if two is None or (one is not None and one[0] < two[0]):
            assert one is not None
            _note(found, Difference(one[1], one[2], None, True, False))
            one = next(left, None)
        elif one is None or two[0] < one[0]:
            _note(found, Difference(two[1], None, two[2], False, True))
            two = next(right, None)
        else:
            if _alike(one[2], two[2]):
                found.same += 1
            else:
                _note(found, Difference(one[1], one[2], two[2], True, True))
            one, two = next(left, None), next(right, None)
    return found


def _alike(left: Any, right: Any) -> bool:
    if isinstance(left, Unreadable) or isinstance(right, Unreadable):
        return False
    return type(left) is type(right) and bool(left == right)


def _note(found: Kind, difference: Difference) -> None:
    found.count += 1
    if len(found.differences) < SHOWN_MAX:
        found.differences.append(difference)


def _steps(view: Snapshot) -> Iterator[tuple[Any, str, Any]]:
    for step in view.steps.list():
        outcome = step.error if step.error is not None else step.result
        yield (
            step.name.encode(),
            step.name,
            {"state": step.state, "function": step.function, "outcome": outcome},
        )


def _events(view: Snapshot) -> Iterator[tuple[Any, str, Any]]:
    space = view.events.space
    for key in space.keys(layout.EVENT, limit=COMPARED_MAX + 1):
        sequence = layout.event_sequence(key)
        yield sequence, f"event {sequence}", _read(_event, space, key, sequence)


def _event(space: Any, key: bytes, sequence: int) -> Any:
    event = decode_event(sequence, space.get(key), space.codec)
    return {"type": event.event_type, "payload": event.payload}


def _named(tag: TypeTag) -> Callable[[Snapshot], Iterator[tuple[Any, str, Any]]]:
    def rows(view: Snapshot) -> Iterator[tuple[Any, str, Any]]:
        space = view.transaction().space(tag)
        for key in space.keys(limit=COMPARED_MAX + 1):
            yield key.encode("utf-8", "surrogateescape"), key, _read(space.get, key)

    return rows


def _read(read: Callable[..., Any], *args: Any) -> Any:
    try:
        return read(*args)
    except (OccamError, ValueError, TypeError, LookupError, RecursionError) as error:
        return Unreadable(problem(error))


_ROWS: dict[str, Callable[[Snapshot], Iterator[tuple[Any, str, Any]]]] = {
    "steps": _steps,
    "events": _events,
    "cells": _named(TypeTag.STATE),
    "keys": _named(TypeTag.KV),
}
