"""A little disk space set aside, so that a database that fills its disk can still be opened.

A coordinator start writes a few small files before it serves anybody: `meta`, the head of a log segment, the
file that says where it listens. On a full disk that would fail, and not even reads would be possible. So the
directory holds a file without any other use. A start that finds the disk full removes it, and makes it again
when there is room.
"""

from __future__ import annotations

import contextlib
import errno
import os

from .directory import DatabaseDirectory
from .files import TEMPORARY_SUFFIX, Folder

__all__ = ["RESERVE_NAME", "give_up_reserve", "is_disk_full", "keep_reserve"]

RESERVE_NAME = "reserve"
# A start needs half a dozen blocks of 4 KiB, and leaves one or two of them taken. But xfs lets nobody create
# a file unless there is room for a whole chunk of inodes and the worst case of its trees: on one of 256 MiB,
# 128 KiB given up were not enough for a first file, 192 KiB were.
_SIZE, _SIZE_MIN, _STEP = 1 << 20, 256 << 10, 16 << 10


def is_disk_full(error: BaseException) -> bool:
    """Whether the error says that the file system, or the user's share of it, is full."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)


def keep_reserve(directory: DatabaseDirectory) -> None:
    """Make the reserve, as large as there is room for, unless it is there. The coordinator calls it."""
    folder = directory.folder
    kept = 0
    if RESERVE_NAME in folder.names():
        with contextlib.suppress(OSError), folder.open(RESERVE_NAME) as file:
            kept = file.size()
    for size in range(_SIZE, max(kept, _SIZE_MIN - _STEP), -_STEP):
        if _make(folder, size):
            return


def _make(folder: Folder, size: int) -> bool:
    temporary = RESERVE_NAME + TEMPORARY_SUFFIX
    try:
        with folder.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
            # Random: some file systems store a run of zeros, or anything that compresses, in next to no
            # space.
            file.write(os.urandom(size), 0)
        folder.rename(temporary, RESERVE_NAME)
    except OSError:
        with contextlib.suppress(OSError):
            folder.remove(temporary)
        return False
    return True


def give_up_reserve(path: str) -> bool:
    """Remove the reserve of the directory at `path`. Returns whether there was one. Call it while holding
    LOCK.
    """
    try:
        with Folder(path) as folder:
            folder.remove(RESERVE_NAME)
    except OSError:
        return False
    return True
