"""The commit core's private state, shared by the modules that serve a request.

1. One `Core` belongs to one commit thread (or, in memory, to the thread that holds the core's mutex). Beside
   that thread, the control plane touches only these fields: `stop_flag`; `commits_over`, to read; a channel's
   `state`, and the whole slot while it is FREE or CLOSED; `channels_high`, which it raises; the pair of a
   channel's last commit, which it reads under `outcome_lock`; `own_slot`, the pin that it holds for a
   checkpoint; `held_bytes` and the counters, which it only reads. Each of these is one word and may be one
   batch old.
2. `next_version` is the last version given out. Between the first apply of a batch and its publish it is
   ahead of the store's `committed_version`. Readers do not see records above `committed_version`.
3. `undo` lists the installs of the batch in order. Undoing them newest first restores the store exactly.
4. `recent` is a ring of the last RECENT_COUNT (version, node) writes, the newest at `recent_next - 1`.
"""

from ...ipc._atomics cimport i64, load_acquire_u32, u8, u16, u32, u64
from ...ipc._doorbell cimport Waiter
from ...ipc._ring cimport Inbox, InboxBudget, Ring
from ..store._store cimport Store
from ._expiry cimport ExpiryHeap
from ._hot_keys cimport HotKey
from ._interest cimport Interest
from ._placement cimport Placement
from ._range_history cimport RangeHistory
from ._range_walk cimport RangeWalk
from ._sessions cimport SessionTable
from ._turn_table cimport TurnTable

cdef enum:
    RECENT_COUNT = 65536            # a power of two
    HOT_KEYS = 32
    ENDED_COUNT = 4096              # sessions that can wait for their end; a power of two
    HISTOGRAM_COUNT = 40            # bucket b: values in [2**(b-1), 2**b)
    REPLY_SIZE_MIN = 1024           # bytes reserved for a reply before its size is known
    COLLECT_BUDGET_IDLE = 65536     # superseded records that a thorough collect looks at

    # Channel states. FREE -> ACTIVE by the control plane (it fills the slot in first, release); ACTIVE or
    # BROKEN -> CLOSING by the control plane, which looks at the state and then stores; CLOSING -> CLOSED by
    # the commit thread once it has served what was complete; CLOSED -> FREE by the control plane. ACTIVE ->
    # BROKEN by the commit thread on bad input, with a compare-and-swap. If that comes between the look and
    # the store, CLOSING overwrites BROKEN, which is what the control plane would have done next; and the
    # compare-and-swap fails on CLOSING. So CLOSING is reached once and never lost.
    CHANNEL_FREE = 0
    CHANNEL_ACTIVE = 1
    CHANNEL_CLOSING = 2
    CHANNEL_CLOSED = 3
    CHANNEL_BROKEN = 4

    EVENT_FDS_MAX = 8               # event loops that wait for their wake-up at once; one more is woken at once

    # What became of the request a channel has in the current batch.
    ANSWER_NONE = 0
    ANSWER_COMMITTED = 1            # becomes LOG_WRITE_ERROR if the batch cannot be logged
    ANSWER_REFUSED = 2
    ANSWER_DEPENDENT = 3            # refused because of commits of the same batch, which may yet be undone

cdef struct PinSeen:                # when the commit thread first saw a pin that holds something back
    u64 value
    i64 since                       # monotonic ns

cdef struct Channel:
    u32 state                       # CHANNEL_*, atomic
    u32 answer                      # ANSWER_*
    u64 session
    u64 owner                       # the session of its handle: ephemeral puts bind their keys to it
    u64 sequence                    # of the last request taken
    u32 outcome_lock                # odd while the commit thread changes the pair below, which others read
    u64 last_sequence               # of the last commit
    u64 last_version
    Ring request
    Ring reply
    Inbox inbox
    void *word                      # the worker's doorbell, in its segment
    void *sleeping
    int event_fd                    # eventfd of the worker's event loop; -1: it is woken by its doorbell
    u8 *slots                       # SLOT_COUNT x {u64 value, u64 mark}, in its segment
    void *slots_high
    void *closed                    # set before the slots are looked at for the last time
    void *pace                      # PACE_*: how the worker waits for its answer; a hint
    void *drained                   # set behind the last reply, when a clean stop ends the commit thread
    void *watch_word                # what its waiting threads sleep on, in its segment; see _watchers.pyx
    void *watch_sleeping
    void *watch_high
    u8 *watch_slots                 # WATCH_SLOT_COUNT x u64
    bint watch_due                  # it is in `interest.due`
    i64 watch_wake_after            # monotonic ns: it was woken shortly before
    u8 *out                         # the reply under construction
    u64 out_size
    u64 out_capacity
    u64 reply_max                   # largest reply that always fits the reply ring
    PinSeen *seen                   # one per slot; NULL until the first sweep
    u64 held_bytes                  # held back by the oldest snapshot, as of the last sweep
    u64 window                      # last activity window it was counted in
    i64 hot_until                   # its worker is expected back by then; 0 while it waits (_wakes.pyx)
    i64 wake_since                  # when its wake-up was queued; 0: none is queued
    i64 receive_until               # monotonic ns: by then it must have sent more, if others wait for memory
    u64 receive_mark                # bytes it had sent when that was set
    u64 commits
    u64 conflicts
    RangeWalk walk                  # of a request whose ranges take more than one batch to check
    u64 place                       # of its request in the line of turns; 0: it does not wait there

cdef struct Undo:
    u32 node                        # 0: a range tombstone was added in slot `record`
    u32 record

cdef struct Recent:
    u64 version
    u32 node

cdef struct Counters:
    u64 commits
    u64 batches
    u64 conflicts_read              # transactions by the kind of their first conflict
    u64 conflicts_range
    u64 conflicts_write
    u64 conflicts_cas
    u64 refused                     # everything else that was not a conflict
    u64 expired
    u64 unbound                     # keys removed because their session had ended
    u64 revoked
    u64 log_errors
    u64 batch_sizes[HISTOGRAM_COUNT]
    u64 batch_ns[HISTOGRAM_COUNT]

cdef struct Core:
    Store store
    u32 stop_flag                   # set by any thread, acquire/release
    u64 next_version
    i64 now                         # ns since the epoch, read once a batch, never going back (_expiry_time)
    Undo *undo
    u64 undo_count
    u64 undo_capacity
    Recent *recent
    u64 recent_next
    u64 recent_floor                # versions up to here may be missing from `recent`
    u64 recent_epoch                # grows when the list is forgotten
    RangeHistory range_history
    u32 range_inline_max            # live keys in a range; deleting more makes a range tombstone
    u32 range_slice                 # nodes converted between two batches
    u32 walk_slice                  # steps of one request's range checks in one batch
    i64 range_retry_at              # monotonic ns: the store was full, or a test holds the conversion back
    u32 parked                      # requests left for the next batch, and turns that have just ended
    TurnTable turns
    ExpiryHeap expiry
    SessionTable sessions           # keys by the session they are bound to
    u64 ended[4096]                 # a ring of sessions that are over; see _session_end.pyx
    u32 ended_tail                  # atomic: written by the control plane
    u32 ended_head                  # atomic: written by the commit thread
    i64 sessions_after              # monotonic ns: a removal failed, no further one before this; 0: none did
    Channel *channels
    u32 channel_capacity
    u32 channels_high
    Channel own                     # no rings: the one pin of the coordinator itself, for checkpoints
    u64 own_slot[2]
    u32 own_slots_high
    u32 *wakes                      # queue of channels to be woken: a ring of channel_capacity indices
    u32 wakes_first
    u32 wakes_count
    int event_fds[EVENT_FDS_MAX]    # eventfds with answers behind them, not written yet; each once
    u32 event_fds_count
    u32 hot_max                     # workers beyond this many wait for their wake-up
    Interest interest               # who waits for which changes
    u64 hold_version                # gc_horizon stays at or below it until `hold_until`; see _pins.pyx
    i64 hold_until                  # monotonic ns; 0: it need not
    u64 *pins                       # scratch of the pin scan
    u64 pins_capacity
    u64 collected_version           # committed_version at the last collect
    bint full                       # an allocation failed since the last collect: do a thorough one
    bint expiry_stale               # the heap lost entries: rebuild it from the store
    u32 key_size_max                # of whole keys
    u32 value_size_max
    u64 request_size_max
    InboxBudget inboxes             # private memory for requests that are being received
    HotKey hot[HOT_KEYS]
    Counters counters
    # Settings, set before the commit thread starts.
    u8 *bell                        # the coordinator's doorbell segment; NULL in memory
    int wake_fd                     # eventfd that wakes the control plane; -1 for none
    bint sync_all                   # durability "always": every batch waits for the disk
    u32 core_count                  # cores this process may use
    i64 snapshot_age_max            # ns
    # The end of commits.
    u32 fatal_errno                 # not 0: nobody knows what the log holds, so the process must end
    u32 commits_over                # atomic: the log failed, the last batch is done, and no commit follows
    # When work between batches is due; monotonic ns.
    i64 next_sweep                  # the next check of the age of snapshots
    i64 expire_after                # no removal of expired keys before this
    # Spinning and sleeping.
    Waiter waiter
    Placement placement
    u64 window                      # number of the current activity window
    i64 window_end                  # monotonic ns
    u32 window_channels             # distinct channels served in it
    bint alone                      # the last window had at most one, and there is a core for it beside ours


cdef inline bint sessions_waiting(const Core *core) noexcept nogil:
    """Whether sessions wait for their end. Any thread."""
    return load_acquire_u32(<void *>&core.ended_tail) != load_acquire_u32(<void *>&core.ended_head)
