"""Recognises that a process is out of descriptors, wherever that shows: at a socket, a segment, a lock, a
pipe.
"""

from __future__ import annotations

import errno
import os
import resource
from contextlib import suppress

from ...ipc.errors import OccamError
from ..model.errors import CoordinatorUnavailable

__all__ = ["no_descriptors_error"]

_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


def no_descriptors_error(error: BaseException, purpose: str) -> CoordinatorUnavailable | None:
    """The error to raise instead of `error`; None if `error` is about something else.

    What a coordinator reported about its own descriptors is left as it is, because it names the coordinator.

    Args:
      error: as caught; the errors it was raised from count too.
      purpose: what a descriptor was needed for.
    """
    number = _descriptor_errno(error)
    if number is None:
        return None
    if number == errno.ENFILE:
        return CoordinatorUnavailable(
            f"no descriptors left to {purpose}: this machine has as many files open as it may (fs.file-max)",
            hint="close files, or raise `sysctl fs.file-max`",
            details={"errno": number},
        )
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return CoordinatorUnavailable(
        f"no descriptors left to {purpose}: this process (pid {os.getpid()}) may have {limit} open (RLIMIT_NOFILE)",
        hint="close files, or raise `ulimit -n`",
        details={"errno": number, "limit": limit, "open": _open_count()},
    )


def _descriptor_errno(error: BaseException | None) -> int | None:
    """EMFILE or ENFILE, if that is what `error` comes from in this process."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_DESCRIPTORS:
            return int(error.errno)
        if isinstance(error, OccamError) and error.__cause__ is None:
            return None
        if isinstance(error, OccamError) and error.details.get("errno") in _NO_DESCRIPTORS:
            return int(error.details["errno"])
        error = error.__cause__
    return None


def _open_count() -> int | None:
    # Listing the descriptors needs one itself.
    with suppress(OSError):
        return len(os.listdir("/proc/self/fd"))
    return None
