"""The last conflicts of all workers, with both sides: who lost with which attempt, and the version that won.

Each worker keeps its own in its channel segment (`commit/_recent_conflicts.pxd`). The coordinator reads them when
figures are asked for, and once more when a worker leaves. What is read comes from another process and changes while it
is read: it is checked, it is for display only, and need not hold a valid key.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from ...ipc import layout
from ..model.errors import CorruptionError
from ..model.keys import decode_key, decode_user_key

__all__ = ["KeptConflicts", "RecentConflict", "conflict_figures", "read_conflicts"]

_TALLY_BEFORE = struct.calcsize("<4Q") + 16 * struct.calcsize("<QI96s4x")  # what tally.py reads
_ENTRY = struct.Struct("<QqQQQIB3x96s")
_ENTRIES = 10  # RECENT_CONFLICTS
_KINDS = {1: "read", 2: "range", 3: "write", 4: "cas"}
_SHOWN_MAX = 128
_AREA = layout.TALLY_OFFSET + _TALLY_BEFORE
assert _TALLY_BEFORE + _ENTRIES * _ENTRY.size <= layout.TALLY_SIZE


class RecentConflict(NamedTuple):
    """The first conflict of one commit that was refused.

    Attributes:
      at: nanoseconds since the epoch, by the loser's clock.
      number: counts the loser's conflicts.
      pid, session: the loser's process and connection.
      kind: "read", "range", "write" or "cas".
      key: the stored key, or its beginning.
      expected: the version that the loser relied on.
      found: the version of the commit that was first; 0: the key is gone, or nothing is known.
      attempt: how often the transaction had been tried, from 1.
    """

    at: int
    number: int
    pid: int
    session: int
    kind: str
    key: bytes
    expected: int
    found: int
    attempt: int


def read_conflicts(channel: Any, pid: int, session: int) -> list[RecentConflict]:
    """Those that one worker keeps.

    Args:
      channel: the memory of its channel segment.
      pid, session: of the worker.
    """
    size = _ENTRIES * _ENTRY.size
    raw, again = (bytes(channel[_AREA : _AREA + size]) for _ in range(2))
    found = []
    for position in range(0, size, _ENTRY.size):
        if raw[position : position + _ENTRY.size] != again[position : position + _ENTRY.size]:
            continue
        number, at, expected, version, attempt, key_size, kind, key = _ENTRY.unpack_from(raw, position)
        if number and kind in _KINDS and key_size <= len(key):
            found.append(
                RecentConflict(
                    at, number, pid, session, _KINDS[kind], key[:key_size], expected, version, attempt
                )
            )
    return found


class KeptConflicts:
    """Those of workers that have left."""

    def __init__(self) -> None:
        self._kept: deque[RecentConflict] = deque(maxlen=_SHOWN_MAX)

    def keep(self, conflicts: Iterable[RecentConflict]) -> None:
        """Remember what a worker that leaves has kept."""
        self._kept.extend(sorted(conflicts))

    def __iter__(self) -> Iterator[RecentConflict]:
        return iter(self._kept)


def conflict_figures(conflicts: Iterable[RecentConflict]) -> list[dict[str, Any]]:
    """The newest of them for `stats`, the newest first."""
    newest = sorted(conflicts, reverse=True)[:_SHOWN_MAX]
    return [_figure(conflict) for conflict in newest]


def _figure(conflict: RecentConflict) -> dict[str, Any]:
    try:
        decoded = decode_key(conflict.key)
        run, tag, key = str(decoded.namespace.run_id), int(decoded.tag), decoded.user_key
    except CorruptionError:
        run, tag, key = "", 0, decode_user_key(conflict.key)
    return {
        "at": conflict.at / 1e9,
        "pid": conflict.pid,
        "session": conflict.session,
        "attempt": conflict.attempt,
        "kind": conflict.kind,
        "run": run,
        "tag": tag,
        # Bytes that are not UTF-8 stay readable, and the answer stays UTF-8.
        "key": key.encode("utf-8", "backslashreplace").decode(),
        "expected": conflict.expected,
        "found": conflict.found,
        "number": conflict.number,
    }
