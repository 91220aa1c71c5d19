"""Byte rings and message framing; the contract and the invariants are in `_ring.pxd`, the argument in
README.md.

Called by the coordinator's commit thread (request consumer, reply producer) and by `_channel` (the other two
ends). Nothing here blocks, allocates (except an inbox that grows) or takes the GIL.
"""

from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from ._atomics cimport load_acquire_u64, store_release_u64
from ._layout cimport MESSAGE_CHECK, MESSAGE_HEADER_SIZE

cdef enum:
    RETAINED_MAX = 1048576      # an inbox keeps a buffer up to this size between messages
    INBOX_FIRST = 4096
    INBOX_FREE = RETAINED_MAX   # messages up to this size are not counted: an inbox keeps as much anyway


# ---- bytes -----------------------------------------------------------------------------------------------

cdef void ring_init(Ring *r, u8 *data, u64 capacity, void *head_word, void *tail_word) noexcept nogil:
    r.data = data
    r.capacity = capacity
    r.head_word = head_word
    r.tail_word = tail_word
    r.position = 0
    r.peer = 0


cdef i64 ring_readable(Ring *r) noexcept nogil:
    # Acquire: pairs with the producer's release in ring_publish; the bytes below the tail we see are
    # complete.
    cdef u64 tail = load_acquire_u64(r.tail_word)
    cdef u64 waiting = tail - r.position
    if waiting > r.capacity:
        return -1
    r.peer = tail
    return <i64>waiting


cdef i64 ring_writable(Ring *r) noexcept nogil:
    # Acquire: pairs with the consumer's release in ring_free; it has copied out all bytes below the head we
    # see, so overwriting them cannot change what it read.
    cdef u64 head = load_acquire_u64(r.head_word)
    cdef u64 used = r.position - head
    if used > r.capacity:
        return -1
    r.peer = head
    return <i64>(r.capacity - used)


cdef void ring_peek(const Ring *r, u64 offset, u8 *into, u64 size) noexcept nogil:
    cdef u64 start = (r.position + offset) & (r.capacity - 1)
    cdef u64 first = r.capacity - start
    if first >= size:
        memcpy(into, r.data + start, size)
    else:
        memcpy(into, r.data + start, first)
        memcpy(into + first, r.data, size - first)


cdef void ring_poke(Ring *r, u64 offset, const u8 *bytes, u64 size) noexcept nogil:
    cdef u64 start = (r.position + offset) & (r.capacity - 1)
    cdef u64 first = r.capacity - start
    if first >= size:
        memcpy(r.data + start, bytes, size)
    else:
        memcpy(r.data + start, bytes, first)
        memcpy(r.data, bytes + first, size - first)


cdef void ring_free(Ring *r, u64 size) noexcept nogil:
    r.position += size
    # Release: our copies out of the ring happen before the producer may overwrite those bytes.
    store_release_u64(r.head_word, r.position)


cdef void ring_publish(Ring *r, u64 size) noexcept nogil:
    r.position += size
    # Release: the bytes are in place before the consumer can see the tail that covers them.
    store_release_u64(r.tail_word, r.position)


cdef i64 ring_read(Ring *r, u8 *into, u64 size) noexcept nogil:
    cdef i64 waiting = ring_readable(r)
    if waiting <= 0:
        return waiting
    if size > <u64>waiting:
        size = <u64>waiting
    ring_peek(r, 0, into, size)
    ring_free(r, size)
    return <i64>size


cdef i64 ring_write(Ring *r, const u8 *bytes, u64 size) noexcept nogil:
    cdef i64 space = ring_writable(r)
    if space <= 0:
        return space
    if size > <u64>space:
        size = <u64>space
    ring_poke(r, 0, bytes, size)
    ring_publish(r, size)
    return <i64>size


cdef inline bint has_room(Ring *r, u64 size) noexcept nogil:
    """Room for `size` bytes judged by the head last seen: the consumer only ever frees more, so a stale head
    can
    only hide room. Saves a cache miss on the consumer's line for every message but one a ring's length."""
    return r.capacity - (r.position - r.peer) >= size


# ---- messages, producer side -----------------------------------------------------------------------------

cdef inline void header_pack(u32 *header, u32 size) noexcept nogil:
    header[0] = size
    header[1] = size ^ <u32>MESSAGE_CHECK


cdef inline void message_put(Ring *r, const u8 *data, u64 size) noexcept nogil:
    """Header and bytes in one publication; the caller has checked the room."""
    cdef u32[2] header
    header_pack(header, <u32>size)
    ring_poke(r, 0, <const u8 *>header, MESSAGE_HEADER_SIZE)
    if size:
        ring_poke(r, MESSAGE_HEADER_SIZE, data, size)
    ring_publish(r, MESSAGE_HEADER_SIZE + size)


cdef void message_start(Outgoing *o, const u8 *data, u64 size) noexcept nogil:
    o.data = data
    o.size = size
    o.sent = 0


cdef int message_write(Outgoing *o, Ring *r) noexcept nogil:
    cdef u64 total = MESSAGE_HEADER_SIZE + o.size
    cdef u32[2] header
    cdef i64 space
    cdef u64 count
    if o.sent == 0 and has_room(r, total):
        message_put(r, o.data, o.size)
        o.sent = total
        return 1
    space = ring_writable(r)
    if space < 0:
        return -1
    if o.sent == 0:
        if space < MESSAGE_HEADER_SIZE:
            return 0
        header_pack(header, <u32>o.size)
        ring_poke(r, 0, <const u8 *>header, MESSAGE_HEADER_SIZE)
        ring_publish(r, MESSAGE_HEADER_SIZE)
        o.sent = MESSAGE_HEADER_SIZE
        space -= MESSAGE_HEADER_SIZE
    count = min(<u64>space, total - o.sent)
    if count:
        ring_poke(r, 0, o.data + (o.sent - MESSAGE_HEADER_SIZE), count)
        ring_publish(r, count)
        o.sent += count
    return o.sent == total


cdef int outbox_send(Ring *r, const u8 *data, u32 size) noexcept nogil:
    cdef u64 total = <u64>MESSAGE_HEADER_SIZE + size
    cdef i64 space
    if not has_room(r, total):
        space = ring_writable(r)
        if space < 0:
            return -2
        if <u64>space < total:
            return -1
    message_put(r, data, size)
    return 0


# ---- messages, consumer side -----------------------------------------------------------------------------

cdef void inbox_init(Inbox *b) noexcept nogil:
    b.data = NULL
    b.size = 0
    b.filled = 0
    b.capacity = 0
    b.state = INBOX_IDLE
    b.fault = INBOX_FAULT_NONE
    b.progressed = False
    b.budget = NULL
    b.reserved = 0
    b.wanted = 0
    b.ticket = 0


cdef void inbox_destroy(Inbox *b) noexcept nogil:
    # The budget is the polling thread's, which may live on: it has let go of this inbox's share
    # (`inbox_drop`).
    free(b.data)
    inbox_init(b)


cdef inline void inbox_release(Inbox *b) noexcept nogil:
    if b.reserved:
        b.budget.reserved -= b.reserved
        b.reserved = 0


cdef void inbox_drop(Inbox *b) noexcept nogil:
    inbox_release(b)
    b.ticket = 0
    free(b.data)
    b.data = NULL
    b.capacity = 0
    b.state = INBOX_BAD


cdef inline int inbox_fail(Inbox *b, int fault) noexcept nogil:
    inbox_drop(b)
    b.fault = fault
    return -1


cdef bint inbox_reserve(Inbox *b, u64 wanted) noexcept nogil:
    """Room for `wanted` bytes, doubling up to the announced size: a lie about the size costs no memory."""
    cdef u64 capacity = max(<u64>INBOX_FIRST, b.capacity)
    cdef u8 *data
    if wanted <= b.capacity:
        return True
    while capacity < wanted:
        capacity *= 2
    capacity = max(max(wanted, <u64>INBOX_FIRST), min(capacity, b.size))
    data = <u8 *>realloc(b.data, capacity)
    if data == NULL:
        return False
    b.data = data
    b.capacity = capacity
    return True


cdef inline bint inbox_may_enter(const Inbox *b) noexcept nogil:
    """Whether it is the turn of the waiting message and there is room. Without a ticket: whether none waits.
    """
    cdef const InboxBudget *budget = b.budget
    return b.ticket == budget.first and (budget.reserved == 0 or budget.reserved + b.wanted <= budget.size)


cdef inline bint inbox_enter(Inbox *b, u64 size) noexcept nogil:
    """Reserve what a message of this size takes; False: it has to wait in the ring."""
    b.wanted = size
    if b.budget != NULL and size > INBOX_FREE:
        if not inbox_may_enter(b):
            if b.ticket == 0:
                b.budget.tickets += 1
                b.ticket = b.budget.tickets
                if b.budget.first == 0:
                    b.budget.first = b.ticket
            return False
        b.budget.reserved += size
        b.reserved = size
    # `first` stays at this ticket until the owner looks for the next: nobody overtakes those that wait.
    b.ticket = 0
    return True


cdef int inbox_begin(Inbox *b, Ring *r, u64 size_max) noexcept nogil:
    """Take the header, copied first, then judged. 0, -1, or 1: the message has to wait. REQUIRES 8 bytes
    waiting.
    """
    cdef u32[2] header
    ring_peek(r, 0, <u8 *>header, MESSAGE_HEADER_SIZE)
    if (header[0] ^ <u32>MESSAGE_CHECK) != header[1]:
        return inbox_fail(b, INBOX_FAULT_HEADER)
    if header[0] > size_max:
        return inbox_fail(b, INBOX_FAULT_TOO_LARGE)
    if not inbox_enter(b, header[0]):
        return 1
    b.size = header[0]
    b.filled = 0
    b.state = INBOX_PARTIAL
    return 0


cdef int inbox_poll(Inbox *b, Ring *r, u64 size_max) noexcept nogil:
    cdef i64 waiting
    cdef u64 count, skipped = 0
    cdef int begun
    b.progressed = False
    if b.state == INBOX_COMPLETE:
        return 1
    if b.state == INBOX_BAD:
        return -1
    waiting = ring_readable(r)
    if waiting < 0:
        return inbox_fail(b, INBOX_FAULT_COUNTER)
    if b.state == INBOX_IDLE:
        if waiting < MESSAGE_HEADER_SIZE:
            return 0
        begun = inbox_begin(b, r, size_max)
        if begun:
            return -1 if begun < 0 else 0
        skipped = MESSAGE_HEADER_SIZE
    count = min(<u64>waiting - skipped, b.size - b.filled)
    if not inbox_reserve(b, b.filled + count):
        return inbox_fail(b, INBOX_FAULT_NO_MEMORY)
    if count:
        ring_peek(r, skipped, b.data + b.filled, count)
        b.filled += count
    if skipped + count:
        ring_free(r, skipped + count)
        b.progressed = True
    if b.filled < b.size:
        return 0
    b.state = INBOX_COMPLETE
    return 1


cdef bint inbox_ready(const Inbox *b, Ring *r) noexcept nogil:
    cdef i64 waiting = ring_readable(r)
    if waiting < 0 or b.state == INBOX_COMPLETE or b.state == INBOX_BAD:
        return True
    if b.state == INBOX_PARTIAL:
        return waiting > 0
    return waiting >= MESSAGE_HEADER_SIZE and (b.ticket == 0 or inbox_may_enter(b))


cdef void inbox_take_done(Inbox *b) noexcept nogil:
    inbox_release(b)
    b.state = INBOX_IDLE
    b.size = 0
    b.filled = 0
    if b.capacity > RETAINED_MAX:
        free(b.data)
        b.data = NULL
        b.capacity = 0
