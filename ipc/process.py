"""Who a process is: pid and start time, so that a reused pid is never mistaken for the process that had it.

Called by anyone; nothing blocks. Linux only (as futexes are): the facts come from /proc.

Invariants:
  1. (boot id, pid, start time) is unique; two identities are equal only if they mean one process.
  2. A zombie is dead: it runs no code and holds no memory.
"""

from __future__ import annotations

import functools
import os
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

_BOOT_ID_PATH: Final = "/proc/sys/kernel/random/boot_id"
_DEAD_STATES: Final = (b"Z", b"X", b"x")


@functools.cache
def boot_id() -> str:
    """The kernel's id of the current boot."""
    with open(_BOOT_ID_PATH, encoding="ascii") as file:
        return file.read().strip()


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process. `start_time` is in clock ticks since boot."""

    pid: int
    start_time: int
    boot: str

    def to_dict(self) -> dict[str, Any]:
        """As plain data for a file or a frame."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: object) -> Self | None:
        """The identity in `data`, None if it holds none: whatever came from a file is checked."""
        if not isinstance(data, dict):
            return None
        pid, start_time, boot = data.get("pid"), data.get("start_time"), data.get("boot")
        if not isinstance(pid, int) or not isinstance(start_time, int) or not isinstance(boot, str):
            return None
        return cls(pid, start_time, boot) if pid > 0 else None


def identify(pid: int) -> ProcessIdentity | None:
    """The identity of the process that has `pid` right now, None if none is alive there.

    Raises:
      OSError: it cannot be told: no descriptors left.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            line = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command may hold blanks and parentheses: count from the last ")". State is field 3, start time 22.
    fields = line[line.rindex(b")") + 2 :].split()
    if fields[0] in _DEAD_STATES:
        return None
    return ProcessIdentity(pid, int(fields[19]), boot_id())


def own_identity() -> ProcessIdentity:
    """The calling process. Also right after a fork, because nothing is cached."""
    identity = identify(os.getpid())
    assert identity is not None, "a running process has a /proc entry"
    return identity


def is_alive(identity: ProcessIdentity) -> bool:
    """Whether that very process still runs (stopped counts as running).

    If that cannot be found out (because no descriptors are left, for example), the answer is yes: to take a
    living process for a dead one would disconnect a worker, or let two coordinators in.
    """
    try:
        return identify(identity.pid) == identity
    except OSError:
        return True
