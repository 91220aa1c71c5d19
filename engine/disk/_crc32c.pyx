"""CRC32C (Castagnoli): by the processor's instruction where there is one, else slicing-by-8."""

from libc.string cimport memcpy

from ...ipc._atomics cimport u8, u32, u64

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #if defined(__x86_64__) && defined(__GNUC__)
    /* The processor's own CRC32C instruction, eight bytes a step. */
    __attribute__((target("sse4.2")))
    static uint32_t occ_crc32c_hardware(uint32_t crc, const uint8_t *p, uint64_t n) {
        uint64_t c = ~crc & 0xFFFFFFFFu, w;
        for (; n >= 8; p += 8, n -= 8) { memcpy(&w, p, 8); c = __builtin_ia32_crc32di(c, w); }
        for (; n; p++, n--) c = __builtin_ia32_crc32qi((uint32_t)c, *p);
        return ~(uint32_t)c;
    }
    static int occ_crc32c_available(void) { return __builtin_cpu_supports("sse4.2"); }
    #else
    static uint32_t occ_crc32c_hardware(uint32_t crc, const uint8_t *p, uint64_t n) { return 0; }
    static int occ_crc32c_available(void) { return 0; }
    #endif
    """
    u32 occ_crc32c_hardware(u32 crc, const u8 *data, u64 size) nogil
    int occ_crc32c_available() nogil

cdef u32 crc_tables[8][256]
cdef bint crc_in_hardware = occ_crc32c_available() != 0


cdef void _build_crc_tables() noexcept nogil:
    cdef u32 i, j, c
    for i in range(256):
        c = i
        for j in range(8):
            c = (c >> 1) ^ (<u32>0x82F63B78U * (c & 1))
        crc_tables[0][i] = c
    for i in range(256):
        for j in range(1, 8):
            c = crc_tables[j - 1][i]
            crc_tables[j][i] = (c >> 8) ^ crc_tables[0][c & 0xFF]


_build_crc_tables()


cdef u32 crc32c_by_table(u32 crc, const u8 *data, u64 size) noexcept nogil:
    """Slicing-by-8 (Kounavis and Berry, Intel 2005), for processors without the instruction."""
    cdef u64 word
    crc = ~crc
    while size >= 8:
        memcpy(&word, data, 8)
        word ^= crc
        crc = (
            crc_tables[7][word & 0xFF] ^ crc_tables[6][(word >> 8) & 0xFF]
            ^ crc_tables[5][(word >> 16) & 0xFF] ^ crc_tables[4][(word >> 24) & 0xFF]
            ^ crc_tables[3][(word >> 32) & 0xFF] ^ crc_tables[2][(word >> 40) & 0xFF]
            ^ crc_tables[1][(word >> 48) & 0xFF] ^ crc_tables[0][word >> 56]
        )
        data += 8
        size -= 8
    while size:
        crc = (crc >> 8) ^ crc_tables[0][(crc ^ data[0]) & 0xFF]
        data += 1
        size -= 1
    return ~crc


cdef u32 crc32c(u32 crc, const u8 *data, u64 size) noexcept nogil:
    if crc_in_hardware:
        return occ_crc32c_hardware(crc, data, size)
    return crc32c_by_table(crc, data, size)


def checksum(const u8[::1] data, u32 crc=0, bint by_table=False) -> int:
    """CRC32C of a buffer; `by_table` uses the portable way, so that tests can compare the two."""
    cdef const u8 *start = &data[0] if data.shape[0] else NULL
    if by_table:
        return crc32c_by_table(crc, start, data.shape[0])
    return crc32c(crc, start, data.shape[0])
