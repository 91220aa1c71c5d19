"""The msgpack format of values, as the writer and the reader share it.

1. Numbers are big-endian on the wire. The machine is little-endian.
2. The types of extensions are stored for good: a number is never given another meaning.
"""

from ...ipc._atomics cimport i64, u16, u32, u64

cdef extern from *:
    """
    static inline unsigned short occ_be16(unsigned short v) { return __builtin_bswap16(v); }
    static inline unsigned int occ_be32(unsigned int v) { return __builtin_bswap32(v); }
    static inline unsigned long long occ_be64(unsigned long long v) { return __builtin_bswap64(v); }
    """
    u16 be16 "occ_be16"(u16 v) noexcept nogil
    u32 be32 "occ_be32"(u32 v) noexcept nogil
    u64 be64 "occ_be64"(u64 v) noexcept nogil

cdef enum:
    NESTING_MAX = 128       # levels of lists and dicts; `value_refusal.DEPTH_MAX` is the same for Python code

    EXT_UUID = 1            # 16 bytes
    EXT_DECIMAL = 2         # its text
    EXT_DATE = 3            # u32: the proleptic Gregorian ordinal
    EXT_TIME = 4            # u64: microseconds since midnight; the top bit is the fold
    EXT_TIMEDELTA = 5       # i32 days, u32 seconds, u32 microseconds
    EXT_RUN_ID = 6          # 16 bytes
    EXT_NAMED = 16          # an array of a name and a value: what a codec's `default` made of the user's type
    EXT_TIMESTAMP = 0xFF    # the timestamp of msgpack itself


cdef inline bint is_storable_second(i64 seconds) noexcept nogil:
    """Whether this second since the epoch is in the years 1 to 9999 of UTC, which is what a datetime can
    hold."""
    return -<i64>62135596800 <= seconds <= <i64>253402300799
