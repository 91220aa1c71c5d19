"""Waking the workers that wait for what a batch changed; see _watchers.pyx."""

from ._core cimport Channel, Core
from ._interest cimport Interest

# Notes which workers wait for what the batch wrote. One branch when nobody waits. REQUIRES: the batch is published,
# and its undo list is still there.
cdef void mark_watchers(Core *core) noexcept nogil

# Wakes the workers that were marked. Called after the answers, and before a channel is let go.
cdef void wake_marked(Core *core) noexcept nogil

# Wakes the waiting threads of one worker: the one place where this is done.
cdef void wake_watcher(Core *core, Channel *channel) noexcept nogil

cdef void interest_free(Interest *interest) noexcept nogil
