"""The seam between a database's worker side and whatever commits for it.

Two engines stand behind it: a coordinator process reached through shared-memory rings (client/shared_handle.py), and
the in-process commit core of `open_in_memory` (client/local_handle.py). Everything above (transactions, retries,
snapshots, primitives)
is the same code for both. An engine elsewhere, a distributed one say, would implement these few methods.

1. A handle may be used from several threads; each call of `submit` is one commit request and waits for its answer.
2. After a fork the child's calls of `attachment` and `submit` attach anew by themselves.
3. `submit` returns exactly one outcome for a request, across restarts of the coordinator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ..model.limits import Limits
from ..model.settings import Settings

if TYPE_CHECKING:
    from ._view import StoreAttachment

__all__ = ["EngineHandle"]


@runtime_checkable
class EngineHandle(Protocol):
    """What a database needs from its engine."""

    @property
    def limits(self) -> Limits:
        """The largest key, value and transaction this engine takes."""

    @property
    def settings(self) -> Settings:
        """The engine's settings, as agreed when it was opened."""

    @property
    def durability(self) -> str:
        """What an acknowledged commit survives: "none", "standard" or "always"."""

    def attachment(self) -> StoreAttachment:
        """The store to begin snapshots on.

        Attaches anew after a fork, when a new coordinator marked the store superseded, or when none could mark it any
        more; else returns the same object. Asked when the last one cannot be used, and at a begin about once a second.
        May block while attaching, for as long as a coordinator takes to start.

        Raises:
          CoordinatorUnavailable: there is no store to attach to and none could be made in time.
          DatabaseClosedError: after `close`.
        """

    def submit(self, request: bytearray, deadline: float | None) -> bytes:
        """Send one commit request and wait for its reply.

        Args:
          request: as in docs/wire-format.md. The sequence at offset 8 is filled in here, so that afterwards
            (session id, sequence) names the commit.
          deadline: when to give up, on the clock of `time.monotonic`; None: the handle's own timeout.

        Returns:
          The reply message: the true outcome, also when the coordinator died in between and was restarted.

        Raises:
          CoordinatorUnavailable: nothing was committed, and no coordinator came up in time.
          CommitOutcomeUnknown: it may have been committed; no coordinator came back in time to tell.
          TransactionTimeout: the deadline passed before the request was sent.
        """

    def session_id(self) -> int:
        """The session whose sequences the calling thread's last `submit` used."""

    @property
    def log_mode(self) -> str:
        """What the engine does with every commit: "none", "standard" or "always". It may do more for this handle."""

    def submitted_durability(self, durable: bool) -> str:
        """What the calling thread's last `submit` was given, never more than was done.

        Args:
          durable: whether the request asked to be synced.
        """

    def admin(self, message: dict[str, Any]) -> dict[str, Any]:
        """Ask the control plane: `{"kind": "checkpoint" | "stats" | ...}`; returns its answer."""

    def close(self) -> None:
        """Let go of the engine. Open transactions on it end with errors; closing twice is harmless."""
