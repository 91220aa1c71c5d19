"""Effects of one commit request on the store, and their undo; see _apply.pyx.

All of these belong to the commit thread (in memory: to the holder of the core's mutex). `log` is None without
a log.
"""

from ...ipc._atomics cimport i64, u8, u32, u64
from ..log._wal_appender cimport WalAppender
from ._core cimport Channel, Core

# Installs every effect at `version` and appends the log entries. Returns STATUS_COMMITTED, or another status
# with the store and the log buffer as before; `detail` is then an op index, an errno or what a full store
# lacks. With STATUS_BOUND_REACHED the reply has one result, what the key holds. REQUIRES: the request is validated, and `version` is next_version + 1.
cdef u32 apply_request(Core *core, Channel *channel, const u8 *request, u64 version, u32 *detail,
                       WalAppender log) noexcept nogil
# Deletes up to `count_max` keys that are due at next_version + 1. Returns how many; if not 0, the caller
# advances next_version. REQUIRES: no open batch.
cdef u32 expire_due(Core *core, i64 now, u32 count_max, WalAppender log) noexcept nogil
# For the coordinator's own commits. A tombstone on a node: STATUS_COMMITTED, or STATUS_STORE_FULL with nothing
# changed.
cdef u32 install_tombstone(Core *core, u32 node, u64 version) noexcept nogil
# The installs after `mark` in the undo list are a commit that can no longer fail: validation and watchers must
# see its writes.
cdef void note_writes(Core *core, u64 mark, u64 version) noexcept nogil
# Takes back the installs after `mark` in the undo list, newest first.
cdef void undo_to(Core *core, u64 mark) noexcept nogil
# Drops stale entries of the expiry heap. REQUIRES: no open batch.
cdef void compact_expiry(Core *core) noexcept nogil
# Fills the expiry heap from the store, O(keys). Returns the newest timestamp of a record. REQUIRES: no open
# batch.
cdef i64 load_expiry(Core *core) noexcept nogil
