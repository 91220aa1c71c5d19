"""Futex doorbells with adaptive spinning; the contract is in `_doorbell.pxd`, the argument in README.md.

Why adapt: on an idle machine a spin of a few microseconds saves two context switches and two wake-ups of an
idle core (405 K exchanges a second against 15 K); on a busy one it burns the time slice that the peer is
waiting for. Nobody can tell beforehand which it is, so each waiter keeps score:

- a spin *paid off* when the wait ended within SPIN_NS (LONG_NS where the caller asks for it); one that ran
  out, or during which the thread was preempted, did not. Three failures running end the spinning; about two
  in three must pay off to keep it;
- after that the waiter sleeps at once, except for *probes*: spins of up to PROBE_NS, long enough to outlast
  the wake-up of a sleeping peer, inside short windows of CLOCK_MONOTONIC. That clock is one for all
  processes, so the windows of both sides coincide: two sides that both sleep find back to spinning, which
  neither could alone (its peer's wake-up takes longer than any spin worth its cost). Failed windows thin out
  up to 1 << PROBE_BACKOFF_MAX, so probing costs less than half a percent of the time where it never pays.

With more waiters than cores nobody should spin for long, but a waiter whose peer is awake may be answered
sooner than the kernel switches tasks twice: SPIN_BRIEF looks for BRIEF_NS. That has a score of its own: it
pays with 4 workers on 2 cores, and not with 16, where the peer is often awake but not running. A spin shorter
than a commit of several keys never pays: with 5 us, 8 workers on one queue of tasks did 8,000 of them a
second, and with 12 us 12,900, while puts of one key stayed as they were.
"""

from libc.errno cimport EINTR, ETIMEDOUT

from ._atomics cimport (
    clock_monotonic_ns, cpu_relax, fence_seq_cst, fetch_add_u32, futex_wait, futex_wake, load_acquire_u32,
    load_relaxed_u32, store_relaxed_u32, store_seq_cst_u32,
)

cdef enum:
    SPIN_NS = 20000             # longest ordinary spin
    SERVE_NS = 200000           # longest SPIN_SERVE: a sleep here is woken on the worker's core, and then they share it
    LONG_NS = 60000             # longest SPIN_LONG: transactions that take Python 20 to 60 us find us awake
    PROBE_NS = 60000            # longest probe: a wake-up of an idle core, and the peer's work
    CHECKS_PER_CLOCK = 8        # looks at `ready` between two looks at the clock
    SCORE_MAX = 256
    SCORE_SPIN = 128
    SCORE_MIN = 64              # so that a few good probes suffice to come back
    WINDOW_SHIFT = 23           # a window starts every 2**23 ns (8.4 ms)
    WINDOW_NS = 262144          # and lasts this long
    BRIEF_NS = 12000            # about what two task switches and a wake-up cost, and twice what a large commit takes
    BRIEF_KEEP = 90             # of 256: one that pays saves about twice what one that does not costs
    BRIEF_TRY = 32              # while brief spins do not pay, one wait in this many tries again
    PROBE_FAILURES_MAX = 2      # failed probes that end a window for this waiter
    PROBE_BACKOFF_MAX = 2       # at worst two failed probes in 33 ms: under half a percent of the time


cdef void waiter_init(Waiter *w) noexcept nogil:
    w.score = SCORE_MAX
    w.brief_score = SCORE_MAX
    w.brief_skipped = 0
    w.kept_score = SCORE_MAX
    w.kept_skipped = 0
    w.pace = NULL
    w.probe_backoff = 0
    w.probe_window = 0
    w.probe_failures = 0
    w.spins = w.spins_paid = w.briefs = w.briefs_paid = w.sleeps = w.wakes = 0


cdef bint may_probe(Waiter *w, i64 now) noexcept nogil:
    """Whether `now` lies in a probe window that this waiter has not spoiled yet."""
    cdef u64 window = <u64>now >> WINDOW_SHIFT
    if (<u64>now & ((<u64>1 << WINDOW_SHIFT) - 1)) >= WINDOW_NS:
        return False
    if window & ((<u64>1 << w.probe_backoff) - 1):
        return False
    if window != w.probe_window:
        w.probe_window = window
        w.probe_failures = 0
    return w.probe_failures < PROBE_FAILURES_MAX


cdef void judge(Waiter *w, i64 took, i64 limit, bint probe) noexcept nogil:
    """Keep score of a spin that took `took` ns, and pays off within `limit`."""
    w.spins += 1
    if took <= limit:
        w.spins_paid += 1
        w.score += (SCORE_MAX - w.score + 7) >> 3
        if w.score >= SCORE_SPIN:
            w.probe_backoff = 0
    elif probe:
        # One that ended in time for a probe says no more than that the peer was asleep: no change.
        if took > PROBE_NS:
            w.probe_failures += 1
            if w.probe_failures == PROBE_FAILURES_MAX and w.probe_backoff < PROBE_BACKOFF_MAX:
                w.probe_backoff += 1
    else:
        w.score = max(<u32>SCORE_MIN, w.score - (w.score >> 2))


cdef inline bint is_held(const Waiter *w) noexcept nogil:
    """Whether no answer comes soon."""
    # Relaxed: a hint.
    return w.pace != NULL and load_relaxed_u32(<void *>w.pace) == PACE_HELD


cdef bint spin(Waiter *w, ready_fn ready, void *context, i64 start, i64 limit, bint probe) noexcept nogil:
    """Look at `ready` for up to `limit` ns, in a probe for PROBE_NS; whether it came true."""
    cdef i64 took, budget = PROBE_NS if probe else limit
    cdef int check
    cdef bint done = False
    while True:
        for check in range(CHECKS_PER_CLOCK):
            cpu_relax()
            if ready(context):
                done = True
                break
        # Also on success: a thread that was preempted meanwhile spun at the cost of its time slice.
        took = clock_monotonic_ns() - start
        if done or took > budget:
            break
        if is_held(w):
            return False            # says nothing about the machine
    judge(w, took, limit, probe)
    return done


cdef bint spin_scored(Waiter *w, ready_fn ready, void *context, i64 start, i64 limit, u32 *score, u32 *skipped) noexcept nogil:
    """Look at `ready` for `limit` ns, if that has paid lately; whether it came true."""
    cdef int check
    cdef bint done = False
    if score[0] < BRIEF_KEEP:
        skipped[0] += 1
        if skipped[0] < BRIEF_TRY:
            return False
        skipped[0] = 0
    w.briefs += 1
    while not done and clock_monotonic_ns() - start < limit:
        for check in range(CHECKS_PER_CLOCK):
            cpu_relax()
            if ready(context):
                done = True
                break
        if not done and is_held(w):
            return False
    if done:
        w.briefs_paid += 1
        score[0] += (SCORE_MAX - score[0] + 15) >> 4
    else:
        score[0] -= score[0] >> 4
    return done


cdef int doorbell_wait(Waiter *w, void *word, void *sleeping, ready_fn ready, void *context,
                       i64 timeout_ns, int may_spin) noexcept nogil:
    cdef i64 start, deadline, left
    cdef u32 seen
    cdef int outcome
    cdef bint probe
    if ready(context):
        return 1
    if timeout_ns == 0:
        return 0
    start = clock_monotonic_ns()
    if may_spin == SPIN_BRIEF:
        if spin_scored(w, ready, context, start, BRIEF_NS, &w.brief_score, &w.brief_skipped):
            return 1
    elif may_spin == SPIN_TURN or may_spin == SPIN_SERVE:
        if spin_scored(w, ready, context, start, LONG_NS if may_spin == SPIN_TURN else SERVE_NS, &w.kept_score, &w.kept_skipped):
            return 1
    elif may_spin:
        probe = w.score < SCORE_SPIN
        if not probe or may_probe(w, start):
            if spin(w, ready, context, start, LONG_NS if may_spin == SPIN_LONG else SPIN_NS, probe):
                return 1
    deadline = start + timeout_ns
    while True:
        # Acquire: taken before `ready` is looked at, so that a ring after that look has changed the word.
        seen = load_acquire_u32(word)
        # Seq_cst store and fence: pair with the fence in doorbell_ring. Either the ringer sees the flag and
        # rings, or its publication came before this fence and the next line sees it.
        store_seq_cst_u32(sleeping, SLEEPING_BY_FUTEX)
        fence_seq_cst()
        if ready(context):
            # Relaxed: a ringer that still sees 1 makes a harmless system call.
            store_relaxed_u32(sleeping, 0)
            return 1
        left = -1
        outcome = 0
        if timeout_ns > 0:
            left = deadline - clock_monotonic_ns()
            if left <= 0:
                outcome = ETIMEDOUT
        if outcome == 0:
            w.sleeps += 1
            outcome = futex_wait(word, seen, left)
        store_relaxed_u32(sleeping, 0)
        if ready(context):
            w.wakes += 1
            return 1
        if outcome == ETIMEDOUT:
            return 0
        if outcome == EINTR:
            return 2


cdef void doorbell_ring(void *word, void *sleeping) noexcept nogil:
    # Seq_cst fence: orders the publication before the load below, against the fence in doorbell_wait.
    fence_seq_cst()
    # Relaxed: the fences give the order.
    if load_relaxed_u32(sleeping):
        fetch_add_u32(word, 1)
        futex_wake(word, 1)
