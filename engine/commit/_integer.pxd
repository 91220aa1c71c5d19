"""Integers as msgpack bytes, for increments that are resolved in the commit thread.

A value is a sign and 64 bits. If `negative` is set, `bits` is a two's complement i64 below zero, otherwise a
u64. Together they cover the range of a stored int, -2**63 .. 2**64 - 1. Format: github.com/msgpack/msgpack
spec.md.
"""

from ...ipc._atomics cimport i64, u8, u32, u64

cdef struct Integer:
    bint negative
    u64 bits


cdef inline u64 _big_endian(const u8 *p, u32 size) noexcept nogil:
    cdef u64 value = 0
    cdef u32 index
    for index in range(size):
        value = (value << 8) | p[index]
    return value


cdef inline bint integer_decode(const u8 *value, u32 size, Integer *out) noexcept nogil:
    """False when the bytes are not a msgpack integer."""
    cdef u8 lead
    cdef u32 width
    cdef i64 number
    if size == 0:
        return False
    lead = value[0]
    if size == 1 and (lead <= 0x7F or lead >= 0xE0):
        number = lead if lead <= 0x7F else <i64>lead - 256
    elif 0xCC <= lead <= 0xCF:
        width = 1 << (lead - 0xCC)
        if size != width + 1:
            return False
        out.negative = False
        out.bits = _big_endian(value + 1, width)
        return True
    elif 0xD0 <= lead <= 0xD3:
        width = 1 << (lead - 0xD0)
        if size != width + 1:
            return False
        # Shift up and arithmetically down again: extends the sign from `width` bytes.
        number = (<i64>(_big_endian(value + 1, width) << (64 - 8 * width))) >> (64 - 8 * width)
    else:
        return False
    out.negative = number < 0
    out.bits = <u64>number
    return True


cdef inline bint integer_add(Integer *value, i64 delta) noexcept nogil:
    """Add in place; False, with `value` unchanged, if the sum leaves -2**63 .. 2**64 - 1."""
    cdef u64 total = value.bits + <u64>delta
    if value.negative:
        if delta < 0 and total < <u64>1 << 63:
            return False                      # below -2**63
        value.negative = delta < 0 or total >= <u64>1 << 63
    elif delta >= 0:
        if total < value.bits:
            return False                      # above 2**64 - 1
    else:
        # Subtracting m = -delta (up to 2**63) from a u64: below zero exactly when m is larger.
        value.negative = <u64>0 - <u64>delta > value.bits
    value.bits = total
    return True


cdef inline bint integer_less(const Integer *left, const Integer *right) noexcept nogil:
    if left.negative != right.negative:
        return left.negative
    # Of one sign: the order of two's complement is that of its bits.
    return left.bits < right.bits


cdef inline u32 integer_encode(const Integer *value, u8 *into) noexcept nogil:
    """Write the shortest msgpack form, at most 9 bytes, and return its size. It is unique for each integer.
    """
    cdef u64 bits = value.bits
    cdef i64 number = <i64>bits
    cdef u32 width, lead, index
    if not value.negative:
        if bits <= 0x7F:
            into[0] = <u8>bits
            return 1
        width = 0 if bits <= 0xFF else 1 if bits <= 0xFFFF else 2 if bits >> 32 == 0 else 3
        lead = 0xCC
    else:
        if number >= -32:
            into[0] = <u8>(number & 0xFF)
            return 1
        width = 0 if number >= -128 else 1 if number >= -32768 else 2 if number >= -2147483648LL else 3
        lead = 0xD0
    into[0] = <u8>(lead + width)
    width = 1 << width
    for index in range(width):
        into[1 + index] = <u8>(bits >> (8 * (width - 1 - index)))
    return width + 1
