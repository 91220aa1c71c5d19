"""Range checks of one request, in slices between batches; see `_range_walk.pyx`."""

from ...ipc._atomics cimport i64, u8, u32, u64

cdef struct RangeWalk:          # of the request that a channel has now
    bint active                 # some of its ranges are still to be walked: the request is parked
    bint lost                   # what was written meanwhile is no longer known: the rest counts as changed
    u32 count                   # ranges to check
    u32 done                    # of which the walk is finished
    u64 *found                  # per range: a version above start_version written in it, or 0
    u32 capacity
    u64 offset                  # of the op whose range is being walked
    u64 start_version
    u64 seen                    # recent_next up to which writes were taken into account
    u64 epoch                   # recent_epoch then
    u64 floor                   # range_history.floor at the start
    u64 position                # of the walk back along the recent writes
    bint begun                  # the op's walk has a cursor
    i64 began_at                # core.now of the batch in which the walk began
    u32 waits                   # turns for which it has waited for keys that are due to be removed
    u8 *cursor                  # the node to go on from
    u32 cursor_size

cdef void walk_free(RangeWalk *walk) noexcept nogil
