"""occamdb: Optimistic Concurrency Control for Agent Memory.

A database that many processes on one machine share through memory; see README.md.
"""

from .engine.database import Database
from .engine.errors import (
    AlreadyExistsError,
    CASConflict,
    CommitOutcomeUnknown,
    ConflictError,
    CoordinatorUnavailable,
    CorruptionError,
    DatabaseClosedError,
    ForkedHandleError,
    IncompatibleFormatError,
    IntegerOverflowError,
    InvalidArgumentError,
    InvalidKeyError,
    InvalidTransition,
    KeyTooLarge,
    LimitExceeded,
    LogWriteError,
    NotAnIntegerError,
    NotFoundError,
    OccamError,
    ReadConflict,
    ReadOnlyError,
    RetriesExhausted,
    SettingsError,
    SettingsMismatchError,
    SnapshotExpired,
    StoreFullError,
    TooManyChannelsError,
    TransactionStateError,
    TransactionTimeout,
    TransactionTooLarge,
    ValueEncodingError,
    ValueTooLarge,
    WriteConflict,
)
from .engine.extensions import register_extension
from .engine.keys import Namespace
from .engine.limits import Limits
from .engine.opening import open_database as open
from .engine.opening import open_in_memory
from .engine.retry import RetryPolicy
from .engine.settings import Settings
from .engine.snapshot import ClonedSnapshotView, SharedSnapshotView, SnapshotView
from .engine.transaction import Transaction
from .engine.types import CommitReceipt, RunId, TransactionStatus, TypeTag, VersionedValue

__version__ = "0.1.0"

__all__ = [
    "AlreadyExistsError",
    "CASConflict",
    "ClonedSnapshotView",
    "CommitOutcomeUnknown",
    "CommitReceipt",
    "ConflictError",
    "CoordinatorUnavailable",
    "CorruptionError",
    "Database",
    "DatabaseClosedError",
    "ForkedHandleError",
    "IncompatibleFormatError",
    "IntegerOverflowError",
    "InvalidArgumentError",
    "InvalidKeyError",
    "InvalidTransition",
    "KeyTooLarge",
    "LimitExceeded",
    "Limits",
    "LogWriteError",
    "Namespace",
    "NotAnIntegerError",
    "NotFoundError",
    "OccamError",
    "ReadConflict",
    "ReadOnlyError",
    "RetriesExhausted",
    "RetryPolicy",
    "RunId",
    "Settings",
    "SettingsError",
    "SettingsMismatchError",
    "SharedSnapshotView",
    "SnapshotExpired",
    "SnapshotView",
    "StoreFullError",
    "TooManyChannelsError",
    "Transaction",
    "TransactionStateError",
    "TransactionStatus",
    "TransactionTimeout",
    "TransactionTooLarge",
    "TypeTag",
    "ValueEncodingError",
    "ValueTooLarge",
    "VersionedValue",
    "WriteConflict",
    "open",
    "open_in_memory",
    "register_extension",
]
