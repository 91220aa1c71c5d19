"""Stepping the clock by which keys expire, as the commit thread does when the wall clock steps forward."""

from __future__ import annotations

import struct
import time
from typing import Any

from occamdb import Database
from occamdb.engine.client.local_handle import LocalHandle
from occamdb.engine.commit._commit_core import CLOCK_OFFSET_OFFSET
from occamdb.ipc.segment import peek_segment, poke_segment

__all__ = ["expiry_clock", "step", "step_to"]

EngineHandle = Any


def _offset(handle: EngineHandle) -> int:
    if isinstance(handle, LocalHandle):
        (offset,) = struct.unpack_from("<q", handle._store, CLOCK_OFFSET_OFFSET)
    else:
        (offset,) = struct.unpack("<q", peek_segment(_store_name(handle), CLOCK_OFFSET_OFFSET, 8))
    return int(offset)


def _store_name(handle: Any) -> str:
    return str(handle.pool.primary.terms.store)


def expiry_clock(database: Database | EngineHandle) -> int:
    """What the clock shows, in ns since the epoch."""
    handle = database.handle if isinstance(database, Database) else database
    return time.monotonic_ns() + _offset(handle)


def step_to(database: Database | EngineHandle, when: int) -> None:
    """Step it forward to `when`, in ns since the epoch, unless it is there.

    A test that waits calls this again and again: the commit thread raises the clock too, and a step in the very moment
    in which it does so may be lost.
    """
    behind = when - expiry_clock(database)
    if behind > 0:
        step(database, behind)


def step(database: Database | EngineHandle, ns: int) -> None:
    """Step it forward."""
    handle = database.handle if isinstance(database, Database) else database
    raised = struct.pack("<q", _offset(handle) + ns)
    if isinstance(handle, LocalHandle):
        handle._store[CLOCK_OFFSET_OFFSET : CLOCK_OFFSET_OFFSET + 8] = raised
        handle._core.expire()
    else:
        assert poke_segment(_store_name(handle), CLOCK_OFFSET_OFFSET, raised)
