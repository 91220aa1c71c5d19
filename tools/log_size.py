"""How much of a log's files holds entries: the one measure of `status` and `stats`."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

__all__ = ["LogSize", "log_size"]

_BLOCK = 1 << 16


class LogSize(NamedTuple):
    """Bytes of a log's files.

    Attributes:
      used: those up to the last entry of each file.
      set_aside: zeros behind it, allocated in advance for entries to come.
    """

    used: int
    set_aside: int


def log_size(path: Path) -> LogSize:
    """Measure the log of the database in a directory, which may be in use; files that vanish meanwhile do not count."""
    used = set_aside = 0
    for file in (path / "wal").glob("*"):
        try:
            size = file.stat().st_size
            filled = _filled(file, size)
        except (FileNotFoundError, IsADirectoryError):
            continue
        used += filled
        set_aside += size - filled
    return LogSize(used, set_aside)


def _filled(file: Path, size: int) -> int:
    """The bytes of a file up to its last one that is not zero. Looks backwards, at the zeros only."""
    with file.open("rb") as opened:
        end = size
        while end:
            begin = max(0, end - _BLOCK)
            opened.seek(begin)
            block = opened.read(end - begin).rstrip(b"\0")
            if block:
                return begin + len(block)
            end = begin
    return 0
