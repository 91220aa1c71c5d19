"""The ring of recent changes at the end of the store segment: its bytes, and its one writer. See _change_ring.pyx.

A ring is a sequence of blocks, one a commit, at growing *positions*: the byte at position p lies at p modulo the size
of the ring. A block does not go round the end of the ring: a WRAP block fills the rest.
"""

from ...ipc._atomics cimport i64, u8, u16, u32, u64
from ._layout cimport StoreHeader

cdef enum:
    CHANGE_SIZE_MIN = 65536         # of a ring
    CHANGE_BLOCK_SIZE = 32          # of a block's header, and what its size is a multiple of
    CHANGE_ENTRY_SIZE = 8           # fixed part of an entry; the key and the value follow

    CHANGE_COMMIT = 0x4D4D4F43      # "COMM"
    CHANGE_WRAP = 0x50415257        # "WRAP": go on at the start of the ring
    CHANGE_GAP = 0x21504147         # "GAP!": a commit that was too large for the ring

    CHANGE_PUT = 1
    CHANGE_DELETE = 2
    CHANGE_EXPIRE = 3
    CHANGE_RANGE = 4                # key and value are [start, end): every live key of an older version in it is deleted
    CHANGE_ELSEWHERE = 1            # entry.flags: a large value, which has to be read from the store

cdef struct ChangeBlock:
    u64 version
    i64 timestamp                   # ns since the epoch
    u32 size                        # of the whole block
    u32 back                        # how far before it the previous COMMIT or GAP block starts; 0: there is none
    u32 count                       # of entries
    u32 kind                        # CHANGE_COMMIT, ...

cdef struct ChangeEntry:
    u16 key_size
    u8 kind                         # CHANGE_PUT, ...
    u8 flags
    u32 value_size                  # of what follows the key here

cdef struct ChangeRing:             # the writer's own state
    u8 *data                        # NULL: there is no ring
    StoreHeader *header
    u64 size
    u64 usable                      # bytes of the ring that are backed by memory
    int fd                          # of the segment; -1: anonymous memory, which need not be backed
    u64 start                       # where the ring begins in the segment
    u64 next                        # position of the next block
    u64 last                        # position of the newest block, published or not; 0: none
    u64 tail                        # as change_tail
    u64 floor                       # as change_floor

# Takes over `size` zero-filled bytes at base + start; 0 makes no ring. 0, or an errno.
cdef int change_open(ChangeRing *r, StoreHeader *header, u8 *base, u64 start, u64 size, int fd) noexcept nogil

# Nothing of versions up to `version` is in the ring: called when a recovered store is published.
cdef void change_start(ChangeRing *r, u64 version) noexcept nogil

# A block for a commit: where its `body` bytes of entries go. NULL when the commit is too large for the ring; a GAP
# block has then been written, and there is nothing to fill in. Followers see neither before `change_publish`.
# REQUIRES: there is a ring; versions grow from call to call.
cdef u8 *change_block(ChangeRing *r, u64 version, i64 timestamp, u32 count, u64 body) noexcept nogil

# The largest value that is copied into the ring.
cdef u64 change_inline_max(const ChangeRing *r) noexcept nogil

# Appends one entry at `at`; returns what follows it.
cdef u8 *change_entry(u8 *at, u8 kind, u8 flags, const u8 *key, u32 key_size, const u8 *value,
                      u32 value_size) noexcept nogil

# Lets followers read what was written since the last call. Called before `committed_version` is published.
cdef void change_publish(ChangeRing *r) noexcept nogil

# Takes back what was written since the last change_publish, whose versions will be used again.
cdef void change_discard(ChangeRing *r, u64 committed) noexcept nogil
