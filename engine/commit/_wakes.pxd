"""Which answered worker is woken when; see _wakes.pyx. The commit thread only."""

from ...ipc._atomics cimport i64, u32
from ._core cimport Channel, Core

# The answer of channel `index` is in its ring: queues the wake-up if the worker sleeps. Call release_wakes
# afterwards.
cdef void answered(Core *core, u32 index, i64 now) noexcept nogil
# Wakes one worker at once, if it sleeps. Call it after publishing.
cdef void wake_worker(Channel *channel) noexcept nogil
# Wakes the workers whose wake-up is due; `now` is monotonic ns.
cdef void release_wakes(Core *core, i64 now) noexcept nogil
# Wakes every worker in the queue, and every event loop that has answers. Call it before a channel is closed and before anything that blocks.
cdef void flush_wakes(Core *core) noexcept nogil
# Wakes an answered worker at once.
cdef void wake_at_once(Channel *channel, i64 now) noexcept nogil
