"""Which runs a commit may write to; see _guard.pyx."""

from ._core cimport TransactionCore

cdef dict admit(TransactionCore txn)
cdef bint records_moved(TransactionCore txn, dict records, object conflict) except -1
