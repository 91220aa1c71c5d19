"""Making a segment of the log.

A new segment gets its final name only when its header is on disk. So a named segment always has a valid
header. The appender syncs the old segment first, so only the last one can have a torn tail.
"""

from libc.stdio cimport snprintf
from libc.string cimport memcpy, memset
from posix.fcntl cimport O_CREAT, O_RDWR, O_TRUNC

from ...ipc._atomics cimport clock_realtime_ns, i64, u8, u32, u64
from ..disk._crc32c cimport crc32c
from ..disk._failpoints cimport FP_WAL_ROTATE_RENAME, failpoint_armed, failpoint_hit
from ..disk._files cimport (
    file_close, file_open, file_rename, file_sync, file_sync_directory, file_unlink, file_write,
)

FORMAT_VERSION = LOG_FORMAT_VERSION
FORMATS_READ = (1, 2)      # 1 has no BoundWrite
MAGIC = b"OCCAMLOG"
HEADER_SIZE = WAL_HEADER_SIZE

assert sizeof(SegmentHeader) == WAL_HEADER_SIZE


cdef void _fill_header(SegmentHeader *header, u32 old_seed) noexcept nogil:
    """Fill in what is the same in every segment, and the checksum."""
    memcpy(header.magic, b"OCCAMLOG", 8)
    header.format_version = LOG_FORMAT_VERSION
    header.header_size = WAL_HEADER_SIZE
    header.created_at = clock_realtime_ns()
    header.crc = crc32c(0, <const u8 *>header, sizeof(SegmentHeader) - 4)
    while header.crc == old_seed:
        # The clock may stand still and checksums may collide, but the last segment's entries must not be
        # valid in this one.
        header.created_at += 1
        header.crc = crc32c(0, <const u8 *>header, sizeof(SegmentHeader) - 4)


cdef int segment_create(int directory_fd, const u8 *database_id, u64 first_version, u64 previous_version,
                        u64 incarnation, u32 old_seed, NewSegment *out) noexcept nogil:
    cdef SegmentHeader header
    cdef char name[32]
    cdef char temporary[40]
    cdef i64 result
    out.fd = -1
    out.sync_error = 0
    snprintf(name, sizeof(name), "%020llu.log", <unsigned long long>first_version)
    snprintf(temporary, sizeof(temporary), "%s.new", name)
    memset(&header, 0, sizeof(header))
    memcpy(header.database_id, database_id, 16)
    header.first_version = first_version
    header.previous_version = previous_version
    header.incarnation = incarnation
    _fill_header(&header, old_seed)
    result = file_open(directory_fd, temporary, O_RDWR | O_CREAT | O_TRUNC)
    if result < 0:
        return <int>-result
    out.fd = <int>result
    result = file_write(out.fd, <const u8 *>&header, sizeof(header), 0)
    if result >= 0:
        # The name must never appear before the header is on disk: a named segment is a valid one.
        result = file_sync(out.fd)
        if result < 0:
            out.sync_error = <int>-result
    if result >= 0 and failpoint_armed():
        result = -failpoint_hit(FP_WAL_ROTATE_RENAME)
    if result >= 0:
        result = file_rename(directory_fd, temporary, name)
    if result < 0:
        file_unlink(directory_fd, temporary)
    else:
        # Commits synced in this segment are lost with its name if the directory is not on disk too.
        result = file_sync_directory(directory_fd)
        if result < 0:
            out.sync_error = <int>-result
    if result < 0:
        file_close(out.fd)
        out.fd = -1
        return <int>-result
    out.seed = header.crc
    return 0
