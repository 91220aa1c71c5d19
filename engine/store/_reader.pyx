"""Reading the store from any process, without locks and without trust.

A *walk* loads `reclaim_sequence`, follows refs, and loads the sequence again. The writer unlinks a block, and
lets its memory be used again only after raising the sequence. So, when both loads agree, every block of the
walk was intact:

    reader                                   writer
    s1 = reclaim_sequence (acquire)
                                             unlink block B (release)
    reach B through an older ref
                                             reclaim_sequence += 1 (seq_cst)
                                             release fence; B is reused
    read bytes of B: old or new
    acquire fence
    s2 = reclaim_sequence                    new bytes seen => the raise is seen: s2 != s1, walk again
    a later walk: s1 is the raised value     => the unlinking is seen: B cannot be reached

1. A block's start is checked before a byte of it is read; every loop has a bound. Damaged memory gives -1, an
   absent key or nonsense bytes, never a fault or an endless loop.
2. What is visible at a pinned version stays while the pin holds: the rows' pointers may be used after the
   walk. A caller copies the value and then checks that its pin was not revoked.
3. A key missed because an index changed meanwhile is one that has no record visible at the pinned version.
"""

from libc.string cimport memcmp, memcpy

from ...ipc._atomics cimport fence_acquire, load_acquire_u32, load_acquire_u64, load_relaxed_u32, load_relaxed_u64
from ...ipc._atomics cimport prefetch
from ._layout cimport BUCKET_CHAIN_MAX, BUCKET_SLOTS, DEPTH_MAX, HEIGHT_MAX, PAGE_SIZE
from ._layout cimport BINDING_SIZE, RECORD_BOUND
from ._layout cimport RECORD_SIZE, RECORD_TOMBSTONE, REF_SHIFT, SLACK_PAGES, STORE_HEADER_SIZE, STORE_LAYOUT_VERSION
from ._layout cimport Bucket, Node, Record, block_at, home_slot, key_compare, node_key, node_next, record_value, store_magic
from ._range_view cimport RangeView, ranges_hide, ranges_load

cdef enum:
    ABSENT = 0
    FOUND = 1
    DAMAGED = -1
    RETRIES_MAX = 10000
    STEPS_MAX = 1 << 22         # nodes and records one walk may visit
    NODES_PER_WALK = 4096       # of a scan; fewer on each retry, so that a walk fits between two reclaims
    SCOUT_LEAD = 4              # tall nodes the scout is ahead: about 16 nodes
    GROUP = 64                  # nodes gathered before their records are read: the prefetches overlap
    RING = 256                  # nodes remembered of one stretch of a descending scan


cdef struct Scout:              # see look_ahead
    u32 ahead
    u32 lead


cdef struct Scan:               # one walk of a scan
    const u8 *start
    const u8 *end
    u32 start_size
    u32 end_size
    bint start_exclusive
    u64 version
    Found *out
    u32 rows
    u32 rows_max
    u32 nodes_left
    u32 steps_left
    RangeView ranges
    bint done
    const u8 *last_key          # of the last node walked, visible or not
    u32 last_size


cdef int reader_open(Reader *r, const u8 *base, u64 size) noexcept nogil:
    cdef const StoreHeader *header = <const StoreHeader *>base
    r.base = base
    r.size = size
    if base == NULL or size < (SLACK_PAGES + 1) * PAGE_SIZE:
        return 1
    # Acquire: pairs with the creator's release; the fields below are final once the magic is there.
    if load_acquire_u64(&header.magic) != store_magic() or header.layout_version != STORE_LAYOUT_VERSION \
            or header.header_size != STORE_HEADER_SIZE or header.size != size:
        return 1
    if header.change_size > size or size - header.change_size < (SLACK_PAGES + 1) * PAGE_SIZE:
        return 1
    r.hash_seed = header.hash_seed
    r.first_node = header.first_node
    r.limit = size - header.change_size - SLACK_PAGES * PAGE_SIZE
    return 0


# ---- checked access ----

cdef inline const u8 *block(const Reader *r, u64 ref) noexcept nogil:
    """Start of the block, or NULL when it cannot be one.

    Nothing about the block is believed: it may be reused while it is read, so checking its sizes once would
    not help. The slack behind the readable part makes any tower and any key at a readable offset safe to
    touch.
    """
    cdef u64 offset = ref << REF_SHIFT
    # Relaxed: the ref was loaded with acquire, and `readable` was raised before the ref was published.
    if ref == 0 or offset >= r.limit or offset >= load_relaxed_u64(&(<const StoreHeader *>r.base).readable):
        return NULL
    return r.base + offset


cdef inline bint value_inside(const Reader *r, const Record *record) noexcept nogil:
    return <u64>record.value_size <= r.size - RECORD_SIZE - <u64>(<const u8 *>record - r.base)


cdef inline int visible(const Reader *r, const Node *node, u64 version, const RangeView *ranges, u32 *steps,
                        const Record **out) noexcept nogil:
    """What a snapshot at `version` sees: FOUND, ABSENT (none, a tombstone, or a deleted range) or DAMAGED."""
    # Acquire on head and prev: the record's bytes are complete when its ref is seen.
    cdef u32 ref = load_acquire_u32(&node.head)
    cdef const Record *record
    while ref:
        record = <const Record *>block(r, ref)
        if record == NULL or steps[0] == 0:
            return DAMAGED
        if record.version <= version:
            if record.flags & RECORD_TOMBSTONE:
                return ABSENT
            if not value_inside(r, record):
                return DAMAGED
            if ranges.count and ranges_hide(ranges, node_key(node), node.key_size, record.version):
                return ABSENT
            out[0] = record
            return FOUND
        steps[0] -= 1
        ref = load_acquire_u32(&record.prev)
    return ABSENT


cdef u64 bound_session(const Reader *r, const Record *record) noexcept nogil:
    """The session a record is bound to, 0 for none. The block may be reused meanwhile, so nothing is read unchecked."""
    cdef u64 session
    # Relaxed: loaded once, so that what is checked is what is used. The caller finds out if the block was reused.
    cdef u64 size = <u64>load_relaxed_u32(&record.value_size) + BINDING_SIZE
    if not record.flags & RECORD_BOUND or size > r.size - RECORD_SIZE - <u64>(<const u8 *>record - r.base):
        return 0
    memcpy(&session, record_value(record) + size - BINDING_SIZE, BINDING_SIZE)
    return session


cdef inline void fill(const Reader *r, Found *out, const Node *node, const Record *record) noexcept nogil:
    out.key = node_key(node)
    out.key_size = node.key_size
    out.value = record_value(record)
    out.value_size = record.value_size
    out.version = record.version
    out.timestamp = record.timestamp
    out.expires_at = record.expires_at
    out.session = bound_session(r, record) if record.flags & RECORD_BOUND else 0


# ---- point reads ----

cdef inline int find_node(const Reader *r, const u8 *key, u32 key_size, u64 hash, const Node **out) noexcept nogil:
    # Acquire: the directory's entries are complete when its root is seen.
    cdef u64 root = load_acquire_u64(&(<const StoreHeader *>r.base).hash_root)
    cdef u32 depth = <u32>(root & 0xFF), tag = <u32>(hash >> 32), chain = 0, i, n, ref
    cdef u64 entry
    cdef const Bucket *bucket
    cdef const Node *node
    if depth > DEPTH_MAX:
        return DAMAGED
    entry = 4 * (hash & ((<u64>1 << depth) - 1))
    if root >> 40 or block(r, (root >> 8) + (entry >> REF_SHIFT)) == NULL:
        return DAMAGED
    # Acquire: a bucket's slots are complete when an entry names it.
    ref = load_acquire_u32(block_at(r.base, <u32>(root >> 8)) + entry)
    while chain < BUCKET_CHAIN_MAX:
        bucket = <const Bucket *>block(r, ref)
        if bucket == NULL:
            return DAMAGED
        i = home_slot(tag)
        for n in range(BUCKET_SLOTS):
            # Relaxed: a tag read too early can only miss a key that is not visible at a pinned version.
            if load_relaxed_u32(&bucket.slots[i].tag) == tag:
                # Acquire: the node is complete when its ref is seen.
                ref = load_acquire_u32(&bucket.slots[i].ref)
                if ref:
                    node = <const Node *>block(r, ref)
                    if node == NULL:
                        return DAMAGED
                    if node.hash == hash and node.key_size == key_size and memcmp(node_key(node), key, key_size) == 0:
                        out[0] = node
                        return FOUND
            i = i + 1 if i + 1 < BUCKET_SLOTS else 0
        ref = load_acquire_u32(&bucket.overflow)
        if ref == 0:
            return ABSENT
        chain += 1
    return DAMAGED


cdef inline int get_once(const Reader *r, const u8 *key, u32 key_size, u64 hash, u64 version, Found *out) noexcept nogil:
    cdef const Node *node = NULL
    cdef const Record *record = NULL
    cdef u32 steps = STEPS_MAX
    cdef RangeView ranges
    cdef int outcome
    # Before the node's head is loaded.
    if not ranges_load(r, version, &ranges):
        return DAMAGED
    outcome = find_node(r, key, key_size, hash, &node)
    if outcome != FOUND:
        return outcome
    outcome = visible(r, node, version, &ranges, &steps, &record)
    if outcome == FOUND:
        fill(r, out, node, record)
    return outcome


cdef int reader_get(const Reader *r, const u8 *key, u32 key_size, u64 hash, u64 version, Found *out) noexcept nogil:
    cdef const StoreHeader *header = <const StoreHeader *>r.base
    cdef u64 sequence
    cdef u32 attempt
    cdef int outcome
    for attempt in range(RETRIES_MAX):
        # Acquire: all unlinkings before this value are seen by the walk.
        sequence = load_acquire_u64(&header.reclaim_sequence)
        outcome = get_once(r, key, key_size, hash, version, out)
        # Acquire fence: if the walk read a reused byte, the raised sequence is seen below.
        fence_acquire()
        if load_relaxed_u64(&header.reclaim_sequence) == sequence:
            return outcome
    return DAMAGED


# ---- scans ----

cdef int descend(const Reader *r, Scan *scan, const u8 *bound, u32 bound_size, bint inclusive, u32 floor,
                 const Node **out) noexcept nogil:
    """The last node at level >= floor with key < bound (<= when inclusive); the sentinel if there is none.

    bound NULL: no bound, the last node of all.
    """
    cdef const Node *at = <const Node *>block(r, r.first_node)
    cdef const Node *following
    cdef int level = HEIGHT_MAX - 1, order
    cdef u32 ref, too_far = 0
    if at == NULL or at.height != HEIGHT_MAX:
        return DAMAGED
    while level >= <int>floor:
        # Acquire: a node is complete when its ref is seen.
        ref = load_acquire_u32(&node_next(at)[level])
        if ref == 0 or ref == too_far:
            level -= 1
            continue
        following = <const Node *>block(r, ref)
        if following == NULL or <int>following.height <= level or scan.steps_left == 0:
            return DAMAGED
        scan.steps_left -= 1
        order = -1
        if bound != NULL:
            order = key_compare(node_key(following), following.key_size, bound, bound_size)
        if order < 0 or (inclusive and order == 0):
            at = following
        else:
            too_far = ref
            level -= 1
    out[0] = at
    return FOUND


cdef inline int emit(const Reader *r, Scan *scan, const Node *node) noexcept nogil:
    """Add the node's row if the snapshot sees one."""
    cdef const Record *record = NULL
    cdef int outcome = visible(r, node, scan.version, &scan.ranges, &scan.steps_left, &record)
    if outcome == DAMAGED:
        return DAMAGED
    if outcome == FOUND:
        fill(r, &scan.out[scan.rows], node, record)
        scan.rows += 1
    scan.last_key = node_key(node)
    scan.last_size = node.key_size
    return FOUND


cdef inline bint before_end(const Scan *scan, const Node *node) noexcept nogil:
    return scan.end == NULL or key_compare(node_key(node), node.key_size, scan.end, scan.end_size) < 0


cdef inline bint from_start(const Scan *scan, const Node *node) noexcept nogil:
    cdef int order = key_compare(node_key(node), node.key_size, scan.start, scan.start_size)
    return order > 0 or (order == 0 and not scan.start_exclusive)


cdef inline void look_ahead(const Reader *r, Scout *scout, const Node *node) noexcept nogil:
    """Prefetch along level 1, some 16 nodes before the walk gets there. Only a hint: nothing depends on what
    it reads.

    Walking a list misses the cache once a node, one miss after the other. The scout's misses run beside the
    walk's and spare it about half of its own.
    """
    cdef const Node *tall
    if node.height < 2:
        return
    if scout.ahead == 0:
        scout.lead = 0
        scout.ahead = load_relaxed_u32(&node_next(node)[1])
    elif scout.lead:
        scout.lead -= 1
    while scout.lead < SCOUT_LEAD and scout.ahead:
        tall = <const Node *>block(r, scout.ahead)
        if tall == NULL:
            scout.ahead = 0
            return
        prefetch(r.base + (<u64>load_relaxed_u32(&node_next(tall)[0]) << REF_SHIFT))
        prefetch(r.base + (<u64>load_relaxed_u32(&tall.head) << REF_SHIFT))
        scout.ahead = load_relaxed_u32(&node_next(tall)[1])
        prefetch(r.base + (<u64>scout.ahead << REF_SHIFT))
        scout.lead += 1


cdef inline u32 step(const Reader *r, Scout *scout, const Node *node) noexcept nogil:
    """Ref of the next node; its lines and this node's record are on their way into the cache."""
    # Acquire: a node is complete when its ref is seen.
    cdef u32 ref = load_acquire_u32(&node_next(node)[0])
    prefetch(r.base + (<u64>ref << REF_SHIFT))
    prefetch(r.base + (<u64>load_relaxed_u32(&node.head) << REF_SHIFT))
    look_ahead(r, scout, node)
    return ref


cdef int scan_up(const Reader *r, Scan *scan) noexcept nogil:
    cdef const Node *group[GROUP]
    cdef const Node *node = NULL
    cdef u32 count, want, i, ref, group_max = 16
    cdef bint inside
    cdef Scout scout
    scout.ahead = 0
    scout.lead = 0
    if descend(r, scan, scan.start, scan.start_size, scan.start_exclusive, 0, &node) == DAMAGED:
        return DAMAGED
    # Acquire: a node is complete when its ref is seen.
    ref = load_acquire_u32(&node_next(node)[0])
    while scan.rows < scan.rows_max and scan.nodes_left:
        want = scan.rows_max - scan.rows
        want = group_max if want > group_max else want
        want = scan.nodes_left if want > scan.nodes_left else want
        count = 0
        while count < want and ref:
            node = <const Node *>block(r, ref)
            if node == NULL:
                return DAMAGED
            group[count] = node
            count += 1
            ref = step(r, &scout, node)
        scan.nodes_left -= count
        # Keys ascend: when the last of the group is before the end, all are.
        inside = count == 0 or before_end(scan, group[count - 1])
        for i in range(count):
            if not inside and not before_end(scan, group[i]):
                scan.done = True
                return FOUND
            if emit(r, scan, group[i]) == DAMAGED:
                return DAMAGED
        if ref == 0:
            scan.done = True
            return FOUND
        group_max = GROUP       # the first group is small, because many ranges are
    return FOUND


cdef inline u32 stretch_level(u32 rows) noexcept nogil:
    """From which level to walk a stretch: about as many nodes as rows are wanted, at most about 64."""
    return 0 if rows <= 2 else 1 if rows <= 8 else 2 if rows <= 64 else 3


cdef inline bint at_or_after(const Node *node, const u8 *bound, u32 bound_size) noexcept nogil:
    return bound != NULL and key_compare(node_key(node), node.key_size, bound, bound_size) >= 0


cdef i64 walk_stretch(const Reader *r, Scan *scan, const Node *at, u32 stop, const u8 *bound, u32 bound_size,
                      const Node **ring, i64 *first) noexcept nogil:
    """Remember in `ring` the last nodes from `at` (included unless it is the sentinel) up to the bound.

    `stop` is the first node not before the bound, as last seen. It may be unlinked meanwhile, so keys are
    compared too, every quarter of the ring: what ran past the bound is cut off, and enough of the rest is
    still remembered. Returns the count of nodes before the bound, of which those from `first` on are in the
    ring (node i at i % RING); DAMAGED when something is impossible.
    """
    cdef i64 count = 0
    cdef u32 ref
    cdef const Node *node = at
    cdef Scout scout
    scout.ahead = 0
    scout.lead = 0
    if at != <const Node *>block_at(r.base, r.first_node):
        ring[0] = at
        count = 1
    ref = step(r, &scout, at)
    while ref != 0 and ref != stop:
        node = <const Node *>block(r, ref)
        if node == NULL or scan.steps_left == 0:
            return DAMAGED
        scan.steps_left -= 1
        ring[count % RING] = node
        count += 1
        if count % (RING // 4) == 0 and at_or_after(node, bound, bound_size):
            break
        ref = step(r, &scout, node)
    first[0] = count - RING if count > RING else 0
    while count > first[0] and at_or_after(ring[(count - 1) % RING], bound, bound_size):
        count -= 1
    return count


cdef int scan_down(const Reader *r, Scan *scan) noexcept nogil:
    """Stretch by stretch: from a tall node before the bound walk up to the bound, then emit backwards.

    A stretch longer than the ring goes on with the earliest remembered node as the next bound.
    """
    cdef const Node *ring[RING]
    cdef const Node *at = NULL
    cdef const Node *node = NULL
    cdef const u8 *bound = scan.end
    cdef u32 bound_size = scan.end_size, stop
    cdef i64 count, first = 0
    cdef bint from_sentinel, inside
    if descend(r, scan, bound, bound_size, False, 0, &node) == DAMAGED:
        return DAMAGED
    # Acquire: as in step.
    stop = load_acquire_u32(&node_next(node)[0])
    while scan.rows < scan.rows_max and scan.nodes_left:
        if descend(r, scan, bound, bound_size, False, stretch_level(scan.rows_max - scan.rows), &at) == DAMAGED:
            return DAMAGED
        from_sentinel = at == <const Node *>block_at(r.base, r.first_node)
        count = walk_stretch(r, scan, at, stop, bound, bound_size, ring, &first)
        if count < first or (count == first and (first or not from_sentinel)):
            return DAMAGED
        # Keys ascend: when the first of the stretch is inside the range, all are.
        inside = count == first or from_start(scan, ring[first % RING])
        while count > first and scan.rows < scan.rows_max and scan.nodes_left:
            count -= 1
            node = ring[count % RING]
            if not inside and not from_start(scan, node):
                scan.done = True
                return FOUND
            scan.nodes_left -= 1
            if emit(r, scan, node) == DAMAGED:
                return DAMAGED
        if count == 0 and from_sentinel:
            scan.done = True
            return FOUND
        bound = node_key(node)
        bound_size = node.key_size
        stop = <u32>(<u64>(<const u8 *>node - r.base) >> REF_SHIFT)
    return FOUND


cdef bint moved_on(const Scan *scan, bint reverse) noexcept nogil:
    """Whether the next page starts beyond this one. If not, memory is damaged and pages could go in circles.
    """
    cdef int order
    if scan.last_key == NULL:
        return False
    if reverse:
        return scan.end == NULL or key_compare(scan.last_key, scan.last_size, scan.end, scan.end_size) < 0
    order = key_compare(scan.last_key, scan.last_size, scan.start, scan.start_size)
    return order > 0 or (order == 0 and not scan.start_exclusive)


cdef int reader_scan(const Reader *r, const u8 *start, u32 start_size, bint start_exclusive, const u8 *end, u32 end_size,
                     bint reverse, u64 version, Found *out, u32 count_max, u8 *resume_key, u32 *resume_size,
                     bint *done) noexcept nogil:
    cdef const StoreHeader *header = <const StoreHeader *>r.base
    # Not resume_key: start or end may lie there, and a retry needs them.
    cdef u8[KEY_SIZE_MAX + 1] key_copy
    cdef u64 sequence
    cdef u32 attempt
    cdef int outcome
    cdef Scan scan
    done[0] = False
    if count_max == 0:
        return DAMAGED
    for attempt in range(RETRIES_MAX):
        scan.start = start
        scan.start_size = start_size
        scan.start_exclusive = start_exclusive
        scan.end = end
        scan.end_size = end_size
        scan.version = version
        scan.out = out
        scan.rows = 0
        scan.rows_max = count_max
        scan.nodes_left = NODES_PER_WALK >> (attempt if attempt < 8 else 8)
        scan.steps_left = STEPS_MAX
        scan.done = False
        scan.last_key = NULL
        scan.last_size = 0
        # Acquire: all unlinkings before this value are seen by the walk.
        sequence = load_acquire_u64(&header.reclaim_sequence)
        # Before the first head is loaded.
        if not ranges_load(r, version, &scan.ranges):
            outcome = DAMAGED
        else:
            outcome = scan_down(r, &scan) if reverse else scan_up(r, &scan)
        if outcome == DAMAGED and scan.steps_left == 0 and scan.last_key != NULL:
            outcome = FOUND     # very long chains: what was walked is a page
        if outcome == FOUND and not scan.done:
            if moved_on(&scan, reverse):
                memcpy(key_copy, scan.last_key, scan.last_size)
            else:
                outcome = DAMAGED
        # Acquire fence: if the walk read a reused byte, the raised sequence is seen below.
        fence_acquire()
        if load_relaxed_u64(&header.reclaim_sequence) == sequence:
            break
    else:
        return DAMAGED
    if outcome == DAMAGED:
        return DAMAGED
    done[0] = scan.done
    if not scan.done:
        memcpy(resume_key, key_copy, scan.last_size)
        resume_size[0] = scan.last_size
    return <int>scan.rows
