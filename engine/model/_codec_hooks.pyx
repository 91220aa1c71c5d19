"""The two functions by which a database stores values of the user's own types.

A module of its own, below the writer and the reader that call them and below `Codec`, which calls the writer
and the reader.
"""

cimport cython

from .errors import InvalidArgumentError


@cython.auto_pickle(False)
cdef class CodecHooks:
    """`default` and `restore`, each a function or None."""

    def __init__(self, default=None, restore=None):
        for name, hook in (("default", default), ("restore", restore)):
            if hook is not None and not callable(hook):
                raise InvalidArgumentError(f"{name} must be a function, got {hook!r:.80}",
                                           hint="occamdb.value_hooks(MyClass) makes both")
        self.default = default
        self.restore = restore
