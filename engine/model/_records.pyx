"""The records that reads and commits return. They are compiled, because each read or commit makes one.

Python code cannot change them. They hold times as nanoseconds since the epoch and make datetimes on request.
"""

cimport cython
from cpython.datetime cimport datetime, import_datetime, timedelta

from ...ipc._atomics cimport i64, u64

from datetime import timezone

import_datetime()

cdef object EPOCH = datetime(1970, 1, 1, 0, 0, 0, 0, timezone.utc)


cdef object moment_of(i64 ns):
    """An aware UTC datetime, cut to the microsecond."""
    cdef i64 us = ns // 1000 - (1 if ns % 1000 < 0 else 0)
    return EPOCH + timedelta(microseconds=us)


cdef i64 ns_of(object moment, str name) except? -1:
    """Nanoseconds of an int (taken as they are), an aware datetime, or None (0)."""
    if moment is None:
        return 0
    if type(moment) is int:
        return <i64>moment
    if isinstance(moment, datetime) and moment.tzinfo is not None:
        delta = moment - EPOCH
        # Python integers, so that a moment beyond the years 1677 to 2262 is an OverflowError.
        return ((<object>delta).days * 86400 + (<object>delta).seconds) * 1000000000 + (<object>delta).microseconds * 1000
    raise TypeError(f"{name} is nanoseconds since the epoch or an aware datetime, got {moment!r}")


@cython.final
@cython.freelist(64)
cdef class VersionedValue:
    """A value with the version that wrote it.

    Attributes:
      value: a fresh object; changing it changes nothing in the store.
      version: of the commit that wrote it; 0 for one of the transaction's own writes, not committed yet.
      timestamp_ns: when it was written, in nanoseconds since the epoch, by the coordinator's clock.
      expires_at_ns: when it expires, likewise; 0 never.
      session: of the open database that the key lives as long as (`Database.session`); 0: it is not ephemeral.
    """

    def __init__(self, value, u64 version, timestamp=0, expires_at=None, u64 session=0):
        """Times as nanoseconds since the epoch or aware datetimes."""
        self.value = value
        self.version = version
        self.timestamp_ns = ns_of(timestamp, "timestamp")
        self.expires_at_ns = ns_of(expires_at, "expires_at")
        self.session = session

    @property
    def timestamp(self):
        """When it was written: an aware UTC datetime."""
        return moment_of(self.timestamp_ns)

    @property
    def expires_at(self):
        """When it expires: an aware UTC datetime, None for never."""
        return moment_of(self.expires_at_ns) if self.expires_at_ns else None

    @property
    def ephemeral(self):
        """Whether the key goes when the open database that wrote it does."""
        return self.session != 0

    def __eq__(self, other):
        if type(other) is not VersionedValue:
            return NotImplemented
        cdef VersionedValue that = <VersionedValue>other
        return (self.version == that.version and self.timestamp_ns == that.timestamp_ns
                and self.expires_at_ns == that.expires_at_ns and self.session == that.session and self.value == that.value)

    def __hash__(self):
        # Without the value, which may be a list or dict.
        return hash((self.version, self.timestamp_ns, self.expires_at_ns))

    def __repr__(self):
        until = f", expires_at={self.expires_at.isoformat()}" if self.expires_at_ns else ""
        if self.session:
            until += f", session={self.session}"
        return (f"VersionedValue({self.value!r}, version={self.version}, "
                f"timestamp={self.timestamp.isoformat()}{until})")

    def __reduce__(self):
        return VersionedValue, (self.value, self.version, self.timestamp_ns, self.expires_at_ns, self.session)

    __match_args__ = ("value", "version", "timestamp", "expires_at")


cdef VersionedValue make_versioned(object value, u64 version, i64 timestamp_ns, i64 expires_at_ns, u64 session):
    cdef VersionedValue record = VersionedValue.__new__(VersionedValue)
    record.value = value
    record.version = version
    record.timestamp_ns = timestamp_ns
    record.expires_at_ns = expires_at_ns
    record.session = session
    return record


@cython.final
@cython.freelist(16)
cdef class CommitReceipt:
    """The result of a commit.

    Attributes:
      version: the version of everything it wrote; for a read-only transaction, the one it read at.
      committed_at_ns: when, in nanoseconds since the epoch, by the coordinator's clock.
      durability: "none", "standard" or "always": what the acknowledgement waited for.
      attempts: how many times the transaction was tried, this one included.
    """

    def __init__(self, u64 version, committed_at, durability, u64 attempts=1):
        """The time as nanoseconds since the epoch or an aware datetime."""
        self.version = version
        self.committed_at_ns = ns_of(committed_at, "committed_at")
        self.durability = durability
        self.attempts = attempts

    @property
    def committed_at(self):
        """When it was committed: an aware UTC datetime."""
        return moment_of(self.committed_at_ns)

    def __eq__(self, other):
        if type(other) is not CommitReceipt:
            return NotImplemented
        cdef CommitReceipt that = <CommitReceipt>other
        return (self.version == that.version and self.committed_at_ns == that.committed_at_ns
                and self.attempts == that.attempts and self.durability == that.durability)

    def __hash__(self):
        return hash((self.version, self.committed_at_ns, self.attempts))

    def __repr__(self):
        return (f"CommitReceipt(version={self.version}, committed_at={self.committed_at.isoformat()}, "
                f"durability={str(self.durability)!r}, attempts={self.attempts})")

    def __reduce__(self):
        return CommitReceipt, (self.version, self.committed_at_ns, self.durability, self.attempts)

    __match_args__ = ("version", "committed_at", "durability", "attempts")


cdef CommitReceipt make_receipt(u64 version, i64 committed_at_ns, object durability, u64 attempts):
    cdef CommitReceipt receipt = CommitReceipt.__new__(CommitReceipt)
    receipt.version = version
    receipt.committed_at_ns = committed_at_ns
    receipt.durability = durability
    receipt.attempts = attempts
    return receipt
