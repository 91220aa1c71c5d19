"""The audit of the allocator; see _arena_check.pyx."""

from ._arena_state cimport Arena

# 0: all invariants of `_pages` and `_arena` hold. 1: `message` (at most `message_size` bytes,
# zero-terminated) says what is wrong. Changes nothing. The commit thread only.
cdef int arena_check(const Arena *a, char *message, size_t message_size) noexcept nogil
