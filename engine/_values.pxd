"""What compiled users of values may call. All of it needs the GIL; none of it calls back into Python code
except for datetimes with a `tzinfo` of the user's own making."""

from occamdb.ipc._atomics cimport i64, u8, u64


cdef class VersionedValue:
    cdef readonly object value
    cdef readonly u64 version
    cdef readonly i64 timestamp_ns
    cdef readonly i64 expires_at_ns


cdef class CommitReceipt:
    cdef readonly u64 version
    cdef readonly i64 committed_at_ns
    cdef readonly object durability
    cdef readonly u64 attempts


# A new record, without argument parsing.
cdef VersionedValue make_versioned(object value, u64 version, i64 timestamp_ns, i64 expires_at_ns)
cdef CommitReceipt make_receipt(u64 version, i64 committed_at_ns, object durability, u64 attempts)

# The msgpack of a value. Raises ValueEncodingError naming the path, or ValueTooLarge beyond size_max bytes.
cdef bytes encode_value(object value, Py_ssize_t size_max)

# A fresh object from msgpack bytes. Raises CorruptionError when they are not exactly one storable value.
cdef object decode_value(const u8 *data, Py_ssize_t size)
