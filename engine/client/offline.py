"""A database directory read without a coordinator: recovered into the private memory of this process.

For tools that only read. It takes as much memory as the content; the directory is not changed by a byte.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, TypeVar

from ..disk.directory import DatabaseDirectory
from ..log.recovery import Progress
from ..model.settings import Settings, load_settings
from ..transaction.database import Database
from .local_handle import LocalHandle

__all__ = ["recovered_database"]

D = TypeVar("D", bound=Database[Any])

_STORE_SIZE_MIN = 1 << 32


@contextmanager
def recovered_database(
    database: type[D], path: str | os.PathLike[str], *, progress: Progress | None = None
) -> Iterator[D]:
    """What the next coordinator would recover. What is written to it is lost at the end of the block.

    Args:
      database: the class of the result.
      path: the directory; while a coordinator serves it, what is recovered may be torn.
      progress: as `recovery.recover` calls it.

    Raises:
      CorruptionError, IncompatibleFormatError: as `recovery.recover`.
      StoreFullError: the content does not fit into memory.
      FileNotFoundError: there is no database.
    """
    given = asdict(load_settings(path))
    # A coordinator may have been given a larger store by keyword; memory is taken as it is filled.
    given["max_store_size"] = max(given["max_store_size"], _STORE_SIZE_MIN)
    handle = LocalHandle(Settings.of(given))
    try:
        directory = DatabaseDirectory(path, create=False)
        try:
            handle.load(directory, progress)
        finally:
            directory.close()
        yield database(handle)
    finally:
        handle.close()
