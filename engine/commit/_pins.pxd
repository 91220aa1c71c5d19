"""Pins as the commit thread sees them: scan, collect, revoke; see _pins.pyx.

Unless it says otherwise a function belongs to the commit thread (in memory: to the holder of the core's
mutex).
"""

from ...ipc._atomics cimport i64, u32, u64
from ._core cimport Channel, Core

# Fills `core.pins` with the pinned versions. Returns their count, or -1 if nothing may be freed by this scan.
# REQUIRES: gc_horizon was raised before.
cdef i64 gather_pins(Core *core) noexcept nogil
# Frees up to `budget` superseded records, and nodes of deleted keys, that no pin can see.
cdef void collect(Core *core, u32 budget) noexcept nogil
# For a full store: frees garbage, or revokes pins until some memory is free. False: there is none to be had.
cdef bint make_room(Core *core) noexcept nogil
# Whether a checkpoint is being written.
cdef bint checkpoint_pinned(Core *core) noexcept nogil
# The last resort after make_room: gives up the checkpoint. True: that freed memory.
cdef bint revoke_checkpoint(Core *core) noexcept nogil
# Revokes pins that have held memory back for longer than `age_max` ns; `now` is monotonic. Returns how many.
cdef u32 revoke_older(Core *core, i64 now, i64 age_max) noexcept nogil
# Ends every pin of a channel that is being closed.
cdef void revoke_all(Channel *channel) noexcept nogil
# The channel's oldest pin and when it was first seen (0: not yet). False: it has none. Any thread; racy, for
# display.
cdef bint oldest_pin(Core *core, Channel *channel, u64 *version, i64 *since) noexcept nogil
# The coordinator's own pin, for a checkpoint: take it (returns the pinned version) and release it. One
# control thread.
cdef u64 pin_own(Core *core) noexcept nogil
cdef void unpin_own(Core *core) noexcept nogil

# While somebody waits for changes: nothing that a snapshot of `version` sees is reclaimed for half a second, unless the
# store is full. REQUIRES: `version` is the newest version, or an unpublished one.
cdef void hold_back(Core *core, u64 version) noexcept nogil
