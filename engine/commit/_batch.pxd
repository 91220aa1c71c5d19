"""One batch of commit requests over the struct `Core`; the order of the steps is argued in `_batch.pyx`.

Every function here belongs to the commit thread (in memory: to the thread that holds the core's mutex), needs
no GIL and never waits for a worker. `log` is None when the database keeps no log.
"""

from ...ipc._atomics cimport i64, u8, u32, u64
from ..log._wal_appender cimport WalAppender
from ._core cimport Channel, Core

# Validates and applies one request, and leaves the reply in `channel.out` with `channel.answer` saying what
# it is. If `channel.walk.active` or `channel.place` is set afterwards, the request is parked: it has no answer yet, and
# the caller passes the same bytes again in a later batch. REQUIRES: `request` is private memory of at least
# REQUEST_HEADER_SIZE bytes.
cdef void batch_serve(Core *core, Channel *channel, const u8 *request, u64 size, WalAppender log) noexcept nogil

# Logs and publishes what was applied since the last call; waits for the disk if `any_sync`. When the log
# refuses the batch it is undone and its answers become refusals. False: no request may be answered, and
# `core.fatal_errno` says why the process has to end.
cdef bint batch_commit(Core *core, bint any_sync, WalAppender log) noexcept nogil

# Completes the reply in `channel.out`, counts a commit, and takes the channel out of the batch.
cdef void batch_seal(Core *core, Channel *channel) noexcept nogil

# Sends every reply of the batch, takes its request out of the inbox and wakes the workers. REQUIRES:
# batch_commit returned True.
cdef void batch_answer(Core *core) noexcept nogil

# Stops serving a channel after bad input; the control plane then disconnects its worker.
cdef void break_channel(Core *core, Channel *channel) noexcept nogil

# Wakes the control plane: a channel broke or was drained, or the log failed.
cdef void notify_control(Core *core) noexcept nogil
