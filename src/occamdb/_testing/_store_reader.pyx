"""Reading a store from Python."""

from libc.stdlib cimport free, malloc

from ..engine.store._layout cimport KEY_SIZE_MAX, STORE_LAYOUT_VERSION, StoreHeader, key_hash
from ..engine.store._reader cimport Found, Reader, reader_get, reader_open, reader_scan
from ..ipc._atomics cimport i64, load_acquire_u64, load_seq_cst_u64, store_seq_cst_u64, u8, u32, u64

cdef enum:
    ABSENT = 0                  # what reader_get says of a key without a visible record


cdef class StoreReader:
    """Reads a store from Python: tests, tools and measurements. Holds no pin; the caller sees to that.

    Args:
      buffer: the mapped segment, read-only memory will do; it stays referenced.

    Raises:
      ValueError: the memory holds no store of this layout.
    """

    cdef Reader reader
    cdef object view

    def __init__(self, buffer):
        self.view = memoryview(buffer).cast("B")
        cdef const u8[::1] bytes_view = self.view
        if reader_open(&self.reader, &bytes_view[0] if bytes_view.shape[0] else NULL, bytes_view.shape[0]):
            raise ValueError(f"no store of layout version {STORE_LAYOUT_VERSION} in these {bytes_view.shape[0]} bytes")

    def get(self, bytes key, u64 version):
        """(version, value, timestamp, expires_at), or None when absent.

        Raises:
          RuntimeError: the store is damaged.
        """
        cdef Found found
        cdef u64 hash = key_hash(key, len(key), self.reader.hash_seed)
        cdef const u8 *bytes_of_key = key
        cdef u32 size = len(key)
        cdef int outcome
        with nogil:
            outcome = reader_get(&self.reader, bytes_of_key, size, hash, version, &found)
        if outcome < 0:
            raise RuntimeError("the store is damaged")
        if outcome == ABSENT:
            return None
        return found.version, (<const char *>found.value)[:found.value_size], found.timestamp, found.expires_at

    def page(self, bytes start, bytes end, u64 version, u32 count_max, bint start_exclusive=False, bint reverse=False):
        """One reader_scan: (rows, resume key or None when done), rows as (key, value, version).

        Raises:
          RuntimeError: the store is damaged.
        """
        cdef Found *found = <Found *>malloc(count_max * sizeof(Found))
        cdef u8 *resume = <u8 *>malloc(KEY_SIZE_MAX + 1)
        cdef u32 resume_size = 0, i
        cdef bint done = False
        cdef int rows
        cdef const u8 *end_bytes = NULL
        if end is not None:
            end_bytes = end
        try:
            if found == NULL or resume == NULL:
                raise MemoryError
            rows = reader_scan(&self.reader, start, len(start), start_exclusive, end_bytes, len(end) if end is not None else 0,
                               reverse, version, found, count_max, resume, &resume_size, &done)
            if rows < 0:
                raise RuntimeError("the store is damaged")
            return [
                (
                    (<const char *>found[i].key)[:found[i].key_size],
                    (<const char *>found[i].value)[:found[i].value_size],
                    found[i].version,
                )
                for i in range(<u32>rows)
            ], None if done else (<const char *>resume)[:resume_size]
        finally:
            free(found)
            free(resume)

    def scan(self, u64 version, bytes start=b"", bytes end=None, bint reverse=False, u32 page_rows=100):
        """All rows of the range, page by page, as (key, value, version)."""
        rows = []
        exclusive = False
        while True:
            more, resume = self.page(start, end, version, page_rows, exclusive, reverse)
            rows += more
            if resume is None:
                return rows
            if reverse:
                end = resume
            else:
                start, exclusive = resume, True

    def pin(self, slots, Py_ssize_t index):
        """Take a snapshot of the newest version in slot `index` of u64 words; returns the version. Free it by writing 0."""
        cdef u64[::1] words = slots
        cdef const StoreHeader *header = <const StoreHeader *>self.reader.base
        cdef u64 version
        while True:
            # Acquire: every record up to this version is seen.
            version = load_acquire_u64(&header.committed_version)
            # seq_cst store before the seq_cst load: either the collector's scan sees the pin, or this sees the horizon.
            store_seq_cst_u64(&words[index], version + 1)
            if load_seq_cst_u64(&header.gc_horizon) <= version:
                return version

    @property
    def committed_version(self):
        """The newest version a snapshot may take."""
        # Acquire: every record up to this version is seen.
        return load_acquire_u64(&(<const StoreHeader *>self.reader.base).committed_version)
