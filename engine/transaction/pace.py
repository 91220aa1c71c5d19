"""When a waiting process naps instead of sleeping on its bell: while changes come as a stream.

Each sleep on the bell costs the commit thread a system call and the machine two task switches. For a follower of a
busy run that is more than the commits themselves. So after a row of such sleeps in quick succession the process
sleeps for a fixed short time without asking to be woken, and then finds all changes of that time at once.

1. A nap is only a pause between two looks at the ring: what it brings is found by the look that follows, and the
   process sleeps on the bell only after a look that found nothing. The argument of `_watchers.pyx` is untouched.
2. The first changes after a pause wake at once: a row of wake-ups must come first.
3. Two processes that answer each other are woken quickly too, but a nap brings them one change and costs them the
   time of many. So a nap that brought few changes is the last one for a while.
"""

from __future__ import annotations

import time
from collections import deque

__all__ = ["Pace"]

NAP_SECONDS = 0.002
ROW = 8  # wake-ups ...
ROW_SECONDS = 0.008  # ... within this time make a stream
CHANGES_MIN = 5  # batches that concern this process in one nap, for the next one to follow
REST_SECONDS = 0.1  # without naps after one that brought fewer


class Pace:
    """How one process waits for changes. Used by the thread that watches the bell.

    Attributes:
      streaming: nap next, do not sleep on the bell.
    """

    __slots__ = ("_rests_until", "_row", "streaming")

    def __init__(self) -> None:
        self.streaming = False
        self._row: deque[float] = deque(maxlen=ROW)
        self._rests_until = 0.0

    def woken(self, now: float) -> None:
        """A sleep on the bell was ended by a change."""
        row = self._row
        row.append(now)
        if len(row) == ROW and now - row[0] < ROW_SECONDS and now >= self._rests_until:
            self.streaming = True
            row.clear()

    def nap(self, longest: float) -> None:
        """Sleep for a moment."""
        time.sleep(min(NAP_SECONDS, longest))

    def napped(self, batches: int) -> None:
        """A nap brought so many batches of changes."""
        if batches < CHANGES_MIN:
            self.streaming = False
            self._rests_until = time.monotonic() + REST_SECONDS
