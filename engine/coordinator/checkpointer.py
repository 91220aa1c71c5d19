"""When a coordinator writes checkpoints: in the background while it serves, and at a clean stop.

The control plane's main thread calls everything here. A checkpoint is written in a thread of its own, so that
workers can attach meanwhile.

1. A checkpoint pins its version first and asks for the sessions' outcomes afterwards. An outcome is noted
   before its commit is published, so the table has the outcome of every commit up to the pinned version.
2. The log is synced up to the pinned version before the checkpoint is named (`_sync_log`).
3. A clean stop writes its checkpoint while commits go on (`ready_to_stop`). What is committed meanwhile is
   only in the log, which is synced and closed once the commit thread has ended. Checkpoint and log together
   are everything.
4. A log that failed takes no more commits, and what it acknowledged before may be in memory only. A
   checkpoint of the last version saves that. An empty segment behind it (`begin_anew`) keeps a recovery from
   reading the failed log, whose bytes may be lost by then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from ..commit._commit_core import CommitCore
from ..disk.directory import DatabaseDirectory
from ..disk.reserve import keep_reserve
from ..log.checkpoint import CheckpointInfo, make_room, write_checkpoint
from ..log.recovery import RecoveryResult
from ..log.wal_writer import begin_anew
from ..model.errors import SnapshotExpired
from ..model.settings import Settings
from .complaints import complain

__all__ = ["Checkpointer", "OutcomesFunction"]

OutcomesFunction = Callable[[], dict[int, tuple[int, int]]]

_NEVER = 3600.0
_RETRY_SECONDS = 5.0
_RETRY_FIRST, _RETRY_LAST = 0.25, 30.0  # when the log failed: what it acknowledged waits to be saved
_BRIEF_SECONDS = 0.05  # a checkpoint that commits may wait for
# Versions: more than a batch has, times a few coordinators that died soon after each other. As many as
# `Loader.places`.
_UNANSWERED_MAX = 1024
_ASKED_SECONDS = 60.0
_DUTY, _DUTY_FAR_BEHIND = 0.3, 0.9
_FAR_BEHIND = 4  # times `checkpoint_bytes`


class Checkpointer:
    """The checkpoints of one coordinator.

    Args:
      directory: opened, LOCK held.
      core: the commit core whose store is written.
      settings: of the coordinator: when a checkpoint is due.
      store: the store segment's mapping.
    """

    def __init__(
        self, directory: DatabaseDirectory, core: CommitCore, settings: Settings, store: Any
    ) -> None:
        self.leaving = False  # a stop is wanted, and the last checkpoint was begun
        self._directory = directory
        self._core: CommitCore | None = core
        self._settings = settings
        self._store = store
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._last: CheckpointInfo | None = None
        self._last_error = ""
        self._checkpointed_version = 0
        self._checkpointed_bytes = 0
        self._saved = False  # the log failed, and all that it acknowledged is safe without it
        self._failures = 0  # checkpoints in a row that could not be made
        self._prepared = False  # the last checkpoint before the stop is there
        self._next_checkpoint = 0.0
        self._not_before = 0.0  # after a failure: no further try until then
        self._log_errors = 0  # when the last checkpoint began
        self._log_from = 0  # commits after this version may be asked for, until ...
        self._asked_until = 0.0

    def continue_after(self, result: RecoveryResult) -> None:
        """Take over what recovery found: the version of its checkpoint, and the log behind it."""
        self._checkpointed_version = result.checkpoint_version if not result.checkpoint_advised else 0
        # The replayed bytes count, or the log would grow without bound under coordinators that never live
        # long.
        self._checkpointed_bytes = -result.log_bytes
        # Workers without an answer will ask for the result of their last commit, and only the log has it.
        self._log_from = max(0, result.log_version - _UNANSWERED_MAX)
        self._asked_until = time.monotonic() + _ASKED_SECONDS
        self._schedule()

    def _schedule(self) -> None:
        self._next_checkpoint = time.monotonic() + (self._settings.checkpoint_interval or _NEVER)

    def _running(self) -> CommitCore:
        assert self._core is not None
        return self._core

    # ---- in the background --------------------------------------------------------------------------------

    def tick(self, outcomes: OutcomesFunction) -> None:
        """Begin a checkpoint if one is due."""
        if self._is_due(time.monotonic()):
            self._begin(outcomes)

    def _is_due(self, now: float) -> bool:
        core = self._running()
        if core.log is None or self._thread is not None or self.leaving:
            return False
        if core.log_poisoned:
            # Wait until the last version is known: a commit under way may have been logged before the sync
            # failed.
            return core.commits_over and not self._saved and now >= self._not_before
        if (
            core.log_bytes - self._checkpointed_bytes >= self._settings.checkpoint_bytes
            # The disk may be full: a checkpoint frees what the log takes.
            or core.log_errors > self._log_errors
        ):
            return now >= self._not_before
        return now >= self._next_checkpoint and core.committed_version > self._checkpointed_version

    def _begin(self, outcomes: OutcomesFunction) -> None:
        if self._running().log_errors > self._log_errors:
            self._log_errors = self._running().log_errors
            self._not_before = time.monotonic() + _RETRY_SECONDS
        self._thread = threading.Thread(
            target=self._in_background, args=(outcomes,), name="checkpoint", daemon=True
        )
        try:
            self._thread.start()
        except RuntimeError as error:  # this user can have no more threads
            self._thread = None
            self._note_failure(error)
            self._next_checkpoint = max(self._next_checkpoint, self._not_before)

    def _in_background(self, outcomes: OutcomesFunction) -> None:
        core = self._running()
        try:
            # Read this first: if it is set, the version that is read after it is the last.
            over = core.commits_over
            if core.committed_version > self._checkpointed_version:
                self._write(outcomes, duty=self._duty())
            elif over:
                pass
            elif make_room(self._directory, self._kept_log()):
                keep_reserve(self._directory)
            if over:
                self._begin_anew(core.committed_version)
            elif self.leaving:
                # Sync as much of the log as possible now: commits wait for the rest.
                self._sync_log()
            self._failures = 0
            self._prepared = self.leaving
        except Exception as error:
            if not self._stopping.is_set():
                self._note_failure(error)
        finally:
            self._schedule()
            self._thread = None

    def _duty(self) -> float:
        """Share of its time that a checkpoint in the background works."""
        if self._running().log_poisoned:
            return 1.0
        # Be quicker if a stop waits for this checkpoint, or if the last one was given up because the store
        # was full.
        if self.leaving or self._failures:
            return _DUTY_FAR_BEHIND
        # If coordinators die before they finish a checkpoint, each recovery replays more than the one before.
        behind = self._running().log_bytes - self._checkpointed_bytes
        return _DUTY if behind < _FAR_BEHIND * self._settings.checkpoint_bytes else _DUTY_FAR_BEHIND

    def _note_failure(self, error: Exception) -> None:
        self._last_error = f"no checkpoint: {error}"
        pause = _RETRY_SECONDS
        if self._running().log_poisoned:
            pause = min(_RETRY_FIRST * 2 ** min(self._failures, 10), _RETRY_LAST)
        self._failures += 1
        self._not_before = time.monotonic() + pause
        complain(self._last_error)

    # ---- one checkpoint -----------------------------------------------------------------------------------

    def _write(self, outcomes: OutcomesFunction, *, duty: float) -> CheckpointInfo:
        """Write a checkpoint of the newest version."""
        core = self._running()
        written = core.log_bytes
        version = core.pin()
        try:
            self._sync_log()
            table = [(session, *outcome) for session, outcome in outcomes().items()]
            self._last = write_checkpoint(
                self._directory,
                memoryview(self._store),
                version,
                table,
                duty=duty,
                still_wanted=self._check_wanted,
                log_from=self._kept_log(),
            )
        finally:
            core.unpin()
        self._checkpointed_version, self._checkpointed_bytes = version, written
        self._last_error = ""
        keep_reserve(self._directory)
        return self._last

    def _sync_log(self) -> None:
        """Get the log on disk up to the version just pinned; commits go on meanwhile.

        If the power failed with a checkpoint ahead of the log, there would be a hole before the next run's
        segment. The log could then no longer stand in for the checkpoint.

        Raises:
          OSError: the sync failed, which has poisoned the log.
        """
        core = self._running()
        # A closed log was synced. One whose sync failed never will be: the checkpoint saves what it
        # acknowledged.
        if core.log is not None and not core.log_poisoned:
            core.log.sync_in_background(wait=True)

    def _kept_log(self) -> int | None:
        return self._log_from if time.monotonic() < self._asked_until else None

    def _check_wanted(self) -> None:
        if self._running().pin_revoked():
            raise SnapshotExpired("the store was full, so the checkpoint's snapshot was revoked")
        if self._stopping.is_set():
            raise SnapshotExpired("the coordinator stops")

    def _begin_anew(self, version: int) -> None:
        """The last version is in a checkpoint: keep every recovery from reading the failed log."""
        begin_anew(self._directory, version)
        self._saved = True

    # ---- on request ---------------------------------------------------------------------------------------

    def request(self, outcomes: OutcomesFunction) -> dict[str, Any]:
        """Make a checkpoint, or report on the one being made.

        Returns at once: {"running": True} until it is done, then {"running": False, version, bytes, rows,
        seconds}.
        """
        if self._thread is None and self._checkpointed_version < self._running().committed_version:
            self._last_error = ""
            self._begin(outcomes)
        return self.state()

    def state(self) -> dict[str, Any]:
        """Of the last checkpoint: whether one is running, its version, size, time, and what went wrong."""
        info = self._last
        return {
            "running": self._thread is not None,
            "version": self._checkpointed_version,
            "path": info.path if info else "",
            "bytes": info.size if info else 0,
            "rows": info.rows if info else 0,
            "seconds": info.seconds if info else 0.0,
            "error": self._last_error,
            "failures": self._failures,
            "saved": self._saved,
        }

    # ---- the end ------------------------------------------------------------------------------------------

    def ready_to_stop(self, outcomes: OutcomesFunction) -> bool:
        """Whether the commit thread may end now. Call it again until it may; commits go on meanwhile.

        The first call begins a checkpoint. If one is under way, that is given up, because it may be nearly as
        old as its pin. There is only one such checkpoint, so that a stop under load ends. Without a log there
        is none: it would be out of date at once.
        """
        core = self._running()
        if core.log is None or self._saved:
            return True
        if not self.leaving:
            self.leaving, self._prepared = True, False
            self._stopping.set()
        if self._stopping.is_set():
            if self._thread is not None:
                return False
            self._stopping.clear()
            self._prepared = core.committed_version == self._checkpointed_version
            if self._prepared:
                return True
            self._begin(outcomes)
        return self._thread is None

    def stay(self) -> None:
        """The stop is no longer wanted: a worker attached in the meantime."""
        if self.leaving:
            self.leaving = False
            self._stopping.clear()

    def end(self) -> None:
        """Make the checkpoint under way give up, and wait for that. No other one begins until `finish`."""
        self._stopping.set()
        thread = self._thread
        if thread is not None:
            thread.join()

    def finish(self, outcomes: OutcomesFunction, *, logged: bool) -> None:
        """Write what is missing at a clean stop. REQUIRES: the commit thread has ended, and `end` was called.

        A checkpoint is written if the log does not have the rest (there is none, or it failed), if none could
        be written before the stop, or if writing it takes only a moment.

        Args:
          logged: whether everything acknowledged is in the log, on disk.

        Raises:
          OSError, OccamError: it could not be written.
        """
        self._stopping.clear()
        core = self._running()
        version = core.committed_version
        brief = self._last is not None and self._last.seconds < _BRIEF_SECONDS
        if version > self._checkpointed_version and (brief or not (logged and self._prepared)):
            self._write(outcomes, duty=1.0)
        if core.log is not None and not logged and not self._saved:
            self._begin_anew(version)

    def release_core(self) -> None:
        """Drop the references to the core and the store, so that their memory can be unmapped."""
        self._core = None
        self._store = None
