"""The clock of the servers, read from the `Date` of their answers.

etcd keeps no clock that a client can ask. Every answer of its gateway carries the member's wall clock, in whole
seconds.

1. An answer with date D, sent for at monotonic time s and received at r, says that the server's clock lay in
   [D, D + 1 s) somewhere between s and r. So its offset to our monotonic clock lies in (D - r, D + 1 s - s).
2. All answers of a window narrow one interval. If none is left, a clock was set, or another member answered whose
   clock differs: the interval begins anew with the last answer.
3. Within the interval this machine's wall clock decides, as far as it lies there. So two clients whose clocks are an
   hour apart differ by a second at most.
4. `now` is only an estimate. What orders expiry is the head's clock, which no commit lets go back (records.py).
"""

from __future__ import annotations

import threading
import time
from email.utils import parsedate_to_datetime
from typing import Final

__all__ = ["ServerClock"]

_SECOND: Final = 1_000_000_000
_WINDOW: Final = 60 * _SECOND  # a monotonic clock drifts less than a hundredth of a second in it


class ServerClock:
    """An estimate of the servers' clock, nanoseconds since the epoch. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._low: int | None = None  # offset of the server's clock to the monotonic one
        self._high = 0
        self._since = 0
        self._text = ""
        self._date = 0
        self._last = 0  # what was told last

    def observe(self, date: str | None, sent: int, received: int) -> None:
        """Take in the date of an answer.

        Args:
          date: the header; what is no date is left out.
          sent, received: `time.monotonic_ns` before the request and after the answer.
        """
        if not date:
            return
        with self._lock:
            if date != self._text:
                try:
                    self._date = int(parsedate_to_datetime(date).timestamp()) * _SECOND
                except (TypeError, ValueError, OverflowError):
                    return
                self._text = date
            low, high = self._date - received, self._date + _SECOND - sent
            if self._low is None or received - self._since > _WINDOW or low > self._high or high < self._low:
                self._low, self._high, self._since = low, high, received
            else:
                self._low, self._high = max(self._low, low), min(self._high, high)

    def now(self) -> int:
        """The servers' clock, which never goes back here; 0 before the first answer."""
        with self._lock:
            if self._low is None:
                return 0
            monotonic = time.monotonic_ns()
            ours = time.time_ns() - monotonic
            self._last = max(self._last, monotonic + min(max(ours, self._low), self._high))
            return self._last
