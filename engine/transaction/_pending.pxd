"""A commit on its way; see _pending.pyx."""

from ._core cimport TransactionCore

cdef enum:
    # What the caller of an operation is given.
    WANT_RECEIPT = 0
    WANT_VERSION = 1
    WANT_SWAPPED = 2            # the version; a conflict of the one compare-and-swap is raised by itself
    WANT_REMOVED = 3            # whether the key was there
    WANT_SUM = 4                # the integer


cdef class PendingCommit:
    cdef TransactionCore core
    cdef int wanted
    cdef bint durable
    cdef readonly bytearray request     # None: nothing had to be sent
    cdef readonly bint done
    cdef object error
    cdef public object future           # of the task that waits for it
    cdef public list watchers           # futures of those who ask what became of it
    cdef public double limit            # when to give up, on the clock of time.monotonic
    cdef int require_open(self) except -1
    cdef int end(self) except -1


cdef PendingCommit new_pending(TransactionCore core, bint durable, int wanted)
cdef object committed_value(TransactionCore core, int wanted)
cdef object shown_error(object error, int wanted)
