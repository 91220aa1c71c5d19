"""What a program that uses `logging` is told about the life of its coordinator, by the logger "occamdb".

Nothing is imported or said unless the program has imported `logging` itself: it costs time at the start of every
worker, and nobody could have set it up. Records carry their facts as attributes, `occamdb_path` among them.
"""

from __future__ import annotations

import sys
import time
from typing import Any

__all__ = ["LAG_SECONDS", "LagWatch", "tell"]

LAG_SECONDS = 1.0
# A wait is looked at about every 20 ms. A longer gap than this lies between two waits.
_GAP_SECONDS = 0.5


def tell(level: str, message: str, *arguments: Any, path: str, **facts: Any) -> None:
    """Write one record.

    Args:
      level: "INFO", "WARNING" and so on.
      facts: attributes of the record, with `occamdb_` in front of their names.
    """
    logging = sys.modules.get("logging")
    if logging is None:
        return
    logger = logging.getLogger("occamdb")
    if not logger.handlers:
        # Otherwise a program that set up nothing would find our warnings on its stderr.
        logger.addHandler(logging.NullHandler())
    extra = {f"occamdb_{name}": value for name, value in {"path": path, **facts}.items()}
    logger.log(getattr(logging, level), message, *arguments, extra=extra)


class LagWatch:
    """Tells once of each wait for the coordinator that takes longer than `LAG_SECONDS`.

    Call it now and then during a wait.
    """

    __slots__ = ("_last", "_path", "_since", "_told")

    def __init__(self, path: str) -> None:
        self._path = path
        self._since = self._last = 0.0
        self._told = False

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self._last > _GAP_SECONDS:
            self._since, self._told = now, False
        self._last = now
        if not self._told and now - self._since > LAG_SECONDS:
            self._told = True
            seconds = now - self._since
            tell(
                "WARNING",
                "the coordinator of %s has not answered a commit for %.1f s",
                self._path,
                seconds,
                path=self._path,
                seconds=seconds,
            )
