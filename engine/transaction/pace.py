"""When a waiting process naps: while changes come as a stream.

Each sleep on the bell costs the commit thread a system call and the machine two task switches. For a follower of a
busy run that is more than the commits themselves. So after a row of such sleeps in quick succession the process
sleeps for a fixed short time without asking to be woken, and then finds all changes of that time at once. A watch does
the same between two looks at the ring that found few commits, since a look costs as much as several changes.

1. A nap is only a pause between two looks at the ring: what it brings is found by the look that follows, and the
   process sleeps on the bell only after a look that found nothing. The argument of `_watchers.pyx` is untouched.
2. The first changes after a pause wake at once: a row of wake-ups must come first.
3. Two processes that answer each other are woken quickly too, but a nap brings them one change and costs them the
   time of many. So a nap that brought few changes is the last one for a while, and for twice as long as the time
   before if that one brought few as well: such a pair loses 2 % in the end.
4. A nap that brought many changes is followed by one of twice the length, up to the length that the user of this class
   allows. Each end of a nap takes a core from a writer or the commit thread, which then share one core for a moment.
"""

from __future__ import annotations

import time
from collections import deque

__all__ = ["NAP_SECONDS", "Pace"]

NAP_SECONDS = 0.003
ROW = 8  # wake-ups ...
ROW_SECONDS = 0.008  # ... within this time make a stream
MANY = 200  # batches in one nap, for the next one to be longer; with a quarter of them it is short again
CHANGES_MIN = 5  # batches that concern this process in one nap, for the next one to follow
REST_SECONDS_MIN = 0.005  # without naps after one that brought fewer: the writer may only have been preempted
REST_SECONDS_MAX = 0.16  # after several such naps in a row


class Pace:
    """How one process, or one watch, waits for changes. Used by one thread at a time.

    Args:
      longest: seconds that a nap may last in a busy stream.

    Attributes:
      streaming: nap next, do not sleep on the bell.
    """

    __slots__ = ("_longest", "_nap", "_rest", "_rests_until", "_row", "streaming")

    def __init__(self, longest: float = NAP_SECONDS) -> None:
        self.streaming = False
        self._longest = longest
        self._nap = NAP_SECONDS
        self._row: deque[float] = deque(maxlen=ROW)
        self._rest = REST_SECONDS_MIN
        self._rests_until = 0.0

    def woken(self, now: float) -> None:
        """A sleep on the bell was ended by a change."""
        row = self._row
        row.append(now)
        if len(row) == ROW and now - row[0] < ROW_SECONDS and now >= self._rests_until:
            self.streaming = True
            row.clear()

    def nap(self, longest: float) -> None:
        """Sleep for a moment, `longest` seconds at most."""
        time.sleep(min(self._nap, longest))

    def napped(self, batches: int) -> None:
        """A nap brought so many batches of changes."""
        if batches >= MANY:
            self._nap = min(2 * self._nap, self._longest)
        elif batches < MANY // 4:
            self._nap = NAP_SECONDS
        if batches >= CHANGES_MIN:
            self._rest = REST_SECONDS_MIN
            return
        self.streaming = False
        self._rests_until = time.monotonic() + self._rest
        self._rest = min(2 * self._rest, REST_SECONDS_MAX)
