"""What a coordinator has to say for itself goes to its standard error: coordinator.log, or the terminal of `serve`."""

from __future__ import annotations

import contextlib
import os
import traceback

__all__ = ["complain", "complain_of"]

_STANDARD_ERROR = 2


def complain(text: str) -> None:
    """Say it at once, from any thread. Never raises: on a full disk it goes unsaid.

    Not through `sys.stderr`, which would keep what it cannot write, and fail again with it at every later call.
    """
    with contextlib.suppress(OSError):
        os.write(_STANDARD_ERROR, (text + "\n").encode(errors="backslashreplace"))


def complain_of(error: BaseException) -> None:
    """Say where an error came from. Never raises."""
    try:
        text = "".join(traceback.format_exception(error))
    except Exception:  # its own text cannot be made
        text = type(error).__name__
    complain(text.rstrip("\n"))
