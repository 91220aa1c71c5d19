"""The control channel: a unix stream socket carrying msgpack dicts.

The coordinator's control plane listens (`ControlListener`, non-blocking `ServerConnection`s in its selector
loop); workers and tools connect (`ControlClient`, blocking with a deadline). End of file tells each side that
the other died.

Invariants:
1. Requests and replies alternate on a connection. A client that gave up on a reply closes the connection, so
   a late reply is never taken for another one's.
2. Sockets are close-on-exec, mode 0600 from the instant they have a name, and both sides check the user.
3. At most one descriptor travels with a message, and only to the listener. It is closed with its connection
   unless the owner took it.
4. Paths of any length work: to keep within the kernel's limit of 107 bytes, the directory is named through
   /proc/self/fd.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import socket
import stat
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Final, Self

from .errors import (
    ControlError,
    ControlForeignError,
    ControlProtocolError,
    ControlTimeoutError,
    ControlUnavailableError,
)
from .frames import FRAME_SIZE_MAX, FrameParser, pack_frame

OUTPUT_SIZE_MAX: Final = 2 * FRAME_SIZE_MAX
SOCKET_MODE: Final = 0o600
_CREDENTIALS: Final = struct.Struct("3i")
_DESCRIPTOR: Final = struct.Struct("i")
_SOCKET_PATH_MAX: Final = 107
_RECEIVE_SIZE: Final = 65536
_BACKLOG: Final = 128
_CONNECT_PAUSE: Final = 0.005
# Descriptors that the listener's process keeps for itself when its clients have taken all the others.
DESCRIPTORS_KEPT: Final = 16
_GONE_EVENTS: Final = select.POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL


# ---- sockets ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _address(path: str) -> Iterator[str]:
    """An address the kernel takes for `path`, whatever its length; valid inside the `with`."""
    if len(os.fsencode(path)) <= _SOCKET_PATH_MAX:
        yield path
        return
    directory, name = os.path.split(path)
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        short = f"/proc/self/fd/{fd}/{name}"
        if len(os.fsencode(short)) > _SOCKET_PATH_MAX:
            raise ControlError(
                f"socket name {name!r} has {len(os.fsencode(name))} bytes: too long for a socket"
            )
        yield short
    finally:
        os.close(fd)


def _peer_credentials(sock: socket.socket) -> tuple[int, int, int]:
    """(pid, uid, gid) of the peer when it connected (or listened)."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    return pid, uid, gid


class ControlClient:
    """One connection to a coordinator. `call` may be used by several threads, one at a time gets through."""

    def __init__(self, sock: socket.socket, path: str) -> None:
        self._socket = sock
        self._parser = FrameParser()
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self.path = path
        self.peer_pid, self.peer_uid, _ = _peer_credentials(sock)

    @classmethod
    def connect(cls, path: str | os.PathLike[str], timeout: float) -> Self:
        """Connect to the socket at `path`.

        Raises:
          ControlUnavailableError: no such socket, nobody listens, or its queue stays full too long.
          ControlForeignError: the listener belongs to another user.
          OSError: no descriptors left for a socket.
        """
        name = os.fspath(path)
        deadline = time.monotonic() + timeout
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _address(name) as address:
                while not _try_connect(sock, address, deadline):
                    time.sleep(_CONNECT_PAUSE)
            client = cls(sock, name)
            if client.peer_uid != os.geteuid() and os.geteuid() != 0:
                raise _foreign(name, client.peer_uid)
            return client
        except OSError as error:
            sock.close()
            owner = _owner(name) if error.errno == errno.EACCES else None
            if owner not in (None, os.geteuid()):
                raise _foreign(name, owner) from error
            raise ControlUnavailableError(
                f"no coordinator answers at {name}: {error.strerror or error}", details={"errno": error.errno}
            ) from error
        except BaseException:
            sock.close()
            raise

    def call(self, message: dict[str, Any], timeout: float | None, *, descriptor: int = -1) -> dict[str, Any]:
        """Send one message and return its reply. Blocks up to `timeout` seconds (None: for ever).

        `descriptor`: an open file that the peer gets a duplicate of; -1: none.

        Any failure, an exception of a signal handler included, closes the connection: a reply may still come.

        Raises:
          ControlTimeoutError: no whole reply in time.
          ControlUnavailableError: the peer is gone, or an earlier call failed.
          ControlProtocolError: the message is too large (the connection stays good), or the reply is bad.
        """
        frame = pack_frame(message)
        deadline = None if timeout is None else time.monotonic() + timeout
        if not self._lock.acquire(timeout=_lock_timeout(timeout)):
            raise ControlTimeoutError(f"another thread's call took longer than {timeout:.3g} s")
        try:
            return self._exchange(frame, deadline, descriptor)
        except TimeoutError as error:
            self.close()
            raise ControlTimeoutError(f"no reply from {self.path} within {timeout} s") from error
        except OSError as error:
            self.close()
            raise ControlUnavailableError(f"the coordinator at {self.path} is gone: {error}") from error
        except BaseException:
            self.close()
            raise
        finally:
            self._lock.release()

    def _exchange(self, frame: bytes, deadline: float | None, descriptor: int) -> dict[str, Any]:
        # A peer that closed without reading may have said why.
        with contextlib.suppress(BrokenPipeError):
            view = memoryview(frame)
            while view:
                self._arm(deadline)
                if descriptor < 0:
                    sent = self._socket.send(view, socket.MSG_NOSIGNAL)
                else:
                    # It goes with the first byte of the message.
                    sent = socket.send_fds(self._socket, [view], [descriptor], socket.MSG_NOSIGNAL)
                    descriptor = -1
                view = view[sent:]
        while True:
            self._arm(deadline)
            data = self._socket.recv(_RECEIVE_SIZE)
            if not data:
                raise ConnectionResetError("end of file")
            messages = self._parser.feed(data)
            if len(messages) > 1:
                raise ControlProtocolError(f"{len(messages)} replies to one message")
            if messages:
                return messages[0]

    def _arm(self, deadline: float | None) -> None:
        """Give the next socket call what is left of the time."""
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)

    def fileno(self) -> int:
        """The socket's descriptor, -1 once closed."""
        return self._socket.fileno()

    def peer_gone(self) -> bool:
        """Whether the peer has closed or died. Never blocks, takes nothing from the stream."""
        fd = self._socket.fileno()
        if fd < 0:
            return True
        # Not a recv: a socket with a timeout would wait for data in spite of MSG_DONTWAIT.
        poller = select.poll()
        poller.register(fd, select.POLLRDHUP)
        return any(event & _GONE_EVENTS for _, event in poller.poll(0))

    def hang_up(self) -> None:
        """End the connection and keep the descriptor: a thread that waits on it wakes, and closes it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection; in a forked child, the child's copy of it alone. Idempotent."""
        if self._pid == os.getpid():
            # A child that another thread forked may have a copy without knowing it. The peer must see the end
            # all the same.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _owner(path: str) -> int | None:
    """The user a socket belongs to, None if that cannot be seen."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_uid if stat.S_ISSOCK(found.st_mode) else None


def _foreign(path: str, uid: int | None) -> ControlForeignError:
    return ControlForeignError(
        f"{path}: the listener runs as user {uid}, not {os.geteuid()}",
        hint="only its own user and root may connect",
        details={"path": path, "listener_uid": uid, "uid": os.geteuid()},
    )


def _lock_timeout(timeout: float | None) -> float:
    """A timeout as `Lock.acquire` wants it."""
    return -1 if timeout is None else min(max(timeout, 0), threading.TIMEOUT_MAX)


def _try_connect(sock: socket.socket, address: str, deadline: float) -> bool:
    """One attempt; False when the listener's queue is full and there is time left."""
    sock.settimeout(max(deadline - time.monotonic(), 0.001))
    try:
        sock.connect(address)
    except BlockingIOError:
        if time.monotonic() >= deadline:
            raise
        return False
    return True


def _descriptor_limit() -> int:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


# ---- server side ------------------------------------------------------------------------------------


class ServerConnection:
    """The coordinator's end of one connection; never blocks. Register it with a selector by `fileno`.

    Attributes:
      pid, uid, gid: of the peer when it connected.
      eof: the peer has closed or died; nothing more will come.
      descriptors_lost: the peer sent a descriptor for which this process had no room.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._parser = FrameParser()
        self._output = bytearray()
        self._descriptor = -1
        self.eof = False
        self.descriptors_lost = False
        self.pid, self.uid, self.gid = _peer_credentials(sock)

    def fileno(self) -> int:
        """The socket's descriptor, -1 once closed."""
        return self._socket.fileno()

    def receive(self) -> list[dict[str, Any]]:
        """Messages complete after one read; sets `eof` at the end. Call when the selector says readable.

        Raises:
          ControlProtocolError: a malformed frame: close the connection.
        """
        try:
            data = self._receive_part()
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            self.eof = True
            return []
        return self._parser.feed(data)

    def _receive_part(self) -> bytes:
        # Room for one descriptor: the kernel closes any further one. It also closes what finds no free number here.
        # Not socket.recv_fds, which does not pass flags on.
        data, ancillary, flags, _ = self._socket.recvmsg(
            _RECEIVE_SIZE, socket.CMSG_LEN(_DESCRIPTOR.size), socket.MSG_CMSG_CLOEXEC
        )
        if flags & socket.MSG_CTRUNC:
            self.descriptors_lost = True
        for level, kind, content in ancillary:
            if (level, kind) != (socket.SOL_SOCKET, socket.SCM_RIGHTS) or len(content) < _DESCRIPTOR.size:
                continue
            (descriptor,) = _DESCRIPTOR.unpack_from(content)
            # One at a time. The last descriptors are kept for this process itself, as in `ControlListener.accept`.
            if self._descriptor >= 0 or descriptor >= _descriptor_limit() - DESCRIPTORS_KEPT:
                os.close(descriptor)
                self.descriptors_lost = True
            else:
                self._descriptor = descriptor
        return data

    def take_descriptor(self) -> int:
        """The descriptor that the peer sent, owned by the caller from here on; -1: none."""
        descriptor, self._descriptor = self._descriptor, -1
        self.descriptors_lost = False
        return descriptor

    def queue(self, message: dict[str, Any]) -> None:
        """Add a reply to the output and write what the socket takes.

        Raises:
          ControlProtocolError: the reply is too large, or the peer let over OUTPUT_SIZE_MAX bytes pile up.
        """
        self._output += pack_frame(message)
        self.flush()
        if len(self._output) > OUTPUT_SIZE_MAX:
            raise ControlProtocolError(
                f"process {self.pid} does not read its replies: {len(self._output)} bytes wait, "
                f"the limit is {OUTPUT_SIZE_MAX}"
            )

    def flush(self) -> bool:
        """Write what the socket takes. Whether nothing is left."""
        while self._output and not self.eof:
            try:
                # MSG_NOSIGNAL: a host program may have set SIGPIPE back to its deadly default.
                sent = self._socket.send(self._output, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return False
            except OSError:
                self.eof = True
                break
            del self._output[:sent]
        return not self._output

    @property
    def wants_write(self) -> bool:
        """Output waits for the socket: select for writing too."""
        return bool(self._output) and not self.eof

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._socket.close()
        descriptor = self.take_descriptor()
        if descriptor >= 0:
            os.close(descriptor)


class ControlListener:
    """The coordinator's listening socket, non-blocking.

    A socket left at `path` by a dead coordinator is replaced: the caller holds the directory's lock.

    Args:
      path: of any length.
      turned_away: makes the refusal that a client is sent for which there is no descriptor. DESCRIPTORS_KEPT
        descriptors are left to the caller.

    Raises:
      ControlError: something that is not a socket is there, or it cannot be bound.
    """

    def __init__(
        self, path: str | os.PathLike[str], turned_away: Callable[[], dict[str, Any]] | None = None
    ) -> None:
        self.path = os.fspath(path)
        self._turned_away = turned_away
        self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._remove_stale()
            # Before bind: the name is made with this mode, so nobody can connect in between.
            os.fchmod(self._socket.fileno(), SOCKET_MODE)
            with _address(self.path) as address:
                self._socket.bind(address)
            self._inode = os.lstat(self.path).st_ino
            self._socket.listen(_BACKLOG)
            self._socket.setblocking(False)
        except OSError as error:
            self._release()
            raise ControlError(
                f"cannot listen at {self.path}: {error.strerror}",
                hint="the directory must be writable and its filesystem must support sockets",
                details={"path": self.path, "errno": error.errno},
            ) from error
        except BaseException:
            self._release()
            raise

    def _remove_stale(self) -> None:
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise ControlError(f"{self.path} is in the way and is not a socket", hint="move it away")
        os.unlink(self.path)

    def fileno(self) -> int:
        """The socket's descriptor, -1 once closed."""
        return self._socket.fileno()

    def accept(self) -> ServerConnection | None:
        """The next connection; None if there is none, or if it was refused (another user, no descriptors)."""
        try:
            sock, _ = self._socket.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._refuse_one()
            return None
        connection = ServerConnection(sock)
        if connection.uid not in (os.geteuid(), 0):
            connection.close()
            return None
        # The kernel gives out the lowest free descriptor, so all below are taken.
        if self._turned_away is not None and sock.fileno() >= _descriptor_limit() - DESCRIPTORS_KEPT:
            self._turn_away(sock)
            return None
        return connection

    def _turn_away(self, sock: socket.socket) -> None:
        frame = b"" if self._turned_away is None else pack_frame(self._turned_away())
        with sock, contextlib.suppress(OSError):
            sock.send(frame, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)

    def _refuse_one(self) -> None:
        """Out of descriptors: accept one connection with the reserved descriptor, and close it.

        Otherwise its peer would not be told, and the selector would report it for ever.
        """
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1
        with contextlib.suppress(OSError):
            self._turn_away(self._socket.accept()[0])
        with contextlib.suppress(OSError):
            self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _release(self) -> None:
        self._socket.close()
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1

    def close(self) -> None:
        """Stop listening and remove the name, if it is still ours. Idempotent."""
        if self._socket.fileno() < 0:
            return
        with contextlib.suppress(FileNotFoundError):
            if os.lstat(self.path).st_ino == self._inode:
                os.unlink(self.path)
        self._release()
