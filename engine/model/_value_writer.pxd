"""Values to msgpack; see _value_writer.pyx."""

from ._codec_hooks cimport CodecHooks

# The msgpack of a value. Needs the GIL, and calls back into Python code only for a datetime with a `tzinfo`
# of the user's own making and for the codec's `default`. A codec of None has no hooks. Raises
# ValueEncodingError naming the path, ValueTooLarge beyond size_max bytes, and what the codec's `default`
# raises.
cdef bytes encode_value(object value, Py_ssize_t size_max, CodecHooks codec)
