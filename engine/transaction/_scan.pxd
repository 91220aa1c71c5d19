"""Ordered walks over a snapshot and a transaction's own writes; see _scan.pyx."""

from ...ipc._atomics cimport i64, u8, u32, u64
from ..store._reader cimport Found
from ._core cimport Effect, ScanRange, TransactionCore

cdef enum:
    ROWS_ITEMS = 0                  # (user key, VersionedValue)
    ROWS_KEYS = 1                   # user key
    RESUME_SIZE = 65536             # KEY_SIZE_MAX + 1


cdef class ScanIterator:
    cdef TransactionCore txn
    cdef ScanRange walked           # None when nothing has to be registered
    cdef bytes low
    cdef bytes high
    cdef bint reverse
    cdef bint raw
    cdef int rows
    cdef u32 prefix_size            # in front of the user key
    cdef i64 left                   # rows still wanted; -1 all
    cdef bint finished
    cdef Found *page
    cdef u32 page_size
    cdef object held                # what the rows of the page point into; None: the store
    cdef u32 index
    cdef u32 count
    cdef bint page_done
    cdef bint resumed
    cdef u8 *resume
    cdef u32 resume_size
    cdef list own                   # (key, Effect) in walking order, as of the call of scan; None for none
    cdef Py_ssize_t own_index
    cdef list cleared               # as of the call
    # The row `advance` stopped at.
    cdef const Found *stored        # the snapshot's row; NULL: the key is absent there
    cdef Effect effect              # the own write laid over it; None: none
    cdef bytes own_key

    cdef int load_page(self) except -1
    cdef bint is_expired(self, const Found *row)
    cdef bint is_cleared(self, const Found *row)
    cdef int choose(self) except -1
    cdef bint advance(self) except -1
    cdef object build(self)
    cdef object key_object(self, const u8 *key, u32 size)


cdef ScanIterator new_scan(TransactionCore txn, bytes low, bytes high, u32 prefix_size, object limit, bint reverse,
                           int rows, bint raw)
cdef u64 count_rows(TransactionCore txn, bytes low, bytes high) except? 0xFFFFFFFFFFFFFFFF
