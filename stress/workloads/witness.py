"""A witness beside a wait: notes whether what is waited for lies there and the wait does not end."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from occamdb.ipc.errors import OccamError

LOOK_SECONDS = 0.02
LATE_LOOKS = 5  # so many looks found it before the waiter woke: the machine is busy, or a wake-up was lost
LOST_LOOKS = 60  # no busy machine lets one thread of a process look so often while the other cannot wake


class Witness:
    """A thread that looks, for as long as the `with` block lasts.

    It counts looks, not seconds: a process that is stopped for a while stops both of its threads.

    Args:
      arrived: whether what is waited for is there; reads only.
    """

    def __init__(self, arrived: Callable[[], bool]) -> None:
        self._arrived = arrived
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._error: Exception | None = None
        self.looks = 0

    def _look(self) -> None:
        try:
            while not self._over.wait(LOOK_SECONDS):
                with contextlib.suppress(OccamError):
                    if self._arrived() and not self._over.is_set():
                        self.looks += 1
        except Exception as error:
            self._error = error

    @property
    def late(self) -> bool:
        """Whether the wait went on noticeably longer than it had to."""
        return self.looks >= LATE_LOOKS

    @property
    def lost(self) -> bool:
        """Whether a wake-up was lost."""
        return self.looks >= LOST_LOOKS

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if self._error is not None:
            raise self._error
