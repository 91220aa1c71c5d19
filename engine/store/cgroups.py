"""The control groups whose memory limits this process is under: its own and every group above.

Version 2 of the interface has one hierarchy, version 1 one for memory; a machine may have both. In a
container, the path may be one that only the host can see. The mounted root is then the container's own group.
"""

from __future__ import annotations

import os
from typing import NamedTuple

__all__ = ["MemoryGroup", "memory_groups"]

_ROOT = "/sys/fs/cgroup"
_OWN = "/proc/self/cgroup"


class MemoryGroup(NamedTuple):
    """Where to read about the memory of one group.

    Attributes:
      limit: a file with the most bytes it may take, or "max".
      usage: a file with what it takes now, page cache included.
      statistics: a file of named figures, among them `reclaimable`.
      reclaimable: the figure of cached file pages that go when memory is needed.
    """

    limit: str
    usage: str
    statistics: str
    reclaimable: str


def memory_groups(
    own: str | os.PathLike[str] = _OWN, root: str | os.PathLike[str] = _ROOT
) -> list[MemoryGroup]:
    """The groups, innermost first. Empty where there are none, or where they cannot be seen.

    Args:
      own: what /proc says of this process.
      root: where the hierarchies are mounted.
    """
    try:
        with open(own, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    found: list[MemoryGroup] = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            found += _groups(os.fspath(root), path, ("memory.max", "memory.current", "inactive_file"))
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            found += _groups(os.path.join(root, "memory"), path, names)
    return found


def _groups(base: str, path: str, names: tuple[str, str, str]) -> list[MemoryGroup]:
    limit, usage, reclaimable = names
    found = []
    group = path.strip("/")
    while True:
        limit_file, usage_file, statistics_file = (
            os.path.join(base, group, name) for name in (limit, usage, "memory.stat")
        )
        if os.path.isfile(limit_file):
            found.append(MemoryGroup(limit_file, usage_file, statistics_file, reclaimable))
        if not group:
            return found
        group = group.rpartition("/")[0].rstrip("/")
