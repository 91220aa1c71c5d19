"""What a coordinator does about files: recovery at the start, the log's timer, checkpoints, the clean stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._commit import CommitCore
from .directory import DatabaseDirectory
from .errors import InvalidArgumentError, SettingsMismatchError
from .settings import Settings

__all__ = ["DurableState"]

_NEVER = 3600.0


class DurableState:
    """The durable side of one coordinator; used by its main thread only."""

    def __init__(self, directory: DatabaseDirectory, core: CommitCore, settings: Settings, mode: str) -> None:
        self.mode = mode
        self.outcomes: dict[int, tuple[int, int]] = {}
        self._directory = directory
        self._core = core
        self._settings = settings
        if mode != "none":
            raise InvalidArgumentError(
                f"durability {mode!r} is not built in yet", hint='open with durability="none"'
            )

    def recover(self) -> None:
        """Fill the core with what the directory holds."""
        self._core.start_at(self._directory.incarnation << 32)

    def require(self, durability: str) -> None:
        """Refuse an opener that wants more than this coordinator gives."""
        if self.mode == "none" and durability != "none":
            raise SettingsMismatchError(
                f"the running coordinator keeps no log (durability 'none'), asked for {durability!r}",
                hint="`occamdb stop` it, then open with the durability wanted",
            )

    def next_due(self) -> float:
        """Seconds until `tick` has something to do."""
        return _NEVER

    def tick(self) -> None:
        """Timers."""

    def checkpoint(self, outcomes: Callable[[], dict[int, tuple[int, int]]]) -> dict[str, Any]:
        """Make a checkpoint now."""
        raise InvalidArgumentError("checkpoints are not built in yet")

    def logged_commit(self, version: int) -> dict[str, Any]:
        """What the log holds of one commit."""
        raise InvalidArgumentError("there is no log")

    def finish(self, outcomes: dict[int, tuple[int, int]]) -> None:
        """A clean stop."""

    def figures(self) -> dict[str, Any]:
        """For `stats`."""
        return {}

    def release_core(self) -> None:
        """Let go of the core, so that its memory can be unmapped."""
        self._core = None  # type: ignore[assignment]

    def close(self) -> None:
        """Close what is open."""
