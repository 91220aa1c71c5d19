"""The scene of a campaign: a database directory, its coordinator, and the runner with its workers."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from occamdb.ipc.errors import OccamError
from occamdb.stress.coordinators import wait_until
from occamdb.stress.runner import Runner


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
