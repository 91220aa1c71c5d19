"""What a handle for event loops passes on to the handle that it wraps: everything but begins and commits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from .engine_handle import EngineHandle

if TYPE_CHECKING:
    from ..model.limits import Limits
    from ..model.public_types import BackupSummary
    from ..model.settings import Settings
    from ._answer import Answer
    from .engine_handle import PinnedSnapshot
    from .waiting import WaitHub

__all__ = ["ForwardingHandle"]


class ClosableHandle(EngineHandle, Protocol):
    """An engine that says whether it was closed."""

    @property
    def closed(self) -> bool:
        """Whether it was closed."""


H = TypeVar("H", bound=ClosableHandle)


class ForwardingHandle(Generic[H]):
    """The methods of `EngineHandle` that another handle answers; see engine_handle.py.

    Args:
      inner: that handle.
    """

    def __init__(self, inner: H) -> None:
        self.inner = inner

    @property
    def limits(self) -> Limits:
        return self.inner.limits

    @property
    def settings(self) -> Settings:
        return self.inner.settings

    @property
    def durability(self) -> str:
        return self.inner.durability

    @property
    def log_mode(self) -> str:
        return self.inner.log_mode

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self.inner.closed

    @property
    def session(self) -> int:
        return self.inner.session

    def keep_session(self) -> None:
        """Nothing yet: it may have to wait, so `commit` does it in a thread."""

    def submit(self, request: bytearray, deadline: float | None) -> Answer:
        return self.inner.submit(request, deadline)

    @property
    def waits(self) -> WaitHub:
        """Where tasks and threads of this handle sleep until something changes."""
        return self.inner.waits

    def copy_to(
        self, snapshot: PinnedSnapshot, destination: Path, progress: Callable[[int], None] | None
    ) -> BackupSummary:
        return self.inner.copy_to(snapshot, destination, progress)

    def admin(self, message: dict[str, Any]) -> dict[str, Any]:
        return self.inner.admin(message)
