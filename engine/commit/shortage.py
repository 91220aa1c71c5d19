"""Why a store could not take a commit, and what helps: the limit that was set, or the memory behind it.

The coordinator's reply says which resource ran out. The worker reads the figures for the message itself, a
moment later, from its own view of /dev/shm. It is the same file system, so the advice is the same.
"""

from __future__ import annotations

import os
from enum import IntEnum

from ...ipc.segment import SHM_DIRECTORY
from ..model.errors import StoreFullError
from ..model.limits import sized
from ..store import _memory

__all__ = ["Shortage", "store_full"]


class Shortage(IntEnum):
    """The resource that kept the store from growing; the numbers of _memory.pxd."""

    NOTHING = 0
    SHM = 1
    MEMORY = 2
    GROUP = 3
    FILE_SIZE = 4


_SHM_HINT = (
    f"enlarge {SHM_DIRECTORY} (docker run --shm-size=..., mount -o remount,size=...), remove what else is in it, or "
    "delete data; max_store_size does not help"
)
_CAUSES = {
    Shortage.MEMORY: (
        "the machine's memory is used up",
        "memory",
        "add memory or end other processes, or delete data; max_store_size does not help",
    ),
    Shortage.GROUP: (
        "the memory limit of the coordinator's control group is reached",
        "memory.max",
        "raise the limit (docker run --memory=..., memory.max), or delete data; max_store_size does not help",
    ),
    Shortage.FILE_SIZE: (
        "the coordinator's limit on the size of files is reached",
        "ulimit -f",
        "raise `ulimit -f` where the coordinator is started; max_store_size does not help",
    ),
}


def store_full(detail: int, size: int, store_size_max: int) -> StoreFullError:
    """The error for a commit that found no room.

    Args:
      detail: the reply's, a `Shortage`.
      size: of the request, in bytes.
      store_size_max: the setting.
    """
    asked = f"no room for this transaction of {size:,} bytes"
    if detail == Shortage.SHM:
        free, whole = _shm()
        return StoreFullError(
            f"{SHM_DIRECTORY} is full: {asked}; {free:,} of {whole:,} bytes are free (max_store_size is "
            f"{sized(store_size_max)})",
            size=size,
            limit=whole,
            setting=SHM_DIRECTORY,
            hint=_SHM_HINT,
            details={"shortage": "shm", "free": free, "max_store_size": store_size_max},
        )
    if detail in list(_CAUSES):
        shortage = Shortage(detail)
        what, setting, hint = _CAUSES[shortage]
        free = _memory.available()
        return StoreFullError(
            f"{what}: {asked}; {free:,} bytes are available to this process (max_store_size is "
            f"{sized(store_size_max)})",
            size=size,
            setting=setting,
            hint=hint,
            details={"shortage": shortage.name.lower(), "free": free, "max_store_size": store_size_max},
        )
    return StoreFullError(
        f"the store is full: {asked} within max_store_size, {sized(store_size_max)}",
        size=size,
        limit=store_size_max,
    )


def _shm() -> tuple[int, int]:
    """Free and total bytes of /dev/shm; zeros where it cannot be seen."""
    try:
        state = os.statvfs(SHM_DIRECTORY)
    except OSError:
        return 0, 0
    return state.f_bavail * state.f_frsize, state.f_blocks * state.f_frsize
