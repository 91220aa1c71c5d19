"""Turns: a transaction that has lost often is not beaten again; see _turns.pyx.

Every function here belongs to the commit thread (in memory: to the thread that holds the core's mutex).
"""

from ...ipc._atomics cimport i64, u8, u32, u64
from ._core cimport Channel, Core

# A request is about to be judged. Ends the turn of its transaction. True: it would invalidate the turn of another one,
# so it has to wait; it has a place in the line, `channel.place`. REQUIRES: a well-formed request in private memory that
# stays where it is until it is answered or `turns_leave` was called.
cdef bint turns_hold(Core *core, Channel *channel, const u8 *request) noexcept nogil

# A request that asks for a turn has lost. What follows: it is answered with its turn granted, answered without one, or
# waits in the line.
cdef enum TurnVerdict:
    TURN_GRANTED = 1
    TURN_NONE = 2
    TURN_WAIT = 3

cdef TurnVerdict turns_ask(Core *core, Channel *channel, const u8 *request) noexcept nogil

# The request of this channel has its answer: it leaves the line.
cdef void turns_leave(Core *core, Channel *channel) noexcept nogil

# The place that is to be looked at next: the first one behind `came` of a request that asks, or does not, and whose
# wait may be over. NULL: there is none.
cdef u64 turns_next(Core *core, u64 came, bint asks, u32 *channel) noexcept nogil

# Whether this request has lost before, and was counted then.
cdef bint turns_judged(const Core *core, const Channel *channel) noexcept nogil

# All that wait were looked at: turns that were kept, and held up nobody else, need no rest.
cdef void turns_settle(Core *core) noexcept nogil

# The answers of a batch were sent: the time of the turns that they grant begins.
cdef void turns_sent(Core *core, i64 now) noexcept nogil

# The batch was undone: turns that were granted because of what it wrote are not.
cdef void turns_undo(Core *core) noexcept nogil

# Ends the turns, and the rests, whose time was over at `now`. True: there was one.
cdef bint turns_expire(Core *core, i64 now) noexcept nogil

# The worker of this channel is gone. Its turns end, and what it sent asks for none.
cdef void turns_abandon(Core *core, u32 channel) noexcept nogil

# Ends every turn, and lets every request out of the line unanswered.
cdef void turns_clear(Core *core) noexcept nogil

# When the next turn or rest is over, in monotonic ns; `longest` if that is later, or if there is none.
cdef i64 turns_end(const Core *core, i64 longest) noexcept nogil

cdef void turns_free(Core *core) noexcept nogil
