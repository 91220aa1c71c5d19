"""Noting what a commit changed in the change ring; see _changes.pyx."""

from ...ipc._atomics cimport u64
from ._core cimport Core

# Puts what the undo list has from `mark` on into the ring, as the changes of one commit. REQUIRES: the commit cannot
# fail any more, except together with its batch.
cdef void note_changes(Core *core, u64 mark, u64 version) noexcept nogil
