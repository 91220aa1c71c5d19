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
from enum import IntEnum, StrEnum

from ._records import CommitReceipt, VersionedValue
from .errors import InvalidArgumentError

__all__ = [
    "RESERVED_RUN",
    "CommitReceipt",
    "Durability",
    "Isolation",
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


class Durability(StrEnum):
    """What an acknowledged commit survives: a worker's death, that of every process, or power loss."""

    NONE = "none"
    STANDARD = "standard"
    ALWAYS = "always"


class TypeTag(IntEnum):
    """Which part of a run a key belongs to. 0x10 and up are free for later primitives."""

    KV = 0x01
    EVENT = 0x02
    STATE = 0x03
    TRACE = 0x04
    RUN = 0x05


def tag_of(number: int) -> TypeTag | int:
    """The named tag of a number, or the number itself for a later primitive's tag."""
    try:
        return TypeTag(number)
    except ValueError:
        return number


_HEX_TEXT = r"[0-9a-fA-F]{32}|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
# Bare, in braces, or as a URN: the forms that `uuid.UUID` documents.
_UUID_TEXT = re.compile(rf"(?:{_HEX_TEXT})|\{{(?:{_HEX_TEXT})\}}|urn:uuid:(?:{_HEX_TEXT})")


class RunId(uuid.UUID):
    """The id of a run: a UUID, time-ordered (version 7) when made here.

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
    def of(cls, run: RunId | uuid.UUID | str) -> RunId:
        """Take a run id in any form: a RunId (returned as it is), a `uuid.UUID`, or its text.

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
            hint = "pass a RunId, a uuid.UUID or the text of one; RunId.new() makes one"
            raise InvalidArgumentError(
                f"{run!r} is not the text of a UUID", hint=hint, details={"run_id": run}
            )
        raise InvalidArgumentError(
            f"a run is named by RunId, uuid.UUID or str, got {type(run).__name__}",
            hint="RunId.new() makes a run id",
            details={"type": type(run).__name__},
        )


# Where a namespace keeps what belongs to none of its runs. A database accepts this very object and no other id of
# the same bits: what users name is never it.
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
    # A fork while another thread holds the lock would leave it held in the child for ever.
    global _ticks_lock
    _ticks_lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)
