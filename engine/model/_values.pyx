"""Values to msgpack and back.

Called for every put and every read, so the format is written and read here directly (msgpack the library is the
model in tests: the bytes are the same).

1. Only the exact types that `values.py` names are stored, and what a `Codec` makes of others; what comes back is equal,
   of the same types, and fresh.
2. The encoder trusts nothing to stay as it was: containers are counted while they are written, since a datetime's
   `tzinfo` and a codec's `default` run the user's code in between.
3. The decoder never reads past `size` bytes, never recurses deeper than DEPTH_MAX, and allocates no more than a
   small multiple of `size`, whatever the bytes are.
4. The fast encoder only says that it refuses; `values.explain` then walks the value again to name the path.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.datetime cimport date, datetime, import_datetime, time, timedelta
from cpython.dict cimport PyDict_Next, PyDict_SetItem
from cpython.list cimport PyList_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

from ...ipc._atomics cimport i64, u8, u16, u32, u64

from datetime import timezone
from decimal import Decimal, InvalidOperation
from uuid import UUID

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    object PyUnicode_DecodeUTF8(const char *data, Py_ssize_t size, const char *errors)
    i64 PyLong_AsLongLongAndOverflow(object number, int *overflow) except? -1
    u64 PyLong_AsUnsignedLongLong(object number) except? 0xFFFFFFFFFFFFFFFF

cdef extern from *:
    """
    static inline int occ_ascii_equal(PyObject *text, const void *data, Py_ssize_t size) {
        return PyUnicode_IS_COMPACT_ASCII(text) && PyUnicode_GET_LENGTH(text) == size
            && memcmp(PyUnicode_1BYTE_DATA(text), data, size) == 0;
    }
    static inline unsigned short occ_be16(unsigned short v) { return __builtin_bswap16(v); }
    static inline unsigned int occ_be32(unsigned int v) { return __builtin_bswap32(v); }
    static inline unsigned long long occ_be64(unsigned long long v) { return __builtin_bswap64(v); }
    """
    bint ascii_equal "occ_ascii_equal"(PyObject *text, const void *data, Py_ssize_t size)
    u16 be16 "occ_be16"(u16 v) noexcept nogil
    u32 be32 "occ_be32"(u32 v) noexcept nogil
    u64 be64 "occ_be64"(u64 v) noexcept nogil

import_datetime()

cdef int DEPTH_MAX = 128
cdef enum:
    INLINE_SIZE = 1024      # most values fit into this much of the C stack
    NAMED_SIZE = 256        # ... and most values of the user's types into this much
    REFUSED = -1            # the value cannot be stored; no exception is set
    TOO_LARGE = -2          # more than size_max bytes; no exception is set
    FAILED = -3             # an exception is set

# The seconds of years 1 and 9999 in UTC: what a datetime can hold when read back.
cdef i64 SECONDS_MIN = -62135596800
cdef i64 SECONDS_MAX = 253402300799

cdef enum:
    # Types of msgpack extensions. Stored for good: a number is never given another meaning.
    EXT_UUID = 1            # 16 bytes
    EXT_DECIMAL = 2         # its text
    EXT_DATE = 3            # u32: the proleptic Gregorian ordinal
    EXT_TIME = 4            # u64: microseconds since midnight, the top bit is the fold
    EXT_TIMEDELTA = 5       # i32 days, u32 seconds, u32 microseconds
    EXT_RUN_ID = 6          # 16 bytes
    EXT_NAMED = 16          # an array of a name and a value: what a codec's `default` made of the user's type
    EXT_TIMESTAMP = 0xFF

cdef Py_ssize_t SIZE_MAX = 64 << 20     # of a value, unless a database has another limit

# Of modules that import this one: filled in at the first use.
cdef object RunId = None
cdef object Unrestored = None

cdef object UTC = timezone.utc
cdef object EPOCH = datetime(1970, 1, 1, 0, 0, 0, 0, timezone.utc)


# --- Encoding ------------------------------------------------------------------------------------


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


cdef inline int write_text(Writer *w, str text) except FAILED:
    cdef Py_ssize_t size
    cdef const char *data
    try:
        data = PyUnicode_AsUTF8AndSize(text, &size)
    except UnicodeEncodeError:  # a lone surrogate
        return REFUSED
    if size > <Py_ssize_t>0xFFFFFFFF:
        w.size += size
        return TOO_LARGE
    cdef int rc = reserve(w, size + 5)
    if rc:
        return rc
    if size < 32:
        put8(w, <u8>(0xA0 | size))
    elif size < 0x100:
        put8(w, 0xD9)
        put8(w, <u8>size)
    elif size < 0x10000:
        put16(w, 0xDA, <u16>size)
    else:
        put32(w, 0xDB, <u32>size)
    memcpy(w.data + w.size, data, size)
    w.size += size
    return 0


cdef int write_bytes(Writer *w, bytes value) except FAILED:
    cdef Py_ssize_t size = PyBytes_GET_SIZE(value)
    if size > <Py_ssize_t>0xFFFFFFFF:
        w.size += size
        return TOO_LARGE
    cdef int rc = reserve(w, size + 5)
    if rc:
        return rc
    if size < 0x100:
        put8(w, 0xC4)
        put8(w, <u8>size)
    elif size < 0x10000:
        put16(w, 0xC5, <u16>size)
    else:
        put32(w, 0xC6, <u32>size)
    memcpy(w.data + w.size, PyBytes_AS_STRING(value), size)
    w.size += size
    return 0


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
    if not SECONDS_MIN <= seconds <= SECONDS_MAX:
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
    if depth >= DEPTH_MAX:
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
    if depth >= DEPTH_MAX:
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
    if type(name) is not str or depth >= DEPTH_MAX:
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
    global RunId, Unrestored
    cdef u64 microseconds
    if RunId is None:
        from .public_types import RunId as run_id_class
        from .values import Unrestored as unrestored_class
        RunId, Unrestored = run_id_class, unrestored_class
    if kind is RunId:
        return write_extension(w, EXT_RUN_ID, value.bytes)
    if kind is UUID:
        return write_extension(w, EXT_UUID, value.bytes)
    if kind is Decimal:
        return write_extension(w, EXT_DECIMAL, str(value).encode())
    if kind is date:
        return write_extension(w, EXT_DATE, value.toordinal().to_bytes(4, "big"))
    if kind is time and value.tzinfo is None:
        microseconds = ((<u64>value.hour * 60 + value.minute) * 60 + value.second) * 1000000 + value.microsecond
        return write_extension(w, EXT_TIME, (microseconds | <u64>value.fold << 63).to_bytes(8, "big"))
    if kind is timedelta:
        return write_extension(w, EXT_TIMEDELTA, value.days.to_bytes(4, "big", signed=True)
                               + value.seconds.to_bytes(4, "big") + value.microseconds.to_bytes(4, "big"))
    if kind is Unrestored:
        return write_named(w, value.name, value.data, depth)
    if w.codec is NULL or (<Codec>w.codec).default is None:
        return REFUSED
    named = (<Codec>w.codec).default(value)
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


cdef bytes encode_value(object value, Py_ssize_t size_max, Codec codec):
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
    raise _refusal(value, w.size, size_max, rc == REFUSED, codec)


def _refusal(object value, Py_ssize_t size, Py_ssize_t size_max, bint refused, codec):
    from .values import explain, too_large
    return explain(value, codec) if refused else too_large(size, size_max)


# --- Decoding ------------------------------------------------------------------------------------


# Recently seen dict keys, by a hash of their bytes; a slot keeps the newest. Owned references, guarded by the GIL.
cdef PyObject *key_cache[512]


cdef struct Input:
    const u8 *at
    const u8 *end
    const u8 *start
    PyObject *codec         # borrowed


cdef object damaged(Input *r, str expected):
    from .errors import CorruptionError
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
    if depth >= DEPTH_MAX:
        raise damaged(r, f"at most {DEPTH_MAX} levels")
    cdef list items = []
    for index in range(count):
        items.append(read(r, depth + 1))
    return items


cdef object read_dict(Input *r, Py_ssize_t count, int depth):
    cdef Py_ssize_t index, size
    cdef u8 code
    if (r.end - r.at) // 2 < count:
        raise damaged(r, f"a dict of {count} items")
    if depth >= DEPTH_MAX:
        raise damaged(r, f"at most {DEPTH_MAX} levels")
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
    if nanoseconds >= 1000000000 or not SECONDS_MIN <= seconds <= SECONDS_MAX:
        raise damaged(r, "a timestamp between the years 1 and 9999")
    return EPOCH + timedelta(seconds // 86400 - (1 if seconds % 86400 < 0 else 0),
                             (seconds % 86400 + 86400) % 86400, <int>(nanoseconds // 1000))


cdef object read_named(Input *r, Py_ssize_t size, int depth):
    """The body of EXT_NAMED: restored by the codec if it can, else as it was stored."""
    cdef Input body = r[0]
    if depth >= DEPTH_MAX:
        raise damaged(r, f"at most {DEPTH_MAX} levels")
    body.end = r.at + size
    pair = read(&body, depth + 1)
    if type(pair) is not list or len(<list>pair) != 2 or type(pair[0]) is not str or body.at != body.end:
        raise damaged(r, "an array of a name and a value")
    r.at = body.end
    if r.codec is NULL or (<Codec>r.codec).restore is None:
        from .values import Unrestored as unrestored_class
        return unrestored_class(pair[0], pair[1])
    return (<Codec>r.codec).restore(pair[0], pair[1])


cdef object read_extension(Input *r, Py_ssize_t size, int depth):
    cdef u8 number = <u8>take(r, 1)
    if number == EXT_TIMESTAMP:
        return read_timestamp(r, size)
    if r.end - r.at < size:
        raise damaged(r, f"an extension of {size} bytes")
    if number == EXT_NAMED:
        return read_named(r, size, depth)
    try:
        return rare_value(number, read_bytes(r, size))
    except (ValueError, OverflowError, InvalidOperation):
        raise damaged(r, f"a value of extension type {number}") from None


cdef object rare_value(u8 number, bytes body):
    """The value of one of our extensions. ValueError for a body that is none of its type."""
    from .public_types import RunId as run_id_class
    if number == EXT_UUID:
        return UUID(bytes=body)
    if number == EXT_RUN_ID:
        return run_id_class(bytes=body)
    if number == EXT_DECIMAL:
        return Decimal(body.decode("ascii"))
    if number == EXT_DATE and len(body) == 4:
        return date.fromordinal(int.from_bytes(body, "big"))
    if number == EXT_TIME and len(body) == 8:
        bits = int.from_bytes(body, "big")
        seconds, microsecond = divmod(bits & 0x7FFFFFFFFFFFFFFF, 1000000)
        minutes, second = divmod(seconds, 60)
        hour, minute = divmod(minutes, 60)
        return time(hour, minute, second, microsecond, fold=bits >> 63)
    if number == EXT_TIMEDELTA and len(body) == 12:
        return timedelta(int.from_bytes(body[:4], "big", signed=True), int.from_bytes(body[4:8], "big"),
                         int.from_bytes(body[8:], "big"))
    raise ValueError


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


cdef object decode_value(const u8 *data, Py_ssize_t size, Codec codec):
    cdef Input r
    r.codec = <PyObject *>codec if codec is not None else NULL
    r.start = r.at = data
    r.end = data + size
    value = read(&r, 0)
    if r.at != r.end:
        raise damaged(&r, "the end of the value")
    return value


cdef class Codec:
    """How the values of one database are stored, those of the user's own types included.

    Args:
      default: called with a value whose type is not storable. Returns (name, storable value), or None when it does not
        know the type either.
      restore: called with such a pair when it is read back; returns the value.
    """

    def __init__(self, default=None, restore=None):
        from .errors import InvalidArgumentError
        for name, hook in (("default", default), ("restore", restore)):
            if hook is not None and not callable(hook):
                raise InvalidArgumentError(f"{name} must be a function, got {hook!r:.80}",
                                           hint="occamdb.value_hooks(MyClass) makes both")
        self.default = default
        self.restore = restore

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
