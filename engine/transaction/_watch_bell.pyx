"""The worker's side of waiting for changes: registering for (run, tag)s, and sleeping until one of them has changed.

`_watchers.pyx` is the commit thread's side and has the argument. How it is used, so that no wake-up is lost:

    slot = bell.add(prefix)         before the last look at the ring
    loop:
        seen = bell.arm()
        look at the ring: return if there is something
        bell.sleep(seen, timeout)

1. One thread of a process sleeps at a time (`waiting.py` sees to it); any thread with the GIL may add and remove.
2. A slot is written by this process alone, and never changed while it is in use: what is registered stays registered.
3. When all slots are taken, further registrations share one that says "every change": correct, but not as quiet.
4. In a forked child the slots are the parent's: nothing is written.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from ...ipc._atomics cimport (
    fence_seq_cst, fetch_add_u32, futex_wait, i64, load_acquire_u32, store_relaxed_u32, store_release_u32,
    store_release_u64, store_seq_cst_u32, u8, u32, u64,
)
from ...ipc._layout cimport (
    BELL_REGISTER_OFFSET, WATCH_BELL_OFFSET, WATCH_HIGH_OFFSET, WATCH_REGISTER_OFFSET, WATCH_SLEEPING_OFFSET,
    WATCH_SLOT_COUNT, WATCH_SLOTS_OFFSET,
)
from ..commit._interest cimport interest_hash
from ._view cimport StoreAttachment, fork_generation

cdef enum:
    SHARED_SLOT = 0                 # says "every change" while somebody needs it


@cython.final
@cython.no_gc
@cython.auto_pickle(False)
cdef class WatchBell:
    """The slots in which a process registers for changes, and the word on which it sleeps.

    Args:
      attachment: of the store to be followed; its channel has the slots. One bell a channel.
    """

    cdef readonly StoreAttachment attachment
    cdef u8 *channel
    cdef void *register_word
    cdef u32 high
    cdef u32 sharing                # registrations that found no slot
    cdef list free_slots

    def __cinit__(self, StoreAttachment attachment not None):
        self.attachment = attachment
        self.channel = <u8 *>attachment.channel_buffer.buf
        self.register_word = self.channel + WATCH_REGISTER_OFFSET
        if attachment.bell_held:
            self.register_word = <u8 *>attachment.bell_buffer.buf + BELL_REGISTER_OFFSET
        # The lowest on top: the commit thread looks at all slots below the highest one in use.
        self.free_slots = [*range(WATCH_SLOT_COUNT - 1, SHARED_SLOT, -1)]

    cdef void put(self, u32 slot, u64 hash):
        """Store one slot and tell the commit thread."""
        # Release: it reads a slot in which the hash is complete.
        store_release_u64(self.channel + WATCH_SLOTS_OFFSET + 8 * slot, hash)
        if slot >= self.high:
            self.high = slot + 1
            store_release_u32(self.channel + WATCH_HIGH_OFFSET, self.high)
        # Seq_cst, addition and fence: before our next look at the ring (`_watchers.pyx`, invariant 1).
        fetch_add_u32(self.register_word, 1)
        fence_seq_cst()

    def add(self, bytes prefix not None):
        """Hear of every change to keys that begin with this namespace, run id and tag. Returns a slot for `remove`."""
        cdef u32 slot
        if self.attachment.generation != fork_generation:
            return SHARED_SLOT
        if not self.free_slots:
            self.sharing += 1
            self.put(SHARED_SLOT, <u64>-1)
            return SHARED_SLOT
        slot = self.free_slots.pop()
        self.put(slot, interest_hash(<const u8 *>PyBytes_AS_STRING(prefix), <u32>PyBytes_GET_SIZE(prefix),
                                     self.attachment.reader.hash_seed))
        return slot

    def remove(self, u32 slot):
        """Take a registration back."""
        if self.attachment.generation != fork_generation:
            return
        if slot != SHARED_SLOT:
            self.free_slots.append(slot)
        else:
            self.sharing -= 1
            if self.sharing:
                return
        self.put(slot, 0)

    def arm(self):
        """The word as it is before a look at the ring, for `sleep`."""
        # Acquire: a look at the ring after this finds everything that was published before the word was raised to this.
        return load_acquire_u32(self.channel + WATCH_BELL_OFFSET)

    def raised_since(self, u32 seen):
        """How many batches that concern this process were announced since the word was `seen`."""
        return <u32>(load_acquire_u32(self.channel + WATCH_BELL_OFFSET) - seen) // 2

    def sleep(self, u32 seen, double timeout):
        """Sleep until the word differs from `seen`, a signal arrives or `timeout` seconds have passed. Whether it differs."""
        cdef void *word = self.channel + WATCH_BELL_OFFSET
        cdef void *token = self.channel + WATCH_SLEEPING_OFFSET
        cdef i64 ns = <i64>(min(max(timeout, 0.0), 1e6) * 1e9)
        if self.attachment.generation != fork_generation:
            return True
        with nogil:
            # Seq_cst: before the kernel's look at the word (`_watchers.pyx`, invariant 2).
            store_seq_cst_u32(token, seen | 1)
            fence_seq_cst()
            futex_wait(word, seen, ns)
            # Relaxed: a token that stays a moment too long costs a system call.
            store_relaxed_u32(token, 0)
        return load_acquire_u32(word) != seen
