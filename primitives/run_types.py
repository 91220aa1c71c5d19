"""Runs: their status machine and their metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from ..engine.model.errors import CorruptionError, InvalidArgumentError, InvalidTransition
from ..engine.model.public_types import RunId
from .extension import from_microseconds
from .notebook import duration_text, facts_html, moment_text

__all__ = ["ALLOWED_TRANSITIONS", "RunMetadata", "RunStatus", "check_transition"]


class RunStatus(StrEnum):
    """Where a run is in its life; `ALLOWED_TRANSITIONS` says where it can go."""

    ACTIVE = "active"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    PAUSED = "paused"
    ARCHIVED = "archived"

    @classmethod
    def of(cls, status: RunStatus | str) -> RunStatus:
        """A status by itself or by its name in any case.

        Raises:
          InvalidArgumentError: there is no such status.
        """
        try:
            return cls(status.lower())
        except (ValueError, AttributeError):
            raise InvalidArgumentError(
                f"{status!r} is not a run status", hint=f"one of {', '.join(cls)}"
            ) from None

    @property
    def is_finished(self) -> bool:
        """Whether the run has an outcome: completed, failed or cancelled."""
        return self in _FINISHED


_FINISHED = frozenset((RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED))

ALLOWED_TRANSITIONS: Mapping[RunStatus, frozenset[RunStatus]] = MappingProxyType(
    {
        RunStatus.ACTIVE: frozenset(RunStatus) - {RunStatus.ACTIVE},
        RunStatus.PAUSED: frozenset((RunStatus.ACTIVE, RunStatus.CANCELLED, RunStatus.ARCHIVED)),
        RunStatus.COMPLETED: frozenset((RunStatus.ARCHIVED,)),
        RunStatus.FAILED: frozenset((RunStatus.ARCHIVED,)),
        RunStatus.CANCELLED: frozenset((RunStatus.ARCHIVED,)),
        RunStatus.ARCHIVED: frozenset(),
    }
)

# The numbers are stored, in records and in the keys of the status index: they never change.
STATUS_NUMBER = {
    RunStatus.ACTIVE: 1,
    RunStatus.COMPLETED: 2,
    RunStatus.FAILED: 3,
    RunStatus.CANCELLED: 4,
    RunStatus.PAUSED: 5,
    RunStatus.ARCHIVED: 6,
}
STATUS_NUMBERED = {number: status for status, number in STATUS_NUMBER.items()}


def check_transition(current: RunStatus, requested: RunStatus, run_id: RunId) -> None:
    """Refuse a change of status that is not in the table; staying the same is not in it either.

    Raises:
      InvalidTransition: names both and what is allowed.
    """
    allowed = ALLOWED_TRANSITIONS[current]
    if requested not in allowed:
        raise InvalidTransition(
            f"run {run_id} cannot go from {current} to {requested}",
            current=current.value,
            requested=requested.value,
            allowed=sorted(status.value for status in allowed),
            details={"run_id": str(run_id)},
        )


@dataclass(frozen=True, slots=True)
class RunMetadata:
    """What the index knows of a run.

    Attributes:
      run_id: to be used in every call that takes a run.
      name: for people; need not be unique.
      status: where it is in its life.
      parent_run_id: the run it belongs under, None for none.
      tags: in order and without repetition.
      metadata: a fresh dict.
      created_at, updated_at: of this record, by the clocks of the transactions that wrote it.
      completed_at: when it was completed, failed or cancelled; None before.
      error: what it failed with.
    """

    run_id: RunId
    name: str
    status: RunStatus
    parent_run_id: RunId | None
    tags: tuple[str, ...]
    metadata: dict[str, Any]
    created_at: datetime
    updated_at: datetime
    completed_at: datetime | None
    error: str | None

    def _repr_html_(self) -> str:
        ended, took = None, None
        if self.completed_at is not None:
            ended = moment_text(self.completed_at)
            took = duration_text((self.completed_at - self.created_at).total_seconds() * 1000)
        facts = {
            "run": str(self.run_id),
            "status": str(self.status),
            "error": self.error,
            "parent": self.parent_run_id,
            "tags": ", ".join(self.tags),
            "metadata": self.metadata or None,
            "created": moment_text(self.created_at),
            "ended": ended,
            "duration": took,
        }
        return facts_html(self.name or "run", facts)


# A stored record: [name, status, parent or None, tags, metadata, created, updated, completed or None, error or None];
# times in microseconds, ids as bytes.
NAME, STATUS, PARENT, TAGS, METADATA, CREATED, UPDATED, COMPLETED, ERROR = range(9)


def decode_run(raw_id: bytes, record: list[Any]) -> RunMetadata:
    """The metadata of a stored record.

    Raises:
      CorruptionError: the record is not one.
    """
    try:
        name, status, parent, tags, metadata, created, updated, completed, error = record
        return RunMetadata(
            RunId(bytes=raw_id),
            name,
            STATUS_NUMBERED[status],
            None if parent is None else RunId(bytes=parent),
            tuple(tags),
            metadata,
            from_microseconds(created),
            from_microseconds(updated),
            None if completed is None else from_microseconds(completed),
            error,
        )
    except (TypeError, ValueError, KeyError, OverflowError) as problem:
        raise CorruptionError(f"the metadata of run {raw_id.hex()} is unreadable: {problem}") from problem
