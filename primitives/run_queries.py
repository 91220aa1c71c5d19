"""Finding runs: which index a query reads."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from ..engine.model.errors import InvalidArgumentError
from ..engine.transaction._transaction import Space
from . import layout
from .extension import to_microseconds
from .operations import RunLike
from .planner import Choice, IndexRange, Record, Test, beyond, checked_limit, choose, window
from .read_ahead import read_ahead
from .run_records import check_run_name, existing_run, raw_run_id
from .run_types import CREATED, NAME, PARENT, STATUS, STATUS_NUMBER, TAGS, RunMetadata, RunStatus, decode_run

__all__ = ["RunFilter", "child_ids", "descendants", "find_runs"]


class RunFilter(NamedTuple):
    """What a query asks for; what is None or empty is not asked for."""

    status: RunStatus | str | None = None
    tags: tuple[str, ...] = ()
    name: str | None = None
    parent: RunLike | None = None
    roots: bool = False
    created: tuple[datetime | None, datetime | None] = (None, None)
    after: RunLike | None = None


def find_runs(
    space: Space, wanted: RunFilter, limit: int | None = None, reverse: bool = False
) -> list[RunMetadata]:
    """The runs that meet every filter, in order of creation."""
    filters, name = _filters(wanted), wanted.name
    if name is not None:
        check_run_name(name)
        if space.exists(layout.RUN_NAMES_WHOLE):
            filters.insert(0, (layout.runs_named(name), _any))
    if checked_limit(limit) == 0:
        return []
    bounds = window(*wanted.created, ("created_after", "created_before"))
    if wanted.after is not None:
        bounds = beyond(bounds, _place_of(space, wanted.after), reverse=reverse)
    choices = [
        Choice(IndexRange(prefix, *bounds), test)
        for prefix, test in filters or [(layout.RUN_BY_CREATION, _any)]
    ]
    index, tests = choose(space, choices)
    if name is not None:  # whichever index is read: the entries by name hold only a digest of it
        tests = [*tests, lambda record: record[NAME] == name]
    found: list[RunMetadata] = []
    entries = index.keys(space, limit=None if tests else limit, reverse=reverse)
    for key in read_ahead(space, entries, lambda key: layout.run(layout.suffix_id(key))):
        raw = layout.suffix_id(key)
        record = existing_run(space, raw)
        if all(test(record) for test in tests):
            found.append(decode_run(raw, record))
            if len(found) == limit:
                break
    return found


def child_ids(space: Space, raw: bytes) -> list[bytes]:
    """The children of a run that is about to be deleted. Checked: a child created meanwhile must conflict."""
    return [layout.suffix_id(key) for key in space.keys_checked(layout.runs_under(raw))]


def descendants(space: Space, raw: bytes) -> list[bytes]:
    """All runs below a run that is about to be deleted, breadth first."""
    found = child_ids(space, raw)
    for each in found:  # grows while it is walked
        found.extend(child_ids(space, each))
    return found


def _place_of(space: Space, run: RunLike) -> bytes:
    """Where a run is in every index: the end of its keys there."""
    raw = raw_run_id(run)
    if isinstance(run, RunMetadata):
        return layout.run_suffix(to_microseconds(run.created_at, "created_at"), raw)
    return layout.run_suffix(existing_run(space, raw)[CREATED], raw)


def _filters(wanted: RunFilter) -> list[tuple[bytes, Test]]:
    """For each filter but the name: where its runs are listed, and how to tell them by their record."""
    filters: list[tuple[bytes, Test]] = []
    if wanted.parent is not None or wanted.roots:
        if wanted.parent is not None and wanted.roots:
            raise InvalidArgumentError(
                "a run with a parent is not a root", hint="give parent= or roots=True, not both"
            )
        above = None if wanted.parent is None else raw_run_id(wanted.parent)
        filters.append((layout.runs_under(above or layout.ZERO_ID), lambda record: record[PARENT] == above))
    filters += [(layout.runs_tagged(tag), _tagged(tag)) for tag in wanted.tags]
    if wanted.status is not None:
        number = STATUS_NUMBER[RunStatus.of(wanted.status)]
        filters.append((layout.runs_with_status(number), lambda record: record[STATUS] == number))
    return filters


def _tagged(tag: str) -> Test:
    return lambda record: tag in record[TAGS]


def _any(record: Record) -> bool:
    return True
