"""Byte rings and message framing; the contract and the invariants are in `_ring.pxd`, the argument in README.md.

Called by the coordinator's commit thread (request consumer, reply producer) and by `_channel` (the other two
ends). Nothing here blocks, allocates (except an inbox that grows) or takes the GIL. `RingPair` wraps both ends
of a ring over any writable buffer for tests.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from ._atomics cimport load_acquire_u64, store_release_u64, store_relaxed_u64
from ._layout cimport LINE_SIZE, MESSAGE_CHECK, MESSAGE_HEADER_SIZE

cdef enum:
    RETAINED_MAX = 1048576      # an inbox keeps a buffer up to this size between messages
    INBOX_FIRST = 4096
    INBOX_FREE = RETAINED_MAX   # messages up to this size are not counted: an inbox keeps as much anyway


# ---- bytes --------------------------------------------------------------------------------------------------

cdef void ring_init(Ring *r, u8 *data, u64 capacity, void *head_word, void *tail_word) noexcept nogil:
    r.data = data
    r.capacity = capacity
    r.head_word = head_word
    r.tail_word = tail_word
    r.position = 0
    r.peer = 0


cdef i64 ring_readable(Ring *r) noexcept nogil:
    # Acquire: pairs with the producer's release in ring_publish; the bytes below the tail we see are complete.
    cdef u64 tail = load_acquire_u64(r.tail_word)
    cdef u64 waiting = tail - r.position
    if waiting > r.capacity:
        return -1
    r.peer = tail
    return <i64>waiting


cdef i64 ring_writable(Ring *r) noexcept nogil:
    # Acquire: pairs with the consumer's release in ring_free; it has copied out all bytes below the head we see,
    # so overwriting them cannot change what it read.
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
    """Room for `size` bytes judged by the head last seen: the consumer only ever frees more, so a stale head can
    only hide room. Saves a cache miss on the consumer's line for every message but one a ring's length."""
    return r.capacity - (r.position - r.peer) >= size


# ---- messages, producer side --------------------------------------------------------------------------------

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


# ---- messages, consumer side --------------------------------------------------------------------------------

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
    # The budget is the polling thread's, which may live on: it has let go of this inbox's share (`inbox_drop`).
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
    """Is it the turn of the message that waits, and is there room? (Without a ticket: does nobody wait?)"""
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
    """Take the header (REQUIRES 8 bytes waiting): copied first, then judged. 0, -1, or 1: the message has to wait."""
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


# ---- tests --------------------------------------------------------------------------------------------------

cdef class RingPair:
    """Both ends of one ring over a writable buffer: head word at 0, tail word at 64, data from 128 on.

    For tests. One object may serve as either end or, in one process, as both.
    """

    cdef Py_buffer view
    cdef Ring producer
    cdef Ring consumer
    cdef Inbox inbox
    cdef Outgoing outgoing
    cdef object message

    def __cinit__(self, buffer):
        cdef u8 *base
        cdef u64 capacity
        PyObject_GetBuffer(buffer, &self.view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        inbox_init(&self.inbox)
        message_start(&self.outgoing, NULL, 0)
        capacity = self.view.len - 2 * LINE_SIZE
        if self.view.len <= 2 * LINE_SIZE or capacity & (capacity - 1):
            raise ValueError("the buffer must hold 128 bytes and a power of two")
        base = <u8 *>self.view.buf
        ring_init(&self.producer, base + 2 * LINE_SIZE, capacity, base, base + LINE_SIZE)
        ring_init(&self.consumer, base + 2 * LINE_SIZE, capacity, base, base + LINE_SIZE)

    def __dealloc__(self):
        inbox_destroy(&self.inbox)
        PyBuffer_Release(&self.view)

    def readable(self):
        """Bytes waiting, -1 if the tail word is impossible."""
        return ring_readable(&self.consumer)

    def writable(self):
        """Bytes free, -1 if the head word is impossible."""
        return ring_writable(&self.producer)

    def read(self, size):
        """Up to `size` bytes, or None if the tail word is impossible."""
        cdef bytes into = PyBytes_FromStringAndSize(NULL, size)
        cdef i64 count = ring_read(&self.consumer, <u8 *>PyBytes_AS_STRING(into), size)
        return None if count < 0 else into[:count]

    def write(self, bytes data):
        """Bytes taken, -1 if the head word is impossible."""
        return ring_write(&self.producer, <const u8 *>PyBytes_AS_STRING(data), len(data))

    def message_start(self, bytes data):
        """Begin to stream a message."""
        self.message = data
        message_start(&self.outgoing, <const u8 *>PyBytes_AS_STRING(data), len(data))

    def message_write(self):
        """1: wholly published, 0: the ring is full, -1: impossible counter."""
        return message_write(&self.outgoing, &self.producer)

    def send(self, bytes data):
        """`outbox_send`: 0, -1 (does not fit) or -2 (impossible counter)."""
        return outbox_send(&self.producer, <const u8 *>PyBytes_AS_STRING(data), <u32>len(data))

    def poll(self, size_max):
        """`inbox_poll`: 1, 0 or -1."""
        return inbox_poll(&self.inbox, &self.consumer, size_max)

    def take(self):
        """The complete message; resets the inbox."""
        if self.inbox.state != INBOX_COMPLETE:
            raise ValueError("no complete message")
        data = PyBytes_FromStringAndSize(<char *>self.inbox.data, self.inbox.size)
        inbox_take_done(&self.inbox)
        return data

    def force_counters(self, head, tail):
        """Overwrite the shared words, as a hostile peer would; the private positions stay."""
        store_relaxed_u64(self.consumer.head_word, head)
        store_relaxed_u64(self.producer.tail_word, tail)

    def start_at(self, u64 position):
        """Move an empty ring's counters, words and positions alike."""
        store_relaxed_u64(self.consumer.head_word, position)
        store_relaxed_u64(self.producer.tail_word, position)
        self.producer.position = self.producer.peer = position
        self.consumer.position = self.consumer.peer = position

    @property
    def fault(self):
        """`InboxFault` of the inbox, 0 when it is sound."""
        return self.inbox.fault

    @property
    def progressed(self):
        """Whether the last poll freed ring space."""
        return bool(self.inbox.progressed)

    @property
    def retained(self):
        """Bytes the inbox keeps allocated."""
        return self.inbox.capacity
