"""The coordinator of a database directory, from outside: find it, signal it, stop it, look for what it left.

It is found through the lock it holds, and signalled only while that very process is alive, so a reused pid is
never hit.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from occamdb.engine.client.launcher import LOG_NAME
from occamdb.engine.disk.directory import read_meta
from occamdb.ipc.errors import LockHeldError
from occamdb.ipc.lock import lock_holder
from occamdb.ipc.process import ProcessIdentity, is_alive
from occamdb.ipc.stale import list_incarnations

STOP_TIMEOUT = 30.0
POLL = 0.002


def coordinator_of(path: str) -> ProcessIdentity | None:
    """The live coordinator of a database directory, None while there is none."""
    try:
        identity = lock_holder(os.path.join(path, "LOCK"))
    except LockHeldError:  # somebody is taking the lock just now and has not written its identity
        return None
    return identity if identity is not None and is_alive(identity) else None


def signal_coordinator(path: str, what: signal.Signals) -> ProcessIdentity | None:
    """Send a signal to the coordinator; returns who got it, None if there is none."""
    identity = coordinator_of(path)
    if identity is None:
        return None
    try:
        os.kill(identity.pid, what)
    except ProcessLookupError:
        return None
    return identity


def stop_coordinator(path: str) -> bool:
    """Ask the coordinator to end cleanly and wait; False if it is still there after STOP_TIMEOUT."""
    identity = signal_coordinator(path, signal.SIGTERM)
    if identity is None:
        return True
    return wait_until(lambda: not is_alive(identity), STOP_TIMEOUT)


def leaked_segments(path: str) -> list[str]:
    """The shared-memory segments of a database whose coordinator has ended; there should be none."""
    meta = read_meta(path)
    if meta is None:
        return []
    return [name for one in list_incarnations(meta.database_id) for name in one.names]


def last_complaint(path: str) -> str:
    """The last line of the coordinators' log: why none comes up, for example."""
    try:
        with open(os.path.join(path, LOG_NAME), errors="replace") as file:
            return (file.read().splitlines() or [""])[-1]
    except OSError:
        return ""


def wait_until(condition: Callable[[], bool], timeout: float) -> bool:
    """Poll a condition; False when the time is up."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL)
    return True
