"""Values to msgpack.

Called for every put, so the format is written here directly. The msgpack library is the model in tests: the
bytes are the same.

1. Only the exact types that `values.py` names are stored, and what a codec's `default` makes of others.
2. Nothing is trusted to stay as it was: containers are counted while they are written, because a datetime's
   `tzinfo` and a codec's `default` run the user's code in between.
3. The writer only says that it refuses; `value_refusal.explain` then walks the value again to name the path.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.datetime cimport datetime, import_datetime
from cpython.dict cimport PyDict_Next
from cpython.list cimport PyList_GET_SIZE
from cpython.object cimport PyObject
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

from ...ipc._atomics cimport i64, u8, u16, u32, u64
from ._codec_hooks cimport CodecHooks
from ._value_extensions cimport extension_body
from ._value_format cimport EXT_NAMED, NESTING_MAX, be16, be32, be64, is_storable_second

from datetime import timezone

from .unrestored import Unrestored
from .value_refusal import explain, too_large

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    i64 PyLong_AsLongLongAndOverflow(object number, int *overflow) except? -1
    u64 PyLong_AsUnsignedLongLong(object number) except? 0xFFFFFFFFFFFFFFFF

import_datetime()

cdef enum:
    INLINE_SIZE = 1024      # most values fit into this much of the C stack
    NAMED_SIZE = 256        # and most values of the user's types into this much
    REFUSED = -1            # the value cannot be stored; no exception is set
    TOO_LARGE = -2          # more than size_max bytes; no exception is set
    FAILED = -3             # an exception is set

cdef object EPOCH = datetime(1970, 1, 1, 0, 0, 0, 0, timezone.utc)


# ---- the buffer --------------------------------------------------------------------------------------------------


cdef struct Writer:
    u8 *data
    Py_ssize_t size
    Py_ssize_t capacity
    Py_ssize_t size_max
    u8 *inlined             # the caller's stack; data is either this or malloc'ed
    PyObject *codec         # borrowed


cdef int grow(Writer *w, Py_ssize_t more) except FAILED:
    """Make room for `more` bytes. TOO_LARGE past size_max."""
    cdef Py_ssize_t capacity
    cdef u8 *data
    if more > w.size_max - w.size:
        w.size += more          # what the error reports
        return TOO_LARGE
    capacity = w.capacity
    while capacity - w.size < more:
        capacity *= 2
    if w.data is w.inlined:
        data = <u8 *>malloc(capacity)
        if data is not NULL:
            memcpy(data, w.data, w.size)
    else:
        data = <u8 *>realloc(w.data, capacity)
    if data is NULL:
        raise MemoryError()
    w.data = data
    w.capacity = capacity
    return 0


cdef inline int reserve(Writer *w, Py_ssize_t more) except FAILED:
    if w.capacity - w.size >= more:
        return 0
    return grow(w, more)


cdef inline void put8(Writer *w, u8 value) noexcept:
    w.data[w.size] = value
    w.size += 1


cdef inline void put16(Writer *w, u8 code, u16 value) noexcept:
    w.data[w.size] = code
    value = be16(value)
    memcpy(w.data + w.size + 1, &value, 2)
    w.size += 3


cdef inline void put32(Writer *w, u8 code, u32 value) noexcept:
    w.data[w.size] = code
    value = be32(value)
    memcpy(w.data + w.size + 1, &value, 4)
    w.size += 5


cdef inline void put64(Writer *w, u8 code, u64 value) noexcept:
    w.data[w.size] = code
    value = be64(value)
    memcpy(w.data + w.size + 1, &value, 8)
    w.size += 9


# ---- one value of each type -----------------------------------------------------------------------------------------


cdef inline int write_sized(Writer *w, const char *data, Py_ssize_t size, u8 short_code, Py_ssize_t short_end,
                            u8 code) except FAILED:
    """`data` with its size in front. Below `short_end` the size is a part of `short_code`; else `code` says
    that one byte of size follows, `code` + 1 that there are two, and `code` + 2 four."""
    cdef int rc
    if size > <Py_ssize_t>0xFFFFFFFF:
        w.size += size
        return TOO_LARGE
    rc = reserve(w, size + 5)
    if rc:
        return rc
    if size < short_end:
        put8(w, <u8>(short_code | size))
    elif size < 0x100:
        put8(w, code)
        put8(w, <u8>size)
    elif size < 0x10000:
        put16(w, code + 1, <u16>size)
    else:
        put32(w, code + 2, <u32>size)
    memcpy(w.data + w.size, data, size)
    w.size += size
    return 0


cdef int write_text(Writer *w, str text) except FAILED:
    cdef Py_ssize_t size
    cdef const char *data
    try:
        data = PyUnicode_AsUTF8AndSize(text, &size)
    except UnicodeEncodeError:  # a lone surrogate
        return REFUSED
    return write_sized(w, data, size, 0xA0, 32, 0xD9)


cdef int write_bytes(Writer *w, bytes value) except FAILED:
    return write_sized(w, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value), 0, 0, 0xC4)


cdef int write_int(Writer *w, object number) except FAILED:
    cdef int overflow = 0
    cdef i64 value = PyLong_AsLongLongAndOverflow(number, &overflow)
    cdef u64 large
    cdef int rc = reserve(w, 9)
    if rc:
        return rc
    if overflow:
        if overflow < 0:
            return REFUSED
        try:
            large = PyLong_AsUnsignedLongLong(number)
        except OverflowError:
            return REFUSED
        put64(w, 0xCF, large)
    elif value >= 0:
        if value < 0x80:
            put8(w, <u8>value)
        elif value < 0x100:
            put8(w, 0xCC)
            put8(w, <u8>value)
        elif value < 0x10000:
            put16(w, 0xCD, <u16>value)
        elif value < 0x100000000:
            put32(w, 0xCE, <u32>value)
        else:
            put64(w, 0xCF, <u64>value)
    elif value >= -32:
        put8(w, <u8>value)
    elif value >= -0x80:
        put8(w, 0xD0)
        put8(w, <u8>value)
    elif value >= -0x8000:
        put16(w, 0xD1, <u16>value)
    elif value >= -<i64>0x80000000:
        put32(w, 0xD2, <u32>value)
    else:
        put64(w, 0xD3, <u64>value)
    return 0


cdef int write_datetime(Writer *w, object moment) except FAILED:
    """The msgpack timestamp extension (type -1). Runs the moment's tzinfo, which may be the user's code."""
    if moment.tzinfo is None or moment.utcoffset() is None:
        return REFUSED
    cdef object delta = moment - EPOCH
    cdef i64 seconds = <i64>delta.days * 86400 + <i64>delta.seconds
    cdef u64 nanoseconds = <u64>delta.microseconds * 1000
    if not is_storable_second(seconds):
        return REFUSED
    cdef int rc = reserve(w, 15)
    if rc:
        return rc
    if nanoseconds == 0 and 0 <= seconds < 0x100000000:
        put8(w, 0xD6)
        put32(w, 0xFF, <u32>seconds)
    elif 0 <= seconds < (<i64>1 << 34):
        put8(w, 0xD7)
        put64(w, 0xFF, nanoseconds << 34 | <u64>seconds)
    else:
        put8(w, 0xC7)
        put8(w, 12)
        put32(w, 0xFF, <u32>nanoseconds)
        seconds = <i64>be64(<u64>seconds)
        memcpy(w.data + w.size, &seconds, 8)
        w.size += 8
    return 0


cdef int write_dict(Writer *w, dict mapping, int depth) except FAILED:
    cdef Py_ssize_t count = len(mapping), written = 0, position = 0
    cdef PyObject *key
    cdef PyObject *item
    cdef int rc
    if depth >= NESTING_MAX:
        return REFUSED
    rc = reserve(w, 5)
    if rc:
        return rc
    if count < 16:
        put8(w, <u8>(0x80 | count))
    elif count < 0x10000:
        put16(w, 0xDE, <u16>count)
    elif count <= <Py_ssize_t>0xFFFFFFFF:
        put32(w, 0xDF, <u32>count)
    else:
        return REFUSED
    while PyDict_Next(mapping, &position, &key, &item):
        if type(<object>key) is not str or written == count:
            return REFUSED
        rc = write_text(w, <str>key)
        if rc:
            return rc
        rc = write(w, <object>item, depth + 1)
        if rc:
            return rc
        written += 1
    return 0 if written == count else REFUSED


cdef int write_list(Writer *w, list items, int depth) except FAILED:
    cdef Py_ssize_t count = PyList_GET_SIZE(items), index
    cdef int rc
    if depth >= NESTING_MAX:
        return REFUSED
    rc = reserve(w, 5)
    if rc:
        return rc
    if count < 16:
        put8(w, <u8>(0x90 | count))
    elif count < 0x10000:
        put16(w, 0xDC, <u16>count)
    elif count <= <Py_ssize_t>0xFFFFFFFF:
        put32(w, 0xDD, <u32>count)
    else:
        return REFUSED
    for index in range(count):
        if index >= PyList_GET_SIZE(items):
            return REFUSED
        rc = write(w, items[index], depth + 1)
        if rc:
            return rc
    return 0 if PyList_GET_SIZE(items) == count else REFUSED


cdef int write_extension_header(Writer *w, u8 number, Py_ssize_t size) except FAILED:
    """The code, the size and the type of an extension, and room for its `size` bytes."""
    cdef int rc
    if size > <Py_ssize_t>0xFFFFFFFF:
        w.size += size
        return TOO_LARGE
    rc = reserve(w, size + 6)
    if rc:
        return rc
    if size == 1 or size == 2 or size == 4 or size == 8 or size == 16:
        put8(w, 0xD4 if size == 1 else 0xD5 if size == 2 else 0xD6 if size == 4 else 0xD7 if size == 8 else 0xD8)
    elif size < 0x100:
        put8(w, 0xC7)
        put8(w, <u8>size)
    elif size < 0x10000:
        put16(w, 0xC8, <u16>size)
    else:
        put32(w, 0xC9, <u32>size)
    put8(w, number)
    return 0


cdef int write_extension(Writer *w, u8 number, bytes body) except FAILED:
    cdef Py_ssize_t size = PyBytes_GET_SIZE(body)
    cdef int rc = write_extension_header(w, number, size)
    if rc:
        return rc
    memcpy(w.data + w.size, PyBytes_AS_STRING(body), size)
    w.size += size
    return 0


cdef int write_named(Writer *w, object name, object data, int depth) except FAILED:
    """A value of the user's own type, as the name and the storable value that stand for it."""
    cdef u8 inlined[NAMED_SIZE]
    cdef Writer body
    cdef int rc
    if type(name) is not str or depth >= NESTING_MAX:
        return REFUSED
    body.data = body.inlined = inlined
    body.size = 0
    body.capacity = NAMED_SIZE
    body.size_max = w.size_max
    body.codec = w.codec
    try:
        rc = write_list(&body, [name, data], depth + 1)
        if rc == 0:
            rc = write_extension_header(w, EXT_NAMED, body.size)
        if rc == 0:
            memcpy(w.data + w.size, body.data, body.size)
        w.size += body.size
    finally:
        if body.data is not body.inlined:
            free(body.data)
    return rc


cdef int write_rare(Writer *w, object value, object kind, int depth) except FAILED:
    """A value of a type that is stored as an extension, or of the user's own type."""
    cdef u8 number
    cdef bytes body = extension_body(value, kind, &number)
    if body is not None:
        return write_extension(w, number, body)
    if kind is Unrestored:
        return write_named(w, value.name, value.data, depth)
    if w.codec is NULL or (<CodecHooks>w.codec).default is None:
        return REFUSED
    named = (<CodecHooks>w.codec).default(value)
    if type(named) is not tuple or len(<tuple>named) != 2:
        return REFUSED
    return write_named(w, named[0], named[1], depth)


cdef int write(Writer *w, object value, int depth) except FAILED:
    """Append one value. 0, REFUSED or TOO_LARGE."""
    cdef double number
    cdef u64 bits
    cdef int rc
    kind = type(value)
    if kind is str:
        return write_text(w, <str>value)
    if kind is int:
        return write_int(w, value)
    if kind is dict:
        return write_dict(w, <dict>value, depth)
    rc = reserve(w, 9)
    if rc:
        return rc
    if value is None:
        put8(w, 0xC0)
    elif value is True:
        put8(w, 0xC3)
    elif value is False:
        put8(w, 0xC2)
    elif kind is float:
        number = <double>value
        memcpy(&bits, &number, 8)
        put64(w, 0xCB, bits)
    elif kind is list:
        return write_list(w, <list>value, depth)
    elif kind is bytes:
        return write_bytes(w, <bytes>value)
    elif kind is datetime:
        return write_datetime(w, value)
    else:
        return write_rare(w, value, kind, depth)
    return 0


cdef bytes encode_value(object value, Py_ssize_t size_max, CodecHooks codec):
    cdef u8 inlined[INLINE_SIZE]
    cdef Writer w
    cdef int rc
    w.data = w.inlined = inlined
    w.size = 0
    w.capacity = INLINE_SIZE
    w.size_max = size_max
    w.codec = <PyObject *>codec if codec is not None else NULL
    try:
        rc = write(&w, value, 0)
        # `reserve` asks for a few bytes more than are used in the end, so the exact check is here.
        if rc == 0 and w.size <= size_max:
            return PyBytes_FromStringAndSize(<char *>w.data, w.size)
    finally:
        if w.data is not w.inlined:
            free(w.data)
    raise explain(value, codec) if rc == REFUSED else too_large(w.size, size_max)
