"""Turns, and the requests that wait for them, as one line; see _turns.pyx."""

from ...ipc._atomics cimport i64, u8, u32, u64

cdef enum:
    TURNS_MAX = 1024                # turns asked for and running; beyond that a request that loses gets none
    TURN_SPANS_MAX = 64             # ranges of one turn that are looked at one by one
    TURN_BYTES_MAX = 67108864       # of all footprints together; beyond that a request that loses gets none either
    TURN_NS = 20000000              # how long a turn lasts at most
    REST_NS = 5000000               # after a turn no other one that conflicts with it starts for this long at least ...
    REST_FACTOR = 3                 # ... and for this many times as long as it has lasted
    QUANTUM_NS = 3000000            # a turn whose transaction has committed may be kept for so long since it began ...
    BACK_NS = 400000                # ... while its worker comes back within this time

# What a transaction read and wrote. Private memory; `ops` has the request's operations without their values.
cdef struct Footprint:
    u8 *ops
    u32 op_count
    u64 size                        # bytes of private memory
    u64 *hashes                     # of the keys whose change by others is a conflict: open addressing, 0 is free
    u64 mask
    u32 spans[TURN_SPANS_MAX]       # offsets in `ops` of ranges with the same property
    u32 span_count                  # may be more than TURN_SPANS_MAX: then they count as everything from `low` to `high`
    const u8 *low                   # the least key, and the greatest, in `ops`
    const u8 *high
    u32 low_size
    u32 high_size
    bint high_included              # `high` is a key; otherwise it is the end of a range

cdef struct Place:
    u64 came                        # order of arrival, from 1
    u32 channel                     # index of the channel that it came through
    u64 token                       # of the transaction that asks; 0: it does not ask
    const u8 *request               # while it waits; NULL once its turn has started
    bint running                    # a turn that has started
    bint resting                    # one that is over; it holds up turns that conflict with it, and nothing else
    i64 ends                        # of either; monotonic ns; 0: the answer that grants it was not sent yet
    u64 blocked_by                  # `came` of what it waits for; 0: unknown
    bint judged                     # it has lost once already: it is not counted again
    bint kept                       # its transaction has committed; it runs on for the other ones of its channel
    bint spare                      # it rests, and is in the way of nothing
    i64 back_by                     # the next one has to come by then; monotonic ns; 0: the last one has no answer yet
    i64 rest                        # how long it would rest
    Footprint footprint             # of one that asks

cdef struct TurnTable:
    Place *places                   # by `came`
    u32 count
    u32 capacity
    u32 running
    u32 resting
    u32 asking                      # places with a token
    bint came_back                  # a request of a turn that is kept was taken in this batch
    u32 fresh                       # running ones whose time is to be set when the answers are sent
    bint changed                    # something has ended: those who wait are to be looked at
    u64 bytes                       # of the footprints
    u64 last_came
    u32 word                        # grows when something that others wait for has ended (in memory)
    i64 turn_ns
    i64 rest_ns                     # negative: there are no rests
    i64 quantum_ns                  # 0: no turn is kept
    i64 back_ns
    u64 granted
    u64 waited
    u64 expired
