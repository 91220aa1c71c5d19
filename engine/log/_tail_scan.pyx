"""What lies behind a broken entry of a log segment: the search for entries at every byte.

Behind a broken entry, nothing says where the next one begins, so one is looked for at each offset. The bytes
are whatever users stored, up to a copy of a log or an image made to look like one. Invariants:

1. The work is linear in the bytes, whatever they are. An offset costs a look at the sizes that an entry of
   its type must have and, if they agree, a checksum in constant time (`_crc_ranges`). Found entries are
   stepped over.
2. Bytes inside a found entry are its content, and are not looked at as entries.
3. A find is not an accident: its checksum is seeded with segment and position, and its sizes agree. Only a
   user who reads the segment, and computes checksums for the place where a value will lie, can make one. It
   counts as an entry all the same. So the worst that such a user achieves is that a torn log is called
   damaged; what was acknowledged is never cut off.
"""

from libc.string cimport memcpy

from ...ipc._atomics cimport u8, u32, u64
from ..disk._crc32c cimport crc32c
from ..disk._crc_ranges cimport crc_of_range, crc_ranges_build
from ._replay cimport TX_WHOLE, LogEntry, LogTransaction, SegmentImage
from ._entries cimport (
    BEGIN_LENGTH, COMMIT_LENGTH, ENTRY_BEGIN, ENTRY_BOUND_WRITE, ENTRY_COMMIT, ENTRY_DELETE_RANGE, ENTRY_HEADER_SIZE,
    ENTRY_WRITE, BeginBody, CommitBody,
)


# The length of each type of entry that has only one. For the other types, a length that no image has.
cdef u32 fixed_length[256]


cdef void _fill_lengths() noexcept nogil:
    cdef int type
    for type in range(256):
        fixed_length[type] = 0xFFFFFFFFU
    fixed_length[ENTRY_BEGIN] = BEGIN_LENGTH
    fixed_length[ENTRY_COMMIT] = COMMIT_LENGTH


_fill_lengths()


cdef inline bint _sizes_agree(SegmentImage image, u64 at, LogEntry *out) noexcept nogil:
    """Whether the bytes at `at` have the sizes of an entry that lies inside the image."""
    cdef u32 length
    cdef u64 version
    cdef u8 *entry = image.data + at
    cdef u8 type = entry[ENTRY_HEADER_SIZE]
    cdef bint sized
    memcpy(&length, entry, 4)
    # One branch that nearly always goes the same way, whatever the bytes: most offsets end here.
    sized = (type >= ENTRY_WRITE) & (type <= ENTRY_DELETE_RANGE) | (type == ENTRY_BOUND_WRITE)
    if not (sized | (length == fixed_length[type])):
        return False
    if length == 0 or length > image.size - at - ENTRY_HEADER_SIZE:
        return False
    out.type = type
    out.body = entry + ENTRY_HEADER_SIZE + 1
    out.body_size = length - 1
    return not sized or image._operation(out, &version) != 0


cdef inline bint _entry_found(SegmentImage image, u64 at, LogEntry *out) noexcept nogil:
    """Whether a valid entry is at `at`.

    REQUIRES: at + ENTRY_HEADER_SIZE < image.size, and the checksums of ranges are built.
    """
    cdef u64 place[2]
    cdef u32 crc
    if not _sizes_agree(image, at, out):
        return False
    memcpy(&crc, image.data + at + 4, 4)
    place[0] = at
    place[1] = <u64>out.body_size + 1
    return crc == crc_of_range(&image.ranges, crc32c(image.seed, <const u8 *>place, 16), at + ENTRY_HEADER_SIZE,
                               out.body_size + 1)


cdef inline u64 _past(u64 at, const LogEntry *entry) noexcept nogil:
    return at + ENTRY_HEADER_SIZE + 1 + entry.body_size


cdef void _count_entries(SegmentImage image, u64 at, u64 *found, u64 *synced) noexcept nogil:
    cdef LogEntry entry
    cdef BeginBody head
    while at + ENTRY_HEADER_SIZE < image.size:
        if not _entry_found(image, at, &entry):
            at += 1
            continue
        found[0] += 1
        if entry.type == ENTRY_BEGIN:
            memcpy(&head, entry.body, sizeof(BeginBody))
            synced[0] = max(synced[0], head.synced)
        at = _past(at, &entry)


cdef bint _find_transaction(SegmentImage image, u64 at, LogTransaction *out) noexcept nogil:
    """The first whole transaction at `at` or later. `at` only grows, even over what turns out not to be one.
    """
    cdef LogEntry entry
    cdef CommitBody commit
    cdef u64 begin = 0
    cdef bint joined = False            # all entries from `begin` up to `at` are valid and follow each other
    while at + ENTRY_HEADER_SIZE < image.size:
        if not _entry_found(image, at, &entry):
            joined = False
            at += 1
            continue
        if entry.type == ENTRY_BEGIN:
            begin = at
            joined = True
        at = _past(at, &entry)
        if entry.type == ENTRY_COMMIT and joined:
            joined = False
            memcpy(&commit, entry.body, sizeof(CommitBody))
            image.offset = begin
            if commit.version and image.next_transaction(commit.version - 1, out) == TX_WHOLE:
                return True
    return False


def tail_kind(SegmentImage image not None, u64 offset):
    """What lies behind a broken entry at `offset`.

    Returns:
      (valid entries behind it, highest `synced` among their BeginTxns).

    Raises:
      MemoryError: for the table of checksums, a 64th of the segment's size.
    """
    cdef u64 found = 0, synced = 0
    cdef bint built
    with nogil:
        built = crc_ranges_build(&image.ranges)
        if built:
            _count_entries(image, offset + 1, &found, &synced)
    if not built:
        raise MemoryError(f"the checksums of a segment of {image.size} bytes")
    return found, synced


def resume_after(SegmentImage image not None, u64 offset):
    """For salvage: go on with the first whole transaction behind damage at `offset`.

    Returns:
      The version before it, or None when there is none.

    Raises:
      MemoryError: as `tail_kind`.
    """
    cdef LogTransaction transaction
    cdef u64 before = image.offset
    cdef bint built, found = False
    with nogil:
        built = crc_ranges_build(&image.ranges)
        if built:
            found = _find_transaction(image, offset + 1, &transaction)
    if not built:
        raise MemoryError(f"the checksums of a segment of {image.size} bytes")
    image.offset = transaction.start if found else before
    return transaction.version - 1 if found else None


def scan_work(SegmentImage image not None) -> int:
    """Bytes that the scans of this image have run through the checksum; for tests."""
    return image.ranges.work
