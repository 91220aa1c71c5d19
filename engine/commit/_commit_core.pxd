"""The commit core; see _commit_core.pyx."""

from cpython.pythread cimport PyThread_type_lock

from ...ipc._atomics cimport i64, u8, u32, u64
from ...ipc._doorbell cimport Waiter
from ..log._wal_appender cimport WalAppender
from ._core cimport Channel, Core
from ._placement cimport Placement

cdef class CommitCore:
    cdef Core core
    cdef Waiter waiter
    cdef Placement placement
    cdef readonly WalAppender log
    cdef bint logged
    cdef bint sync_all              # durability "always": every commit waits for the disk
    cdef u8 *bell                   # doorbell segment; NULL in memory
    cdef int wake_fd                # eventfd of the control plane, -1 for none
    cdef u32 fatal_errno            # the log cannot say what it holds: the process must end and recover
    cdef u32 commits_over           # the log failed, and the batch under way then is done: no commit follows
    cdef u32 core_count             # of the machine: for spin_hint
    cdef u32 window_channels        # distinct channels served in this window
    cdef bint alone                 # no more than one was in the last window
    cdef u64 window
    cdef i64 window_end             # monotonic ns
    cdef i64 snapshot_age_max       # ns
    cdef i64 next_sweep             # monotonic ns
    cdef i64 expire_after           # monotonic ns
    cdef PyThread_type_lock mutex   # in memory: who holds it is the commit thread
    cdef u64 sequence               # in memory: of the last request
    cdef object store_buffer
    cdef object bell_buffer
    cdef list channel_buffers

    cdef bint _accept(self, Channel *channel, const u8 *request, u64 size) noexcept nogil
    cdef bint _walk(self, Channel *channel, const u8 *request) noexcept nogil
    cdef void _serve(self, Channel *channel, const u8 *request, u64 size) noexcept nogil
    cdef u32 _refusal(self) noexcept nogil
    cdef void _refuse(self, Channel *channel, u32 status, u32 detail) noexcept nogil
    cdef bint _commit_batch(self, bint any_sync) noexcept nogil
    cdef void _note_outcomes(self) noexcept nogil
    cdef void _fail_batch(self, u32 error) noexcept nogil
    cdef void _share_inboxes(self, i64 now) noexcept nogil
    cdef u32 _take_requests(self, bint *any_sync) noexcept nogil
    cdef bint _take_from(self, Channel *channel) noexcept nogil
    cdef void _answer(self) noexcept nogil
    cdef void _break_channel(self, Channel *channel) noexcept nogil
    cdef void _close_channels(self) noexcept nogil
    cdef void _refuse_rest(self) noexcept nogil
    cdef void _note_failed_log(self) noexcept nogil
    cdef void _expire(self) noexcept nogil
    cdef bint _housekeeping(self, bint idle) noexcept nogil
    cdef bint _collect_idle(self) noexcept nogil
    cdef u64 _collectable(self) noexcept nogil
    cdef bint _convert_ranges(self) noexcept nogil
    cdef void _roll_window(self, i64 now) noexcept nogil
    cdef void _note_batch(self, u32 size, i64 started) noexcept nogil
    cdef void _notify_control(self) noexcept nogil
    cdef bint _claim(self, double timeout) except -1
    cdef void _settle(self, Channel *channel) noexcept nogil
    cdef void _run(self) noexcept nogil
    cdef void _sleep(self) noexcept nogil
    cdef i64 _idle_ns(self) noexcept nogil
    cdef int _turn(self) noexcept nogil
