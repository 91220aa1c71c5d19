"""Figures of the commit core for people; see _core_figures.pyx."""

from occamdb.engine._core cimport Core
from occamdb.engine._wal cimport WalAppender
from occamdb.ipc._atomics cimport u32

cdef dict channel_figures(Core *core, u32 index)
cdef dict core_stats(Core *core, WalAppender log)
