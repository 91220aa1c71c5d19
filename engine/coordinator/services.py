"""What the control server needs to know of its coordinator, and may ask of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..commit._commit_core import SPIN_HINT_OFFSET, CommitCore
from ..model.settings import Settings
from .durable_state import DurableState

__all__ = ["Services"]


@dataclass(frozen=True, slots=True)
class Services:
    """One coordinator, as seen from its control plane.

    Attributes:
      path: the database directory.
      database_id, incarnation: they name the segments.
      store, bell: the names of the two segments that every worker maps.
      auto: whether the coordinator ends when it has been idle.
      settings: what it runs with.
      core: the commit core, which owns the channels.
      durable: log and checkpoints.
      request_stop: ends the coordinator after this turn of its loop.
    """

    path: str
    database_id: bytes
    incarnation: int
    store: str
    bell: str
    auto: bool
    settings: Settings
    core: CommitCore
    durable: DurableState
    request_stop: Callable[[], None]

    def terms(self) -> dict[str, Any]:
        """What a worker is told when it attaches."""
        return {
            "database_id": self.database_id,
            "incarnation": self.incarnation,
            "settings": self.settings.as_dict(),
            "durability": self.durable.mode,
            "store": self.store,
            "bell": self.bell,
            "ring_size": self.settings.ring_size,
            "spin_offset": SPIN_HINT_OFFSET,
        }

    def check_terms(self, asked: dict[str, Any], durability: str) -> None:
        """Refuse a worker that asks for what this coordinator does not offer."""
        self.settings.require_match(asked)
        self.durable.require(durability)
