"""Values from msgpack.

Called for every read. What comes back is equal to what was put, of the same types, and a fresh object.

1. The reader never reads past `size` bytes, never recurses deeper than NESTING_MAX, and allocates no more
   than a small multiple of `size`, whatever the bytes are.
2. Bytes that are not exactly one storable value are damage: a CorruptionError with the position.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.datetime cimport datetime, import_datetime, timedelta
from cpython.dict cimport PyDict_SetItem
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.string cimport memcpy

from ...ipc._atomics cimport i64, u8, u16, u32, u64
from ._codec_hooks cimport CodecHooks
from ._value_extensions cimport extension_value
from ._value_format cimport EXT_NAMED, EXT_TIMESTAMP, NESTING_MAX, be16, be32, be64, is_storable_second

from datetime import timezone
from decimal import InvalidOperation

from .errors import CorruptionError
from .unrestored import Unrestored

cdef extern from "Python.h":
    object PyUnicode_DecodeUTF8(const char *data, Py_ssize_t size, const char *errors)

cdef extern from *:
    """
    static inline int occ_ascii_equal(PyObject *text, const void *data, Py_ssize_t size) {
        return PyUnicode_IS_COMPACT_ASCII(text) && PyUnicode_GET_LENGTH(text) == size
            && memcmp(PyUnicode_1BYTE_DATA(text), data, size) == 0;
    }
    """
    bint ascii_equal "occ_ascii_equal"(PyObject *text, const void *data, Py_ssize_t size)

import_datetime()

cdef object EPOCH = datetime(1970, 1, 1, 0, 0, 0, 0, timezone.utc)


# Recently seen dict keys, by a hash of their bytes; a slot keeps the newest. Owned references, guarded by the
# GIL.
cdef PyObject *key_cache[512]


cdef struct Input:
    const u8 *at
    const u8 *end
    const u8 *start
    PyObject *codec         # borrowed


cdef object damaged(Input *r, str expected):
    return CorruptionError(
        f"a stored value of {r.end - r.start:,} bytes is damaged at {r.at - r.start}: expected {expected}",
        offset=r.at - r.start,
        expected=expected,
    )


cdef inline u64 take(Input *r, int size) except? 0xFFFFFFFFFFFFFFFF:
    """The next 1, 2, 4 or 8 bytes, big-endian."""
    cdef u16 two
    cdef u32 four
    cdef u64 eight
    if r.end - r.at < size:
        raise damaged(r, f"{size} more bytes")
    if size == 1:
        eight = r.at[0]
    elif size == 2:
        memcpy(&two, r.at, 2)
        eight = be16(two)
    elif size == 4:
        memcpy(&four, r.at, 4)
        eight = be32(four)
    else:
        memcpy(&eight, r.at, 8)
        eight = be64(eight)
    r.at += size
    return eight


cdef inline object read_text(Input *r, Py_ssize_t size):
    if r.end - r.at < size:
        raise damaged(r, f"{size} bytes of text")
    cdef const char *data = <const char *>r.at
    try:
        text = PyUnicode_DecodeUTF8(data, size, NULL)
    except UnicodeDecodeError:
        raise damaged(r, "text in UTF-8") from None
    r.at += size
    return text


cdef object read_key(Input *r, Py_ssize_t size):
    """A short dict key. The same few keys come again in most values: they are made, and hashed, once."""
    cdef u64 word = 0
    cdef u32 slot
    cdef PyObject *known
    if r.end - r.at < size:
        raise damaged(r, f"{size} bytes of text")
    memcpy(&word, r.at, size if size < 8 else 8)
    slot = <u32>(((word ^ <u64>(r.at[size - 1] if size else 0) << 3 ^ <u64>size) * <u64>0x9E3779B97F4A7C15) >> 55)
    known = key_cache[slot]
    if known is not NULL and ascii_equal(known, r.at, size):
        r.at += size
        return <object>known
    key = read_text(r, size)
    if ascii_equal(<PyObject *>key, r.at - size, size):     # only ASCII keys have their bytes at hand
        Py_INCREF(key)
        key_cache[slot] = <PyObject *>key
        Py_XDECREF(known)
    return key


cdef object read_bytes(Input *r, Py_ssize_t size):
    if r.end - r.at < size:
        raise damaged(r, f"{size} bytes")
    value = PyBytes_FromStringAndSize(<const char *>r.at, size)
    r.at += size
    return value


cdef object read_list(Input *r, Py_ssize_t count, int depth):
    cdef Py_ssize_t index
    # Each item takes at least a byte, so a count beyond what is left is damage, not a reason to allocate.
    if r.end - r.at < count:
        raise damaged(r, f"a list of {count} items")
    if depth >= NESTING_MAX:
        raise damaged(r, f"at most {NESTING_MAX} levels")
    cdef list items = []
    for index in range(count):
        items.append(read(r, depth + 1))
    return items


cdef object read_dict(Input *r, Py_ssize_t count, int depth):
    cdef Py_ssize_t index, size
    cdef u8 code
    if (r.end - r.at) // 2 < count:
        raise damaged(r, f"a dict of {count} items")
    if depth >= NESTING_MAX:
        raise damaged(r, f"at most {NESTING_MAX} levels")
    cdef dict mapping = {}
    for index in range(count):
        if r.at == r.end:
            raise damaged(r, "a dict key")
        code = r.at[0]
        if code >> 5 == 0b101:      # the usual short key
            r.at += 1
            key = read_key(r, code & 0x1F)
        else:
            key = read(r, depth + 1)
            if type(key) is not str:
                raise damaged(r, "a dict key of text")
        PyDict_SetItem(mapping, key, read(r, depth + 1))
    return mapping


cdef object read_timestamp(Input *r, Py_ssize_t size):
    """The body of an extension of type -1, after its type byte."""
    cdef u64 bits
    cdef u64 nanoseconds = 0
    cdef i64 seconds
    if size == 4:
        seconds = <i64>take(r, 4)
    elif size == 8:
        bits = take(r, 8)
        nanoseconds = bits >> 34
        seconds = <i64>(bits & ((<u64>1 << 34) - 1))
    elif size == 12:
        nanoseconds = take(r, 4)
        seconds = <i64>take(r, 8)
    else:
        raise damaged(r, "a timestamp of 4, 8 or 12 bytes")
    if nanoseconds >= 1000000000 or not is_storable_second(seconds):
        raise damaged(r, "a timestamp between the years 1 and 9999")
    return EPOCH + timedelta(seconds // 86400 - (1 if seconds % 86400 < 0 else 0),
                             (seconds % 86400 + 86400) % 86400, <int>(nanoseconds // 1000))


cdef object read_named(Input *r, Py_ssize_t size, int depth):
    """The body of EXT_NAMED: restored by the codec if it can, else as it was stored."""
    cdef Input body = r[0]
    if depth >= NESTING_MAX:
        raise damaged(r, f"at most {NESTING_MAX} levels")
    body.end = r.at + size
    pair = read(&body, depth + 1)
    if type(pair) is not list or len(<list>pair) != 2 or type(pair[0]) is not str or body.at != body.end:
        raise damaged(r, "an array of a name and a value")
    r.at = body.end
    if r.codec is NULL or (<CodecHooks>r.codec).restore is None:
        return Unrestored(pair[0], pair[1])
    return (<CodecHooks>r.codec).restore(pair[0], pair[1])


cdef object read_extension(Input *r, Py_ssize_t size, int depth):
    cdef u8 number = <u8>take(r, 1)
    if number == EXT_TIMESTAMP:
        return read_timestamp(r, size)
    if r.end - r.at < size:
        raise damaged(r, f"an extension of {size} bytes")
    if number == EXT_NAMED:
        return read_named(r, size, depth)
    try:
        return extension_value(number, read_bytes(r, size))
    except (ValueError, OverflowError, InvalidOperation):
        raise damaged(r, f"a value of extension type {number}") from None


cdef object read_wide(Input *r, u8 code, int depth):
    """A value whose code takes more than the code's own bits."""
    cdef u64 bits
    cdef double number
    cdef u32 bits32
    cdef float single
    if code == 0xCB:
        bits = take(r, 8)
        memcpy(&number, &bits, 8)
        return number
    if code == 0xC0:
        return None
    if code == 0xC2:
        return False
    if code == 0xC3:
        return True
    if 0xCC <= code <= 0xCF:
        return take(r, 1 << (code - 0xCC))
    if code == 0xD0:
        return <signed char>take(r, 1)
    if code == 0xD1:
        return <short>take(r, 2)
    if code == 0xD2:
        return <int>take(r, 4)
    if code == 0xD3:
        return <i64>take(r, 8)
    if 0xD9 <= code <= 0xDB:
        return read_text(r, <Py_ssize_t>take(r, 1 << (code - 0xD9)))
    if 0xC4 <= code <= 0xC6:
        return read_bytes(r, <Py_ssize_t>take(r, 1 << (code - 0xC4)))
    if code == 0xDC or code == 0xDD:
        return read_list(r, <Py_ssize_t>take(r, 2 if code == 0xDC else 4), depth)
    if code == 0xDE or code == 0xDF:
        return read_dict(r, <Py_ssize_t>take(r, 2 if code == 0xDE else 4), depth)
    if 0xD4 <= code <= 0xD8:
        return read_extension(r, 1 << (code - 0xD4), depth)
    if 0xC7 <= code <= 0xC9:
        return read_extension(r, <Py_ssize_t>take(r, 1 << (code - 0xC7)), depth)
    if code == 0xCA:
        bits32 = <u32>take(r, 4)
        memcpy(&single, &bits32, 4)
        return <double>single
    r.at -= 1
    raise damaged(r, f"the code of a value, found {code:#04x}")


cdef object read(Input *r, int depth):
    """The next value."""
    if r.at == r.end:
        raise damaged(r, "a value")
    cdef u8 code = r.at[0]
    r.at += 1
    if code < 0x80:
        return code
    if code < 0x90:
        return read_dict(r, code & 0x0F, depth)
    if code < 0xA0:
        return read_list(r, code & 0x0F, depth)
    if code < 0xC0:
        return read_text(r, code & 0x1F)
    if code >= 0xE0:
        return <signed char>code
    return read_wide(r, code, depth)


cdef object decode_value(const u8 *data, Py_ssize_t size, CodecHooks codec):
    cdef Input r
    r.codec = <PyObject *>codec if codec is not None else NULL
    r.start = r.at = data
    r.end = data + size
    value = read(&r, 0)
    if r.at != r.end:
        raise damaged(&r, "the end of the value")
    return value
