"""Single-producer single-consumer byte rings in memory shared with a process that is not trusted.

Invariants (argued in README.md):
  1. `tail_word` is written only by the producer, `head_word` only by the consumer. Each side keeps its own
     counter in `Ring.position`, in private memory, and never re-reads it: the peer cannot move it.
  2. tail - head is in [0, capacity]. A peer's counter that breaks this is reported (-1) and nothing is
     copied.
  3. Positions inside the data are `position & (capacity - 1)`: whatever the peer writes, no access leaves the
     ring.
  4. Bytes are copied before the counter that hands them over is stored (release), and after the peer's
     counter is loaded (acquire). Bytes are copied out once and parsed in private memory.

A message is `u32 size`, `u32 size ^ MESSAGE_CHECK`, then `size` bytes; it may be larger than the ring.
"""

from ._atomics cimport i64, u8, u32, u64

cdef struct Ring:
    u8 *data                # capacity bytes, capacity a power of two
    u64 capacity
    void *head_word         # u64 in shared memory, written only by the consumer
    void *tail_word         # u64 in shared memory, written only by the producer
    u64 position            # own counter, private: never re-read from shared memory
    u64 peer                # the peer's counter as last seen and checked; may lag

cdef void ring_init(Ring *r, u8 *data, u64 capacity, void *head_word, void *tail_word) noexcept nogil

# Consumer: bytes waiting; -1 if the producer's counter is impossible.
cdef i64 ring_readable(Ring *r) noexcept nogil
# Consumer: copies up to size bytes and frees them; count, or -1.
cdef i64 ring_read(Ring *r, u8 *into, u64 size) noexcept nogil
# Producer: bytes free; -1 if the consumer's counter is impossible.
cdef i64 ring_writable(Ring *r) noexcept nogil
# Producer: copies and publishes up to size bytes; count, or -1.
cdef i64 ring_write(Ring *r, const u8 *bytes, u64 size) noexcept nogil

# Copies at the own position + offset without handing anything over: REQUIRES room or content checked by the
# caller.
cdef void ring_peek(const Ring *r, u64 offset, u8 *into, u64 size) noexcept nogil
cdef void ring_poke(Ring *r, u64 offset, const u8 *bytes, u64 size) noexcept nogil
# Hand over: the consumer frees, the producer publishes `size` bytes.
cdef void ring_free(Ring *r, u64 size) noexcept nogil
cdef void ring_publish(Ring *r, u64 size) noexcept nogil

# ---- messages, producer side -----------------------------------------------------------------------------

cdef struct Outgoing:       # one message on its way; private
    const u8 *data
    u64 size
    u64 sent                # bytes published, the header's 8 included

# REQUIRES: size <= 0xFFFFFFFF and `data` unchanged until the message is wholly written.
cdef void message_start(Outgoing *o, const u8 *data, u64 size) noexcept nogil
# Publishes what fits. 1: wholly published; 0: the ring is full, call again once it drained; -1: impossible
# counter.
cdef int message_write(Outgoing *o, Ring *r) noexcept nogil
# One whole message at once, never waiting. 0: published; -1: it does not fit; -2: impossible counter.
cdef int outbox_send(Ring *r, const u8 *data, u32 size) noexcept nogil

# ---- messages, consumer side -----------------------------------------------------------------------------

cdef enum InboxState:
    INBOX_IDLE = 0
    INBOX_PARTIAL = 1
    INBOX_COMPLETE = 2
    INBOX_BAD = 3

cdef enum InboxFault:
    INBOX_FAULT_NONE = 0
    INBOX_FAULT_COUNTER = 1     # tail - head is impossible
    INBOX_FAULT_HEADER = 2      # size and its check word disagree
    INBOX_FAULT_TOO_LARGE = 3   # announced size above the maximum
    INBOX_FAULT_NO_MEMORY = 4

# Private memory of the large messages of all inboxes of one consumer; one thread. A message larger than
# INBOX_FREE reserves its whole size before anything but its header is looked at, and gives it back when it is
# done. Until it can, its bytes stay in the ring. So whatever was begun can be finished, two half-received
# messages never wait for each other, and a message larger than the budget enters when it is alone. Those that
# wait enter in the order of their tickets, so none starves.
cdef struct InboxBudget:
    u64 size
    u64 reserved
    u64 tickets             # given out so far
    u64 first               # whose turn it is: the lowest ticket that waits, kept by the owner; 0: none

cdef struct Inbox:
    u8 *data                # the message so far; whole when complete
    u64 size                # announced size of the current message
    u64 filled
    u64 capacity            # bytes allocated at data
    int state               # InboxState
    int fault               # InboxFault, set with INBOX_BAD
    bint progressed         # the last poll freed ring space: ring a producer that waits for room
    InboxBudget *budget     # NULL: none
    u64 reserved            # of the budget, for the current message
    u64 wanted              # while `ticket` is not 0: the size of the message that waits in the ring
    u64 ticket              # its place in the queue for the budget; 0: it does not wait

cdef void inbox_init(Inbox *b) noexcept nogil
cdef void inbox_destroy(Inbox *b) noexcept nogil
# One bounded step (at most one ring's capacity is copied). 1: complete, bytes at data, size; 0: nothing or
# partial; -1: bad frame, for ever (see fault). A complete message stays until inbox_take_done.
cdef int inbox_poll(Inbox *b, Ring *r, u64 size_max) noexcept nogil
cdef void inbox_take_done(Inbox *b) noexcept nogil
# Whether inbox_poll can do more than return 0 again: what a thread that sleeps between polls has to look at.
# A rest too short to be a header is not work, nor is a message that has to wait for the budget.
cdef bint inbox_ready(const Inbox *b, Ring *r) noexcept nogil
# Bad for ever: lets go of the message, its memory and its place in the queue. By the thread that polls.
cdef void inbox_drop(Inbox *b) noexcept nogil
