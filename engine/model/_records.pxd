"""The records of `_records.pyx` for compiled users, who make them without argument parsing. Needs the GIL."""

from ...ipc._atomics cimport i64, u64


cdef class VersionedValue:
    cdef readonly object value
    cdef readonly u64 version
    cdef readonly i64 timestamp_ns
    cdef readonly i64 expires_at_ns
    cdef readonly u64 session


cdef class CommitReceipt:
    cdef readonly u64 version
    cdef readonly i64 committed_at_ns
    cdef readonly object durability
    cdef readonly u64 attempts


# A new record, without argument parsing.
cdef VersionedValue make_versioned(object value, u64 version, i64 timestamp_ns, i64 expires_at_ns, u64 session)
cdef CommitReceipt make_receipt(u64 version, i64 committed_at_ns, object durability, u64 attempts)
