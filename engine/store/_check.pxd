"""The audit of the whole store; called through `store_check`."""

from ._store cimport Store

cdef int check_store(Store *s, char *message, size_t size) noexcept nogil
