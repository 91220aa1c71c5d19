"""The ownership lock of a directory: one process at a time, set free by the kernel when that process dies.

Held by the coordinator for its whole life; workers try it to elect themselves. Nothing here blocks for longer
than a few tens of milliseconds.

Invariants:
  1. The flock on the open file alone decides ownership; the identity written inside is information only. The
     owner also holds an OFD record lock. Probes query that lock with F_OFD_GETLK, which acquires nothing, so
     a stuck or forked probe can never block an owner.
  2. The file is never unlinked, so all contenders lock the same inode; if somebody else did unlink it, an
     acquirer notices (its descriptor is not what the path names) and starts over.
  3. A forked child holds no share in the lock: its copy of the descriptor is closed at fork, without
     unlocking. Otherwise the child of a dead owner would keep the directory locked. No fork falls between the
     opening of the file and the note of its descriptor in `_held_locks`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import struct
import threading
import time
from types import TracebackType
from typing import Final, Self

from .errors import IpcError, LockHeldError
from .process import ProcessIdentity, is_alive, own_identity

LOCK_MODE: Final = 0o600
_CONTENT_SIZE_MAX: Final = 4096
_ATTEMPTS_MAX: Final = 25
_ATTEMPT_PAUSE: Final = 0.001
# struct flock: type, whence, start, length (0: all), pid
_RECORD: Final = struct.Struct("@hhqqi4x")


class FileLock:
    """An exclusive lock on one file.

    Args:
      path: the lock file; created when missing, never removed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._fd = -1

    @property
    def held(self) -> bool:
        """Whether this process holds the lock through this object."""
        return self._fd >= 0

    def fileno(self) -> int:
        """Descriptor of the lock file, -1 unless held."""
        return self._fd

    def acquire(self) -> None:
        """Take the lock, or raise at once. Does nothing if this object holds it.

        Raises:
          LockHeldError: another process (or another object of this one) holds it; names its pid.
          IpcError: the file cannot be opened or is not a regular file.
        """
        if self.held:
            return
        holder = None
        for _ in range(_ATTEMPTS_MAX):
            with _fork_guard:
                holder = self._try()
            if self.held:
                return
            if holder is not None and is_alive(holder):
                break
            # Locked, but no living owner inside: it is writing its name.
            time.sleep(_ATTEMPT_PAUSE)
        pid = holder.pid if holder is not None and is_alive(holder) else 0
        raise LockHeldError(f"{self.path} is held by process {pid or 'unknown'}", pid=pid)

    def _try(self) -> ProcessIdentity | None:
        """Take the lock if it is free; else who is noted inside."""
        fd = self._open()
        try:
            if self._lock(fd):
                if self._is_current(fd):
                    _put_up_sign(fd)
                    _write_identity(fd)
                    self._fd = fd
                    _held_locks.add(self)
                    return None
                _unlock(fd)
            return _read_identity(fd)
        finally:
            if self._fd != fd:
                os.close(fd)

    def release(self) -> None:
        """Give the lock up. Idempotent."""
        if not self.held:
            return
        fd, self._fd = self._fd, -1
        _held_locks.discard(self)
        try:
            # Before unlocking: afterwards the content belongs to the next owner.
            os.ftruncate(fd, 0)
            _unlock(fd)
        finally:
            os.close(fd)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            fd = os.open(self.path, flags, LOCK_MODE)
        except OSError as error:
            raise IpcError(
                f"lock file {self.path}: {error.strerror}",
                hint="the directory must exist and be writable by this user",
                details={"path": self.path, "errno": error.errno},
            ) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise IpcError(f"lock file {self.path} is not a regular file")
        return fd

    def _lock(self, fd: int) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise IpcError(
                f"lock file {self.path}: {error.strerror}", details={"errno": error.errno}
            ) from error
        return True

    def _is_current(self, fd: int) -> bool:
        mine = os.fstat(fd)
        try:
            named = os.lstat(self.path)
        except FileNotFoundError:
            return False
        return os.path.samestat(mine, named)

    def _forget(self) -> None:
        """In a forked child: drop the copy of the descriptor; the parent's lock is untouched."""
        if self.held:
            fd, self._fd = self._fd, -1
            os.close(fd)


def lock_holder(path: str | os.PathLike[str]) -> ProcessIdentity | None:
    """Who holds the lock file, by a probe and what is written inside; None if nobody does.

    Acquires nothing and disturbs nobody. An owner becomes visible a moment after it took the lock, and is no
    longer visible a moment before it gives it up. So a caller that acts on "nobody" has to acquire the lock,
    or start a process that does.

    Raises:
      LockHeldError: it is held, but by whom cannot be read.
    """
    try:
        fd = os.open(os.fspath(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        if not _sign_is_up(fd):
            return None
        holder = _read_identity(fd)
    finally:
        os.close(fd)
    if holder is None:
        raise LockHeldError(f"{os.fspath(path)} is held by process unknown")
    return holder


def _put_up_sign(fd: int) -> None:
    """Show probes that the lock is held. The record lock belongs to the open file, as the flock does."""
    # Only the holder of the flock takes the record lock, so it is free. On file systems without record locks
    # the flock alone still guarantees ownership.
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _RECORD.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))


def _sign_is_up(fd: int) -> bool:
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _RECORD.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except OSError:
        return _is_locked(fd)  # no record locks on this file system, so no sign either
    return bool(_RECORD.unpack(answer)[0] != fcntl.F_UNLCK)


def _is_locked(fd: int) -> bool:
    """Found out by sharing the lock for an instant. An acquirer that hits that instant tries again."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def _unlock(fd: int) -> None:
    """Explicitly: closing would not unlock while a copy of the descriptor lives in another process."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _RECORD.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))
    fcntl.flock(fd, fcntl.LOCK_UN)


def _write_identity(fd: int) -> None:
    content = json.dumps(own_identity().to_dict()).encode() + b"\n"
    # Information only: a full disk must not stop the owner.
    with contextlib.suppress(OSError):
        os.ftruncate(fd, 0)
        os.pwrite(fd, content, 0)


def _read_identity(fd: int) -> ProcessIdentity | None:
    try:
        return ProcessIdentity.from_dict(json.loads(os.pread(fd, _CONTENT_SIZE_MAX, 0)))
    except (OSError, ValueError):
        return None


# Strong: a held lock whose object nobody keeps stays held, and must still be dropped at fork.
_held_locks: set[FileLock] = set()
# Held while a lock is being taken, and during a fork. Reentrant: a signal handler may fork in the middle of a
# try.
_fork_guard = threading.RLock()


def _after_fork_in_child() -> None:
    for lock in _held_locks:
        lock._forget()
    _held_locks.clear()
    _fork_guard.release()


os.register_at_fork(
    before=_fork_guard.acquire, after_in_parent=_fork_guard.release, after_in_child=_after_fork_in_child
)
