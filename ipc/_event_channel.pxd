"""A channel for event loops; see _event_channel.pyx."""

from ._channel cimport ClientChannel


cdef class EventChannel(ClientChannel):
    cdef Py_buffer request_view
    cdef bint sending               # `request_view` is held: a part of its request is not published yet
    cdef bint publish(self) except -1
    cdef void let_go(self)
