"""Following the changes of one store; see _feed.pyx."""

from ...ipc._atomics cimport i64, u8, u16, u32, u64
from ..store._change_reader cimport ChangeCursor
from ..store._change_ring cimport ChangeEntry
from ._view cimport StoreAttachment


cdef class ChangeFeed:
    cdef readonly StoreAttachment attachment
    cdef ChangeCursor cursor
    cdef bytes start                # of the stored keys that are given out
    cdef bytes end                  # None: no upper bound
    cdef bint bare                  # keys only
    cdef int refuse(self, int found) except -1
    cdef list changes(self)
    cdef object change(self, u64 version, u8 kind, u8 flags, const u8 *key, u32 key_size, const u8 *value, u32 value_size)
    cdef bint concerns(self, const ChangeEntry *entry, const u8 *key) noexcept
    cdef bytes large_value(self, u64 version, bytes key)
    cdef list deleted_keys(self, u64 version, bytes start, bytes end)
