"""Turns: a transaction that has lost often is not beaten again.

A request with a `turn` token belongs to a transaction that has lost some times. If it loses again, its transaction gets
a turn on what it read and wrote: until it comes back, requests of others that would invalidate it wait.
`tests/support/turn_model.py` is the same in plain Python, and README.md has the argument.

1. *One line.* Waiting requests and turns stand in one line by order of arrival. A request that waits is complete in its
   channel's inbox, and its place is in `channel.place`. It has no answer and is in no batch, so it has no effect, and
   a batch that is undone does not touch it. A turn that runs has no request: its place stands for the transaction.
2. *Who waits.* A request that would invalidate a running turn, and one that asks for a turn which conflicts with
   something before it in the line. Nothing else, and nothing that runs.
3. *A turn runs* from the batch in which its request lost. Requests later in the batch are held already; earlier ones
   are in versions that are published before the answer is sent. So the snapshot of its next attempt has all of them.
   Its time is counted from the moment when the answer is sent: a slow disk does not use it up.
4. *The end of a turn.* The next request with its token ends it, immediately before it is judged, or it is kept. So does its time, in a
   turn of the loop in which the requests that lay in the rings were served first. So does the end of the channel that
   it was granted to, which follows the worker's death.
5. *A turn is kept* if its request comes within QUANTUM_NS: it runs on for the other requests of that channel until then,
   while they write to it and come within BACK_NS. Workers that fight over one key pass it on once in a quantum instead
   of once in a commit, and lose once in a quantum too.
6. *A rest* follows a turn, REST_FACTOR times as long as the turn, and REST_NS at least: in that time no turn that
   conflicts with it starts. So turns never take more than a quarter of the time of those whom they hold up. A short turn
   is spared it (`spare`) unless a request that has waited for it commits: the others want turns themselves.
   `turns_settle` removes it once all that wait were looked at.
7. *A patient request* gets a turn only behind such a turn.
8. *After an end* the line is looked at in the next turn of the loop, before other requests: first those that do not
   ask, in order, then those that ask. `blocked_by` says what a request waits for, so only those are looked at whose
   obstacle is gone. `changed` says that there may be any.
9. *Not requests*, and so never held: the removal of expired keys and of the keys of ended sessions.
"""

from libc.stdlib cimport free, realloc
from libc.string cimport memmove, memset

from ...ipc._atomics cimport clock_monotonic_ns, futex_wake, load_acquire_u32, store_relaxed_u32, store_release_u32
from ...ipc._doorbell cimport PACE_HELD, PACE_TURN, PACE_USUAL
from ..disk._failpoints cimport FP_COMMIT_TURN_CLOCK, failpoint_armed, failpoint_hit_shift
from ._core cimport ANSWER_COMMITTED, ANSWER_DEPENDENT, CHANNEL_ACTIVE
from ._footprint cimport footprint_free, footprint_take, ops_break, request_breaks
from ._turn_table cimport REST_FACTOR, TURN_BYTES_MAX, TURNS_MAX, Place, TurnTable
from ._wire cimport REQUEST_JUDGE_ONLY, REQUEST_PATIENT, RequestHeader

cdef enum:
    EVERYBODY = 0x7FFFFFFF


# ---- places ------------------------------------------------------------------------------------------------

cdef i64 _find(const TurnTable *table, u64 came) noexcept nogil:
    """The index of a place; -1: it is gone."""
    cdef u32 low = 0, high = table.count, middle
    while low < high:
        middle = (low + high) // 2
        if table.places[middle].came < came:
            low = middle + 1
        else:
            high = middle
    return <i64>low if low < table.count and table.places[low].came == came else -1


cdef inline void _note_end(Core *core) noexcept nogil:
    """Something has ended. In memory the waiting threads sleep on a word, and look at the line anew when it grows."""
    core.turns.changed = True
    if core.bell == NULL:
        # Release: they look at the table under the mutex.
        store_release_u32(&core.turns.word, core.turns.word + 1)
        futex_wake(&core.turns.word, EVERYBODY)


cdef inline bint _is_fresh(const Place *place) noexcept nogil:
    """Whether its time is set when the answers are sent."""
    return place.running and (place.back_by if place.kept else place.ends) == 0


cdef inline void _set_pace(Core *core, u32 channel, u32 pace) noexcept nogil:
    """Tell a worker how to wait for its answer."""
    # Relaxed: a hint. The segment of a channel in the line is mapped: its places are gone before it is closed.
    if core.bell != NULL:
        store_relaxed_u32(core.channels[channel].pace, pace)


cdef inline void _drop_footprint(TurnTable *table, Place *place) noexcept nogil:
    table.bytes -= place.footprint.size
    footprint_free(&place.footprint)


cdef void _remove(Core *core, u32 index) noexcept nogil:
    """Take a place out of the line. What waits for it is looked at again: see `turns_next`."""
    cdef TurnTable *table = &core.turns
    cdef Place *place = &table.places[index]
    table.running -= place.running
    table.resting -= place.resting
    table.asking -= place.token != 0
    table.fresh -= _is_fresh(place)
    if not place.resting:
        _set_pace(core, place.channel, PACE_USUAL)
    _drop_footprint(table, place)
    memmove(place, place + 1, (table.count - index - 1) * sizeof(Place))
    table.count -= 1
    _note_end(core)


cdef void _finish(Core *core, u32 index, i64 now) noexcept nogil:
    """End a turn that runs. Its place stays for a while, in which turns that conflict with it do not start."""
    cdef TurnTable *table = &core.turns
    cdef Place *place = &table.places[index]
    cdef i64 lasts = table.quantum_ns if place.kept else table.turn_ns
    cdef i64 lasted = now - (place.ends - lasts) if place.ends != 0 else 0
    # One that was kept may end a little late: the commit thread looks at the clock between two batches.
    cdef bint spare = place.kept or (place.ends != 0 and lasted < table.quantum_ns)
    if table.rest_ns < 0 and not spare:
        _remove(core, index)
        return
    table.fresh -= _is_fresh(place)
    _set_pace(core, place.channel, PACE_USUAL)
    table.running -= 1
    table.resting += 1
    place.running = False
    place.resting = True
    place.spare = spare
    place.rest = max(table.rest_ns, REST_FACTOR * min(lasted, lasts))
    place.ends = now + place.rest
    _note_end(core)


cdef Place *_append(Core *core, Channel *channel, const u8 *request, u64 token) noexcept nogil:
    """A new place at the end of the line. NULL: no private memory, for its footprint in particular."""
    cdef TurnTable *table = &core.turns
    cdef u32 capacity = table.capacity * 2 if table.capacity else 64
    cdef Place *place
    cdef void *grown
    if table.count == table.capacity:
        grown = realloc(table.places, capacity * sizeof(Place))
        if grown == NULL:
            return NULL
        table.places = <Place *>grown
        table.capacity = capacity
    place = &table.places[table.count]
    memset(place, 0, sizeof(Place))
    if token:
        if not footprint_take(&place.footprint, request, core.store.hash_seed, TURN_BYTES_MAX - table.bytes):
            return NULL
        table.bytes += place.footprint.size
    table.last_came += 1
    table.count += 1
    table.asking += token != 0
    place.came = table.last_came
    place.channel = <u32>(channel - core.channels)
    place.request = request
    place.token = token
    return place


cdef u64 _token_of(Core *core, Channel *channel, const u8 *request) noexcept nogil:
    """The token of a request that asks for a turn and may have one; otherwise 0."""
    cdef const RequestHeader *header = <const RequestHeader *>request
    if header.flags & REQUEST_JUDGE_ONLY or core.turns.asking >= TURNS_MAX:
        return 0
    # Acquire: the control plane stores CLOSING when the worker is gone, so nobody would use the turn.
    return header.turn if load_acquire_u32(&channel.state) == CHANNEL_ACTIVE else 0


# ---- a request ---------------------------------------------------------------------------------------------

cdef void _keep(Core *core, Channel *channel, u32 index, bint keep) noexcept nogil:
    """End the turn of a transaction that has come back, or keep it for the next ones of its channel."""
    cdef TurnTable *table = &core.turns
    cdef Place *place = &table.places[index]
    cdef i64 now = clock_monotonic_ns(), ends = place.ends - table.turn_ns + table.quantum_ns
    # Only where the next one comes through the same channel: not in memory, and not in an event loop.
    if not keep or place.ends == 0 or now >= ends or core.bell == NULL or channel.event_fd >= 0:
        _finish(core, index, now)
        return
    _set_pace(core, place.channel, PACE_USUAL)
    place.kept = True
    place.channel = <u32>(channel - core.channels)
    _set_pace(core, place.channel, PACE_TURN)
    place.ends = ends
    table.fresh += 1
    table.came_back = True


cdef void _come_back(Core *core, Channel *channel, const u8 *request) noexcept nogil:
    """A request may be the one that a running turn was granted for, or be of a channel that keeps one."""
    cdef TurnTable *table = &core.turns
    cdef const RequestHeader *header = <const RequestHeader *>request
    cdef Place *place
    cdef bint writes = not header.flags & REQUEST_JUDGE_ONLY
    cdef u32 index, own = <u32>(channel - core.channels)
    for index in range(table.count):
        place = &table.places[index]
        if not place.running:
            continue
        if place.kept:
            if place.channel != own:
                continue
            if writes and request_breaks(request, &place.footprint, core.store.hash_seed):
                table.came_back = True
                table.fresh += place.back_by != 0
                place.back_by = 0
            else:
                _finish(core, index, clock_monotonic_ns())      # it does something else
        elif header.turn and place.token == header.turn:
            _keep(core, channel, index, writes)
        else:
            continue
        # Without rests the next place is at this index now; a channel seldom has two.
        return


cdef void _give_up(Core *core, Channel *channel) noexcept nogil:
    """End the turn that a channel keeps."""
    cdef TurnTable *table = &core.turns
    cdef u32 index
    for index in range(table.count):
        if table.places[index].running and table.places[index].kept and table.places[index].channel == channel - core.channels:
            _finish(core, index, clock_monotonic_ns())
            return


cdef u64 _obstacle(Core *core, Channel *channel, const u8 *request) noexcept nogil:
    """`came` of another one's running turn that the request would invalidate; 0: there is none."""
    cdef TurnTable *table = &core.turns
    cdef Place *place
    cdef u32 index
    if (<const RequestHeader *>request).flags & REQUEST_JUDGE_ONLY:
        return 0
    for index in range(table.count):
        place = &table.places[index]
        if not place.running or (place.kept and place.channel == channel - core.channels):
            continue
        if request_breaks(request, &place.footprint, core.store.hash_seed):
            return place.came
    return 0


cdef inline void _stand_back(Core *core, Channel *channel) noexcept nogil:
    """A worker that waits in the line needs no core: it does not count among those who are active."""
    if channel.window == core.window:
        channel.window -= 1
        core.window_channels -= 1
    channel.hot_until = 0
    _set_pace(core, <u32>(channel - core.channels), PACE_HELD)


cdef bint turns_hold(Core *core, Channel *channel, const u8 *request) noexcept nogil:
    cdef u64 obstacle
    cdef i64 index
    cdef Place *place
    if core.turns.running:
        _come_back(core, channel, request)
    obstacle = _obstacle(core, channel, request) if core.turns.running else 0
    if obstacle == 0:
        return False
    if channel.place:
        index = _find(&core.turns, channel.place)
        place = &core.turns.places[index] if index >= 0 else NULL
    else:
        _give_up(core, channel)         # nobody holds up others while it waits itself
        place = _append(core, channel, request, _token_of(core, channel, request))
        if place == NULL:
            place = _append(core, channel, request, 0)
        core.turns.waited += place != NULL
        _stand_back(core, channel)
    if place == NULL:
        return False                    # no private memory: it is served, and the turn may be in vain
    place.blocked_by = obstacle
    channel.place = place.came
    return True


cdef bint _may_start(Core *core, u32 at) noexcept nogil:
    """Whether nothing before this place conflicts with its turn; otherwise `blocked_by` says what does."""
    cdef Place *mine = &core.turns.places[at]
    cdef Place *other
    cdef u32 index
    cdef u64 seed = core.store.hash_seed
    cdef bint conflict
    for index in range(at):
        other = &core.turns.places[index]
        if other.spare:
            continue
        if other.token:
            conflict = (ops_break(other.footprint.ops, other.footprint.op_count, &mine.footprint, seed)
                        or ops_break(mine.footprint.ops, mine.footprint.op_count, &other.footprint, seed))
        else:
            conflict = request_breaks(other.request, &mine.footprint, seed)
        if conflict:
            mine.blocked_by = other.came
            return False
    mine.blocked_by = 0
    return True


cdef inline bint _is_behind_kept(const TurnTable *table, const Place *place) noexcept nogil:
    """Whether the last turn that it waited for was kept, and has held up nobody who does not want one."""
    cdef i64 index = _find(table, place.blocked_by)
    return index >= 0 and table.places[index].spare


cdef TurnVerdict turns_ask(Core *core, Channel *channel, const u8 *request) noexcept nogil:
    cdef TurnTable *table = &core.turns
    cdef i64 index
    cdef Place *place = NULL
    cdef u64 token
    cdef bint patient = ((<const RequestHeader *>request).flags & REQUEST_PATIENT) != 0
    if channel.place:
        index = _find(table, channel.place)
        if index >= 0 and table.places[index].token and not (patient and not _is_behind_kept(table, &table.places[index])):
            place = &table.places[index]
    elif not patient:
        token = _token_of(core, channel, request)
        if token:
            _give_up(core, channel)
            place = _append(core, channel, request, token)
            index = table.count - 1
    if place == NULL:
        return TURN_NONE
    if not _may_start(core, <u32>index):
        table.waited += channel.place == 0
        place.judged = True
        _stand_back(core, channel)
        channel.place = place.came
        return TURN_WAIT
    channel.place = 0
    place.request = NULL
    place.running = True
    _set_pace(core, place.channel, PACE_TURN)
    table.running += 1
    table.fresh += 1
    table.granted += 1
    return TURN_GRANTED


cdef void _need_rest(Core *core, u64 came) noexcept nogil:
    """A request that has waited for this turn commits: it has no conflict, and lost only time. So the turn rests."""
    cdef TurnTable *table = &core.turns
    cdef i64 index = _find(table, came)
    if index < 0 or not table.places[index].spare:
        return
    table.places[index].spare = False
    if table.rest_ns < 0:
        _remove(core, <u32>index)


cdef void turns_leave(Core *core, Channel *channel) noexcept nogil:
    cdef i64 index = _find(&core.turns, channel.place)
    cdef u64 came
    channel.place = 0
    if index < 0:
        return
    came = core.turns.places[index].blocked_by
    _remove(core, <u32>index)
    if channel.answer == ANSWER_COMMITTED:
        _need_rest(core, came)


cdef bint turns_judged(const Core *core, const Channel *channel) noexcept nogil:
    cdef i64 index
    if channel.place == 0:
        return False
    index = _find(&core.turns, channel.place)
    return index >= 0 and core.turns.places[index].judged


# ---- the line ----------------------------------------------------------------------------------------------

cdef bint _still_blocked(const TurnTable *table, const Place *place) noexcept nogil:
    """Whether what the request waits for is still in its way."""
    cdef i64 index = _find(table, place.blocked_by) if place.blocked_by else -1
    if index < 0:
        return False
    # A turn that rests is in the way of the start of another turn only.
    return not table.places[index].resting or (place.judged and not table.places[index].spare)


cdef u64 turns_next(Core *core, u64 came, bint asks, u32 *channel) noexcept nogil:
    cdef TurnTable *table = &core.turns
    cdef Place *place
    cdef u32 index
    for index in range(table.count):
        place = &table.places[index]
        if place.came <= came or place.running or place.resting or (place.token != 0) != asks:
            continue
        if _still_blocked(table, place):
            continue
        channel[0] = place.channel
        return place.came
    return 0


cdef void turns_sent(Core *core, i64 now) noexcept nogil:
    cdef TurnTable *table = &core.turns
    cdef Place *place
    cdef u32 index
    table.fresh = 0
    for index in range(table.count):
        place = &table.places[index]
        if not _is_fresh(place):
            continue
        if place.kept:
            place.back_by = now + table.back_ns
        else:
            place.ends = now + table.turn_ns


cdef void turns_settle(Core *core) noexcept nogil:
    cdef u32 index = 0
    while index < core.turns.count:
        if core.turns.places[index].spare:
            _remove(core, index)
        else:
            index += 1


cdef inline bint _is_over(const Place *place, i64 now) noexcept nogil:
    """Whether it is a turn, or a rest, whose time is over."""
    if place.kept and place.running and place.back_by != 0 and place.back_by <= now:
        return True
    return place.request == NULL and place.ends != 0 and place.ends <= now


cdef void turns_undo(Core *core) noexcept nogil:
    cdef TurnTable *table = &core.turns
    cdef u32 index = 0
    while index < table.count:
        if (table.places[index].running and table.places[index].ends == 0
                and core.channels[table.places[index].channel].answer == ANSWER_DEPENDENT):
            table.granted -= 1
            _remove(core, index)
        else:
            index += 1


cdef bint turns_expire(Core *core, i64 now) noexcept nogil:
    cdef TurnTable *table = &core.turns
    cdef u32 index = 0
    cdef bint any = False
    if failpoint_armed():
        now += failpoint_hit_shift(FP_COMMIT_TURN_CLOCK)
    while index < table.count:
        if not _is_over(&table.places[index], now):
            index += 1
            continue
        any = True
        if table.places[index].resting:
            _remove(core, index)
            continue
        table.expired += not table.places[index].kept
        _finish(core, index, now)       # looked at again: it rests, or the next place is at this index now
    return any


cdef void turns_abandon(Core *core, u32 channel) noexcept nogil:
    cdef TurnTable *table = &core.turns
    cdef Place *place
    cdef u32 index = 0
    while index < table.count:
        place = &table.places[index]
        if place.channel != channel:
            index += 1
        elif place.resting:
            index += 1
        elif place.running:
            _finish(core, index, clock_monotonic_ns())
        else:
            table.asking -= place.token != 0
            place.token = 0
            place.blocked_by = 0
            table.changed = True
            _drop_footprint(table, place)
            index += 1


cdef void turns_clear(Core *core) noexcept nogil:
    cdef TurnTable *table = &core.turns
    while table.count:
        if table.places[table.count - 1].request != NULL:
            core.channels[table.places[table.count - 1].channel].place = 0
        _remove(core, table.count - 1)


cdef i64 turns_end(const Core *core, i64 longest) noexcept nogil:
    cdef const TurnTable *table = &core.turns
    cdef u32 index
    for index in range(table.count):
        if table.places[index].ends != 0:
            longest = min(longest, table.places[index].ends)
        if table.places[index].kept and table.places[index].running and table.places[index].back_by != 0:
            longest = min(longest, table.places[index].back_by)
    return longest


cdef void turns_free(Core *core) noexcept nogil:
    cdef u32 index
    for index in range(core.turns.count):
        footprint_free(&core.turns.places[index].footprint)
    free(core.turns.places)
