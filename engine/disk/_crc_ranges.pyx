"""CRC32C of any range of one buffer in constant time, from a table of its prefixes' CRCs.

A scan for entries in unknown bytes meets headers that announce any length, so a checksum that reads what it
covers makes the scan quadratic. Here each costs at most CRC_DIRECT bytes, or two partial steps and three
multiplications.

Without the inversions at both ends a CRC is linear. With R(x, bytes) the register after `bytes` when it held
x before:

    R(x, bytes) = x * X**(8 * size)  xor  R(0, bytes)                     (polynomials modulo the CRC's own)

so with T(i) = R(0, data[0:i]), which is what the table holds for every CRC_STEP-th i:

    R(x, data[s:e]) = T(e)  xor  (T(s) xor x) * X**(8 * (e - s))
"""

from libc.stdlib cimport free, malloc

from ._crc32c cimport crc32c

cdef enum:
    CRC_STEP = 256
    CRC_DIRECT = 512                # up to here reading the bytes is as cheap
    ONE = 0x80000000U               # the polynomial 1: bits are reflected, as in the register
    X_TO_8 = 0x00800000U
    POLYNOMIAL = 0x82F63B78U

# X ** (8 * n) for n = low + 4096 * middle + 2**24 * high: any 32-bit n in at most two multiplications.
cdef u32 low_powers[4096]
cdef u32 middle_powers[4096]
cdef u32 high_powers[256]


cdef inline u32 _multiply(u32 a, u32 b) noexcept nogil:
    """The product of two polynomials. No branch depends on the bits, so the time is always the same."""
    cdef u32 product = 0
    cdef int i
    for i in range(32):
        product ^= b & (0 - (a >> 31))
        a <<= 1
        b = (b >> 1) ^ (<u32>POLYNOMIAL & (0 - (b & 1)))
    return product


cdef void _fill(u32 *powers, int count, u32 base) noexcept nogil:
    cdef int i
    powers[0] = ONE
    for i in range(1, count):
        powers[i] = _multiply(powers[i - 1], base)


_fill(low_powers, 4096, X_TO_8)
_fill(middle_powers, 4096, _multiply(low_powers[4095], X_TO_8))
_fill(high_powers, 256, _multiply(middle_powers[4095], middle_powers[1]))


cdef inline u32 _append_zeros(u32 register, u32 count) noexcept nogil:
    """The register after `count` more zero bytes."""
    register = _multiply(register, low_powers[count & 4095])
    if count >> 12:
        register = _multiply(register, middle_powers[(count >> 12) & 4095])
    if count >> 24:
        register = _multiply(register, high_powers[count >> 24])
    return register


cdef inline u32 _run(CrcRanges *ranges, u32 register, u64 start, u64 size) noexcept nogil:
    ranges.work += size
    return ~crc32c(~register, ranges.data + start, size)


cdef void crc_ranges_init(CrcRanges *ranges, const u8 *data, u64 size) noexcept nogil:
    ranges.data = data
    ranges.size = size
    ranges.prefixes = NULL
    ranges.work = 0


cdef bint crc_ranges_build(CrcRanges *ranges) noexcept nogil:
    cdef u64 count = ranges.size // CRC_STEP, i
    if ranges.prefixes != NULL:
        return True
    ranges.prefixes = <u32 *>malloc((count + 1) * sizeof(u32))
    if ranges.prefixes == NULL:
        return False
    ranges.prefixes[0] = 0
    for i in range(count):
        ranges.prefixes[i + 1] = _run(ranges, ranges.prefixes[i], i * CRC_STEP, CRC_STEP)
    return True


cdef void crc_ranges_free(CrcRanges *ranges) noexcept nogil:
    free(ranges.prefixes)
    ranges.prefixes = NULL


cdef inline u32 _prefix(CrcRanges *ranges, u64 end) noexcept nogil:
    """T(end)."""
    cdef u64 step = end // CRC_STEP
    return _run(ranges, ranges.prefixes[step], step * CRC_STEP, end - step * CRC_STEP)


cdef u32 crc_of_range(CrcRanges *ranges, u32 crc, u64 start, u32 size) noexcept nogil:
    if size <= CRC_DIRECT:
        return ~_run(ranges, ~crc, start, size)
    return ~(_prefix(ranges, start + size) ^ _append_zeros(_prefix(ranges, start) ^ ~crc, size))


def range_checksum(const u8[::1] data, u64 start, u32 size, u32 crc=0) -> int:
    """CRC32C of data[start : start + size]; for tests, which compare it with `_crc32c.checksum`."""
    cdef CrcRanges ranges
    cdef u32 result
    if start + size > <u64>data.shape[0]:
        raise IndexError(f"{size} bytes from {start} of {data.shape[0]}")
    crc_ranges_init(&ranges, &data[0] if data.shape[0] else NULL, data.shape[0])
    if not crc_ranges_build(&ranges):
        raise MemoryError
    result = crc_of_range(&ranges, crc, start, size)
    crc_ranges_free(&ranges)
    return result
