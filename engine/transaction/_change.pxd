"""One change of one key; see _change.pyx."""

from ...ipc._atomics cimport i64, u64


cdef class Change:
    cdef readonly str key
    cdef readonly object value
    cdef readonly u64 version
    cdef readonly i64 committed_at_ns
    cdef readonly str kind
    cdef tuple fields(self)


cdef Change make_change(str key, object value, u64 version, i64 committed_at_ns, str kind)
