"""Values from msgpack; see _value_reader.pyx."""

from ...ipc._atomics cimport u8
from ._codec_hooks cimport CodecHooks

# A fresh object from msgpack bytes. Needs the GIL, and calls back into Python code only for the codec's
# `restore`. A codec of None has no hooks. Raises CorruptionError when the bytes are not exactly one storable
# value, and what the codec's `restore` raises.
cdef object decode_value(const u8 *data, Py_ssize_t size, CodecHooks codec)
