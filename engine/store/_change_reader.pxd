"""Following the change ring from any process, without locks. See `_change_reader.pyx`."""

from ...ipc._atomics cimport u8, u64
from ._change_ring cimport ChangeBlock
from ._layout cimport StoreHeader

cdef enum:
    CURSOR_NOTHING = 0              # nothing newer is published; `version` says up to where that holds
    CURSOR_BLOCK = 1                # a commit's block is in `buffer`
    CURSOR_LAGS = 2                 # changes after `version` may be gone
    CURSOR_DAMAGED = 3              # the ring holds what no writer wrote
    CURSOR_NO_MEMORY = 4

cdef struct ChangeCursor:
    const StoreHeader *header
    const u8 *data
    u64 size
    u64 position                    # of the next block; meaningless unless `placed`
    u64 version                     # every change up to it has been given out
    bint placed
    u64 oldest                      # after CURSOR_LAGS: the oldest version from which on nothing is missing
    u8 *buffer                      # private copy of the last block
    u64 capacity

# Follow the ring of the store at `base` from `version` on. 0; 1: the header describes no ring inside `size` bytes;
# 2: the store has no ring.
cdef int cursor_open(ChangeCursor *c, const u8 *base, u64 size, u64 version) noexcept nogil
cdef void cursor_close(ChangeCursor *c) noexcept nogil

# The next commit's block, checked and copied to `buffer`, if its version is at most `limit`. `limit` is a
# `committed_version` that was loaded (acquire) before the call. CURSOR_*.
cdef int cursor_next(ChangeCursor *c, u64 limit) noexcept nogil
