"""An in-memory database's engine: the same commit core, in the process that opened it.

1. The core's lock serialises commits; the calling thread is the commit thread while it holds it. It is held
   inside the core only, never across a bytecode, so nothing that a signal handler does or raises can meet it.
2. Snapshots are read without the lock, exactly as from shared memory.
3. Background work (expiry, reclamation) runs at commits. `admin` calls run it too, so that a quiet database
   catches up. A transaction that begins when a key is due calls `attachment`, which lets the key expire
   first.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...ipc import layout
from ..commit._commit_core import CommitCore
from ..coordinator.figures import core_figures
from ..coordinator.recent_conflicts import conflict_figures, read_conflicts
from ..coordinator.tally import Tallies
from ..disk.directory import DatabaseDirectory
from ..log.recovery import Progress, recover
from ..model.errors import (
    DatabaseClosedError,
    ForkedHandleError,
    StoreFullError,
    TransactionStateError,
    TransactionTimeout,
)
from ..model.limits import Limits, sized
from ..model.public_types import BackupSummary, Durability
from ..model.settings import Settings
from ..transaction._answer import Answer, sequence_of
from ..transaction._view import StoreAttachment
from ..transaction.engine_handle import PinnedSnapshot
from ..transaction.waiting import WaitHub
from .backup import copy_snapshot

__all__ = ["LocalHandle"]

_RING_SIZE = 1 << 20  # unused as a ring; half of it bounds the replies


class LocalHandle:
    """`EngineHandle` over a private commit core; see engine_handle.py for the methods.

    Args:
      settings: sizes and limits; whatever concerns files, processes or rings is ignored.
    """

    durability = log_mode = "none"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.waits = WaitHub(self)
        self._pid = os.getpid()
        self._session = int.from_bytes(os.urandom(8)) >> 1 | 1
        # Both are shared anonymous mappings: pages appear when touched, so `max_store_size` costs nothing by
        # itself. They are shared so that a forked child cannot make the parent's pages copy on write behind
        # our pointers.
        try:
            self._store = mmap.mmap(-1, (settings.max_store_size & ~0xFFFF) + settings.watch_history)
            self._channel = mmap.mmap(-1, layout.channel_size(_RING_SIZE))
        except OSError as error:
            raise StoreFullError(
                f"cannot map {sized(settings.max_store_size)} of memory: {error.strerror}",
                hint="lower max_store_size, or raise the limit on address space (ulimit -v)",
            ) from error
        limits = settings.limits
        self._core = CommitCore(
            self._store,
            -1,
            os.urandom(16),
            1,
            key_size_max=limits.stored_key_size_max,
            value_size_max=limits.value_size_max,
            request_size_max=limits.transaction_size_max,
            snapshot_age_max=settings.snapshot_max_age,
            watch_history=settings.watch_history,
        )
        self._core.open_channel(self._session, self._channel, _RING_SIZE)
        self._attachment: StoreAttachment | None = StoreAttachment(self._store, self._channel)

    def load(self, directory: DatabaseDirectory, progress: Progress | None = None) -> None:
        """Fill the store, which is still empty, with the content of a directory. The directory is not
        changed.
        """
        result = recover(directory, self._core.loader(), progress=progress, repair_disk=False)
        self._core.start_at(result.version, 0)

    @property
    def limits(self) -> Limits:
        return self.settings.limits

    @property
    def session(self) -> int:
        return self._session

    @property
    def orphaned(self) -> bool:
        """Never: the engine is in this process."""
        return False

    def revive(self, limit: float) -> None:
        """Never called."""

    def keep_session(self) -> None:
        """Nothing to do: the keys of an in-memory database end with it."""

    def of(self, base: bytes) -> LocalHandle:
        return self  # all namespaces have one order

    def attachment(self) -> StoreAttachment:
        self._check_usable()
        attachment = self._attachment
        if attachment is None:
            raise DatabaseClosedError()
        self._core.expire()
        return attachment

    def submit(self, request: bytearray, deadline: float | None) -> Answer:
        answer = self.try_submit(request, deadline, patient=True)
        assert answer is not None, "who is patient has an answer"
        return answer

    def try_submit(self, request: bytearray, deadline: float | None, *, patient: bool) -> Answer | None:
        """`submit`. Who is not patient gets None, and nothing was done, if the commit has to wait for a turn."""
        self._check_usable()
        remaining = -1.0 if deadline is None else deadline - time.monotonic()
        if deadline is not None and remaining <= 0:
            raise TransactionTimeout("the deadline passed before the commit was sent")
        if self._attachment is None:
            raise DatabaseClosedError()
        reply = self._core.process(request, remaining, patient)
        if reply is None:
            raise TransactionTimeout("the deadline passed while other threads were committing")
        if not reply:
            return None
        # The core counts under its lock, so that sequences grow in the order of the commits.
        return Answer(self._session, sequence_of(request), reply, self.log_mode)

    def admin(self, message: dict[str, Any]) -> dict[str, Any]:
        self._check_usable()
        if self._attachment is None:
            raise DatabaseClosedError()
        self._core.tick()
        if message.get("kind") == "stats":
            tallies = Tallies()
            tallies.add(self._channel)
            conflicts = read_conflicts(self._channel, self._pid, self._session)
            return core_figures(self._core, tallies) | {
                "durability": "none",
                "pid": self._pid,
                "workers": [],
                "recent_conflicts": conflict_figures(conflicts),
            }
        if message.get("kind") == "check":
            return {"problem": self._core.check()}
        raise TransactionStateError(
            f"an in-memory database has no {message.get('kind')}",
            hint="open a directory with occamdb.open(path) for files, logs and checkpoints",
        )

    def copy_to(
        self, snapshot: PinnedSnapshot, destination: Path, progress: Callable[[int], None] | None
    ) -> BackupSummary:
        # What is kept nowhere has no durability of its own: the copy gets the usual one.
        return copy_snapshot(snapshot, self._store, destination, str(Durability.STANDARD), progress)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._attachment is None

    def close(self) -> None:
        if self._pid != os.getpid():
            return
        attachment, self._attachment = self._attachment, None
        if attachment is not None:
            # The memory is freed when the last open transaction releases the attachment.
            attachment.shut_down()

    def __reduce__(self) -> Any:
        raise TypeError(
            "an in-memory database cannot be pickled: it lives in one process; use occamdb.open(path)"
        )

    def _check_usable(self) -> None:
        if self._pid != os.getpid():
            raise ForkedHandleError(
                "an in-memory database belongs to the process that opened it",
                hint="open a directory with occamdb.open(path) to share data between processes",
            )
