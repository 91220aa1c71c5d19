"""What the commit thread does between two batches: expiry, reclamation; see _housekeeping.pyx."""

from ...ipc._atomics cimport i64
from ..log._wal_appender cimport WalAppender
from ._core cimport Core

# Does a bounded piece of what is due. `idle`: no request waits, so a larger piece may be done. True: call
# again, there is more to do at once. REQUIRES: the commit thread (in memory: the core's mutex), no open
# batch, and a `core.now` that was read for this call.
cdef bint housekeeping(Core *core, bint idle, WalAppender log) noexcept nogil

# Removes keys that are due, as a commit of its own. Same requirements.
cdef void expire_keys(Core *core, WalAppender log) noexcept nogil

# Nanoseconds until the next key expires, at most `longest`; not positive when one is due.
cdef i64 expiry_wait(const Core *core, i64 longest) noexcept nogil
