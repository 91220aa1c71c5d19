"""Snapshots and where they come from: a source, the store of this machine as one, and views on a snapshot. See
_view.pyx."""

from cpython.buffer cimport Py_buffer

from ...ipc._atomics cimport i64, u8, u32, u64
from ...ipc._layout cimport SLOT_COUNT
from ..commit._hot_keys cimport HotKey
from ..commit._recent_conflicts cimport RECENT_CONFLICTS, RecentConflict
from ..model._values cimport Codec
from ..store._layout cimport StoreHeader
from ..store._reader cimport Found, Reader

cdef enum:
    STACK_VALUE_SIZE = 1024         # values up to this are decoded from a copy on the stack
    NO_SLOT = 0x7FFFFFFF
    TALLY_KEYS = 16
    FIRST_PAGE_ROWS = 16            # of a scan of the store
    PAGE_ROWS = 128
    COARSE_NS_MAX = 10000000        # the coarse clock is at most this much behind
    PIN_TURNS_MAX = 1000000         # the horizon passes a fresh version by once or twice; this often only in a broken store

cdef u64 fork_generation            # grows by 1 in each forked child: handles of another generation are not ours


# At TALLY_OFFSET of the channel segment; engine/coordinator/tally.py reads it. Written with the GIL, by the
# worker alone.
cdef struct Tally:
    u64 retries                     # transactions tried again
    u64 conflicts_read              # commits refused in the worker, by the kind of conflict
    u64 conflicts_cas
    u64 conflicts                   # commits refused, by the worker or by the coordinator
    HotKey hot[TALLY_KEYS]          # keys that those refused in the worker were about
    RecentConflict recent[RECENT_CONFLICTS]


cdef class PinnedView


cdef class SnapshotSource:
    cdef readonly bint retired
    cdef bint shut                  # the handle was closed: reads raise DatabaseClosedError
    cdef u64 generation
    cdef u8 *slots                  # {value, mark} of each snapshot; a mark that equals its value revokes it
    cdef u32 first_page_rows        # what a scan asks for at first, and from then on
    cdef u32 page_rows
    cdef int begin(self, PinnedView view, bint lazily) except -1
    cdef void unpin(self, u32 slot) noexcept
    cdef int get(self, PinnedView view, const u8 *key, u32 key_size, Found *found) except -2
    cdef object page(self, PinnedView view, const u8 *start, u32 start_size, bint exclusive, const u8 *end, u32 end_size,
                     bint reverse, Found *out, u32 count_max, u8 *resume, u32 *resume_size, bint *done, int *count)
    cdef int fetch(self, PinnedView view, list keys) except -1
    cdef u64 newest(self, u64 own) noexcept
    cdef bint is_due(self, i64 now) noexcept
    cdef i64 clock(self) noexcept
    cdef bint is_usable(self) noexcept
    cdef void note_retry(self) noexcept
    cdef void note_conflict(self, bint cas, bytes key) noexcept
    cdef void keep_conflict(self, u8 kind, bytes key, u64 expected, u64 found, u64 attempt) noexcept


cdef class StoreAttachment(SnapshotSource):
    cdef Py_buffer store_buffer
    cdef Py_buffer channel_buffer
    cdef Py_buffer bell_buffer
    cdef bint bell_held
    cdef bint store_held
    cdef bint channel_held
    cdef readonly bint unserved     # its coordinator is gone: our own clock decides what has expired
    cdef Reader reader
    cdef const StoreHeader *header
    cdef void *slots_high
    cdef const void *closed         # u32: the coordinator no longer looks at our slots
    cdef Tally *tally
    cdef u32 high                   # our copy of slots_high; shared memory is never read for it
    cdef u32 free_count
    cdef u32 free_slots[SLOT_COUNT]
    cdef u32 pin(self, u64 *version, i64 *expiry_time) except 0x7FFFFFFF
    cdef u32 pin_at(self, u64 version) except 0x7FFFFFFF
    cdef bint lost(self, u32 slot) noexcept


cdef class PinnedView:
    cdef readonly SnapshotSource attachment
    cdef u64 version
    cdef object rows                # of a server, by stored key, as long as the snapshot is held; None: of this machine
    cdef u64 rows_size              # bytes of them that scans have left there
    cdef bint late                  # the snapshot begins with the first read
    cdef Codec codec                # None: no hooks
    cdef u64 generation
    cdef u32 slot                   # NO_SLOT: nothing pinned
    cdef i64 expiry_time            # what expires up to this is absent; of the snapshot, see _expiry_time.pxd
    cdef i64 clock                  # ns since the epoch, 0 until read
    cdef int open(self, SnapshotSource source, bint lazily=*) except -1
    cdef int begin_now(self) except -1
    cdef void release(self) noexcept
    cdef bint revoked(self) noexcept
    cdef int require_alive(self) except -1
    cdef i64 now(self) except? -1
    cdef int find(self, const u8 *key, u32 key_size, Found *found) except -1
    cdef object value_of(self, const Found *found)
    cdef bytes bytes_of(self, const u8 *data, u32 size)
