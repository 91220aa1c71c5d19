"""Stored runs: reading one, and replacing it together with its entries in every index.

Functions on the part of the reserved run that belongs to the run index.
"""

from __future__ import annotations

from typing import Any, cast

from ..engine.model.errors import InvalidArgumentError, NotFoundError, ValueEncodingError
from ..engine.model.public_types import RunId
from ..engine.transaction._transaction import Space
from . import layout
from .operations import RunLike
from .planner import Record
from .run_types import CREATED, ERROR, METADATA, NAME, PARENT, STATUS, TAGS, UPDATED, RunMetadata, decode_run
from .spans import error_text
from .trace_types import explain

__all__ = [
    "begin_names",
    "check_run_name",
    "existing_run",
    "not_in_index",
    "raw_run_id",
    "run_entries",
    "save_run",
    "with_field",
]


def raw_run_id(run_id: RunLike) -> bytes:
    """The bytes of a run's id.

    Raises:
      InvalidArgumentError: it is not a run id, or it is the reserved one.
    """
    raw = RunId.of(run_id).bytes
    if raw == layout.ZERO_ID:
        raise InvalidArgumentError(
            "the all-zero run id is reserved for the run index", hint="RunId.new() makes a run id"
        )
    return raw


def check_run_name(name: object) -> None:
    """Refuse a name that is not text.

    Raises:
      InvalidArgumentError: it is not.
    """
    if type(name) is not str:
        raise InvalidArgumentError(
            f"a run's name is str, got {type(name).__name__}", hint="run_id= names its id"
        )


def checked_run_error(error: object) -> str:
    """The text of an error that a run failed with.

    Raises:
      InvalidArgumentError: it is neither text nor an exception.
    """
    text = error_text(error) if isinstance(error, BaseException) else error
    if type(text) is not str:
        raise InvalidArgumentError(
            f"an error is text or an exception, got {type(error).__name__}",
            hint="fail_run(run_id, str(error))",
        )
    return text


def existing_run(space: Space, raw: bytes) -> Record:
    """The record of a run.

    Raises:
      NotFoundError: the index has no such run.
    """
    record: Record | None = space.get(layout.run(raw))
    if record is None:
        raise not_in_index(raw)
    return record


def not_in_index(raw: bytes) -> NotFoundError:
    """The error for a run that the index does not have."""
    run_id = str(RunId(bytes=raw))
    return NotFoundError(
        f"run {run_id} is not in the index",
        hint="create it with create_run(run_id=...), or look in its own namespace",
        details={"run_id": run_id},
    )


def with_field(record: Record, position: int, value: Any) -> Record:
    """A copy of a record with another value in one field."""
    changed = [*record]
    changed[position] = value
    return changed


def begin_names(space: Space) -> None:
    """Mark a new index as one whose runs all have entries by name. Called before a run is added."""
    if not space.exists(layout.RUN_NAMES_WHOLE) and not any(
        True for _ in space.keys(layout.RUN_BY_CREATION, limit=1)
    ):
        space.put(layout.RUN_NAMES_WHOLE, None)


def save_run(space: Space, raw: bytes, old: Record | None, new: Record | None, now_us: int) -> RunMetadata:
    """Replace a record and the index entries that differ.

    Args:
      old: the record that is stored now; None: there is none.
      new: the record to store; None: remove it.
      now_us: the time of the change.

    Returns:
      The metadata of `new`; of `old` when it was removed.

    Raises:
      ValueEncodingError: the metadata cannot be stored. Nothing was written.
    """
    before = run_entries(raw, old) if old is not None else set()
    if new is None:
        for key in sorted(before):
            space.delete(key)
        space.delete(layout.run(raw))
        return decode_run(raw, cast(Record, old))
    if old is not None:
        new = with_field(new, UPDATED, now_us)
    after = run_entries(raw, new)
    try:
        # First, so that a caller who catches the error and commits has written no part of the change.
        space.put(layout.run(raw), new)
    except ValueEncodingError:
        explain({"name": new[NAME], "metadata": new[METADATA], "error": new[ERROR]}, space.codec)
        raise
    for key in sorted(before - after):
        space.delete(key)
    for key in sorted(after - before):
        space.put(key, None)
    return decode_run(raw, new)


def run_entries(raw: bytes, record: Record) -> set[bytes]:
    """The keys of all index entries of a record."""
    suffix = layout.run_suffix(record[CREATED], raw)
    prefixes = [
        layout.RUN_BY_CREATION,
        layout.runs_with_status(record[STATUS]),
        layout.runs_under(record[PARENT] or layout.ZERO_ID),
        layout.runs_named(record[NAME]),
        *(layout.runs_tagged(tag) for tag in record[TAGS]),
    ]
    return {prefix + suffix for prefix in prefixes}
