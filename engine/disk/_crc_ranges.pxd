"""CRC32C of any range of one buffer in constant time. See `_crc_ranges.pyx`."""

from ...ipc._atomics cimport u8, u32, u64

cdef struct CrcRanges:
    const u8 *data
    u64 size
    u32 *prefixes                 # raw CRC of data[0 .. CRC_STEP * i); NULL until `crc_ranges_build`
    u64 work                      # bytes that were run through the CRC, the building included

# REQUIRES: `data` stays as it is until `crc_ranges_free`.
cdef void crc_ranges_init(CrcRanges *ranges, const u8 *data, u64 size) noexcept nogil
# One pass over the buffer. False: out of memory. Does nothing the second time.
cdef bint crc_ranges_build(CrcRanges *ranges) noexcept nogil
cdef void crc_ranges_free(CrcRanges *ranges) noexcept nogil
# crc32c(crc, data + start, size). REQUIRES: built, and the range lies in the buffer.
cdef u32 crc_of_range(CrcRanges *ranges, u32 crc, u64 start, u32 size) noexcept nogil
