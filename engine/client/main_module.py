"""Programs without an `if __name__ == "__main__":` that start processes by spawn or forkserver.

Such a process imports the program's main module again to find the function it is to run. Without the guard it runs the
whole program again: it opens the database, writes to it, and fails only where it would start processes itself.
"""

from __future__ import annotations

import sys
from types import FrameType

from ..model.errors import MainModuleError

__all__ = ["refuse_in_rerun_main"]

# What a program can tell the second run from the first by. A file that has one of these is left alone.
_GUARDS = ("__main__", "current_process", "MainProcess")


def refuse_in_rerun_main() -> None:
    """Refuse to open a database from an unguarded main module that multiprocessing is importing again.

    Raises:
      MainModuleError: names the file.
    """
    # A process that multiprocessing did not start may not even have it loaded.
    process = sys.modules.get("multiprocessing.process")
    if process is None or not getattr(process.current_process(), "_inheriting", False):
        return
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__mp_main__":
            _require_guard(frame.f_code.co_filename)
            return
        frame = frame.f_back


def _require_guard(path: str) -> None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            source = file.read()
    except OSError:
        return
    if not any(guard in source for guard in _GUARDS):
        raise MainModuleError(
            f"{path} opens the database once more, because multiprocessing imports it in each process that it starts",
            details={"file": path},
        )
