"""Figures of the commit core for people; see _figures.pyx."""

from ...ipc._atomics cimport u32
from ..log._wal_appender cimport WalAppender
from ._core cimport Core

cdef dict channel_figures(Core *core, u32 index)
cdef dict core_stats(Core *core, WalAppender log)
