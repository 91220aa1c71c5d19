"""The state of a request's range checks between two batches (`_range_check.pyx` does the work)."""

from libc.stdlib cimport free


cdef void walk_free(RangeWalk *walk) noexcept nogil:
    """Free the private memory of a walk. REQUIRES: the channel is no longer served."""
    free(walk.found)
    free(walk.cursor)
    walk.found = NULL
    walk.cursor = NULL
    walk.capacity = 0
    walk.active = False
