"""The auditor of tasks: what must hold among the keys of tasks, computed from the records.

A task's place holds its attempts and its outcome, which follow from nothing else. A record without a place is therefore
reported and left alone, and so is a task at two places: `requeue` or `purge` is for its owner to choose.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..engine.model.errors import CorruptionError, OccamError
from ..engine.transaction._transaction import Space
from . import layout
from .auditing import Fault, Repair, read_record
from .layout import TASK_CLAIM, TASK_DELAYED, TASK_OPEN
from .task_records import CLAIMS, KEY, PRIORITY, QUEUE, Place, decode_task, due_of
from .tasks import Tasks

__all__ = ["audit_tasks"]

RECORD_KEY_SIZE = 1 + layout.ID_SIZE
UNKNOWN = "a key that this version does not know"


def audit_tasks(space: Space) -> Iterator[Fault]:
    """Every record is at one place, places and claims and keys are of a task, and a delayed task's time is noted."""
    for key in space.keys(layout.TASK):
        yield from _of_record(space, key)
    for key in space.keys(layout.TASK_PLACE):
        fault = _of_place(space, key)
        if fault is not None:
            yield fault
    for key in space.keys(start=layout.TASK_BY_KEY):
        fault = _of_pointer(space, key)
        if fault is not None:
            yield fault


def _record(space: Space, raw: bytes) -> list[Any] | None:
    """The record of a task; None: there is none.

    Raises:
      OccamError: it is unreadable.
    """
    record = read_record(space, layout.task(raw))
    if record is None:
        return None
    try:
        queue, priority, key, created, _ = record
        layout.task_queue(queue), layout.task_rank(priority)
        if type(created) is not int or not (key is None or type(key) is str):
            raise TypeError("a time is a number, and a key is text")
    except Exception as error:  # a record of any content
        raise CorruptionError(f"task {raw.hex()} is unreadable: {error}") from error
    return list(record)


def _of_record(space: Space, key: bytes) -> Iterator[Fault]:
    if len(key) != RECORD_KEY_SIZE:
        yield Fault(key, UNKNOWN)
        return
    raw = key[1:]
    try:
        record = _record(space, raw)
    except OccamError as error:
        yield Fault(key, f"unreadable: {error.message}")
        return
    assert record is not None
    places = list(_places(space, raw, record))
    if len(places) != 1:
        yield Fault(key, f"task {raw.hex()} is at {len(places)} places of its queue, it must be at one")
    if record[KEY] is not None:
        entry = layout.task_key(record[QUEUE], record[KEY])
        if not space.exists(entry):
            yield Fault(entry, f"the entry of task {raw.hex()} by its key is missing", Repair(key, raw))


def _places(space: Space, raw: bytes, record: list[Any]) -> Iterator[bytes]:
    prefix, suffix = layout.task_queue(record[QUEUE]), layout.task_rank(record[PRIORITY]) + raw
    due = read_record(space, layout.task_due(raw))
    delayed = prefix + TASK_DELAYED + layout.time_key(due) + suffix if type(due) is int else b""
    for place in (
        prefix + TASK_OPEN + suffix,
        delayed,
        prefix + layout.TASK_DONE + raw,
        prefix + layout.TASK_DEAD + raw,
    ):
        if place and space.exists(place):
            yield place


def _of_place(space: Space, key: bytes) -> Fault | None:
    raw = layout.suffix_id(key)
    try:
        _, kind, rest = layout.task_place(key)
        if not TASK_OPEN <= kind <= layout.TASK_DEAD or len(rest) < layout.ID_SIZE:
            return Fault(key, UNKNOWN)
        record = _record(space, raw)
    except (OccamError, ValueError) as error:
        return None if isinstance(error, OccamError) else Fault(key, UNKNOWN)
    source = layout.task(raw)
    if record is None:
        return Fault(key, f"a place of task {raw.hex()}, which is not there", Repair(source, delete=True))
    prefix, suffix = layout.task_queue(record[QUEUE]), layout.task_rank(record[PRIORITY]) + raw
    if not key.startswith(prefix) or (kind < layout.TASK_DONE and not key.endswith(suffix)):
        return Fault(key, f"a place that task {raw.hex()} does not call for", Repair(source, delete=True))
    try:
        if kind == TASK_CLAIM:
            return _of_claim(space, key, prefix + TASK_OPEN + suffix)
        entry = read_record(space, key)
        decode_task(raw, record, Place(key, kind, entry), 0)
    except OccamError as error:
        return Fault(key, f"unreadable: {error.message}")
    if kind == TASK_DELAYED and space.get(layout.task_due(raw)) != due_of(key):
        return Fault(
            layout.task_due(raw), f"the time of task {raw.hex()} is not noted", Repair(key, due_of(key))
        )
    return None


def _of_claim(space: Space, key: bytes, place: bytes) -> Fault | None:
    entry = read_record(space, place)
    if entry is None:
        return Fault(key, "a claim on a task that is not open", Repair(place, delete=True))
    if not isinstance(entry, list) or read_record(space, key) != entry[CLAIMS]:
        return Fault(key, "a claim that the open task does not call for", Repair(place, delete=True))
    return None


def _of_pointer(space: Space, key: bytes) -> Fault | None:
    """Of an entry by key, or the time of a delayed task."""
    try:
        if key[:1] == layout.TASK_BY_KEY:
            raw = read_record(space, key)
            if type(raw) is not bytes or len(raw) != layout.ID_SIZE:
                return Fault(key, "unreadable: not the id of a task")
            record = _record(space, raw)
            if record is None or record[KEY] is None or layout.task_key(record[QUEUE], record[KEY]) != key:
                message = f"an entry by key that task {raw.hex()} does not call for"
                return Fault(key, message, Repair(layout.task(raw), delete=True))
            return None
        if key[:1] != layout.TASK_DUE or len(key) != RECORD_KEY_SIZE:
            return Fault(key, UNKNOWN)
        raw = key[1:]
        record, due = _record(space, raw), read_record(space, key)
        if record is not None and type(due) is int:
            prefix, suffix = layout.task_queue(record[QUEUE]), layout.task_rank(record[PRIORITY]) + raw
            if space.exists(prefix + TASK_DELAYED + layout.time_key(due) + suffix):
                return None
        if record is not None and _is_delayed(space, raw, record):
            return None  # reported, and mended, with the place
        message = f"the time of task {raw.hex()}, which is not delayed until then"
        return Fault(key, message, Repair(layout.task(raw), delete=True))
    except OccamError:
        return None  # the record itself is reported


def _is_delayed(space: Space, raw: bytes, record: list[Any]) -> bool:
    group = layout.task_queue(record[QUEUE]) + TASK_DELAYED
    return any(key.endswith(raw) for key in space.keys(group))


Tasks.auditor = staticmethod(audit_tasks)
