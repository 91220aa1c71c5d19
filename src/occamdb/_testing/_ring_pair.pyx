"""Both ends of a ring, driven from Python."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize

from ..ipc._atomics cimport i64, store_relaxed_u64, u8, u32, u64
from ..ipc._layout cimport LINE_SIZE
from ..ipc._ring cimport (
    INBOX_COMPLETE, Inbox, Outgoing, Ring, inbox_destroy, inbox_init, inbox_poll, inbox_take_done, message_start, message_write,
    outbox_send, ring_init, ring_read, ring_readable, ring_writable, ring_write,
)


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
