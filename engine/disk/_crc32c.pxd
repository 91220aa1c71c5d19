"""CRC32C for compiled code. See `_crc32c.pyx`."""

from ...ipc._atomics cimport u8, u32, u64

# Of `size` bytes, continuing from `crc` (0 to begin). crc32c(0, b"123456789", 9) is 0xE3069283.
cdef u32 crc32c(u32 crc, const u8 *data, u64 size) noexcept nogil
