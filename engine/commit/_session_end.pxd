"""The end of a session: its keys go in commits of the coordinator's own; see _session_end.pyx."""

from ...ipc._atomics cimport u64
from ..log._wal_appender cimport WalAppender
from ._core cimport Core

# Control plane, one thread: let the commit thread remove the keys of a session that is over. False: the queue is full,
# ask again later. REQUIRES: no channel of this owner is open, and none will be.
cdef bint session_ended(Core *core, u64 session) noexcept nogil
# Whether the commit thread should go on with them now.
cdef bint sessions_due(const Core *core) noexcept nogil

# Between two batches, the commit thread: a bounded piece of what is due. True: there is more that can be done at once.
# REQUIRES: no open batch, and a `core.now` that was read for this call.
cdef bint tend_sessions(Core *core, WalAppender log) noexcept nogil
# Fills the table of bound keys from the store, O(keys). REQUIRES: no open batch.
cdef void load_sessions(Core *core) noexcept nogil
