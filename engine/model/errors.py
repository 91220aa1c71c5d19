"""Every error that a user of occamdb can meet, and the records of what conflicted.

The engine and the primitives raise them in any process. Control frames and process pools carry them,
therefore:

1. Each class has one dotted `code`, which never changes and extends that of its base class. `retryable` says
   whether the same call may succeed when it is made again.
2. `details` holds only plain values (numbers, text, bytes, None); named attributes hold the same facts typed.
3. Every error survives pickling exactly: class, attributes, message and hint.

The conflicts, and the errors that carry them, are in `conflicts.py`, limits in `limit_errors.py`, and what only the
primitives raise in `primitive_errors.py`; those of coordinators and servers in `server_errors.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...ipc.errors import OccamError
from .conflicts import (
    CASConflict,
    Conflict,
    ConflictError,
    ReadConflict,
    RetriesExhausted,
    WriteConflict,
)
from .key_types import UserKey
from .limit_errors import (
    KeyTooLarge,
    LimitExceeded,
    StoreFullError,
    TooManyChannelsError,
    TransactionTooLarge,
    ValueTooLarge,
)
from .primitive_errors import (
    AlreadyExistsError,
    InvalidTransition,
    LeaseLost,
    NotFoundError,
    RunNotActive,
    StepFailed,
)
from .server_errors import CoordinatorUnavailable, ServerSetupError, ServerUnavailable, UnsupportedError

if TYPE_CHECKING:
    pass

__all__ = [
    "AlreadyExistsError",
    "BoundReached",
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
    "LeaseLost",
    "LimitExceeded",
    "LogWriteError",
    "MainModuleError",
    "NotAnIntegerError",
    "NotFoundError",
    "OccamError",
    "ProtocolError",
    "ReadConflict",
    "ReadOnlyError",
    "RetriesExhausted",
    "RunNotActive",
    "ServerSetupError",
    "ServerUnavailable",
    "SettingsError",
    "SettingsMismatchError",
    "SnapshotExpired",
    "StepFailed",
    "StoreFullError",
    "TooManyChannelsError",
    "TransactionStateError",
    "TransactionTimeout",
    "TransactionTooLarge",
    "UnsupportedError",
    "UserKey",
    "ValueEncodingError",
    "ValueTooLarge",
    "WatchLagged",
    "WriteConflict",
]

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

    def __init__(
        self,
        message: str,
        *,
        hint: str = "give it a longer timeout, or do less in it",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, hint=hint, details=details)


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


class WatchLagged(OccamError):
    """Changes that a watcher has not seen are not kept any longer.

    Attributes:
      since: every change up to this version was seen.
      oldest: a watch can go on from this version or a later one.
    """

    code = "occam.watch.lagged"
    default_hint = (
        "read the state from a snapshot, then watch with since=its version; a larger watch_history keeps more"
    )

    def __init__(self, message: str = "", *, since: int = 0, oldest: int = 0) -> None:
        super().__init__(
            message or f"changes after version {since} are no longer kept; those after version {oldest} are",
            details={"since": since, "oldest": oldest},
        )
        self.since = since
        self.oldest = oldest


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


class MainModuleError(InvalidArgumentError):
    """A program without `if __name__ == "__main__":` was run again by a process that it started. Nothing was opened."""

    code = "occam.argument.main_module"
    default_hint = 'put what starts processes below `if __name__ == "__main__":`'


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


def _value_of(key: str | None) -> str:
    return "stored value" if key is None else f"value of {key!r}"


class NotAnIntegerError(OccamError):
    """`increment` met a stored value that is not an integer; nothing was changed.

    Attributes:
      key: the user key.
    """

    code = "occam.value.not_an_integer"

    def __init__(
        self,
        message: str = "",
        *,
        key: str | None = None,
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
        key: str | None = None,
        hint: str = "integers are stored in 64 bits: -2**63 to 2**64 - 1",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        text = message or f"the increment would overflow the {_value_of(key)}"
        super().__init__(text, hint=hint, details={"key": key, **(details or {})})
        self.key = key


class BoundReached(OccamError):
    """An increment would pass its bound; nothing of the transaction was applied.

    Attributes:
      key: the user key.
      value: what the key holds; None when it is not known.
      by: what was to be added.
      at_most, at_least: the bounds; None: there is none on this side.
    """

    code = "occam.value.bound_reached"

    def __init__(
        self,
        message: str = "",
        *,
        key: str | None = None,
        value: int | None = None,
        by: int = 0,
        at_most: int | None = None,
        at_least: int | None = None,
        hint: str = "ask for less, or wait with kv.wait until others have given something back",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        bounds = [
            f"{name}={bound}"
            for name, bound in (("at_most", at_most), ("at_least", at_least))
            if bound is not None
        ]
        holds = "" if value is None else f", which is {value},"
        text = message or f"adding {by} to the {_value_of(key)}{holds} would pass {' or '.join(bounds)}"
        numbers = {"key": key, "value": value, "by": by, "at_most": at_most, "at_least": at_least}
        super().__init__(text, hint=hint, details={**numbers, **(details or {})})
        self.key = key
        self.value = value
        self.by = by
        self.at_most = at_most
        self.at_least = at_least


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


# --- Coordinator, log, files ---------------------------------------------------------------------


class DatabaseClosedError(OccamError):
    """The database handle was closed."""

    code = "occam.database.closed"

    def __init__(
        self,
        message: str = "the database is closed",
        *,
        hint: str = "open it again, and close it only when nothing uses it",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, hint=hint, details=details)


class ProtocolError(OccamError):
    """A message on a connection is damaged, or the two sides are different builds, or occamdb has a fault."""

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
