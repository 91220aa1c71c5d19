"""The worker's end of a channel: one request out, one reply back.

Used by one thread of the worker at a time; the coordinator's end is in the commit thread. Waiting releases
the GIL.

Invariants:
  1. At most one request is outstanding, so the next reply in the ring always answers the last request sent.
     Whatever is raised in between (a timeout, a signal handler's exception, an error of `on_idle`) leaves a
     state that keeps this true: nothing published, idle; half published, broken; wholly published, waiting,
     and then only `receive` is allowed.
  2. The exported buffers cannot be unmapped while the channel is open.
  3. Sizes that come from shared memory are checked against the ring before use.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals

from ._atomics cimport (clock_monotonic_ns, current_cpu, load_acquire_u32, load_acquire_u64, load_relaxed_u32,
                        store_relaxed_u32)
from ._doorbell cimport (PACE_HELD, PACE_TURN, SPIN_ADAPTIVE, SPIN_BRIEF, SPIN_NEVER, SPIN_TURN, doorbell_ring,
                         doorbell_wait, waiter_init)
from ._layout cimport (BELL_RINGER_OFFSET, BELL_SEGMENT_SIZE, BELL_SERVER_OFFSET, BELL_SLEEPING_OFFSET, BELL_WORD_OFFSET, DRAINED_OFFSET,
                       MESSAGE_CHECK, MESSAGE_HEADER_SIZE, PACE_OFFSET,
                       REPLY_HEAD_OFFSET, REPLY_TAIL_OFFSET, REQUEST_HEAD_OFFSET, REQUEST_TAIL_OFFSET, RINGS_OFFSET,
                       RING_SIZE_MAX, RING_SIZE_MIN, WORKER_BELL_OFFSET, WORKER_SLEEPING_OFFSET)
from ._ring cimport message_start, message_write, ring_free, ring_init, ring_peek, ring_readable, ring_writable

from .errors import ChannelBroken, ChannelBusy, ChannelError, ChannelTimeout, MessageTooLarge
from .layout import read_channel_header

cdef enum:
    IDLE_NS = 20000000          # on_idle and signal handlers run about this often during a wait
    ROOM_NS = 1000000           # a wait for ring space looks again this often, even if nobody rings

cdef u64 NO_HEADER = <u64>-1
cdef u64 SIZE_MAX_U32 = 0xFFFFFFFF
cdef i64 NO_DEADLINE = 0x7FFFFFFFFFFFFFFF


cdef bint channel_fits(u64 size, u64 ring_size) noexcept nogil:
    if ring_size < RING_SIZE_MIN or ring_size > RING_SIZE_MAX or ring_size & (ring_size - 1):
        return False
    return size >= RINGS_OFFSET + 2 * ring_size


cdef void channel_rings(u8 *base, u64 ring_size, Ring *request, Ring *reply) noexcept nogil:
    ring_init(request, base + RINGS_OFFSET, ring_size, base + REQUEST_HEAD_OFFSET, base + REQUEST_TAIL_OFFSET)
    ring_init(reply, base + RINGS_OFFSET + ring_size, ring_size, base + REPLY_HEAD_OFFSET, base + REPLY_TAIL_OFFSET)


cdef bint room_ready(void *context) noexcept nogil:
    """Room for `size` more bytes, or a counter so wrong that waiting is pointless."""
    cdef Need *need = <Need *>context
    cdef i64 room = ring_writable(need.ring)
    return room < 0 or <u64>room >= need.size


cdef bint bytes_ready(void *context) noexcept nogil:
    """`size` bytes waiting, or a counter so wrong that waiting is pointless."""
    cdef Need *need = <Need *>context
    cdef i64 waiting = ring_readable(need.ring)
    return waiting < 0 or <u64>waiting >= need.size


cdef i64 deadline_of(object timeout) except -1:
    cdef double seconds
    cdef i64 now
    if timeout is None:
        return NO_DEADLINE
    seconds = timeout
    now = clock_monotonic_ns()
    if seconds <= 0:
        return now
    return now + <i64>(seconds * 1e9) if seconds < 1e9 else NO_DEADLINE


cdef class ClientChannel:
    """One worker's channel to the coordinator.

    Args:
      channel_buffer: the mapped channel segment, writable; kept exported until `close`.
      bell_buffer: the mapped doorbell segment, writable; kept exported until `close`.
      may_spin_address: address of a u32 that is non-zero while spinning is welcome; 0: always. It must stay
        mapped until `close`.
      ring_size: bytes of each ring; 0: as the segment's header says.

    Raises:
      LayoutError: the header is not one of this build's.
      ChannelError: a buffer is too small.
    """

    def __cinit__(self, channel_buffer, bell_buffer, may_spin_address=0, *, ring_size=0):
        self.state = CLIENT_CLOSED
        PyObject_GetBuffer(channel_buffer, &self.channel_view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        try:
            PyObject_GetBuffer(bell_buffer, &self.bell_view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        except BaseException:
            PyBuffer_Release(&self.channel_view)
            raise
        self.state = CLIENT_IDLE
        self.base = <u8 *>self.channel_view.buf
        self.bell = <u8 *>self.bell_view.buf
        self.may_spin_word = <const void *><size_t>may_spin_address
        self.header_reply = NO_HEADER
        waiter_init(&self.waiter)
        waiter_init(&self.room_waiter)
        self.waiter.pace = self.base + PACE_OFFSET
        if self.bell_view.len < BELL_SEGMENT_SIZE:
            raise ChannelError(f"doorbell segment has {self.bell_view.len} bytes, expected {BELL_SEGMENT_SIZE}")
        if ring_size == 0:
            with memoryview(channel_buffer) as view:
                ring_size = read_channel_header(view).ring_size
        if not channel_fits(self.channel_view.len, ring_size):
            raise ChannelError(f"channel segment of {self.channel_view.len} bytes cannot hold two rings of {ring_size}")
        channel_rings(self.base, ring_size, &self.request, &self.reply)

    def __dealloc__(self):
        if self.state != CLIENT_CLOSED:
            PyBuffer_Release(&self.channel_view)
            PyBuffer_Release(&self.bell_view)

    def close(self):
        """Give the buffers back, so that they can be unmapped. Idempotent.

        Raises:
          ChannelBusy: another thread is inside `send` or `receive`.
        """
        if self.busy:
            raise ChannelBusy("the channel is in use by another thread")
        if self.state != CLIENT_CLOSED:
            self.state = CLIENT_CLOSED
            PyBuffer_Release(&self.channel_view)
            PyBuffer_Release(&self.bell_view)

    def exchange(self, request, timeout, on_idle=None):
        """Send a request and return the reply: `send`, then `receive`, within one timeout.

        Args:
          request: any contiguous buffer.
          timeout: seconds; None waits for ever.
          on_idle: called about every 20 ms while waiting; may raise.

        Raises:
          ChannelTimeout: see its `sent`. ChannelBroken, ChannelBusy, MessageTooLarge: as `send`.
        """
        cdef i64 deadline = deadline_of(timeout)
        cdef double seconds = -1 if timeout is None else timeout
        cdef Py_buffer view
        self.claim()
        try:
            PyObject_GetBuffer(request, &view, PyBUF_SIMPLE)
            try:
                self.transmit(<const u8 *>view.buf, view.len, deadline, on_idle, seconds, None)
            finally:
                PyBuffer_Release(&view)
            return self.collect(deadline, on_idle, seconds)
        finally:
            self.busy = False

    def send(self, request, timeout, on_idle=None, on_part=None):
        """Publish a request and ring the coordinator. Blocks only while the ring lacks room.

        Args:
          request, timeout, on_idle: as for `exchange`.
          on_part: called while a part of the request is published and the rest is not; for failpoints.

        Raises:
          ChannelTimeout: with `sent` false: the request was not wholly published and never will be acted on;
          the
            channel is broken if a part of it was.
          ChannelBroken: the channel is broken, closed, or a reply is outstanding (`dirty`): receive it first.
          ChannelBusy: another thread, or a signal handler of this one, is using the channel.
          MessageTooLarge: over 4 GiB.
        """
        cdef i64 deadline = deadline_of(timeout)
        cdef double seconds = -1 if timeout is None else timeout
        cdef Py_buffer view
        self.claim()
        try:
            PyObject_GetBuffer(request, &view, PyBUF_SIMPLE)
            try:
                self.transmit(<const u8 *>view.buf, view.len, deadline, on_idle, seconds, on_part)
            finally:
                PyBuffer_Release(&view)
        finally:
            self.busy = False

    def receive(self, timeout, on_idle=None):
        """Wait for the reply to the request sent, and return it. May be called again after a timeout.

        Raises:
          ChannelTimeout: with `sent` true; the request may still be acted on.
          ChannelBroken: no request is outstanding, or the reply ring is damaged.
        """
        cdef i64 deadline = deadline_of(timeout)
        cdef double seconds = -1 if timeout is None else timeout
        self.claim()
        try:
            return self.collect(deadline, on_idle, seconds)
        finally:
            self.busy = False

    def ring(self):
        """Ring the coordinator's doorbell, whatever was published."""
        if self.state == CLIENT_CLOSED:
            raise ChannelBroken("the channel is closed")
        self.wake_coordinator()

    cdef void wake_coordinator(self) noexcept nogil:
        # Relaxed, all: hints, for _placement. In a turn the coordinator seldom sleeps.
        if load_relaxed_u32(self.bell + BELL_SLEEPING_OFFSET) or load_relaxed_u32(self.base + PACE_OFFSET) == PACE_TURN:
            store_relaxed_u32(self.bell + BELL_RINGER_OFFSET, <u32>(current_cpu() + 1))
        doorbell_ring(self.bell + BELL_WORD_OFFSET, self.bell + BELL_SLEEPING_OFFSET)

    cdef int claim(self) except -1:
        """Refuse a second user; the GIL makes test and set one step."""
        if self.busy:
            raise ChannelBusy("the channel is in use by another thread, or below a signal handler of this one")
        if self.state == CLIENT_BROKEN:
            raise ChannelBroken("the channel was broken by an earlier failure")
        if self.state == CLIENT_CLOSED:
            raise ChannelBroken("the channel is closed")
        self.busy = True
        return 0

    cdef int may_spin(self) noexcept nogil:
        # Relaxed, all: only hints. A stale value costs one spin or one sleep.
        cdef u32 pace = load_relaxed_u32(self.base + PACE_OFFSET)
        if pace == PACE_TURN:
            # On the same core it would only keep the coordinator from running.
            return SPIN_NEVER if load_relaxed_u32(self.bell + BELL_SERVER_OFFSET) == <u32>(current_cpu() + 1) else SPIN_TURN
        if pace == PACE_HELD:
            return SPIN_NEVER
        if self.may_spin_word == NULL or load_relaxed_u32(self.may_spin_word) != 0:
            return SPIN_ADAPTIVE
        return SPIN_NEVER if load_relaxed_u32(self.bell + BELL_SLEEPING_OFFSET) else SPIN_BRIEF

    cdef int await_room(self, i64 deadline) noexcept nogil:
        """Wait a slice for half the ring, or for all the message still needs."""
        cdef Need need
        cdef i64 left = deadline - clock_monotonic_ns()
        need.ring = &self.request
        need.size = min(self.request.capacity >> 1, MESSAGE_HEADER_SIZE + self.outgoing.size - self.outgoing.sent)
        return doorbell_wait(&self.room_waiter, self.base + WORKER_BELL_OFFSET, self.base + WORKER_SLEEPING_OFFSET,
                             room_ready, &need, max(<i64>0, min(left, <i64>ROOM_NS)), self.may_spin())

    cdef int transmit(self, const u8 *data, u64 size, i64 deadline, object on_idle, double timeout,
                      object on_part) except -1:
        cdef int written, waited
        cdef i64 now, idle_at = 0
        if self.state != CLIENT_IDLE:
            raise ChannelBroken("the reply to an earlier request is outstanding: receive it or attach a new channel")
        if size > SIZE_MAX_U32:
            raise MessageTooLarge(f"a request of {size} bytes is over the frame limit of {SIZE_MAX_U32}")
        message_start(&self.outgoing, data, size)
        while True:
            with nogil:
                # The state is set before the first byte is published and undone if none was: an exception
                # raised anywhere below finds it true.
                self.state = CLIENT_BROKEN
                written = message_write(&self.outgoing, &self.request)
                if written == 1:
                    self.state = CLIENT_WAITING
                elif self.outgoing.sent == 0:
                    self.state = CLIENT_IDLE
                self.wake_coordinator()
                waited = 1
                if written == 0:
                    waited = self.await_room(deadline)
            if written == 1:
                return 0
            if on_part is not None and written == 0 and self.outgoing.sent:
                on_part()
            if written < 0:
                self.state = CLIENT_BROKEN
                raise ChannelBroken("the coordinator's counter of the request ring is impossible")
            PyErr_CheckSignals()
            if waited == 1:
                continue
            now = clock_monotonic_ns()
            if now >= deadline:
                raise ChannelTimeout(
                    f"no ring space within {timeout:.3g} s: {self.outgoing.sent} of "
                    f"{MESSAGE_HEADER_SIZE + size} bytes of the request were taken", sent=False)
            if now >= idle_at and on_idle is not None:
                on_idle()
                idle_at = clock_monotonic_ns() + IDLE_NS

    cdef int await_reply(self, i64 deadline) noexcept nogil:
        """Wait a slice for the header, then for the reply. 1: whole; 0, 2: as doorbell_wait; -1: damaged."""
        cdef Need need
        cdef u32[2] header
        cdef i64 left
        cdef int outcome
        need.ring = &self.reply
        while True:
            need.size = MESSAGE_HEADER_SIZE if self.header_reply == NO_HEADER else self.header_reply
            left = IDLE_NS
            if deadline != NO_DEADLINE:
                left = max(<i64>0, min(left, deadline - clock_monotonic_ns()))
            outcome = doorbell_wait(&self.waiter, self.base + WORKER_BELL_OFFSET, self.base + WORKER_SLEEPING_OFFSET,
                                    bytes_ready, &need, left, self.may_spin())
            if outcome != 1:
                return outcome
            if ring_readable(&self.reply) < 0:
                return -1
            if self.header_reply != NO_HEADER:
                return 1
            ring_peek(&self.reply, 0, <u8 *>header, MESSAGE_HEADER_SIZE)
            if (header[0] ^ <u32>MESSAGE_CHECK) != header[1]:
                return -1
            if header[0] > self.reply.capacity - MESSAGE_HEADER_SIZE:
                return -1
            self.header_reply = MESSAGE_HEADER_SIZE + <u64>header[0]

    cdef bytes collect(self, i64 deadline, object on_idle, double timeout):
        cdef int outcome
        cdef i64 now, idle_at = 0
        if self.state != CLIENT_WAITING:
            raise ChannelBroken("no request is outstanding")
        while True:
            with nogil:
                outcome = self.await_reply(deadline)
            if outcome == 1:
                return self.take_reply()
            if outcome < 0:
                self.state = CLIENT_BROKEN
                raise ChannelBroken("the reply ring is damaged: an impossible counter or frame")
            # A signal handler or on_idle may raise here; the state stays "waiting", so no later request can
            # be given this one's reply.
            PyErr_CheckSignals()
            now = clock_monotonic_ns()
            if now >= deadline:
                raise ChannelTimeout(f"no reply within {timeout:.3g} s", sent=True)
            # By the clock, not by the slice: frequent signals end every slice early.
            if now >= idle_at and on_idle is not None:
                on_idle()
                idle_at = clock_monotonic_ns() + IDLE_NS

    cdef bytes take_reply(self):
        cdef u64 size = self.header_reply - MESSAGE_HEADER_SIZE
        cdef bytes reply = PyBytes_FromStringAndSize(NULL, size)
        ring_peek(&self.reply, MESSAGE_HEADER_SIZE, <u8 *>PyBytes_AS_STRING(reply), size)
        ring_free(&self.reply, self.header_reply)
        self.header_reply = NO_HEADER
        self.state = CLIENT_IDLE
        return reply

    @property
    def broken(self):
        """Nothing more can be sent or received."""
        return self.state == CLIENT_BROKEN or self.state == CLIENT_CLOSED

    @property
    def idle(self):
        """The next request may be sent."""
        return self.state == CLIENT_IDLE

    @property
    def dirty(self):
        """A request was published and its reply has not been received."""
        return self.state == CLIENT_WAITING

    @property
    def untaken(self):
        """Not a byte of the last request was taken by the coordinator. Final once the coordinator is dead."""
        if self.state == CLIENT_CLOSED:
            return False
        # Acquire, as everywhere on this word; a damaged counter is at most a request that counts as taken.
        return self.outgoing.sent > 0 and self.request.position - load_acquire_u64(self.request.head_word) == self.outgoing.sent

    @property
    def drained(self):
        """The coordinator stopped and no longer looks at this channel: a request without a reply was not
        served.
        """
        if self.state == CLIENT_CLOSED:
            return False
        # Acquire: pairs with the coordinator's release behind its last reply. So once this is set, a reply
        # that is not in the ring does not exist.
        return load_acquire_u32(self.base + DRAINED_OFFSET) != 0

    @property
    def closed(self):
        """`close` was called."""
        return self.state == CLIENT_CLOSED

    @property
    def statistics(self):
        """Spins, spins that paid off, and sleeps of the waits for replies."""
        return {"spins": self.waiter.spins, "paid": self.waiter.spins_paid, "sleeps": self.waiter.sleeps,
                "wakes": self.waiter.wakes, "briefs": self.waiter.briefs, "briefs_paid": self.waiter.briefs_paid,
                "turn_score": self.waiter.kept_score, "score": self.waiter.score, "backoff": self.waiter.probe_backoff}
