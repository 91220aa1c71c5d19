"""The worker's end of a channel whose answers reach an event loop: nothing here waits.

`start` and `proceed` publish as much of a request as the ring takes, `poll` takes the reply if it is there. In between
the owner sleeps in its event loop until the eventfd that it gave the coordinator is readable.

1. `listen` stores SLEEPING_BY_EVENT, and nothing takes it away but a blocking `exchange`, behind which the owner calls
   `listen` again. So the coordinator, which publishes a reply (or frees ring space), fences and then looks at the
   word, always writes the eventfd behind what it did.
2. The owner first reads the eventfd and then looks at the rings. What was published before the write it has read is
   visible to it, because both go through the lock of the eventfd. What comes later makes the eventfd readable again.
   So no wake-up is lost, and one read may stand for many replies.
3. While a request is published in part, the channel is broken for every other use, and the request is kept.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer

from ._atomics cimport store_seq_cst_u32
from ._channel cimport CLIENT_BROKEN, CLIENT_CLOSED, CLIENT_IDLE, CLIENT_WAITING, ClientChannel
from ._doorbell cimport SLEEPING_BY_EVENT
from ._layout cimport WORKER_SLEEPING_OFFSET
from ._ring cimport message_start, message_write

from .errors import ChannelBroken, MessageTooLarge

cdef object SIZE_MAX = 0xFFFFFFFF


cdef class EventChannel(ClientChannel):
    """A `ClientChannel` for an event loop. Arguments are those of `ClientChannel`."""

    def listen(self):
        """Be woken through the eventfd from here on. Call it again after a blocking call."""
        if self.state == CLIENT_CLOSED:
            raise ChannelBroken("the channel is closed")
        # Seq_cst: it comes before the request in the one order, so the answer's fence comes behind it.
        store_seq_cst_u32(self.base + WORKER_SLEEPING_OFFSET, SLEEPING_BY_EVENT)

    def start(self, request not None):
        """Publish what the ring takes of a request, and ring the coordinator. Whether that was all of it.

        Raises:
          ChannelBroken, ChannelBusy, MessageTooLarge: nothing was published; see `ClientChannel.send`.
        """
        self.claim()
        try:
            if self.state != CLIENT_IDLE:
                raise ChannelBroken("the reply to an earlier request is outstanding")
            PyObject_GetBuffer(request, &self.request_view, PyBUF_SIMPLE)
            if <object>self.request_view.len > SIZE_MAX:
                PyBuffer_Release(&self.request_view)
                raise MessageTooLarge("a request is over the frame limit")
            self.sending = True
            message_start(&self.outgoing, <const unsigned char *>self.request_view.buf, self.request_view.len)
            return self.publish()
        finally:
            self.busy = False

    def proceed(self):
        """Publish more of a request that did not fit. Whether all of it is published now.

        Raises:
          ChannelBroken: the coordinator's counter is impossible, or nothing is being sent.
        """
        if not self.sending or self.state == CLIENT_CLOSED:
            raise ChannelBroken("no request is being sent")
        return self.publish()

    cdef bint publish(self) except -1:
        cdef int written
        # Broken until the last byte is published, as in `ClientChannel.transmit`.
        self.state = CLIENT_BROKEN
        written = message_write(&self.outgoing, &self.request)
        if written:
            self.let_go()
        if written < 0:
            raise ChannelBroken("the coordinator's counter of the request ring is impossible")
        if written:
            self.state = CLIENT_WAITING
        self.wake_coordinator()
        return written == 1

    def poll(self):
        """The reply to the request sent, None while it is not there. Never waits.

        Raises:
          ChannelBroken: no request is outstanding, or the reply ring is damaged.
        """
        cdef int outcome
        if self.state != CLIENT_WAITING:
            raise ChannelBroken("no request is outstanding")
        outcome = self.await_reply(0)       # a moment long past
        if outcome == 1:
            return self.take_reply()
        if outcome < 0:
            self.state = CLIENT_BROKEN
            raise ChannelBroken("the reply ring is damaged: an impossible counter or frame")
        return None

    @property
    def partial(self):
        """A part of a request is published, and `proceed` has to publish the rest."""
        return self.sending

    cdef void let_go(self):
        if self.sending:
            self.sending = False
            PyBuffer_Release(&self.request_view)

    def close(self):
        """Give the buffers back, so that they can be unmapped. Idempotent.

        Raises:
          ChannelBusy: another thread is inside a blocking call.
        """
        ClientChannel.close(self)
        self.let_go()

    def __dealloc__(self):
        self.let_go()
