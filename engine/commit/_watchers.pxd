"""Waking the workers that wait for what a batch changed; see _watchers.pyx."""

from ._core cimport Channel, Core
from ._interest cimport Interest

# Notes which workers wait for what the batch wrote. One branch when nobody waits. REQUIRES: the batch is published,
# and its undo list is still there.
cdef void mark_watchers(Core *core) noexcept nogil

# Wakes the workers that were marked, after the answers are sent. Some stay marked for a moment unless `at_once`; the
# commit thread calls it again and does not sleep while `interest.due_count` is not 0.
cdef void wake_marked(Core *core, bint at_once) noexcept nogil

# Wakes the waiting threads of one worker: the one place where this is done. True: it took a system call.
cdef bint wake_watcher(Core *core, Channel *channel) noexcept nogil

cdef void interest_free(Interest *interest) noexcept nogil
