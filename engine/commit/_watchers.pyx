"""Which workers wait for what a batch changed, and waking them.

A worker has one table of slots in its channel: hashes of the (run, tag)s that its threads wait for. The commit thread
keeps the union of all tables privately and looks keys up in it only while it is not empty. Whether a change matters to
a thread (its prefix, its read set) is the worker's own work.

1. *Registering is not lost.* A worker puts a hash into a free slot and raises the register word before it looks at the
   ring for the last time. The commit thread publishes a batch before it looks at the word:

       worker                                 commit thread
       slot = hash            (release)       committed_version = v     (release)
       register word += 1     (seq_cst)       fence                     (seq_cst)
       fence                  (seq_cst)       register word changed?    (acquire): make the table anew
       reads the ring up to committed_version looks up the keys of the batch, wakes

   If the commit thread misses the new word, its fence came before the worker's, and the worker's look at
   `committed_version` finds v. If it sees the word, it also sees the slot.
2. *A wake-up is not lost.* `word` is even and grows by 2 for each wake-up. A worker loads it (seen), reads the ring,
   stores seen | 1 as its `sleeping` token, and sleeps while the word is still `seen`. The commit thread raises the
   word after the batch was published, then looks at the token. Both are sequentially consistent: either the kernel
   finds the word changed, or the commit thread finds the token and wakes. A token made from the raised word belongs
   to a worker that reads the ring after the raise: it needs no wake-up.
3. *One system call a sleep.* The commit thread takes an old token away (compare-and-swap) before it wakes, so a worker
   that is stopped or dead costs one call, and after that one addition a batch.
4. *One system call in 100 us for one worker.* A follower that is faster than the commits would be woken for each of
   them, at the cost of the commit thread. A worker that was woken a moment ago stays marked until that time has passed;
   the commit thread does not sleep meanwhile. The first change after a pause wakes at once.
5. Slots are the worker's to write: whatever stands there is a number, and the count is clamped. Lies cost the liar a
   wake-up it wanted, or a look at its own table.
6. What was registered ends with its channel: closing one makes the table anew.
"""

from libc.stdlib cimport free, realloc
from libc.string cimport memset

from ...ipc._atomics cimport (
    cas_u32, clock_monotonic_ns, fence_seq_cst, fetch_add_u32, futex_wake, load_acquire_u32, load_acquire_u64, load_seq_cst_u32,
    i64, u32, u64,
)
from ...ipc._layout cimport WATCH_SLOT_COUNT
from ..store._layout cimport Node, node_at, node_key
from ._core cimport CHANNEL_CLOSED, CHANNEL_FREE
from ._interest cimport INTEREST_GROWTH, Interest, InterestEntry, interest_hash, tag_prefix_size

cdef enum:
    EVERYBODY = 0x7FFFFFFF
    WAKE_INTERVAL_NS = 100000       # between two system calls for one worker


# ---- the table ---------------------------------------------------------------------------------------------

cdef bint _grow(Interest *interest) noexcept nogil:
    """Make room for more entries, and twice as many buckets. False: no private memory."""
    cdef u32 capacity = interest.capacity * 2 + INTEREST_GROWTH
    cdef u32 buckets = 2 * INTEREST_GROWTH
    cdef void *grown = realloc(interest.entries, capacity * sizeof(InterestEntry))
    if grown == NULL:
        return False
    interest.entries = <InterestEntry *>grown
    while buckets < 2 * capacity:
        buckets *= 2
    grown = realloc(interest.buckets, buckets * sizeof(u32))
    if grown == NULL:
        return False
    interest.buckets = <u32 *>grown
    interest.mask = buckets - 1
    interest.capacity = capacity
    return True


cdef inline u32 _slots_in_use(const Channel *channel) noexcept nogil:
    """How many slots to look at; 0 for a channel that is not ours to look at."""
    cdef u32 state = load_acquire_u32(&channel.state), high
    if state == CHANNEL_FREE or state == CHANNEL_CLOSED or channel.watch_slots == NULL:
        return 0
    high = load_acquire_u32(channel.watch_high)
    return high if high <= WATCH_SLOT_COUNT else <u32>WATCH_SLOT_COUNT


cdef bint _gather(Core *core) noexcept nogil:
    """Copy all slots into the entries. False: no private memory."""
    cdef Interest *interest = &core.interest
    cdef u32 index, slot
    cdef u64 hash
    cdef Channel *channel
    interest.count = 0
    for index in range(load_acquire_u32(&core.channels_high)):
        channel = &core.channels[index]
        for slot in range(_slots_in_use(channel)):
            hash = load_acquire_u64(channel.watch_slots + 8 * slot)
            if hash == 0:
                continue
            if interest.count == interest.capacity and not _grow(interest):
                return False
            interest.entries[interest.count].hash = hash
            interest.entries[interest.count].channel = index
            interest.count += 1
    return True


cdef void _make_table(Core *core, u32 registered) noexcept nogil:
    """Read all slots anew."""
    cdef Interest *interest = &core.interest
    cdef InterestEntry *entry
    cdef u32 *bucket
    cdef u32 index
    interest.registered = registered
    interest.stale = False
    interest.unknown = not _gather(core)
    if interest.unknown or interest.count == 0:
        return
    memset(interest.buckets, 0, (<size_t>interest.mask + 1) * sizeof(u32))
    for index in range(interest.count):
        entry = &interest.entries[index]
        bucket = &interest.buckets[<u32>entry.hash & interest.mask]
        entry.next = bucket[0]
        bucket[0] = index + 1


# ---- marking -----------------------------------------------------------------------------------------------

cdef inline void _mark(Core *core, u32 index) noexcept nogil:
    """Note that a channel is to be woken."""
    cdef Channel *channel = &core.channels[index]
    if channel.watch_due:
        return
    channel.watch_due = True
    core.interest.due[core.interest.due_count] = index
    core.interest.due_count += 1


cdef void _mark_hash(Core *core, u64 hash) noexcept nogil:
    """Mark the channels that have this hash in a slot."""
    cdef Interest *interest = &core.interest
    cdef u32 at = interest.buckets[<u32>hash & interest.mask]
    while at:
        if interest.entries[at - 1].hash == hash:
            _mark(core, interest.entries[at - 1].channel)
        at = interest.entries[at - 1].next


cdef void _mark_everybody(Core *core) noexcept nogil:
    cdef u32 index
    for index in range(load_acquire_u32(&core.channels_high)):
        if _slots_in_use(&core.channels[index]):
            _mark(core, index)


cdef void _mark_writers_of(Core *core) noexcept nogil:
    """Mark those who wait for a key of the undo list."""
    cdef const Node *node
    cdef u32 size
    cdef u64 entry, hash, last = 0
    for entry in range(core.undo_count):
        if core.undo[entry].node == 0:
            # A range tombstone: its keys may belong to any tag of a run.
            _mark_everybody(core)
            return
        node = node_at(core.store.base, core.undo[entry].node)
        size = tag_prefix_size(node_key(node), node.key_size)
        if size == 0:
            continue
        hash = interest_hash(node_key(node), size, core.store.hash_seed)
        if hash != last:
            _mark_hash(core, hash)
            last = hash


cdef void mark_watchers(Core *core) noexcept nogil:
    """Note who waits for what the batch wrote; see _watchers.pxd."""
    cdef Interest *interest = &core.interest
    cdef u32 registered
    if interest.register_word == NULL:
        return
    # Seq_cst, between the publication and the look at the word: invariant 1.
    fence_seq_cst()
    # Acquire: the slots were stored before the word was raised.
    registered = load_acquire_u32(interest.register_word)
    if registered != interest.registered or interest.stale:
        _make_table(core, registered)
    if interest.unknown:
        _mark_everybody(core)
    elif interest.count:
        _mark_hash(core, <u64>-1)           # those who want everything
        _mark_writers_of(core)


# ---- waking ------------------------------------------------------------------------------------------------

cdef bint wake_watcher(Core *core, Channel *channel) noexcept nogil:
    """Wake the waiting threads of one worker; see _watchers.pxd."""
    # Seq_cst: after the batch was published, before the look at the token (invariant 2).
    cdef u32 raised = fetch_add_u32(channel.watch_word, 2) + 2
    cdef u32 token = load_seq_cst_u32(channel.watch_sleeping)
    if token == 0 or token == (raised | 1) or not cas_u32(channel.watch_sleeping, token, 0):
        return False
    futex_wake(channel.watch_word, EVERYBODY)
    return True


cdef void wake_marked(Core *core, bint at_once) noexcept nogil:
    """Wake those that were marked, except those that were woken a moment ago; see _watchers.pxd."""
    cdef Interest *interest = &core.interest
    cdef Channel *channel
    cdef u32 at, index, kept = 0
    cdef i64 now = clock_monotonic_ns()
    for at in range(interest.due_count):
        index = interest.due[at]
        channel = &core.channels[index]
        if now < channel.watch_wake_after and not at_once:
            interest.due[kept] = index
            kept += 1
            continue
        channel.watch_due = False
        if wake_watcher(core, channel):
            channel.watch_wake_after = now + WAKE_INTERVAL_NS
    interest.due_count = kept


cdef void interest_free(Interest *interest) noexcept nogil:
    free(interest.entries)
    free(interest.buckets)
    free(interest.due)
