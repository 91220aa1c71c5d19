"""Small public types shared by the whole engine and the primitives: enums, RunId, and the compiled records.

`VersionedValue` and `CommitReceipt` are compiled (see `_records.pyx`): one is made for every read or commit.
Their times are kept as integer nanoseconds since the epoch (`timestamp_ns`, `expires_at_ns`,
`committed_at_ns`; expiry 0 is never); the plain names (`timestamp`, `expires_at`, `committed_at`) are
properties that give aware UTC datetimes, cut to the microsecond, None for never.
"""

from __future__ import annotations

import os
import re
import threading
import time
import uuid
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, Protocol, TypeAlias

from ._records import CommitReceipt, VersionedValue
from .errors import InvalidArgumentError
from .key_types import TypeTag, tag_of

__all__ = [
    "RESERVED_RUN",
    "BackupSummary",
    "CommitReceipt",
    "Durability",
    "HasRunId",
    "Isolation",
    "IsolationName",
    "RunId",
    "TransactionStatus",
    "TypeTag",
    "VersionedValue",
    "tag_of",
]


class TransactionStatus(StrEnum):
    """Where a transaction is in its life: ACTIVE, VALIDATING, then COMMITTED or ABORTED for good."""

    ACTIVE = "active"
    VALIDATING = "validating"
    COMMITTED = "committed"
    ABORTED = "aborted"


class Isolation(StrEnum):
    """What a commit checks: SERIALIZABLE reads, scans, writes and CAS; SNAPSHOT writes and CAS only."""

    SERIALIZABLE = "serializable"
    SNAPSHOT = "snapshot"


IsolationName: TypeAlias = Isolation | Literal["serializable", "snapshot"]


class Durability(StrEnum):
    """What an acknowledged commit survives.

    NONE: the death of a worker. STANDARD: the death of every process. ALWAYS: a power loss too.
    """

    NONE = "none"
    STANDARD = "standard"
    ALWAYS = "always"


_HEX_TEXT = r"[0-9a-fA-F]{32}|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
# Bare, in braces, or as a URN: the forms that `uuid.UUID` documents.
_UUID_TEXT = re.compile(rf"(?:{_HEX_TEXT})|\{{(?:{_HEX_TEXT})\}}|urn:uuid:(?:{_HEX_TEXT})")


# `RunId.named` hashes this with the name. It never changes: ids that are in use were made with it.
_NAMED = uuid.UUID("6f1c9a52-3c0e-5d8b-9b64-0c5a4f0d7a11")


class HasRunId(Protocol):
    """An object that names a run, such as the `RunMetadata` that the run index gives."""

    @property
    def run_id(self) -> RunId:
        """The run."""


class RunId(uuid.UUID):
    """The id of a run: a UUID, time-ordered (version 7) when made by `new`, of version 5 when made by
    `named`.

    Equal to, and hashing like, the `uuid.UUID` of the same bits. Immutable, pickles.
    """

    __slots__ = ()

    @classmethod
    def new(cls) -> RunId:
        """Make a run id that sorts after every other one this process made.

        The first 60 bits are the time in units of a 4096th of a millisecond (at least one more than the
        last), the rest is random, so ids of several processes sort by time to within their clocks.
        """
        ticks = _next_ticks()
        random_bits = int.from_bytes(os.urandom(8), "big") & ((1 << 62) - 1)
        # RFC 9562 version 7: 48 bits of milliseconds, version, 12 bits of fraction, variant, 62 random bits.
        number = (ticks >> 12) << 80 | 0x7 << 76 | (ticks & 0xFFF) << 64 | 0b10 << 62 | random_bits
        return cls(int=number)

    @classmethod
    def named(cls, name: str) -> RunId:
        """The id that belongs to a name: the same in every process, today and later.

        Each namespace of a database has runs of its own, so one name means a different run in each of them
        although the id is the same.

            run = RunId.named("thread-42")
            db.kv.put(run, "step", 1)

        Raises:
          InvalidArgumentError: the name is not text, is empty, or holds lone surrogates.
        """
        if not isinstance(name, str) or not name:
            raise InvalidArgumentError(
                f"the name of a run is text with at least one character, got {name!r}",
                hint='RunId.named("thread-42"); RunId.new() makes an id without a name',
            )
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise InvalidArgumentError(
                f"the name of a run is not valid Unicode: {error.reason} in {name!a}",
                hint="use text without lone surrogates",
            ) from None
        return cls(int=uuid.uuid5(_NAMED, name).int)

    @classmethod
    def of(cls, run: RunId | uuid.UUID | str | HasRunId) -> RunId:
        """Take a run id in any form: a RunId (returned as it is), a `uuid.UUID`, its text, or a
        `RunMetadata`.

            assert RunId.of(str(run)) == run

        Raises:
          InvalidArgumentError: another type, or text that is no UUID.
        """
        if type(run) is cls:
            return run
        if isinstance(run, uuid.UUID):
            return cls(int=run.int)
        if isinstance(run, str):
            # `uuid.UUID` also takes spaces, signs and underscores, and hyphens anywhere.
            if _UUID_TEXT.fullmatch(run):
                return cls(run)
            hint = f"RunId.named({run!r}) is the run of that name; RunId.new() makes a new id"
            raise InvalidArgumentError(
                f"{run!r} is not the text of a UUID", hint=hint, details={"run_id": run}
            )
        about = getattr(run, "run_id", None)
        if isinstance(about, uuid.UUID):
            return cls.of(about)
        raise InvalidArgumentError(
            f"a run is named by RunId, uuid.UUID, str or RunMetadata, got {type(run).__name__}",
            hint="RunId.new() makes a run id",
            details={"type": type(run).__name__},
        )


# The run in which a namespace keeps what belongs to none of its runs. A database accepts only this object,
# and refuses another id of the same bits, so a user cannot name it.
RESERVED_RUN = RunId(int=0)


_ticks_lock = threading.Lock()
_ticks_last = 0


def _next_ticks() -> int:
    """The clock in 4096ths of a millisecond, made strictly increasing within the process."""
    global _ticks_last
    now_ns = time.time_ns()
    ticks = (now_ns // 1_000_000) << 12 | ((now_ns % 1_000_000) << 12) // 1_000_000
    with _ticks_lock:
        _ticks_last = ticks = max(ticks, _ticks_last + 1)
    return ticks


def _renew_lock() -> None:
    # If another thread holds the lock during a fork, it would stay locked in the child for ever.
    global _ticks_lock
    _ticks_lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


@dataclass(frozen=True, slots=True)
class BackupSummary:
    """What `Database.backup` wrote.

    Attributes:
      version: of the snapshot that was copied.
      rows: how many keys there are, index entries included.
      size: bytes on disk.
      seconds: how long it took.
    """

    version: int
    rows: int
    size: int
    seconds: float
