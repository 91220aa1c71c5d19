"""The scene of a campaign: a database directory, its coordinator, and the runner with its workers.

The coordinator is found through the lock it holds, and signalled only while that very process is alive, so a reused
pid is never hit.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from occamdb.engine.directory import read_meta
from occamdb.ipc.errors import OccamError
from occamdb.ipc.lock import lock_holder
from occamdb.ipc.process import ProcessIdentity, is_alive
from occamdb.ipc.stale import list_incarnations
from occamdb.stress.runner import Runner

STOP_TIMEOUT = 30.0
POLL = 0.002


def coordinator_of(path: str) -> ProcessIdentity | None:
    """The live coordinator of a database directory, None while there is none."""
    identity = lock_holder(os.path.join(path, "LOCK"))
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


def wait_until(condition: Callable[[], bool], timeout: float) -> bool:
    """Poll a condition; False when the time is up."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL)
    return True


@dataclass(slots=True)
class Scene:
    """What faults act on. `done` counts the faults by name; `notes` tells what happened when."""

    runner: Runner
    dice: Random
    db: Any
    done: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    scratch: Path = Path()

    @property
    def path(self) -> str:
        """The database directory."""
        return self.runner.settings.path

    def count(self, name: str, note: str = "") -> None:
        """Note that a fault was done."""
        self.done[name] = self.done.get(name, 0) + 1
        self.notes.append(f"{time.monotonic() - self.began:9.3f} {name} {note}".rstrip())

    def admin(self, **message: Any) -> bool:
        """Send a control message to the coordinator; False if it could not be reached or refused."""
        try:
            self.db.handle.admin(message)
        except OccamError as error:
            self.notes.append(f"{time.monotonic() - self.began:9.3f} admin {message}: {error}")
            return False
        return True

    def acknowledged(self) -> dict[int, int]:
        """Commits acknowledged so far, by live worker."""
        return {number: self.runner.progress(number) for number in self.runner.alive()}

    def carried_on(self, timeout: float) -> list[int]:
        """Wait until every live worker commits something more; returns the workers that do not."""
        before = self.acknowledged()

        def stuck() -> list[int]:
            alive = set(self.runner.alive())
            return [
                one for one, count in before.items() if one in alive and self.runner.progress(one) <= count
            ]

        wait_until(lambda: not stuck(), timeout)
        return stuck()
