"""Ordered walks over a snapshot, merged with the transaction's own writes, a page at a time.

1. Rows come in key order, or in reverse: the live rows of the snapshot, with the writes that the transaction
   made before `scan` was called laid over them. Writes made while iterating do not show, so a loop may write
   to the range that it walks over.
2. The commit checks exactly what was walked: from the start to the last row that was returned, or the whole
   range once the iterator has reached its end. Rows that were read ahead in a page but not returned are not
   part of it.
3. A page holds pointers into the store, which are valid while the transaction's pin holds. Every step first
   asks whether the transaction is still active, and every copy is followed by a check of the pin.
4. Keys are copied before they are decoded, like values.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from ..commit._wire cimport OP_DELETE
from ..model._records cimport make_versioned
from ..store._layout cimport key_compare
from ._core cimport STACK_KEY_SIZE
from ._view cimport SnapshotSource

from ..model.errors import CorruptionError, InvalidArgumentError


cdef u8 *spare_resume = NULL        # the buffer of a scan that ended, kept for the next one


cdef u8 *take_resume() except NULL:
    """A buffer of RESUME_SIZE bytes. The GIL guards the spare one."""
    global spare_resume
    cdef u8 *taken = spare_resume
    spare_resume = NULL
    if taken == NULL:
        taken = <u8 *>malloc(RESUME_SIZE)
        if taken == NULL:
            raise MemoryError()
    return taken


cdef ScanIterator new_scan(TransactionCore txn, bytes low, bytes high, u32 prefix_size, object limit, bint reverse,
                           int rows, bint raw):
    """A walk over [low, high) of stored keys.

    Raises:
      InvalidArgumentError: `limit` is neither None nor a whole number from 0.
    """
    cdef ScanIterator scan = ScanIterator.__new__(ScanIterator)
    txn.require_active()
    scan.left = -1
    if limit is not None:
        if type(limit) is not int or limit < 0:
            raise InvalidArgumentError(f"limit must be a whole number from 0, got {limit!r}", hint="None means all")
        scan.left = min(limit, 1 << 62)
    scan.txn = txn
    scan.low = low
    scan.high = high
    scan.prefix_size = prefix_size
    scan.reverse = reverse
    scan.rows = rows
    scan.raw = raw
    scan.finished = low >= high or scan.left == 0
    if scan.finished:
        return scan
    if txn.effects is not None:
        scan.own = [(key, txn.effects[key]) for key in txn.own_between(low, high)] or None
        if reverse and scan.own is not None:
            scan.own.reverse()
    if txn.cleared is not None:
        scan.cleared = list(txn.cleared)
    if txn.tracking:
        scan.walked = ScanRange.__new__(ScanRange)
        scan.walked.start = low
        scan.walked.end = high
        scan.walked.reverse = reverse
        if txn.scans is None:
            txn.scans = []
        txn.scans.append(scan.walked)
    return scan


cdef u64 count_rows(TransactionCore txn, bytes low, bytes high) except? 0xFFFFFFFFFFFFFFFF:
    """How many rows a scan of [low, high) has, without decoding them. The whole range counts as walked."""
    cdef ScanIterator scan = new_scan(txn, low, high, 0, None, False, ROWS_KEYS, True)
    cdef u64 count = 0
    while scan.advance():
        count += 1
    return count


@cython.final
@cython.no_gc
@cython.auto_pickle(False)
cdef class ScanIterator:
    """Rows in key order, read lazily. It ends at the end of the range, at its limit, or when it is closed."""

    def __cinit__(self):
        self.finished = True

    def __dealloc__(self):
        global spare_resume
        free(self.page)
        if spare_resume == NULL:
            spare_resume = self.resume
        else:
            free(self.resume)

    def __repr__(self):
        return f"<{type(self).__name__} {'ended' if self.finished else 'open'}>"

    def __iter__(self):
        return self

    def __next__(self):
        if not self.advance():
            raise StopIteration
        return self.build()

    def close(self):
        """Stop here. The commit checks only what was walked so far."""
        self.finished = True

    cdef int load_page(self) except -1:
        """Fill the page with the next rows of the snapshot."""
        cdef const u8 *start = <const u8 *>PyBytes_AS_STRING(self.low)
        cdef u32 start_size = <u32>PyBytes_GET_SIZE(self.low)
        cdef const u8 *end = <const u8 *>PyBytes_AS_STRING(self.high)
        cdef u32 end_size = <u32>PyBytes_GET_SIZE(self.high)
        cdef SnapshotSource source = self.txn.attachment
        cdef u32 wanted = source.page_rows if self.resumed else source.first_page_rows
        cdef int count = 0
        if self.resume == NULL:
            self.resume = take_resume()
        if self.own is None and not self.resumed and 0 < self.left < wanted:
            wanted = <u32>self.left
        if self.page_size < wanted:
            free(self.page)
            self.page_size = 0
            self.page = <Found *>malloc(wanted * sizeof(Found))
            if self.page == NULL:
                raise MemoryError()
            self.page_size = wanted
        if self.resumed and self.reverse:
            end = self.resume
            end_size = self.resume_size
        elif self.resumed:
            start = self.resume
            start_size = self.resume_size
        self.held = source.page(self.txn, start, start_size, self.resumed and not self.reverse, end, end_size, self.reverse,
                                self.page, wanted, self.resume, &self.resume_size, &self.page_done, &count)
        # The rows are those of the snapshot only if the pin held throughout the walk.
        self.txn.require_alive()
        if count < 0:
            raise CorruptionError("the store in shared memory is damaged", expected="intact links between its blocks")
        self.resumed = True
        self.index = 0
        self.count = <u32>count
        return 0

    cdef bint is_expired(self, const Found *row):
        return row.expires_at != 0 and row.expires_at <= self.txn.expiry_time

    cdef bint is_cleared(self, const Found *row):
        cdef bytes key
        if self.cleared is None:
            return False
        key = self.txn.bytes_of(row.key, row.key_size)
        for start, end in self.cleared:
            if start <= key < end:
                return True
        return False

    cdef int choose(self) except -1:
        """Put the next candidate into `stored`, `effect` and `own_key`. 0: there is none."""
        cdef int order = -1
        cdef bytes key
        while self.index == self.count and not self.page_done:
            self.load_page()
        self.stored = NULL
        self.effect = None
        self.own_key = None
        if self.index < self.count:
            self.stored = &self.page[self.index]
        if self.own is None or self.own_index == len(self.own):
            self.index += self.stored != NULL
            return self.stored != NULL
        key = <bytes>(<tuple>self.own[self.own_index])[0]
        if self.stored != NULL:
            order = key_compare(<const u8 *>PyBytes_AS_STRING(key), <u32>PyBytes_GET_SIZE(key), self.stored.key,
                                self.stored.key_size)
            if self.reverse:
                order = -order
            if order > 0:
                self.index += 1
                return 1
        self.own_key = key
        self.effect = <Effect>(<tuple>self.own[self.own_index])[1]
        self.own_index += 1
        if order == 0:
            self.index += 1
        else:
            self.stored = NULL
        return 1

    cdef bint advance(self) except -1:
        """Go to the next row; False at the end."""
        if self.finished:
            return False
        self.txn.require_active()
        while True:
            if not self.choose():
                self.finished = True
                if self.walked is not None:
                    self.walked.exhausted = True
                return False
            if self.effect is not None and self.effect.code == OP_DELETE:
                continue
            if self.stored != NULL and (self.is_expired(self.stored) or self.is_cleared(self.stored)):
                self.stored = NULL
                if self.effect is None:
                    continue
            break
        if self.walked is not None:
            self.walked.rows += 1
            if self.own_key is not None:
                self.walked.owner = self.own_key
                self.walked.last = <const u8 *>PyBytes_AS_STRING(self.own_key)
                self.walked.last_size = <u32>PyBytes_GET_SIZE(self.own_key)
            else:
                self.walked.owner = self.held
                self.walked.last = self.stored.key
                self.walked.last_size = self.stored.key_size
        if self.left > 0:
            self.left -= 1
            self.finished = self.left == 0
        return True

    cdef object build(self):
        """The row at which `advance` stopped, as an object for the caller."""
        cdef object key
        if self.own_key is not None:
            key = self.key_object(<const u8 *>PyBytes_AS_STRING(self.own_key), <u32>PyBytes_GET_SIZE(self.own_key))
        else:
            key = self.key_object(self.stored.key, self.stored.key_size)
        if self.rows == ROWS_KEYS:
            return key
        if self.effect is not None:
            return key, self.txn.own_record(self.own_key, self.effect, self.stored)
        value = self.txn.value_of(self.stored)
        return key, make_versioned(value, self.stored.version, self.stored.timestamp, self.stored.expires_at,
                                   self.stored.session)

    cdef object key_object(self, const u8 *key, u32 size):
        """The user key: text, as `keys.decode_user_key` makes it, or in a raw scan the bytes."""
        cdef u8 copy[STACK_KEY_SIZE]
        cdef u32 rest = size - self.prefix_size
        cdef bytes whole
        if self.raw or rest > STACK_KEY_SIZE:
            whole = self.txn.bytes_of(key + self.prefix_size, rest)
            return whole if self.raw else key_text(<const u8 *>PyBytes_AS_STRING(whole), rest)
        memcpy(copy, key + self.prefix_size, rest)
        if self.txn.revoked():
            self.txn.require_alive()
        return key_text(copy, rest)


cdef object key_text(const u8 *data, u32 size):
    return PyUnicode_DecodeUTF8(<const char *>data, size, "surrogateescape")
