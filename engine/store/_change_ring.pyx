"""The writer of the change ring: what the last commits changed, for followers in any process.

Owner: the commit thread (in memory: the holder of the core's mutex). `_change_reader.pyx` is the other side.

1. *Nothing unpublished is seen.* Blocks above `change_end` are private. `change_publish` stores `change_end` with
   release after the blocks are complete, and `committed_version` follows. A follower reads no block of a version
   above the `committed_version` that it loaded, so it sees a batch when every snapshot does, and not before.
2. *Nothing torn is used.* Before bytes of old blocks are written over, `change_tail` is raised past those blocks:

       writer                                 follower at position p
       change_tail = t    (release)           copies the block at p
       release fence                          acquire fence
       writes over positions < t              change_tail > p ? (relaxed): the copy is thrown away

   If the copy has one byte of the new block, the fences order the store of t before the follower's look at it.
3. *No gap goes unnoticed.* Every commit that changed something has its block, in the order of versions. Versions of
   blocks that were dropped are at or below `change_floor`, which is raised (release) before `change_tail`. So a
   follower that loads a tail and then a floor (acquire) and finds its version at or above the floor has not missed
   anything before that tail. A commit too large for the ring is a GAP block, at which a follower learns that it lags.
4. *A batch that is undone* takes its blocks back: `next` returns to `change_end`, or to `change_tail` if the batch
   was so large that it had dropped blocks of its own. In that case followers find themselves lapped and look for
   their version anew. The floor is then no higher than the last published version, since the versions of the batch
   are used again.
5. *Memory* is preallocated in steps, while the ring is filled for the first time. If the machine has no more, the
   ring goes round at what there is. Every block leaves room for a WRAP block behind it, unless it ends where the ring
   does.
"""

from libc.errno cimport EINVAL, ENOSPC
from libc.string cimport memcpy

from ...ipc._atomics cimport fence_release, load_relaxed_u64, store_release_u64
from ._pages cimport fallocate_range

cdef enum:
    BACKING_FIRST = 262144
    BACKING_STEP = 1048576
    INLINE_SHARE = 16               # a value that takes a larger part of the ring than this one is left in the store
    INLINE_MAX = 65536


cdef inline u8 *_at(const ChangeRing *r, u64 position) noexcept nogil:
    return r.data + (position & (r.size - 1))


cdef bint _back(ChangeRing *r, u64 need) noexcept nogil:
    """Make the first `need` bytes of the ring usable. False: there is no memory for them."""
    cdef u64 target
    if need <= r.usable:
        return True
    target = r.usable + BACKING_STEP if r.usable else <u64>BACKING_FIRST
    if target > r.size:
        target = r.size
    if target < need:
        target = (need + BACKING_STEP - 1) // BACKING_STEP * BACKING_STEP
        if target > r.size:
            target = r.size
    if r.fd >= 0 and fallocate_range(r.fd, r.start + r.usable, r.start + target):
        return False
    r.usable = target
    return True


cdef int change_open(ChangeRing *r, StoreHeader *header, u8 *base, u64 start, u64 size, int fd) noexcept nogil:
    r.data = NULL
    r.header = header
    r.size = size
    header.change_size = size
    if size == 0:
        return 0
    if size & (size - 1) or size < CHANGE_SIZE_MIN or size > (<u64>1 << 30):
        return EINVAL
    header.change_offset = start
    r.data = base + start
    r.start = start
    r.fd = fd
    r.usable = 0
    if not _back(r, size if fd < 0 else CHANGE_SIZE_MIN):
        return ENOSPC
    # Position 0 stands for "no block", so the ring begins with its second round.
    r.next = size
    r.tail = size
    r.last = 0
    r.floor = 0
    header.change_end = size
    header.change_tail = size
    return 0


cdef void change_start(ChangeRing *r, u64 version) noexcept nogil:
    r.floor = version
    store_release_u64(&r.header.change_floor, version)


cdef u64 change_inline_max(const ChangeRing *r) noexcept nogil:
    return min(r.size // INLINE_SHARE, <u64>INLINE_MAX)


cdef void _drop_below(ChangeRing *r, u64 limit) noexcept nogil:
    """Drop the blocks that begin below a position, before it is written over one round later (invariants 2 and 3)."""
    cdef const ChangeBlock *block
    if r.tail >= limit:
        return
    while r.tail < limit and r.tail != r.next:
        block = <const ChangeBlock *>_at(r, r.tail)
        if block.kind != CHANGE_WRAP:
            r.floor = block.version
        r.tail += block.size
    # Release, floor before tail: a follower that loads this tail (acquire) sees this floor or a later one.
    store_release_u64(&r.header.change_floor, r.floor)
    store_release_u64(&r.header.change_tail, r.tail)
    # Before the bytes that are written next, as invariant 2 asks.
    fence_release()


cdef void _head(ChangeRing *r, u64 version, i64 timestamp, u64 size, u32 count, u32 kind) noexcept nogil:
    """The header of the block at `next`."""
    cdef ChangeBlock *block = <ChangeBlock *>_at(r, r.next)
    block.version = version
    block.timestamp = timestamp
    block.size = <u32>size
    block.back = <u32>(r.next - r.last) if r.last and r.last >= r.tail else 0
    block.count = count
    block.kind = kind


cdef bint _make_room(ChangeRing *r, u64 size) noexcept nogil:
    """Let `size` bytes at `next` be free, going round the end if need be. False: they are too many for the ring."""
    cdef u64 offset = r.next & (r.size - 1)
    # Behind it, a WRAP block must fit, or the ring must end.
    cdef u64 need = offset + size if offset + size == r.size else offset + size + CHANGE_BLOCK_SIZE
    cdef u64 rest
    if size > r.size // 2:
        return False
    if need > r.size or not _back(r, need):
        if size + CHANGE_BLOCK_SIZE > r.usable // 2:
            return False
        if offset:
            rest = r.size - offset
            _drop_below(r, r.next + CHANGE_BLOCK_SIZE - r.size)
            _head(r, 0, 0, rest, 0, CHANGE_WRAP)
            r.next += rest
    _drop_below(r, r.next + size - r.size)
    return True


cdef u8 *change_block(ChangeRing *r, u64 version, i64 timestamp, u32 count, u64 body) noexcept nogil:
    cdef u64 size = (body + 2 * CHANGE_BLOCK_SIZE - 1) & ~<u64>(CHANGE_BLOCK_SIZE - 1)
    cdef u32 kind = CHANGE_COMMIT
    cdef u8 *at
    if not _make_room(r, size):
        # Always fits: no ring is smaller than CHANGE_SIZE_MIN, and as much is backed.
        kind = CHANGE_GAP
        size = CHANGE_BLOCK_SIZE
        count = 0
        _make_room(r, size)
    _head(r, version, timestamp, size, count, kind)
    at = _at(r, r.next)
    r.last = r.next
    r.next += size
    return at + CHANGE_BLOCK_SIZE if kind == CHANGE_COMMIT else NULL


cdef u8 *change_entry(u8 *at, u8 kind, u8 flags, const u8 *key, u32 key_size, const u8 *value,
                      u32 value_size) noexcept nogil:
    cdef ChangeEntry entry
    entry.key_size = <u16>key_size
    entry.kind = kind
    entry.flags = flags
    entry.value_size = value_size
    # Entries are not aligned: they are copied, never pointed into.
    memcpy(at, &entry, CHANGE_ENTRY_SIZE)
    at += CHANGE_ENTRY_SIZE
    memcpy(at, key, key_size)
    at += key_size
    if value_size:
        memcpy(at, value, value_size)
    return at + value_size


cdef void change_publish(ChangeRing *r) noexcept nogil:
    if r.data == NULL or r.next == r.header.change_end:
        return
    # Release, both: the blocks are complete. The end comes last: a follower that loads an end and then `change_last`
    # finds that block or a newer one.
    store_release_u64(&r.header.change_last, r.last)
    store_release_u64(&r.header.change_end, r.next)


cdef void change_discard(ChangeRing *r, u64 committed) noexcept nogil:
    cdef u64 end
    if r.data == NULL:
        return
    end = load_relaxed_u64(&r.header.change_end)
    r.next = end
    r.last = load_relaxed_u64(&r.header.change_last)
    if r.tail <= end:
        if r.last < r.tail:
            r.last = 0
            store_release_u64(&r.header.change_last, 0)
        return
    # It had dropped everything that is published, and blocks of its own: the ring is empty from here on.
    r.next = r.tail
    r.last = 0
    r.floor = committed
    store_release_u64(&r.header.change_floor, committed)
    store_release_u64(&r.header.change_last, 0)
    store_release_u64(&r.header.change_end, r.next)
