"""The timer of durability "standard": it syncs the log every `sync_interval`, in a thread of its own.

A disk may take seconds to sync. The control plane's thread answers workers meanwhile, and the commit thread
appends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from ..log._wal_appender import WalAppender

__all__ = ["LogSync"]


class LogSync:
    """Syncs one log until it is stopped or a sync fails. A failed sync poisons the log, so none follows.

    Args:
      log: open; its owner calls `stop` before it closes the log.
      interval: seconds between two syncs.
      failed: called in the thread with the error of a sync that failed.

    Raises:
      RuntimeError: this user can have no more threads.
    """

    def __init__(self, log: WalAppender, interval: float, failed: Callable[[OSError], None]) -> None:
        self._log = log
        self._interval = interval
        self._failed = failed
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log sync", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._end.wait(self._interval):
            try:
                self._log.sync_in_background()
            except OSError as error:
                self._failed(error)
                return

    def stop(self) -> None:
        """End the thread, after a sync under way."""
        self._end.set()
        self._thread.join()
