"""`Codec`: how the values of one database are stored. Python code encodes and decodes through it; compiled
code calls the writer and the reader directly.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from ...ipc._atomics cimport u8
from ._value_reader cimport decode_value
from ._value_writer cimport encode_value

from .limits import Limits

cdef Py_ssize_t SIZE_MAX = Limits().value_size_max      # of a value, unless a database has another limit


@cython.auto_pickle(False)
cdef class Codec(CodecHooks):
    """How the values of one database are stored, those of the user's own types included.

    Args:
      default: called with a value whose type is not storable. Returns (name, storable value), or None when it
        does not know the type either.
      restore: called with such a pair when it is read back; returns the value.
    """

    def encode(self, value, Py_ssize_t size_max=SIZE_MAX) -> bytes:
        """The msgpack bytes of a value; see `values.encode_value`."""
        return encode_value(value, size_max, self)

    def decode(self, data not None):
        """A fresh object from them; see `values.decode_value`."""
        if type(data) is bytes:     # several times cheaper than a buffer view
            return decode_value(<const u8 *>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), self)
        return decode_view(data, self)

    def __reduce__(self):
        return Codec, (self.default, self.restore)


cdef object decode_view(const u8[::1] data, Codec codec):
    return decode_value(&data[0] if data.shape[0] else NULL, data.shape[0], codec)
