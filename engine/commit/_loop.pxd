"""The loop of the commit thread; see _loop.pyx."""

from ..log._wal_appender cimport WalAppender
from ._core cimport Core

# Serves every channel until `core.stop_flag` is set or `core.fatal_errno` is not 0. One thread, once in the
# life of a core. REQUIRES: `core.bell` is set, and the caller keeps the core and every channel's segment
# alive until it returns.
cdef void commit_loop(Core *core, WalAppender log) noexcept nogil
