"""The conflicts of the last minutes: how many of which key at which time, and the newest ones with both sides.

How many is counted by the engine, for the keys that conflict most. Both sides are known of a part of them: every worker
keeps its last ones, and they are fetched once a second.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["ConflictLog", "ConflictRow", "HeatMap", "HeatRow"]

KEPT_MAX = 2_000
READINGS_MAX = 600
COLUMNS = 60
ROWS_MAX = 25
LEVELS = 6
PIDS_MAX = 4_096
_TABLE_SIZE = 32  # hot keys that the engine counts
_HOT_KEY = re.compile(r"([0-9a-f-]{36})/(0x[0-9a-f]{2})/(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ConflictRow:
    """A commit that was refused.

    Attributes:
      at: seconds since 1970.
      pid, session, attempt: the loser.
      kind: "read", "range", "write" or "cas".
      run, tag, key: what it was about.
      expected: the version that the loser relied on.
      found: the version of the winner; 0: not known.
      winner: the winner's process, as far as it is known.
    """

    at: float
    pid: int
    session: int
    attempt: int
    kind: str
    run: str
    tag: int
    key: str
    expected: int
    found: int
    winner: int | None = None


@dataclass(frozen=True, slots=True)
class HeatRow:
    """The conflicts of one key.

    Attributes:
      run: the run of the key; "" if that cannot be told.
      key: the key, with the kind of its data.
      total: in the time shown.
      cells: (conflicts, level from 0 to LEVELS) of each column.
    """

    run: str
    key: str
    total: int
    cells: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Key by time.

    Attributes:
      rows: the keys with most conflicts first.
      starts: when each column begins, in seconds since 1970.
      seconds: how long a column is.
    """

    rows: tuple[HeatRow, ...]
    starts: tuple[float, ...]
    seconds: float


class ConflictLog:
    """What was read, for as long as it is shown. Written by one thread, read by any."""

    def __init__(self) -> None:
        self._rows: deque[ConflictRow] = deque(maxlen=KEPT_MAX)
        self._known: dict[int, int] = {}  # by session: the number of its last conflict
        self._counts: deque[tuple[float, Counter[str]]] = deque(maxlen=READINGS_MAX)
        self._before: dict[str, int] | None = None
        self._pids: OrderedDict[int, int] = OrderedDict()

    def add(self, figures: dict[str, Any] | None) -> int:
        """Enter a reading of the figures; returns how many conflicts are new in the list."""
        if figures is None:
            self._before = None
            return 0
        for worker in figures.get("workers") or ():
            if "session" in worker and "pid" in worker:
                self._remember(worker["session"], worker["pid"])
        self._count(figures["read_at"], figures.get("hot_keys") or ())
        return self._add_rows(figures.get("recent_conflicts") or ())

    def _remember(self, session: int, pid: int) -> None:
        self._pids[session] = pid
        self._pids.move_to_end(session)
        while len(self._pids) > PIDS_MAX:
            self._pids.popitem(last=False)

    def _count(self, at: float, hot_keys: Sequence[dict[str, Any]]) -> None:
        now = {each["key"]: each["conflicts"] for each in hot_keys}
        before, self._before = self._before, now
        if before is None:
            return
        # A key that is new in a full table took over the count of the one that it replaced.
        floor = min(before.values(), default=0) if len(before) >= _TABLE_SIZE else 0
        grown = Counter({key: count - before.get(key, floor) for key, count in now.items()})
        self._counts.append((at, +grown))

    def _add_rows(self, recent: Sequence[dict[str, Any]]) -> int:
        fresh = [each for each in recent if each["number"] > self._known.get(each["session"], 0)]
        for each in sorted(fresh, key=lambda row: (row["at"], row["number"])):
            self._known[each["session"]] = max(each["number"], self._known.get(each["session"], 0))
            self._remember(each["session"], each["pid"])
            fields = {name: each[name] for name in ConflictRow.__dataclass_fields__ if name in each}
            self._rows.append(ConflictRow(**fields))
        if len(self._known) > 2 * PIDS_MAX:
            kept = {row.session for row in self._rows}
            self._known = {session: number for session, number in self._known.items() if session in kept}
        return len(fresh)

    def newest(self, most: int, sessions: dict[int, int] | None = None) -> list[ConflictRow]:
        """The newest conflicts, the newest first.

        Args:
          most: at most so many.
          sessions: the session of the winner by version, as far as it is known.
        """
        rows = sorted(self._rows, key=lambda row: row.at, reverse=True)[:most]
        if sessions is None:
            return rows
        return [replace(row, winner=self.pid_of(sessions.get(row.found))) for row in rows]

    def pid_of(self, session: int | None) -> int | None:
        """The process of a session, if it was seen."""
        return None if session is None else self._pids.get(session)

    def heat_map(self) -> HeatMap:
        """The conflicts of the last minutes by key and time."""
        counts = list(self._counts)
        if not counts:
            return HeatMap((), (), 1.0)
        first, last = counts[0][0], counts[-1][0]
        seconds = max(1.0, (last - first) / COLUMNS)
        columns = [Counter[str]() for _ in range(min(COLUMNS, int((last - first) / seconds) + 1))]
        for at, grown in counts:
            columns[min(int((at - first) / seconds), len(columns) - 1)].update(grown)
        totals = sum(columns, Counter[str]())
        most = max((max(column.values(), default=0) for column in columns), default=0)
        rows = tuple(
            _heat_row(key, total, [column[key] for column in columns], most)
            for key, total in totals.most_common(ROWS_MAX)
        )
        return HeatMap(rows, tuple(first + at * seconds for at in range(len(columns))), seconds)


def _heat_row(hot_key: str, total: int, counts: Sequence[int], most: int) -> HeatRow:
    found = _HOT_KEY.fullmatch(hot_key)
    run, key = (found[1], f"{found[2]} {found[3]}") if found else ("", hot_key)
    cells = tuple((count, _level(count, most)) for count in counts)
    return HeatRow(run, key, total, cells)


def _level(count: int, most: int) -> int:
    """From 1 for few to LEVELS for the most; 0 for none. By the root, so that few can be told from none."""
    return 0 if count <= 0 else max(1, min(LEVELS, round((count / most) ** 0.5 * LEVELS)))
