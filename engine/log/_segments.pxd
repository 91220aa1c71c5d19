"""Segments of the log: the header of one, and making a new one. See `_segments.pyx`."""

from ...ipc._atomics cimport i64, u8, u32, u64

cdef enum:
    LOG_FORMAT_VERSION = 2
    WAL_HEADER_SIZE = 80

cdef packed struct SegmentHeader:
    u8 magic[8]
    u32 format_version
    u32 header_size
    u8 database_id[16]
    u64 first_version                # of the first transaction in it
    u64 previous_version             # the version before it: first_version - 1, or less after a version jump
    u64 incarnation
    i64 created_at
    u64 reserved
    u32 zero
    u32 crc                          # of all before it; also the seed of the entries' checksums

cdef struct NewSegment:
    int fd                           # -1: none was made
    u32 seed                         # of the checksums in it
    int sync_error                   # not 0: the errno of a failed sync, after which nothing may be appended

# Make a segment and give it its name, both durable. 0, or an errno with nothing under its final name, except
# when only the sync of the directory failed; then `sync_error` is set. The caller owns `out.fd`.
#   database_id, first_version, previous_version, incarnation: as in the header.
#   old_seed: of the segment before; the new one's seed is another.
# The thread that appends to the log only.
cdef int segment_create(int directory_fd, const u8 *database_id, u64 first_version, u64 previous_version,
                        u64 incarnation, u32 old_seed, NewSegment *out) noexcept nogil
