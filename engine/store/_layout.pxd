"""Every struct, offset and limit of the store segment, for the writer and for readers.

The segment is addressed by *refs*: u32, byte offset / 16, 0 is null; so a store is at most 64 GiB.

1. All words are little-endian and naturally aligned; blocks are 16-byte aligned.
2. Only the coordinator writes; workers map the segment read-only. Words that change while a reader may look
   at them (head, prev, next, directory entries, bucket slots, header words) are accessed with the orders of
   `ipc/_atomics.pxd`; all other bytes of a block are final before the block's ref is published.
3. The sizes below are asserted when `engine._store` is imported.
"""

from libc.string cimport memcmp, memcpy

from ...ipc._atomics cimport i64, load_acquire_u32, u8, u16, u32, u64

cdef enum:
    STORE_LAYOUT_VERSION = 3
    STORE_HEADER_SIZE = 1024
    PAGE_SIZE = 16384           # allocation page; page 0 holds the header
    SLACK_PAGES = 5             # preallocated but unused past the last page: what a reader takes for a node
                                # at a readable offset (tower of 255, key of 65535 bytes) lies inside memory
    REF_SHIFT = 4
    NODE_SIZE = 16              # fixed part of a node; the tower and the key follow
    RECORD_SIZE = 48            # fixed part of a record; the value follows
    TOMBSTONE_SIZE = 64         # a tombstone block: the fixed part and the writer's two queue links
    HEIGHT_MAX = 16             # levels of the ordered index
    KEY_SIZE_MAX = 65535        # node.key_size is 16 bits
    BUCKET_SLOTS = 30
    BUCKET_SIZE = 256
    DEPTH_MAX = 24              # of the hash directory
    BUCKET_CHAIN_MAX = 65536    # pages of one overflow chain
    RECORD_TOMBSTONE = 1        # record.flags: the key is deleted; there is no value
    RECORD_EXPIRY = 2           # record.flags: a tombstone made by expiry; expires_at: version it removed
    RECORD_BOUND = 4            # record.flags: session-bound; the session's id follows the value
    BINDING_SIZE = 8            # of that id
    RANGE_SLOTS = 64            # range tombstones that can be active at a time
    RANGE_BLOCK_SIZE = 24       # fixed part of a range tombstone; start key and end key follow
    RANGE_KEYS_MAX = 65536      # both keys together: with the fixed part less than the slack
    NODE_FRESH = 1              # node.flags: the writer has yet to see whether a commit kept this node

cdef struct StoreHeader:
    u64 magic
    u32 layout_version
    u32 header_size
    u8 database_id[16]
    u64 incarnation
    u64 size
    u64 hash_seed               # for key_hash; derived from database_id, so the same in every incarnation
    u32 first_node              # sentinel of the ordered index: a node of full height without a key
    u32 reserved
    # +64: the newest version snapshots may take. Written by the commit thread (release), read by all
    # (acquire).
    u64 committed_version
    # Expiry, see _expiry_time.pxd; ns. Written by the commit thread.
    i64 expiry_time             # keys with an expiry time up to this are absent
    i64 clock_offset            # what makes CLOCK_MONOTONIC the clock by which keys expire
    i64 next_due                # monotonic: when `expiry_time` has to be raised next; 0: never, so far
    u64 _pad1[4]
    # +128: records replaced at or below this may be gone. Commit thread (seq_cst), pin protocol.
    u64 gc_horizon
    u64 _pad2[7]
    # +192: grows by 1 before unlinked blocks are used again. Commit thread (seq_cst); readers check their
    # walk by it.
    u64 reclaim_sequence
    u64 _pad3[7]
    # +256: 1 once a newer incarnation serves this database. Written once, by the new coordinator.
    u32 superseded
    u32 reserved2
    u64 readable                # block starts lie below; raised (release) before a higher ref is published
    u64 _pad4[6]
    # +320: hash directory ref << 8 | depth. Commit thread (release).
    u64 hash_root
    u64 _pad5[7]
    # +384: statistics, relaxed; may lag by one batch.
    u64 key_count               # keys whose newest record is not a tombstone
    u64 record_count            # linked records, superseded ones and tombstones included
    u64 node_bytes
    u64 record_bytes            # of which superseded_bytes
    u64 superseded_bytes
    u64 index_bytes
    u64 quarantine_bytes
    u64 free_bytes              # inside pages in use or given back
    # +448
    u64 used_bytes              # up to the high-water mark of pages
    u64 backed_bytes            # preallocated
    u64 _pad6[6]
    # +512: 1 while a core is free, so that workers may spin. Commit thread, relaxed.
    u32 spin_hint
    u32 _pad7[15]
    # +576: refs of the active range tombstones (`_range_tombstones.pyx`). Commit thread (release), readers
    # (acquire).
    u32 range_count             # slots at and above this are free; usually 0
    u32 ranges[64]              # 0: free
    u32 _pad8[15]
    # +896: the change ring (`_change_ring.pyx`). Final once the magic is there.
    u64 change_offset           # of its bytes in the segment, behind everything else
    u64 change_size             # a power of two; 0: there is no ring
    u64 _pad9[6]
    # +960: positions in the ring. Commit thread (release), readers (acquire).
    u64 change_end              # behind the newest block that may be read
    u64 change_last             # of that block; 0: none
    u64 change_tail             # blocks below are gone
    u64 change_floor            # changes of versions up to this may be gone; of later ones none is
    u64 _pad10[4]

cdef struct Node:
    u64 hash
    u32 head                    # newest record; 0: no record (absent to everybody)
    u16 key_size
    u8 height                   # 1..HEIGHT_MAX
    u8 flags                    # writer only
    # u32 next[height], then the key

cdef struct Record:
    u64 version
    i64 timestamp               # ns since the epoch
    i64 expires_at              # ns since the epoch, 0 never
    u32 prev                    # next older record
    u32 newer                   # writer only: next newer record, 0 for the head
    u32 gc_next                 # writer only: link of the queue the record waits in
    u32 node
    u32 value_size
    u32 flags
    # value, then with RECORD_BOUND the id of the session it is bound to (u64, unaligned)

cdef struct Tombstone:          # writer only: what follows the fixed part of a tombstone record
    u32 older
    u32 newer
    u64 reserved

cdef struct RangeBlock:         # range tombstone: keys in [start, end) with a lower version are deleted
    u64 version
    i64 timestamp
    u32 start_size
    u32 end_size
    # start key, end key

cdef struct Slot:
    u32 tag                     # high 32 bits of the hash
    u32 ref                     # 0: free

cdef struct Bucket:             # four cache lines; a key's slot is looked for in its home line first
    u32 depth                   # of this page: how many low hash bits all its keys share
    u32 count                   # writer only
    u32 overflow                # next page of a chain
    u32 reserved
    Slot slots[30]


cdef inline u64 store_magic() noexcept nogil:
    return 0x45524F54534D434FULL    # "OCMSTORE"


cdef inline u8 *block_at(const u8 *base, u32 ref) noexcept nogil:
    return <u8 *>base + (<u64>ref << REF_SHIFT)


cdef inline Node *node_at(const u8 *base, u32 ref) noexcept nogil:
    return <Node *>block_at(base, ref)


cdef inline Record *record_at(const u8 *base, u32 ref) noexcept nogil:
    return <Record *>block_at(base, ref)


cdef inline Tombstone *tombstone_at(const u8 *base, u32 ref) noexcept nogil:
    return <Tombstone *>(block_at(base, ref) + RECORD_SIZE)


cdef inline RangeBlock *range_at(const u8 *base, u32 ref) noexcept nogil:
    return <RangeBlock *>block_at(base, ref)


cdef inline u8 *range_start(const RangeBlock *block) noexcept nogil:
    return <u8 *>block + RANGE_BLOCK_SIZE


cdef inline u8 *range_end(const RangeBlock *block) noexcept nogil:
    return <u8 *>block + RANGE_BLOCK_SIZE + block.start_size


cdef inline Bucket *bucket_at(const u8 *base, u32 ref) noexcept nogil:
    return <Bucket *>block_at(base, ref)


cdef inline u32 home_slot(u32 tag) noexcept nogil:
    """First slot of the cache line that two bits of the tag choose; probing goes round from there."""
    return ((tag & 3) << 3) - 2 if tag & 3 else 0


cdef inline u32 *node_next(const Node *node) noexcept nogil:
    return <u32 *>(<u8 *>node + NODE_SIZE)


cdef inline u8 *node_key(const Node *node) noexcept nogil:
    return <u8 *>node + NODE_SIZE + 4 * <u64>node.height


cdef inline u8 *record_value(const Record *record) noexcept nogil:
    return <u8 *>record + RECORD_SIZE


cdef inline u64 record_session(const Record *record) noexcept nogil:
    """The session that a record is bound to, 0 for none. Writer only: a reader has to check the size first."""
    cdef u64 session = 0
    if record.flags & RECORD_BOUND:
        memcpy(&session, record_value(record) + record.value_size, BINDING_SIZE)
    return session


cdef inline void record_bind(Record *record, u64 session) noexcept nogil:
    """Fill in the session. REQUIRES: made with RECORD_BOUND, and no reader can reach the record yet."""
    memcpy(record_value(record) + record.value_size, &session, BINDING_SIZE)


cdef inline int key_compare(const u8 *a, u32 a_size, const u8 *b, u32 b_size) noexcept nogil:
    """Key order: bytes, then length."""
    cdef int order = memcmp(a, b, a_size if a_size < b_size else b_size)
    if order != 0:
        return order
    return (a_size > b_size) - (a_size < b_size)


cdef inline u64 key_hash(const u8 *key, u32 key_size, u64 seed) noexcept nogil:
    """MurmurHash64A (Austin Appleby, public domain, github.com/aappleby/smhasher), seeded per database.

    Pass `store.hash_seed` or `reader.hash_seed`; both are the same for one database.
    """
    cdef u64 m = 0xC6A4A7935BD1E995ULL
    cdef u64 h = seed ^ (key_size * m)
    cdef u64 k
    cdef const u8 *p = key
    cdef const u8 *words_end = key + (key_size & ~<u32>7)
    while p != words_end:
        memcpy(&k, p, 8)
        k = k * m
        k = k ^ (k >> 47)
        h = (h ^ (k * m)) * m
        p += 8
    cdef u32 rest = key_size & 7
    if rest:
        k = 0
        memcpy(&k, p, rest)
        h = (h ^ k) * m
    h = (h ^ (h >> 47)) * m
    return h ^ (h >> 47)
