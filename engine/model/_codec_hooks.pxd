"""The base of `Codec`, which the writer and the reader need to know; see _codec_hooks.pyx."""

cdef class CodecHooks:
    cdef readonly object default    # (value) -> (name, storable value) or None; None: there is no such function
    cdef readonly object restore    # (name, storable value) -> value; None: there is no such function
