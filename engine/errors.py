"""Every error a user of occamdb can meet, and the records that say what conflicted.

Raised by the engine and the primitives, in any process; control frames and process pools carry them, so:

1. Each class has one dotted `code` that never changes and extends that of the class above it; `retryable`
   says whether the same call may succeed when simply made again.
2. `details` holds only plain values (numbers, text, bytes, None); named attributes hold the same facts typed.
3. Every error survives pickling exactly: class, attributes, message and hint.

`except ConflictError` catches everything that means "somebody else was first": a refused commit, a failed
compare-and-swap and exhausted retries. `CASConflict` is both: the record of a failed CAS in
`ConflictError.conflicts`, and the exception a single compare-and-swap raises (`.conflicts` is then itself
alone).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from ..ipc.errors import OccamError

if TYPE_CHECKING:
    from uuid import UUID

    from .types import TypeTag

__all__ = [
    "AlreadyExistsError",
    "CASConflict",
    "CommitOutcomeUnknown",
    "Conflict",
    "ConflictError",
    "CoordinatorUnavailable",
    "CorruptionError",
    "DatabaseClosedError",
    "ForkedHandleError",
    "IncompatibleFormatError",
    "IntegerOverflowError",
    "InvalidArgumentError",
    "InvalidKeyError",
    "InvalidTransition",
    "KeyTooLarge",
    "LimitExceeded",
    "LogWriteError",
    "NotAnIntegerError",
    "NotFoundError",
    "OccamError",
    "ProtocolError",
    "ReadConflict",
    "ReadOnlyError",
    "RetriesExhausted",
    "SettingsError",
    "SettingsMismatchError",
    "SnapshotExpired",
    "StoreFullError",
    "TooManyChannelsError",
    "TransactionStateError",
    "TransactionTimeout",
    "TransactionTooLarge",
    "ValueEncodingError",
    "ValueTooLarge",
    "WriteConflict",
]

UserKey: TypeAlias = str | bytes


# --- Conflicts -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReadConflict:
    """A key, or a scanned range, that was read and then written by somebody else.

    Attributes:
      key: the user key; for a range its start.
      expected_version: the version that was read (0: absent); for a range the transaction's start version.
      found_version: the version now (0: absent, or unknown for a range).
      range: (start, end) of the scan, both user keys, end None when it ran to the end; None for a single key.
      run_id: the run of the key, when known.
      tag: which part of the run the key belongs to, when known.
    """

    key: UserKey
    expected_version: int
    found_version: int
    range: tuple[UserKey, UserKey | None] | None = None
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
    """A key to be written that somebody else wrote after the transaction's snapshot.

    Attributes:
      key: the user key.
      expected_version: the transaction's start version: nothing newer was allowed.
      found_version: the version of the newer write.
      run_id: the run of the key, when known.
      tag: which part of the run the key belongs to, when known.
    """

    key: UserKey
    expected_version: int
    found_version: int
    run_id: UUID | None = None
    tag: TypeTag | int | None = None

    def __str__(self) -> str:
        seen, now = self.expected_version, self.found_version
        return f"write of {self.key!r}: written at version {now}, after the snapshot at {seen}{_place(self)}"


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

    Compares, hashes and matches (`case CASConflict(key, expected, found)`) by its fields, as other records
    do.
    Not retryable as it stands: the same expected version fails again; read the current version first.

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
        key: UserKey,
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
        """Itself alone."""
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


# --- Transactions --------------------------------------------------------------------------------


class TransactionStateError(OccamError):
    """The transaction, or the handle, is not in a state that allows this call."""

    code = "occam.transaction.state"


class ReadOnlyError(TransactionStateError):
    """A write was asked of a read-only transaction or snapshot."""

    code = "occam.transaction.state.read_only"


class TransactionTimeout(OccamError):
    """The deadline passed before the transaction committed; it did not and will not commit."""

    code = "occam.transaction.timeout"
    retryable = True


class CommitOutcomeUnknown(OccamError):
    """No coordinator came back in time to say whether the commit happened; it may have.

    Attributes:
      txn_id: (session id, sequence), None when unknown.
    """

    code = "occam.commit.outcome_unknown"

    def __init__(
        self,
        message: str,
        *,
        txn_id: tuple[int, int] | None = None,
        hint: str = "read what the transaction would have written before doing it again",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, hint=hint, details={"txn_id": txn_id, **(details or {})})
        self.txn_id = txn_id


class SnapshotExpired(OccamError):
    """The snapshot was revoked: it was held too long, or it kept a full store full."""

    code = "occam.snapshot.expired"
    retryable = True

    def __init__(
        self,
        message: str = "the snapshot is no longer readable",
        *,
        hint: str = "begin again on a fresh snapshot; raise snapshot_max_age for long reads",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, hint=hint, details=details)


class ForkedHandleError(OccamError):
    """A transaction or snapshot made before a fork was touched in the child."""

    code = "occam.handle.forked"

    def __init__(
        self,
        message: str = "this handle belongs to the parent process",
        *,
        hint: str = "begin a new transaction in the child; the database itself attaches anew",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, hint=hint, details=details)


# --- Arguments, keys, values ---------------------------------------------------------------------


class InvalidArgumentError(OccamError, ValueError):
    """An argument has the wrong type or a value outside its range."""

    code = "occam.argument"


class InvalidKeyError(InvalidArgumentError):
    """The key is empty, of the wrong type, or cannot be encoded."""

    code = "occam.argument.key"


class ValueEncodingError(InvalidArgumentError):
    """A value holds something that cannot be stored.

    Attributes:
      path: where in the value, such as `value["a"][3]`.
    """

    code = "occam.argument.value"

    def __init__(
        self, message: str, *, path: str = "value", hint: str = "", details: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message, hint=hint, details={"path": path, **(details or {})})
        self.path = path


def _value_of(key: UserKey | None) -> str:
    return "stored value" if key is None else f"value of {key!r}"


class NotAnIntegerError(OccamError):
    """`increment` met a stored value that is no integer; nothing was changed.

    Attributes:
      key: the user key.
    """

    code = "occam.value.not_an_integer"

    def __init__(
        self,
        message: str = "",
        *,
        key: UserKey | None = None,
        hint: str = "increment works on integers and absent keys only",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        text = message or f"the {_value_of(key)} is not an integer"
        super().__init__(text, hint=hint, details={"key": key, **(details or {})})
        self.key = key


class IntegerOverflowError(OccamError):
    """An integer would leave -2**63 .. 2**64 - 1; nothing was changed.

    Attributes:
      key: the user key.
    """

    code = "occam.value.integer_overflow"

    def __init__(
        self,
        message: str = "",
        *,
        key: UserKey | None = None,
        hint: str = "integers are stored in 64 bits: -2**63 to 2**64 - 1",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        text = message or f"the increment would overflow the {_value_of(key)}"
        super().__init__(text, hint=hint, details={"key": key, **(details or {})})
        self.key = key


class SettingsError(InvalidArgumentError):
    """A setting has an unknown name, the wrong type, or a value outside its range.

    Attributes:
      setting: its name.
    """

    code = "occam.argument.setting"

    def __init__(
        self, message: str, *, setting: str = "", hint: str = "", details: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message, hint=hint, details={"setting": setting, **(details or {})})
        self.setting = setting


class SettingsMismatchError(SettingsError):
    """The running coordinator has other settings than the ones asked for at `open`."""

    code = "occam.argument.setting.mismatch"


# --- Limits --------------------------------------------------------------------------------------


class LimitExceeded(OccamError):
    """Something is larger than its limit.

    Attributes:
      size: what was asked for, in bytes (a count for channels).
      limit: the most allowed.
      setting: the name of the setting that holds the limit.
    """

    code = "occam.limit"
    thing = "this"
    unit = "bytes"
    default_setting = ""

    def __init__(
        self,
        message: str = "",
        *,
        size: int = 0,
        limit: int = 0,
        setting: str = "",
        hint: str = "",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        name = setting or self.default_setting
        text = message or f"{self.thing} is {size:,} {self.unit}, more than the limit of {limit:,} ({name})"
        advice = hint or (f"make it smaller, or raise {name} when opening" if name else "make it smaller")
        merged = {"size": size, "limit": limit, "setting": name, **(details or {})}
        super().__init__(text, hint=advice, details=merged)
        self.size = size
        self.limit = limit
        self.setting = name


class KeyTooLarge(LimitExceeded):
    """A key is longer than `key_size_max`."""

    code = "occam.limit.key"
    thing = "the key"
    default_setting = "key_size_max"


class ValueTooLarge(LimitExceeded):
    """An encoded value is larger than `value_size_max`."""

    code = "occam.limit.value"
    thing = "the encoded value"
    default_setting = "value_size_max"


class TransactionTooLarge(LimitExceeded):
    """A transaction's keys and values together exceed `transaction_size_max`."""

    code = "occam.limit.transaction"
    thing = "the transaction"
    default_setting = "transaction_size_max"


class TooManyChannelsError(LimitExceeded):
    """The coordinator serves as many connections as `channel_count_max` allows."""

    code = "occam.limit.channels"
    thing = "the number of connections"
    unit = "channels"
    default_setting = "channel_count_max"


class StoreFullError(LimitExceeded):
    """The store, or the machine's shared memory behind it, is full; the commit changed nothing."""

    code = "occam.limit.store"
    thing = "the store"
    default_setting = "max_store_size"

    def __init__(
        self,
        message: str = "",
        *,
        size: int = 0,
        limit: int = 0,
        setting: str = "max_store_size",
        hint: str = "delete data, close long-lived snapshots (db.stats() shows what they hold back), "
        "or raise max_store_size",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        text = message or (
            f"the store is full: its size is {limit:,} bytes" if limit else "the store is full"
        )
        super().__init__(text, size=size, limit=limit, setting=setting, hint=hint, details=details)


# --- Coordinator, log, files ---------------------------------------------------------------------


class CoordinatorUnavailable(OccamError):
    """No coordinator answers for this directory, and none could be started in time; nothing was committed."""

    code = "occam.coordinator.unavailable"
    retryable = True


class DatabaseClosedError(OccamError):
    """The database handle was closed."""

    code = "occam.database.closed"


class ProtocolError(OccamError):
    """The two sides of a connection do not understand one another: a damaged frame, or a fault in occamdb."""

    code = "occam.protocol"


class LogWriteError(OccamError):
    """The write-ahead log could not be written or synced; the commit changed nothing.

    Attributes:
      errno: the system's error number, 0 when unknown.
    """

    code = "occam.log.write"

    def __init__(
        self,
        message: str,
        *,
        errno: int = 0,
        hint: str = "free space on the log's file system; after a failed sync, restart the coordinator",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, hint=hint, details={"errno": errno, **(details or {})})
        self.errno = errno


class CorruptionError(OccamError):
    """Stored bytes are damaged. Nothing was changed on disk.

    Attributes:
      file: where, "" when not in a file.
      offset: the byte position in it, None when unknown.
      expected: what should have been there.
    """

    code = "occam.corruption"

    def __init__(
        self,
        message: str,
        *,
        file: str = "",
        offset: int | None = None,
        expected: str = "",
        hint: str = "run `occamdb check`; restore a backup, or salvage with `occamdb check --repair`",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        merged = {"file": file, "offset": offset, "expected": expected, **(details or {})}
        super().__init__(message, hint=hint, details=merged)
        self.file = file
        self.offset = offset
        self.expected = expected


class IncompatibleFormatError(OccamError):
    """The files, or the running coordinator, use a format version that this build does not.

    Attributes:
      found: the version met, None when unreadable.
      supported: the version this build writes.
    """

    code = "occam.format.incompatible"

    def __init__(
        self,
        message: str,
        *,
        found: int | None = None,
        supported: int | None = None,
        hint: str = "use the occamdb version that wrote it",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            message, hint=hint, details={"found": found, "supported": supported, **(details or {})}
        )
        self.found = found
        self.supported = supported


# --- What the primitives raise -------------------------------------------------------------------


class InvalidTransition(OccamError):
    """A change of status that the state machine does not allow.

    Attributes:
      current: the status it is in.
      requested: the status asked for.
      allowed: the ones it may change to.
    """

    code = "occam.transition.invalid"

    def __init__(
        self,
        message: str = "",
        *,
        current: str = "",
        requested: str = "",
        allowed: Sequence[str] = (),
        hint: str = "",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        names = tuple(allowed)
        text = message or f"cannot go from {current} to {requested}"
        can = f"from {current} it can only become {', '.join(names)}" if names else f"{current} is final"
        merged = {"current": current, "requested": requested, "allowed": list(names), **(details or {})}
        super().__init__(text, hint=hint or can, details=merged)
        self.current = current
        self.requested = requested
        self.allowed = names


class NotFoundError(OccamError):
    """What the call needs does not exist."""

    code = "occam.not_found"


class AlreadyExistsError(OccamError):
    """What the call would create is already there."""

    code = "occam.already_exists"
