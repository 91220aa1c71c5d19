"""The commit core as Python sees it; see _commit_core.pyx."""

from cpython.pythread cimport PyThread_type_lock

from ...ipc._atomics cimport i64, u8, u32, u64
from ..log._wal_appender cimport WalAppender
from ._core cimport Channel, Core, Counters

cdef class CommitCore:
    cdef Core core
    cdef readonly WalAppender log   # None: commits are not logged
    cdef PyThread_type_lock mutex   # in memory: its holder does the work of the commit thread
    cdef u64 sequence               # in memory: of the last request
    cdef object store_buffer        # these keep the memory mapped that `core` points into
    cdef object bell_buffer
    cdef list channel_buffers

    # In memory: takes the mutex. False: it was not free within `timeout` seconds. Signal handlers run while
    # it waits, and never while the mutex is held.
    cdef bint _claim(self, double timeout) except -1
    # In memory, a request that may wait for a turn: see _commit_core.pyx.
    cdef u64 _serve(self, Channel *channel, u8 *data, u64 size, u64 place) except? 0
    cdef void _unserve(self, Channel *channel, u64 place, const Counters *counters, u64 conflicts) noexcept
    cdef bint _wait_turn(self, u64 place, u32 word, i64 until, i64 deadline) except -1
