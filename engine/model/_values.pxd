"""What compiled users of values may call. All of it needs the GIL; none of it calls back into Python code
except for datetimes with a `tzinfo` of the user's own making, and the hooks of a codec."""

from ...ipc._atomics cimport u8
from ._records cimport CommitReceipt, VersionedValue, make_receipt, make_versioned

cdef class Codec:
    cdef readonly object default    # functions of the user's, or None
    cdef readonly object restore

# The msgpack of a value. Raises ValueEncodingError naming the path, ValueTooLarge beyond size_max bytes, and what the
# codec's `default` raises. A codec of None has no hooks.
cdef bytes encode_value(object value, Py_ssize_t size_max, Codec codec)

# A fresh object from msgpack bytes. Raises CorruptionError when they are not exactly one storable value, and what the
# codec's `restore` raises.
cdef object decode_value(const u8 *data, Py_ssize_t size, Codec codec)
