"""Copying into a mapped file under a guard against SIGBUS. See `_guarded_copy.pyx`."""

# Install the handler of this process, once. Any thread, with the GIL.
cdef void guard_install() noexcept
# Whether the handler is installed, and no other handler has taken its place since.
cdef bint guard_in_place() noexcept nogil
# Copy front to back into the mapping of a file. False: the file system could not take it; a prefix may be
# there. REQUIRES: guard_install was called, and `to` lies in a mapping whose pages nobody else touches.
cdef bint guarded_copy(void *to, const void *data, size_t size) noexcept nogil
