"""Values of rarer types, as the bodies of msgpack extensions; see _value_extensions.pyx."""

from ...ipc._atomics cimport u8

# The body of the extension that stores `value`, and its type in `number`; None when no extension stores this
# type.
cdef bytes extension_body(object value, object kind, u8 *number)

# The value of a body. Raises ValueError, OverflowError or InvalidOperation for bytes that are not of this
# type.
cdef object extension_value(u8 number, bytes body)
