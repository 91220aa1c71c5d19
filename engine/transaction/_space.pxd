"""One tag of one run inside a transaction; see _space.pyx."""

from ...ipc._atomics cimport i64, u8, u32, u64
from ._core cimport TransactionCore


cdef class Space:
    cdef TransactionCore core
    cdef bytes prefix               # namespace, run, tag
    cdef bint raw                   # scans give keys as bytes
    cdef bytes full_key(self, object key)
    cdef tuple bounds(self, object prefix, object start, object end)


cdef Space make_space(TransactionCore core, bytes prefix, bint raw)
cdef bytes with_tag(bytes kv_prefix, object tag)
cdef i64 delta_argument(object delta) except? -1
cdef bytes bounds_argument(object at_most, object at_least)
