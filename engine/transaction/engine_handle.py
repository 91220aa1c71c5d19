"""The interface between the worker's side of a database and the engine that commits for it.

There are three kinds of engine: a coordinator process reached through shared-memory rings
(client/shared_handle.py), the in-process commit core of `open_in_memory` (client/local_handle.py), and a server
(remote/handle.py). Everything above them (transactions, retries, snapshots, primitives) is the same code for all.

1. A handle may be used from several threads; each call of `submit` is one commit request and waits for its
   answer.
2. After a fork the child's first call of `attachment` or `submit` attaches anew.
3. `submit` returns exactly one outcome for a request, across restarts of the coordinator.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ..model.limits import Limits
from ..model.public_types import BackupSummary
from ..model.settings import Settings

if TYPE_CHECKING:
    from ._answer import Answer
    from ._view import SnapshotSource
    from .waiting import WaitHub

__all__ = ["EngineHandle", "PinnedSnapshot"]


class PinnedSnapshot(Protocol):
    """What an engine needs to know about a snapshot to copy it. A read-only transaction is one."""

    @property
    def start_version(self) -> int:
        """The version of the snapshot."""

    @property
    def expired(self) -> bool:
        """Whether the snapshot was revoked."""

    @property
    def store_incarnation(self) -> int:
        """The incarnation of the store that holds the snapshot."""


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

    def of(self, base: bytes) -> EngineHandle:
        """The same engine for a namespace, whose stored keys begin with `base`: itself, where all share one order."""

    def attachment(self) -> SnapshotSource:
        """The source to begin snapshots on: the store of this machine, or a server.

        Attaches anew after a fork, when a new coordinator marked the store superseded, or when no coordinator
        can mark it any longer. Otherwise it returns the same object. A database asks when it cannot use its
        last attachment, and about once a second when a transaction begins. Attaching may block as long as a
        coordinator takes to start.

        Raises:
          CoordinatorUnavailable: there is no store to attach to and none could be made in time.
          DatabaseClosedError: after `close`.
        """

    def submit(self, request: bytearray, deadline: float | None) -> Answer:
        """Seal one commit request, send it and wait for its outcome.

        Args:
          request: as in docs/wire-format.md, without a sequence: `_answer.seal` fills that in.
          deadline: when to give up, on the clock of `time.monotonic`; None: the handle's own timeout.

        Returns:
          The true outcome, even if the coordinator died and was restarted in the meantime.

        Raises:
          CoordinatorUnavailable: nothing was committed, and no coordinator came up in time.
          CommitOutcomeUnknown: it may have been committed; no coordinator came back in time to tell.
          TransactionTimeout: the deadline passed before the request was sent.
        """

    @property
    def log_mode(self) -> str:
        """What the engine does with every commit: "none", "standard" or "always".

        It may do more for this handle's commits: `Answer.durability` says what it did for one of them.
        """

    @property
    def waits(self) -> WaitHub:
        """Where threads of this handle sleep until something changes."""

    @property
    def session(self) -> int:
        """The session of this handle in this process: what its ephemeral keys are bound to."""

    def keep_session(self) -> None:
        """Called before a commit that binds keys: from now on the session must outlive a restart of the coordinator.

        Raises:
          CoordinatorUnavailable: no coordinator could be told in time.
        """

    def admin(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a message such as `{"kind": "stats"}` to the control plane; returns the answer."""

    def copy_to(
        self, snapshot: PinnedSnapshot, destination: Path, progress: Callable[[int], None] | None
    ) -> BackupSummary:
        """Write a new database with what a snapshot of this engine holds; see client/backup.py."""

    def close(self) -> None:
        """Close the engine. Calls on its open transactions raise errors from then on. Closing twice is
        harmless."""
