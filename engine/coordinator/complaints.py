"""The coordinator writes its messages to standard error: coordinator.log, or the terminal of `serve`."""

from __future__ import annotations

import contextlib
import os
import traceback

__all__ = ["complain", "complain_of"]

_STANDARD_ERROR = 2


def complain(text: str) -> None:
    """Write a message at once, from any thread. Never raises: on a full disk the message is lost.

    Not through `sys.stderr`: that would keep what it cannot write, and fail with it again at every later
    call.
    """
    with contextlib.suppress(OSError):
        os.write(_STANDARD_ERROR, (text + "\n").encode(errors="backslashreplace"))


def complain_of(error: BaseException) -> None:
    """Write the traceback of an error. Never raises."""
    try:
        text = "".join(traceback.format_exception(error))
    except Exception:  # its own text cannot be made
        text = type(error).__name__
    complain(text.rstrip("\n"))
