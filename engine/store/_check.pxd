"""The audit of the whole store; called through `store_check`."""

from ._store cimport Store

# 0: sound. 1: `message` (at most `size` bytes, zero-terminated) says what is wrong. Changes nothing.
# The commit thread only.
cdef int check_store(Store *s, char *message, size_t size) noexcept nogil
