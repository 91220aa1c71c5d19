"""What a commit request came to; see _answer.pyx."""

from ...ipc._atomics cimport u64


cdef class Answer:
    cdef readonly u64 session
    cdef readonly u64 sequence
    cdef readonly object reply          # bytes as received, or a decoded messages.Reply
    cdef readonly str durability        # what the engine waited for: "none", "standard" or "always"
