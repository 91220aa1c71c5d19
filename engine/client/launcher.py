"""Finding the coordinator of a directory, and starting one.

1. A worker takes the STARTER lock before it starts a coordinator. When a coordinator dies, one of its workers
   starts the next one, and the others wait for its socket. The kernel frees the lock when its holder dies. If
   the holder is stopped, the others start a coordinator without the lock after a while. LOCK alone decides
   which one serves.
2. The new process has its own session, and init is its parent, so that neither Ctrl-C nor the end of the
   worker that started it reaches it. It needs no shell, and imports nothing from the worker's directory: see
   bootstrap.py.
3. It reports success or its error as one line through a pipe. End of file without a report means that it died
   on the way. It continues if the other end of the pipe was closed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import sys
import time
from typing import Any, NoReturn

from ...ipc.control import ControlClient
from ...ipc.errors import ControlForeignError, ControlUnavailableError, LockHeldError
from ...ipc.lock import FileLock, lock_holder
from ..disk.directory import DatabaseDirectory, socket_path
from ..model.control_messages import raise_refusal
from ..model.errors import CoordinatorUnavailable
from . import interpreter
from .bootstrap import STARTED
from .program_log import tell

__all__ = ["LOG_NAME", "CoordinatorDied", "Launcher"]

LOG_NAME = "coordinator.log"
_STARTER_SECONDS, _STARTER_SECONDS_MAX = 1.5, 12.0
_REAP_PAUSE = 0.0005
_POLL_SECONDS_MAX = 3600.0


class CoordinatorDied(CoordinatorUnavailable):
    """The coordinator that was started ended without a report: it was killed, or ran out of memory."""


class Launcher:
    """Connects to a directory's coordinator, and starts one when asked to.

    Args:
      path: the database directory, absolute.
      durability, settings: for a coordinator that is started.
    """

    def __init__(self, path: str, durability: str, settings: dict[str, Any]) -> None:
        self.path = path
        self.log_path = os.path.join(path, LOG_NAME)
        self._durability = durability
        self._settings = settings
        self._starting_since = 0.0  # when we first saw the present start by another process, and when last
        self._seen_starting = 0.0
        self._start_seen = 0  # which start that is: the time at which its starter took the lock
        self._patience = _STARTER_SECONDS
        self._started: dict[
            int, tuple[str, int]
        ] = {}  # by report descriptor: the interpreter, and its process
        # The last coordinator's settings. Its successor takes them over; otherwise workers that asked for
        # them could not attach.
        self.inherited: dict[str, Any] = {}

    def connect(self, limit: float) -> ControlClient | None:
        """A connection, or None when nobody listens. `limit`: on the clock of time.monotonic."""
        try:
            return ControlClient.connect(socket_path(self.path), max(0.05, limit - time.monotonic()))
        except ControlForeignError as error:
            raise CoordinatorUnavailable(
                f"{self.path} is served for another user: {error.message}",
                hint="open it as that user; a database belongs to one user and root",
                details=error.details,
            ) from error
        except ControlUnavailableError as error:
            if error.details.get("errno") in (errno.EMFILE, errno.ENFILE):
                raise
            if error.details.get("errno") == errno.ENOTDIR:
                raise self._unusable(NotADirectoryError(errno.ENOTDIR, "Not a directory")) from error
            return None

    def start(self, limit: float) -> None:
        """Start a coordinator unless another process does, and wait until it serves or has failed.

        Raises:
          OccamError: why it could not start, as it reported itself.
          CoordinatorUnavailable: it died without a report, or could not be started at all.
        """
        try:
            DatabaseDirectory.prepare(self.path)
        except OSError as error:
            raise self._unusable(error) from error
        starter = FileLock(os.path.join(self.path, "STARTER"))
        # `acquire` is inside the `try`: an interrupt just after the lock was taken must release it too.
        try:
            with contextlib.suppress(LockHeldError):
                starter.acquire()
            if not starter.held and not self._waited_long(starter):
                return
            if not starter.held:
                # The other start may be merely slow, and simultaneous starts slow each other down.
                self._patience = min(2 * self._patience, _STARTER_SECONDS_MAX)
            # If LOCK is held, a coordinator is alive, or is recovering and about to listen.
            if not self._owned():
                self._spawn_and_wait(limit)
        finally:
            starter.release()

    def _unusable(self, error: OSError) -> CoordinatorUnavailable:
        return CoordinatorUnavailable(
            f"cannot use {self.path} as a database directory: {error.strerror}",
            hint=_directory_hint(self.path, error),
            details={"path": self.path, "errno": error.errno},
        )

    def _waited_long(self, starter: FileLock) -> bool:
        """Whether another process has been at one start so long that it may be stopped, not merely slow."""
        now = time.monotonic()
        # Taking and releasing the lock both write the file, so another modification time means another start.
        with contextlib.suppress(FileNotFoundError):
            start = os.stat(starter.path).st_mtime_ns
            if start != self._start_seen or now - self._seen_starting > _STARTER_SECONDS / 2:
                self._starting_since, self._start_seen = now, start
        self._seen_starting = now
        return now - self._starting_since > self._patience

    def _owned(self) -> bool:
        try:
            return lock_holder(os.path.join(self.path, "LOCK")) is not None
        except LockHeldError:
            return True  # held, its owner has not written its name yet

    def _spawn_and_wait(self, limit: float) -> None:
        began = time.monotonic()
        report, report_child = os.pipe()
        try:
            try:
                os.set_inheritable(report_child, True)
                self._spawn(report_child)
                python, starter = self._started.pop(report_child)
            finally:
                os.close(report_child)
            answer = _read_report(report, limit)
        finally:
            os.close(report)
        if answer is None:
            return
        if answer == b"":
            self._raise_death(python, _reap(starter, limit))
        _reap(starter, limit)
        reply = json.loads(answer)
        # Another coordinator was first: connect to that one.
        if reply.get("error") != "LockHeldError":
            raise_refusal(reply)
            self._tell_of_start(time.monotonic() - began, reply.get("recovery") or {})

    def _tell_of_start(self, seconds: float, recovery: dict[str, Any]) -> None:
        path = self.path
        tell("INFO", "started a coordinator for %s in %.3f s", path, seconds, path=path, seconds=seconds)
        if recovery.get("version"):
            tell(
                "WARNING" if recovery["warnings"] else "INFO",
                "recovered %s to version %d: %d keys from a checkpoint, %d commits from the log, %.3f s%s",
                path,
                recovery["version"],
                recovery["keys_loaded"],
                recovery["transactions_replayed"],
                recovery["seconds"],
                "".join(f"; {warning}" for warning in recovery["warnings"]),
                path=path,
                **recovery,
            )

    def _raise_death(self, python: str, status: int | None) -> NoReturn:
        """Raise the reason why there was no report.

        Args:
          status: the exit status of the first process; negative for a signal, None if that cannot be known.
        """
        if status is not None and status >= 0 and status != STARTED:
            raise CoordinatorUnavailable(
                f"{python} is not a Python that can run a coordinator: it ended with status {status}",
                hint=f"set {interpreter.PYTHON_VARIABLE} to another one, or look into {self.log_path}",
                details={"python": python, "status": status},
            )
        raise CoordinatorDied(
            f"the coordinator of {self.path} died while starting", hint=f"look into {self.log_path}"
        )

    def _spawn(self, report_fd: int) -> None:
        """Start the first process of a coordinator, which ends once it has forked; noted in `_started`."""
        python = interpreter.interpreter()
        options = json.dumps(
            {
                "path": self.path,
                "durability": self._durability,
                "settings": self._settings,
                "inherited": self.inherited,
                "report_fd": report_fd,
                "cache_tag": sys.implementation.cache_tag,
                "places": interpreter.places(),
            }
        )
        for pid in list(_unreaped):
            _try_reap(pid)
        try:
            pid = os.posix_spawn(
                python,
                interpreter.command(python, options),
                interpreter.environment(),
                setsid=True,
                # The calling thread may have blocked the signals that end a coordinator.
                setsigmask=[],
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
            )
        except OSError as error:
            raise CoordinatorUnavailable(
                f"cannot start a coordinator for {self.path} with {python}: {error.strerror}",
                hint="check free processes, memory, that the directory is writable and that the interpreter is there "
                f"({interpreter.PYTHON_VARIABLE} names another)",
                details={"errno": error.errno, "python": python},
            ) from error
        _unreaped.add(pid)
        self._started[report_fd] = python, pid


def _directory_hint(path: str, error: OSError) -> str:
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        place = path
        while not os.path.lexists(place):
            place = os.path.dirname(place)
        return f"{place} is a file: name a directory, new or with a database in it"
    return "the directory must be writable by this user"


# First processes of coordinators that are still to be reaped: `open` did not wait for their end.
_unreaped: set[int] = set()


def _try_reap(pid: int) -> tuple[bool, int | None]:
    """Whether a first process has ended, and its exit status if that can be known."""
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        # We were forked and our parent waits for it, or the kernel does (SIGCHLD is ignored).
        _unreaped.discard(pid)
        return True, None
    if not ended:
        return False, None
    _unreaped.discard(pid)
    return True, os.waitstatus_to_exitcode(status)


def _reap(pid: int, limit: float) -> int | None:
    """Wait for a first process that has forked, or has closed its end of the pipe: it is about to end."""
    while True:
        ended, status = _try_reap(pid)
        if ended or time.monotonic() > limit:
            return status
        time.sleep(_REAP_PAUSE)


def _read_report(fd: int, limit: float) -> bytes | None:
    """The line the child wrote, or what it wrote until the pipe was closed; None when the time is up."""
    data = b""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    # Stop at the end of the line, not of the file: a process that another thread forked may hold the pipe for
    # ever.
    while not data.endswith(b"\n"):
        remaining = limit - time.monotonic()
        if remaining <= 0:
            return None
        if not poller.poll(min(remaining, _POLL_SECONDS_MAX) * 1000):
            continue
        piece = os.read(fd, 65536)
        if not piece:
            break
        data += piece
    return data
