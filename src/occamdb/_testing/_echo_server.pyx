"""The coordinator's end of one channel, driven from Python."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize

from ..ipc._atomics cimport i64, u8, u32, u64
from ..ipc._channel cimport Need, bytes_ready, channel_fits, channel_rings
from ..ipc._doorbell cimport Waiter, doorbell_ring, doorbell_wait, waiter_init
from ..ipc._layout cimport BELL_SLEEPING_OFFSET, BELL_WORD_OFFSET, WORKER_BELL_OFFSET, WORKER_SLEEPING_OFFSET
from ..ipc._ring cimport Inbox, Ring, inbox_destroy, inbox_init, inbox_poll, inbox_take_done, outbox_send, ring_write


cdef class EchoServer:
    """A minimal coordinator for tests and measurements: answers every request of one channel.

    Holds the coordinator's end over the same buffers. `serve` runs without the GIL.
    """

    cdef Py_buffer channel_view
    cdef Py_buffer bell_view
    cdef u8 *base
    cdef u8 *bell
    cdef Ring request
    cdef Ring reply
    cdef Inbox inbox
    cdef Waiter waiter
    cdef u64 size_max

    def __cinit__(self, channel_buffer, bell_buffer, ring_size, size_max=1 << 28):
        PyObject_GetBuffer(channel_buffer, &self.channel_view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        PyObject_GetBuffer(bell_buffer, &self.bell_view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        inbox_init(&self.inbox)
        waiter_init(&self.waiter)
        self.base = <u8 *>self.channel_view.buf
        self.bell = <u8 *>self.bell_view.buf
        self.size_max = size_max
        if not channel_fits(self.channel_view.len, ring_size):
            raise ValueError("the channel buffer is too small")
        channel_rings(self.base, ring_size, &self.request, &self.reply)

    def __dealloc__(self):
        inbox_destroy(&self.inbox)
        PyBuffer_Release(&self.channel_view)
        PyBuffer_Release(&self.bell_view)

    def serve(self, u64 requests, i64 timeout_ns, bint may_spin=True, u32 reply_size_max=1024):
        """Answer `requests` requests, each with its own first `reply_size_max` bytes.

        Returns:
          The requests answered before a wait timed out, a frame was bad (negative: -1 - count) or the client's
          reply counter was impossible.
        """
        cdef Need need
        cdef u64 count = 0
        cdef int outcome
        cdef bint failed = False
        need.ring = &self.request
        need.size = 1
        with nogil:
            while count < requests:
                outcome = doorbell_wait(&self.waiter, self.bell + BELL_WORD_OFFSET, self.bell + BELL_SLEEPING_OFFSET,
                                        bytes_ready, &need, timeout_ns, may_spin)
                if outcome == 0:
                    break
                if outcome == 2:
                    continue
                outcome = inbox_poll(&self.inbox, &self.request, self.size_max)
                if outcome == 1:
                    outcome = outbox_send(&self.reply, self.inbox.data, <u32>min(self.inbox.size, reply_size_max))
                    inbox_take_done(&self.inbox)
                    count += 1
                if outcome < 0:
                    failed = True
                    break
                if self.inbox.progressed:
                    doorbell_ring(self.base + WORKER_BELL_OFFSET, self.base + WORKER_SLEEPING_OFFSET)
        return -1 - <i64>count if failed else <i64>count

    def poll(self):
        """One `inbox_poll`; the complete message, None, or False for a bad frame."""
        cdef int outcome = inbox_poll(&self.inbox, &self.request, self.size_max)
        if outcome < 0:
            return False
        if outcome == 0:
            return None
        data = PyBytes_FromStringAndSize(<char *>self.inbox.data, self.inbox.size)
        inbox_take_done(&self.inbox)
        return data

    def reply_with(self, bytes data):
        """`outbox_send`, then ring the worker: 0, -1 or -2."""
        cdef int outcome = outbox_send(&self.reply, <const u8 *>PyBytes_AS_STRING(data), <u32>len(data))
        doorbell_ring(self.base + WORKER_BELL_OFFSET, self.base + WORKER_SLEEPING_OFFSET)
        return outcome

    def write_raw(self, bytes data):
        """Bytes into the reply ring without a frame, as a damaged coordinator would; then ring."""
        cdef i64 count = ring_write(&self.reply, <const u8 *>PyBytes_AS_STRING(data), len(data))
        doorbell_ring(self.base + WORKER_BELL_OFFSET, self.base + WORKER_SLEEPING_OFFSET)
        return count

    @property
    def statistics(self):
        """Spins, spins that paid off, and sleeps."""
        return {"spins": self.waiter.spins, "paid": self.waiter.spins_paid, "sleeps": self.waiter.sleeps,
                "wakes": self.waiter.wakes, "score": self.waiter.score, "backoff": self.waiter.probe_backoff}
