"""Sleeping and waking between processes, with spinning that adapts.

Protocol (argued in README.md): the waiter reads `word`, sets `sleeping` = 1, fences, checks `ready` once more
and FUTEX_WAITs for `word` to change. The ringer publishes, fences, reads `sleeping`, and if it is set
increments `word` and wakes. Of the two, the one that fences second sees what the other one stored, so no
wake-up is lost.

Invariants:
  1. `sleeping` is written only by the one waiter of the doorbell; `word` only ever grows (mod 2**32), by
     ringers.
  2. A ringer that dies between any two steps strands nobody but its own request: the next ringer rings again.
  3. `ready` decides; a wake-up means nothing by itself (spurious ones are harmless).
  4. A waiter that is woken through an eventfd stores SLEEPING_BY_EVENT once and leaves it there; whoever answers it
     writes the eventfd instead of ringing (`_event_channel.pyx`). A ring all the same is a system call for nothing.
Both words can be forged by a worker, so the coordinator never waits without a bound.
"""

from ._atomics cimport i64, u32, u64

ctypedef bint (*ready_fn)(void *) noexcept nogil

cdef struct Waiter:          # private, adaptive state of one waiting side
    u32 brief_score         # 0..256: share of recent brief spins that paid off
    u32 brief_skipped       # while brief spins do not pay: waits since the last one that was tried
    u32 kept_score          # the same of spins in a turn
    u32 kept_skipped
    const void *pace        # a word that says PACE_HELD when spinning is in vain; NULL: there is none
    u32 score               # 0..256: share of recent spins that paid off; spins while >= SCORE_SPIN
    u32 probe_backoff       # probe only in windows whose index is a multiple of 1 << probe_backoff
    u64 probe_window        # window in which probes are counted
    u32 probe_failures      # failed probes in that window
    u64 spins, spins_paid, briefs, briefs_paid, sleeps, wakes       # statistics

# What `sleeping` says. Anything but 0 asks for a wake-up.
cdef enum:
    SLEEPING_BY_FUTEX = 1
    SLEEPING_BY_EVENT = 2

cdef void waiter_init(Waiter *w) noexcept nogil

# Wait until ready(context) is true. 1: ready; 0: timed out; 2: interrupted by a signal (EINTR), call again.
# timeout_ns < 0 waits without a bound, 0 only looks. may_spin: what the caller knows of the machine, see
# below.
cdef enum:
    SPIN_NEVER = 0          # no core is idle
    SPIN_ADAPTIVE = 1       # a core is idle
    SPIN_BRIEF = 2          # no core is known to be idle, but the peer is running
    SPIN_LONG = 3           # a core is idle, and the one peer has nothing to do but to come back
    SPIN_TURN = 4           # a worker in its turn: the coordinator does little else meanwhile
    SPIN_SERVE = 5          # the coordinator during a turn: others sleep so that its worker can come back soon

# How a worker waits for its answer, as the coordinator sees it.
cdef enum:
    PACE_USUAL = 0
    PACE_TURN = 1           # it has a turn
    PACE_HELD = 2           # it waits for the turn of another one: no answer comes soon

cdef int doorbell_wait(Waiter *w, void *word, void *sleeping, ready_fn ready, void *context,
                       i64 timeout_ns, int may_spin) noexcept nogil
# Call after publishing (with at least release order).
cdef void doorbell_ring(void *word, void *sleeping) noexcept nogil
