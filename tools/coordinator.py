"""Finding and ending the coordinator of a directory, from outside it. Used by the commands and the demo.

1. The process that holds the directory's lock is its coordinator; `coordinator.json` is information only.
2. A signal goes through a pidfd that was checked against the holder's start time: never to a process that merely
   got the same pid.
"""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path
from typing import Any

from occamdb.engine.disk.directory import socket_path
from occamdb.engine.model.control_messages import raise_refusal
from occamdb.engine.model.errors import CoordinatorUnavailable
from occamdb.ipc.control import ControlClient
from occamdb.ipc.errors import ControlUnavailableError
from occamdb.ipc.lock import lock_holder
from occamdb.ipc.process import ProcessIdentity, identify, is_alive

STOP_TIMEOUT_S = 30.0


def coordinator_of(path: Path) -> ProcessIdentity | None:
    """The process that serves a directory; None if none does.

    Raises:
      LockHeldError: the directory is locked, and the holder's identity cannot be read.
    """
    holder = lock_holder(path / "LOCK")
    return holder if holder is not None and is_alive(holder) else None


def stop_coordinator(path: Path, *, timeout: float = STOP_TIMEOUT_S, kill: bool = False) -> int | None:
    """End the coordinator of a directory and wait until it is gone.

    By SIGTERM it finishes the work that it has begun, makes a checkpoint and leaves nothing behind.

    Args:
      path: the database directory.
      timeout: seconds to wait for it.
      kill: by SIGKILL instead; the next open recovers.

    Returns:
      Its pid; None if none was running.

    Raises:
      CoordinatorUnavailable: it was still there at the end of the timeout.
    """
    holder = coordinator_of(path)
    if holder is None:
        return None
    try:
        pidfd = os.pidfd_open(holder.pid)
    except ProcessLookupError:
        return holder.pid
    try:
        # The identity is checked after the pidfd exists: from here on pid and pidfd mean the same process.
        # Not `is_alive`, which says yes for a process that cannot be examined: no other process may get the
        # signal.
        if identify(holder.pid) != holder:
            return holder.pid
        signal.pidfd_send_signal(pidfd, signal.SIGKILL if kill else signal.SIGTERM)
        if not select.select([pidfd], [], [], timeout)[0]:
            raise CoordinatorUnavailable(
                f"the coordinator (pid {holder.pid}) did not end within {timeout:g} s",
                hint="it may be writing a large checkpoint: wait with --timeout, or `occamdb stop --kill`",
                details={"pid": holder.pid, "timeout": timeout},
            )
    except PermissionError:
        raise CoordinatorUnavailable(
            f"the coordinator (pid {holder.pid}) belongs to another user",
            hint="stop it as that user",
            details={"pid": holder.pid},
        ) from None
    finally:
        os.close(pidfd)
    return holder.pid


def ask(path: Path, operation: str, *, timeout: float = 10.0, **fields: Any) -> dict[str, Any]:
    """Ask the running coordinator of a directory over its socket, without attaching as a worker.

    Args:
      path: the database directory.
      operation: "status", "stats", "checkpoint".
      timeout: seconds to wait for the answer.
      fields: the operation's own.

    Raises:
      CoordinatorUnavailable: none is running.
      OccamError: what the coordinator answered.
    """
    try:
        with ControlClient.connect(socket_path(str(path.resolve())), timeout) as client:
            reply = client.call({"op": operation, **fields}, timeout)
    except ControlUnavailableError:
        raise CoordinatorUnavailable(
            f"no coordinator runs for {path}",
            hint="occamdb serve starts one, and so does any program that opens it",
        ) from None
    raise_refusal(reply)
    return reply
