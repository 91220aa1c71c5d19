"""Conflicts of a commit: the records, and the errors that carry them.

`except ConflictError` catches everything that means "another transaction was first": a refused commit, a
failed compare-and-swap and exhausted retries. `CASConflict` is both the record of a failed CAS in
`ConflictError.conflicts` and the exception that a single compare-and-swap raises; its own `conflicts` holds
only itself. Import all of them from `errors`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from uuid import UUID

from ...ipc.errors import OccamError
from .key_types import TypeTag


@dataclass(frozen=True, slots=True)
class ReadConflict:
    """A key, or a scanned range, that was read and then written by another transaction.

    Attributes:
      key: the user key; for a range its start.
      expected_version: the version that was read (0: absent); for a range the transaction's start version.
      found_version: the version now (0: absent, or unknown for a range).
      range: (start, end) of the scan, both user keys, end None when it ran to the end; None for a single key.
      run_id: the run of the key, when known.
      tag: which part of the run the key belongs to, when known.
    """

    key: str
    expected_version: int
    found_version: int
    range: tuple[str, str | None] | None = None
    run_id: UUID | None = None
    tag: TypeTag | int | None = None

    def __str__(self) -> str:
        if self.range is not None:
            start, end = self.range
            upto = "the end" if end is None else repr(end)
            what = f"range {start!r} to {upto}"
            return f"{what} was written after version {self.expected_version}{_place(self)}"
        return f"read of {self.key!r}: {_versions(self)}{_place(self)}"


@dataclass(frozen=True, slots=True)
class WriteConflict:
    """A key to be written that another transaction wrote or deleted after this one's snapshot.

    Deleting a range, a whole run for example, counts as a write of every possible key in it: it conflicts
    with a key that was never there, and also with an increment or a CAS that expects absence.

    Attributes:
      key: the user key.
      expected_version: the transaction's start version: nothing newer was allowed.
      found_version: the version of the newer write, or of the deletion of a range.
      run_id: the run of the key, when known.
      tag: which part of the run the key belongs to, when known.
    """

    key: str
    expected_version: int
    found_version: int
    run_id: UUID | None = None
    tag: TypeTag | int | None = None

    def __str__(self) -> str:
        seen, now = self.expected_version, self.found_version
        return f"write of {self.key!r}: written or deleted at version {now}, after the snapshot at {seen}{_place(self)}"


class ConflictError(OccamError):
    """Another transaction committed first; nothing of this one was applied.

    Attributes:
      conflicts: what conflicted, up to 16 records.
      conflicts_found: how many there were in all.
    """

    code = "occam.conflict"
    retryable = True

    def __init__(
        self,
        message: str = "",
        *,
        conflicts: Sequence[Conflict] = (),
        conflicts_found: int = 0,
        hint: str = "run the transaction again on a fresh snapshot, as db.transaction(run_id, fn) does",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        records = tuple(conflicts)
        found = max(conflicts_found, len(records))
        merged = {"conflicts_found": found, **(details or {})}
        super().__init__(message or _summary(records, found), hint=hint, details=merged)
        self._conflicts = records
        self.conflicts_found = found

    @property
    def conflicts(self) -> tuple[Conflict, ...]:
        """The conflicts found, at most 16 of them."""
        return self._conflicts


class CASConflict(ConflictError):
    """A compare-and-swap met another version than the expected one.

    It compares, hashes and matches (`case CASConflict(key, expected, found)`) by its fields, as other records
    do. It is not retryable: the same expected version fails again. Read the current version first.

    Attributes:
      key: the user key, or the name of the cell.
      expected_version: the version the caller named (0: it was to be created).
      found_version: the current version (0: absent).
      run_id: the run of the key, when known.
      tag: which part of the run the key belongs to, when known.
    """

    code = "occam.conflict.cas"
    retryable = False
    __match_args__ = ("key", "expected_version", "found_version")

    def __init__(
        self,
        key: str,
        expected_version: int,
        found_version: int,
        run_id: UUID | None = None,
        tag: TypeTag | int | None = None,
        *,
        hint: str = "read the current version and decide again with it",
    ) -> None:
        self.key = key
        self.expected_version = expected_version
        self.found_version = found_version
        self.run_id = run_id
        self.tag = tag
        details = {"key": key, "expected_version": expected_version, "found_version": found_version}
        message = f"cas of {key!r}: {_versions(self)}{_place(self)}"
        super().__init__(message, conflicts_found=1, hint=hint, details=details)

    @property
    def conflicts(self) -> tuple[Conflict, ...]:
        """A tuple of this conflict alone."""
        return (self,)

    def _fields(self) -> tuple[object, ...]:
        return (self.key, self.expected_version, self.found_version, self.run_id, self.tag)

    def __eq__(self, other: object) -> bool:
        return self._fields() == other._fields() if type(other) is CASConflict else NotImplemented

    def __hash__(self) -> int:
        return hash(self._fields())

    def __repr__(self) -> str:
        names = ("key", "expected_version", "found_version", "run_id", "tag")
        return f"CASConflict({', '.join(f'{n}={v!r}' for n, v in zip(names, self._fields(), strict=True))})"


Conflict: TypeAlias = ReadConflict | WriteConflict | CASConflict


class RetriesExhausted(ConflictError):
    """The transaction conflicted on every attempt its retry policy allowed.

    Attributes:
      conflicts: those of the last attempt.
      attempts: how many were made.
    """

    code = "occam.conflict.retries_exhausted"
    retryable = False

    def __init__(
        self,
        message: str = "",
        *,
        attempts: int = 0,
        conflicts: Sequence[Conflict] = (),
        conflicts_found: int = 0,
        hint: str = "write fewer shared keys per transaction, use increment or cas for counters, "
        "or raise RetryPolicy.max_attempts",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        records = tuple(conflicts)
        if not message:
            message = f"gave up after {attempts} attempts; the last one: {_summary(records, conflicts_found)}"
        merged = {"attempts": attempts, **(details or {})}
        super().__init__(
            message, conflicts=records, conflicts_found=conflicts_found, hint=hint, details=merged
        )
        self.attempts = attempts


def _place(conflict: Conflict) -> str:
    parts = []
    if conflict.tag is not None:
        parts.append(getattr(conflict.tag, "name", f"tag {conflict.tag:#04x}"))
    if conflict.run_id is not None:
        parts.append(f"run {conflict.run_id}")
    return f" ({', '.join(parts)})" if parts else ""


def _versions(conflict: Conflict) -> str:
    expected, found = conflict.expected_version, conflict.found_version
    wanted = f"expected version {expected}" if expected else "expected it to be absent"
    return f"{wanted}, found {f'version {found}' if found else 'it absent'}"


def _summary(records: tuple[Conflict, ...], found: int) -> str:
    if not records:
        return "another transaction committed first"
    more = max(found, len(records)) - 1
    first = records[0]
    text = first.message if isinstance(first, CASConflict) else str(first)
    return f"{text}; and {more} more" if more else text
