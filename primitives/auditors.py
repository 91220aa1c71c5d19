"""The auditors of the built-in primitives that keep indices, chains or heads: what must hold, computed from records.

Key-value pairs and state cells have none: each is one key, and nothing else follows from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ..engine.model.errors import CorruptionError, OccamError
from ..engine.model.values import Codec
from ..engine.transaction._transaction import Space
from . import layout
from .auditing import Auditor, Fault, Repair, audit_entries, read_record
from .event_log import FIRST_PREV_HASH, HASH_SIZE, EventLog, decode_event, event_fault
from .extension import Primitive
from .run_index import RunIndex
from .run_records import run_entries
from .run_types import PARENT as RUN_PARENT
from .run_types import decode_run
from .trace_queries import trace_entries
from .trace_store import TraceStore
from .trace_types import (
    CUSTOM,
    FIELDS,
    FORM,
    KIND,
    PARENT,
    ROOT,
    SPAN,
    TAGS,
    TIME,
    Names,
    decode_record,
    decode_trace,
)

__all__ = ["audit_events", "audit_runs", "audit_traces"]

_PLAIN = Codec()  # without the user's hooks: an audit rebuilds no object of a user's class

EVENT_KEY_SIZE = len(layout.EVENT) + 8
RECORD_KEY_SIZE = 1 + layout.ID_SIZE


def _audits(primitive: type[Primitive[Any]]) -> Callable[[Auditor], Auditor]:
    def attach(auditor: Auditor) -> Auditor:
        primitive.auditor = staticmethod(auditor)
        return auditor

    return attach


# --- EventLog ------------------------------------------------------------------------------------


@_audits(EventLog)
def audit_events(space: Space) -> Iterator[Fault]:
    """Every event is chained to the one before, the head to the last one, and the type index lists just these."""
    expected, prev_hash, whole = 0, FIRST_PREV_HASH, True
    head = _head(space)
    joined = head == [
        0,
        FIRST_PREV_HASH,
    ]  # the head says what was true after one of the events, or before the first
    for key in space.keys(layout.EVENT):
        if len(key) != EVENT_KEY_SIZE:
            yield Fault(key, "a key that this version does not know")
            continue
        sequence, stored = layout.event_sequence(key), _stored(space, key)
        error = event_fault(expected, sequence, prev_hash, stored)
        if error is not None:
            whole = False
            yield Fault(key, f"event {expected}: {error}")
        entry = _type_entry(sequence, stored)
        if entry is not None and not space.exists(entry):
            yield Fault(entry, f"the entry of event {sequence} in the type index is missing", Repair(key))
        expected = sequence + 1
        prev_hash = stored[:HASH_SIZE] if type(stored) is bytes else FIRST_PREV_HASH
        joined = joined or head == [expected, prev_hash]
    tail = [expected, prev_hash]
    if (tail if head is None else head) != tail or (head is None and expected):
        yield _head_fault(head, tail, mendable=whole and (head is None or joined))
    for key in space.keys(layout.EVENT_HEAD):
        if key != layout.EVENT_HEAD:
            yield Fault(key, "a key that this version does not know")
    yield from _audit_type_index(space)


def _head(space: Space) -> Any:
    """The head record, None when there is none; a text, which no head equals, when it cannot be read."""
    try:
        return read_record(space, layout.EVENT_HEAD)
    except OccamError:
        return "unreadable"


def _head_fault(head: Any, tail: list[Any], *, mendable: bool) -> Fault:
    """A head that is missing or behind follows from a whole chain; one that is ahead proves that events are gone."""
    found = "missing" if head is None else f"{_shown(head)}"
    message = f"the head is {found}, the events there are call for {_shown(tail)}"
    repair = Repair(layout.event(tail[0] - 1), tail) if mendable and tail[0] else None
    return Fault(layout.EVENT_HEAD, message, repair)


def _shown(head: Any) -> str:
    try:
        length, last_hash = head
        return f"length {length}, hash {last_hash.hex()}"
    except (TypeError, ValueError, AttributeError):
        return "unreadable"


def _stored(space: Space, key: bytes) -> Any:
    try:
        return read_record(space, key)
    except OccamError:
        return None


def _type_entry(sequence: int, stored: Any) -> bytes | None:
    """The key of an event's entry in the type index; None when the event is unreadable."""
    try:
        return layout.events_of_type(decode_event(sequence, stored).event_type) + layout.u64(sequence)
    except OccamError:
        return None


def _audit_type_index(space: Space) -> Iterator[Fault]:
    for key in space.keys(start=layout.EVENT_BY_TYPE):
        if not key.startswith(layout.EVENT_BY_TYPE) or len(key) <= EVENT_KEY_SIZE:
            yield Fault(key, "a key that this version does not know")
            continue
        sequence = layout.event_sequence(key)
        source = layout.event(sequence)
        stored = _stored(space, source)
        if stored is None and space.exists(source):
            continue  # reported as an event
        entry = _type_entry(sequence, stored)
        if stored is None or (entry is not None and entry != key):
            yield Fault(key, f"the type index lists event {sequence} wrongly", Repair(source, delete=True))


# --- TraceStore ----------------------------------------------------------------------------------


@_audits(TraceStore)
def audit_traces(space: Space) -> Iterator[Fault]:
    """Every trace has its index entries and no others, its parent, and the root of its parent's tree."""
    for fault in audit_entries(space, layout.TRACE, _record_of_trace, _entries_of_trace):
        if not fault.key.startswith(layout.SPAN_END):
            yield fault
    for key in space.keys(layout.SPAN_END):
        problem = _end_problem(space, key)
        if problem is not None:
            yield Fault(key, problem)
    for key in space.keys(layout.TRACE):
        try:
            record = decode_record(key[1:], read_record(space, key))
            problem = _family_problem(space, key[1:], record)
        except OccamError:
            continue  # reported above
        if problem is not None:
            yield Fault(key, problem)


def _record_of_trace(key: bytes) -> bytes | None:
    known = layout.TRACE_BY_KIND <= key[:1] <= layout.TRACE_BY_TIME and len(key) > layout.SUFFIX_SIZE
    return layout.trace(layout.suffix_id(key)) if known else None


def _entries_of_trace(key: bytes, stored: Any) -> set[bytes]:
    raw = key[1:]
    record = decode_record(raw, stored)
    decode_trace(raw, record, Names(_PLAIN))
    try:
        kind = record[KIND]
        name = record[FIELDS][0] if kind == CUSTOM else None
        return set(
            trace_entries(raw, kind, name, record[TIME], record[ROOT], record[PARENT], record[TAGS] or ())
        )
    except Exception as error:  # a record of any content, made into keys
        raise CorruptionError(f"trace {raw.hex()} has no index keys: {error}") from error


def _end_problem(space: Space, key: bytes) -> str | None:
    """What is wrong with the end of a span. Users' results are in it, so it is never mended."""
    raw = layout.suffix_id(key)
    if len(key) != len(layout.SPAN_END) + 2 * layout.ID_SIZE:
        return "a key that this version does not know"
    try:
        stored = read_record(space, layout.trace(raw))
        if stored is None:
            return f"the end of trace {raw.hex()}, which is not there"
        record = decode_record(raw, stored)
        if not record[FORM] & SPAN or layout.span_end(record[ROOT], raw) != key:
            return f"the end of trace {raw.hex()}, which does not call for it"
        decode_trace(raw, record, Names(_PLAIN), read_record(space, key))
    except OccamError as error:
        return f"unreadable: {error.message}"
    return None


def _family_problem(space: Space, raw: bytes, record: list[Any]) -> str | None:
    root, parent = record[ROOT], record[PARENT]
    if parent is None:
        return None if root == raw else f"trace {raw.hex()} has no parent but the root {root.hex()}"
    above = space.get(layout.trace(parent))
    if above is None:
        return f"trace {raw.hex()} has the parent {parent.hex()}, which is not there"
    if decode_record(parent, above)[ROOT] != root:
        return f"trace {raw.hex()} is not in the tree of its parent {parent.hex()}"
    return None


# --- RunIndex ------------------------------------------------------------------------------------


@_audits(RunIndex)
def audit_runs(space: Space) -> Iterator[Fault]:
    """Every run has its index entries and no others, its parent, and a status that agrees with its times."""
    whole = space.exists(layout.RUN_NAMES_WHOLE)
    for fault in audit_entries(space, layout.RUN, _record_of_run, _entries_of_run):
        if fault.key == layout.RUN_NAMES_WHOLE:
            continue
        # Runs that earlier versions wrote have no entry by name, and are found by a walk.
        of_a_name = (
            fault.key[:1] == layout.RUN_BY_NAME and fault.repair is not None and not fault.repair.delete
        )
        yield fault._replace(advisory=of_a_name and not whole)
    for key in space.keys(layout.RUN):
        try:
            record = read_record(space, key)
            run = decode_run(key[1:], record)
        except OccamError:
            continue  # reported above
        parent = record[RUN_PARENT]
        if parent is not None and not space.exists(layout.run(parent)):
            yield Fault(key, f"run {run.run_id} has the parent {run.parent_run_id}, which is not there")
        if run.status.is_finished and run.completed_at is None:
            yield Fault(key, f"run {run.run_id} is {run.status} without a time")
        if run.error is not None and run.status not in ("failed", "archived"):
            yield Fault(key, f"run {run.run_id} is {run.status} with an error")
    # Last: a repair puts the mark behind the entries that it vouches for.
    mark = layout.RUN_NAMES_WHOLE
    if not whole and any(True for _ in space.keys(layout.RUN, limit=1)):
        message = "the index by name is not complete: runs are found by name by a walk"
        yield Fault(mark, message, Repair(mark), advisory=True)


def _record_of_run(key: bytes) -> bytes | None:
    known = layout.RUN_BY_STATUS <= key[:1] <= layout.RUN_BY_NAME and len(key) > layout.SUFFIX_SIZE
    return layout.run(layout.suffix_id(key)) if known else None


def _entries_of_run(key: bytes, record: Any) -> set[bytes]:
    if len(key) != RECORD_KEY_SIZE:
        raise CorruptionError(f"{key.hex()} is not the key of a run")
    decode_run(key[1:], record)
    try:
        return run_entries(key[1:], record)
    except Exception as error:  # as for traces
        raise CorruptionError(f"run {key[1:].hex()} has no index keys: {error}") from error
