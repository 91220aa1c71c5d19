"""Opening the log for appending, after recovery. The appending itself is `_wal_appender.WalAppender`.

Order at a coordinator start, each step durable before the next (crash in between: the next start repeats
them):

1. `DatabaseDirectory.begin_incarnation`    the number of this start
2. `recovery.recover`                       reads; then cuts a torn tail
3. `open_appender`                          a fresh segment: nothing is ever appended behind old bytes
4. `DatabaseDirectory.note_running`         from here on the directory is this incarnation's
"""

from __future__ import annotations

from ..disk.directory import DatabaseDirectory
from ..model.errors import LogWriteError
from ._wal_appender import WalAppender
from .recovery import RecoveryResult

__all__ = ["begin_anew", "open_appender", "start_log"]

_EMPTY_SIZE = 4096


def open_appender(directory: DatabaseDirectory, result: RecoveryResult, segment_size: int) -> WalAppender:
    """Begin a new segment behind what was recovered.

    Raises:
      LogWriteError: it could not be made; nothing was left under a segment's name.
    """
    try:
        return WalAppender(
            directory.wal.duplicate(),
            directory.database_id,
            directory.incarnation,
            result.version,
            result.log_version,
            segment_size,
        )
    except OSError as error:
        raise LogWriteError(
            f"cannot begin a log segment in {directory.wal.path}: {error}", errno=error.errno or 0
        ) from error


def start_log(
    directory: DatabaseDirectory, result: RecoveryResult, durability: str, segment_size: int
) -> WalAppender | None:
    """Steps 3 and 4: the appender, or None with durability "none", which keeps no log."""
    appender = None if durability == "none" else open_appender(directory, result, segment_size)
    try:
        directory.note_running(durability, result.version, 0 if appender is None else result.version + 1)
    except BaseException:
        if appender is not None:
            appender.abandon()
        raise
    return appender


def begin_anew(directory: DatabaseDirectory, version: int) -> None:
    """Leave an empty segment behind a log that failed, once a checkpoint holds everything up to `version`.

    A recovery from that checkpoint begins with the last segment that follows a version up to it, which is
    this one. So it does not matter what became of the bytes of the failed one. A segment of the same name,
    which holds nothing that was acknowledged, is replaced.

    REQUIRES: no commit above `version` was acknowledged, or ever will be by this coordinator.

    Raises:
      OSError: it could not be made.
    """
    WalAppender(
        directory.wal.duplicate(), directory.database_id, directory.incarnation, version, version, _EMPTY_SIZE
    ).close()
