"""An exception, or whatever else a signal handler does, below one chosen line of the code under test."""

import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

__all__ = ["COMMIT_FILES", "AtLine", "interrupt"]

COMMIT_FILES = (
    "engine/client/shared_handle.py",
    "engine/client/pool.py",
    "engine/client/outcome.py",
    "engine/client/link.py",
    "engine/client/local_handle.py",
    "ipc/control.py",
)


class AtLine:
    """Calls `act` before the n-th line that is executed in `files`; counts on until the end."""

    def __init__(self, number: int, act: Callable[[], object], files: Iterable[str] = COMMIT_FILES) -> None:
        self.number = number
        self.files = tuple(files)
        self.act = act
        self.count = 0

    def _enter(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        return self._line if frame.f_code.co_filename.endswith(self.files) else None

    def _line(self, _frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "line":
            self.count += 1
            if self.count == self.number:
                self.act()
        return self._line

    def __enter__(self) -> "AtLine":
        self.before = sys.gettrace()
        sys.settrace(self._enter)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self.before)

    @property
    def reached(self) -> bool:
        return self.count >= self.number


def interrupt() -> None:
    raise KeyboardInterrupt
