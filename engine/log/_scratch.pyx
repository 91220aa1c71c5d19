"""A store in private memory, for tools that recover a directory without serving it, and for tests.

Filled through its `loader`; read through `rows`. One thread.
"""

from ...ipc._atomics cimport i64, load_relaxed_u64, u8, u32, u64
from ..store._reader cimport Found, Reader, reader_open, reader_scan
from ..store._store cimport Store, store_check, store_create, store_destroy
from ._replay cimport Loader

import mmap as _mmap
import os as _os


cdef class ScratchStore:
    """An empty store of up to `size` bytes; memory is taken as it is filled."""
    cdef Store store
    cdef bint made
    cdef readonly object mapping
    cdef const u8[::1] view

    def __init__(self, bytes database_id, u64 size=1 << 32):
        cdef int error
        cdef u8[::1] view
        if len(database_id) != 16:
            raise ValueError("a database id has 16 bytes")
        self.mapping = _mmap.mmap(-1, size, flags=_mmap.MAP_PRIVATE | _mmap.MAP_ANONYMOUS)
        view = self.mapping
        self.view = view
        error = store_create(&self.store, &view[0], size, -1, database_id, 1, 0)
        if error:
            raise OSError(error, _os.strerror(error))
        self.made = True

    def __dealloc__(self):
        if self.made:
            store_destroy(&self.store)

    def loader(self) -> Loader:
        """What recovery fills."""
        return Loader.for_store(&self.store, self)

    @property
    def version(self) -> int:
        """The committed version."""
        return load_relaxed_u64(&self.store.header.committed_version)

    @property
    def key_count(self) -> int:
        """Keys with a value."""
        return self.store.key_count

    @property
    def tombstone_horizon(self) -> int:
        """The highest version of a delete of which nothing is left."""
        return self.store.tombstone_horizon

    def check(self):
        """Audit every invariant of the store: None, or what is wrong."""
        cdef char message[512]
        if store_check(&self.store, message, sizeof(message)):
            return (<bytes>message).decode()
        return None

    def rows(self, version=None) -> list:
        """All rows in key order: (key, value, version, timestamp, expires_at)."""
        return [row[:5] for row in self._rows(version)]

    def bindings(self, version=None) -> dict:
        """key -> session, of the keys that are bound to one."""
        return {row[0]: row[5] for row in self._rows(version) if row[5]}

    cdef list _rows(self, object version):
        """Rows as `rows` gives them, and the session."""
        cdef Reader reader
        cdef Found page[64]
        cdef u8 resume_key[65536]
        cdef u32 resume_size = 0
        cdef bint done = False, resumed = False
        cdef int count, index
        cdef u64 at = self.version if version is None else version
        result = []
        if reader_open(&reader, &self.view[0], self.view.shape[0]):
            raise ValueError("not a store")
        while not done:
            count = reader_scan(&reader, resume_key, resume_size, resumed, NULL, 0, False, at, page, 64, resume_key,
                                &resume_size, &done)
            if count < 0:
                raise ValueError("the store is damaged")
            resumed = True
            for index in range(count):
                result.append((
                    page[index].key[:page[index].key_size], page[index].value[:page[index].value_size],
                    page[index].version, page[index].timestamp, page[index].expires_at, page[index].session,
                ))
        return result
