"""Both ends of `EngineHandle.submit`: the seal that completes a request, and the answer that it returns.

A transaction encodes its request without a sequence, because only the handle knows which session will carry
it. The handle seals the request just before it sends it. (session, sequence) then names the commit for ever.
"""

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE

from ...ipc._atomics cimport u64
from ..commit._wire cimport REQUEST_HEADER_SIZE, REQUEST_SYNC, RequestHeader


@cython.final
@cython.freelist(8)
@cython.auto_pickle(False)
cdef class Answer:
    """The outcome of one commit request, and the name under which the engine knows it.

    Args:
      session, sequence: the name of the commit.
      reply: the reply message as bytes, or a `messages.Reply` when there is no message, because the outcome
        was recovered from the log.
      durability: what the engine waited for before it acknowledged the commit.
    """

    def __cinit__(self, u64 session, u64 sequence, reply not None, str durability not None):
        self.session = session
        self.sequence = sequence
        self.reply = reply
        self.durability = durability


cdef RequestHeader *header_of(bytearray request) except NULL:
    if PyByteArray_GET_SIZE(request) < REQUEST_HEADER_SIZE:
        raise ValueError(f"a request has at least {REQUEST_HEADER_SIZE} bytes, got {PyByteArray_GET_SIZE(request)}")
    return <RequestHeader *>PyByteArray_AS_STRING(request)


def seal(bytearray request not None, u64 sequence, bint sync):
    """Write the sequence into an encoded request; with `sync`, ask for its commit to be synced to disk.

    Returns:
      Whether the request asks for a sync now. It may have asked for one before.
    """
    cdef RequestHeader *header = header_of(request)
    header.sequence = sequence
    if sync:
        header.flags |= REQUEST_SYNC
    return (header.flags & REQUEST_SYNC) != 0


def sequence_of(bytearray request not None):
    """The sequence in a request that the commit core has sealed."""
    return header_of(request).sequence
