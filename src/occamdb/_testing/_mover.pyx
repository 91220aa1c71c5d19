"""The placement of the calling thread, driven from Python."""

cimport cython

from ..engine.commit._placement cimport Placement, placement_init, woken_by
from ..ipc._atomics cimport current_cpu, i64, u32


@cython.final
cdef class Mover:
    """The calling thread's placement, for tests."""

    cdef Placement placement

    def __cinit__(self):
        placement_init(&self.placement)

    def woken_by(self, u32 ringer, i64 now, bint turn=False):
        """`woken_by` of the C interface."""
        return woken_by(&self.placement, ringer, now, turn)

    @staticmethod
    def cpu():
        """The core we are on, plus one."""
        return current_cpu() + 1
