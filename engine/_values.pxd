"""What compiled users of values may call. All of it needs the GIL; none of it calls back into Python code
except for datetimes with a `tzinfo` of the user's own making."""

from occamdb.engine._records cimport CommitReceipt, VersionedValue, make_receipt, make_versioned
from occamdb.ipc._atomics cimport u8

# The msgpack of a value. Raises ValueEncodingError naming the path, or ValueTooLarge beyond size_max bytes.
cdef bytes encode_value(object value, Py_ssize_t size_max)

# A fresh object from msgpack bytes. Raises CorruptionError when they are not exactly one storable value.
cdef object decode_value(const u8 *data, Py_ssize_t size)
