"""How the values of one database are stored; see _values.pyx."""

from ._codec_hooks cimport CodecHooks

cdef class Codec(CodecHooks):
    pass
