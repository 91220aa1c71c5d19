"""What a coordinator does about files: recovery at the start, log, checkpoints, and the clean stop.

The control plane's main thread calls everything here. Two things run in threads of their own, so that workers
can attach meanwhile: the timer that syncs the log (log_sync.py), and a checkpoint (checkpointer.py). Only the
commit thread writes the log; `sync_in_background` is made for other threads.
"""

from __future__ import annotations

import time
from typing import Any

from ..commit._commit_core import CommitCore
from ..disk.directory import DatabaseDirectory
from ..log.recovery import Progress, RecoveryResult, recover
from ..log.wal_writer import start_log
from ..model.errors import InvalidArgumentError, SettingsMismatchError
from ..model.public_types import Durability
from ..model.settings import Settings
from .checkpointer import Checkpointer, OutcomesFunction
from .complaints import complain
from .log_sync import LogSync
from .logged import LoggedCommits

__all__ = ["DurableState", "OutcomesFunction", "require_durability"]

_NEVER = 3600.0
_STOP_POLL = 0.005
_RESERVE_SECONDS = 60.0


def require_durability(name: str) -> None:
    """Refuse a durability that does not exist.

    Raises:
      InvalidArgumentError: it is not the value of a `Durability`.
    """
    known = [choice.value for choice in Durability]
    if name not in known:
        raise InvalidArgumentError(
            f"durability {name!r} is unknown", hint=f"choose one of {', '.join(map(repr, known))}"
        )


def _agreed(asked: str, kept: str | None) -> str:
    """The durability to run with: a database that keeps a log continues to keep one."""
    if asked == Durability.NONE and kept in (Durability.STANDARD, Durability.ALWAYS):
        return Durability.STANDARD.value
    return asked


class DurableState:
    """The durable side of one coordinator.

    Args:
      directory: opened, LOCK held.
      core: empty, not yet running.
      mode: the durability asked for. A database that keeps a log continues to keep one, whatever
        is asked.
      store: the store segment's mapping, for checkpoints.
    """

    def __init__(
        self, directory: DatabaseDirectory, core: CommitCore, settings: Settings, mode: str, store: Any
    ) -> None:
        kept = directory.meta.durability
        self.mode = _agreed(mode, kept)
        self.outcomes: dict[int, tuple[int, int]] = {}
        self._directory = directory
        self._core: CommitCore | None = core
        self._settings = settings
        self._result: RecoveryResult | None = None
        self._checkpoints = Checkpointer(directory, core, settings, store)
        self._sync: LogSync | None = None
        self._logged = LoggedCommits(directory, {})
        self._next_reserve = 0.0

    def recover(self, progress: Progress | None = None) -> None:
        """Fill the core with what the directory holds, and open the log for new commits.

        Args:
          progress: called as by `recovery.recover`. If it raises, the recovery ends before anything on disk
            has changed.

        Raises:
          CorruptionError, IncompatibleFormatError, StoreFullError, LogWriteError: as `recovery.recover` and
            `wal_writer.start_log` say; nothing is served then.
        """
        core = self._running()
        loader = core.loader()
        result = recover(self._directory, loader, progress=progress)
        self._logged = LoggedCommits(self._directory, loader.places())
        for warning in result.warnings:
            complain(f"recovery: {warning}")
        log = start_log(self._directory, result, self.mode, self._settings.wal_segment_size)
        core.limit_store(self._settings.max_store_size)
        core.start_at(result.version, result.version if result.version != result.log_version else 0)
        if log is not None:
            core.attach_log(log, self.mode == Durability.ALWAYS)
        self._result = result
        self.outcomes = result.outcomes
        self._checkpoints.continue_after(result)

    def _running(self) -> CommitCore:
        assert self._core is not None
        return self._core

    def require(self, durability: str) -> None:
        """Refuse an opener that wants more than this coordinator gives.

        Raises:
          SettingsMismatchError: it keeps no log and the opener wants one.
        """
        require_durability(durability)
        if self.mode == Durability.NONE and durability != Durability.NONE:
            raise SettingsMismatchError(
                f"the running coordinator keeps no log (durability 'none'), asked for {durability!r}",
                hint="`occamdb stop` it, then open with the durability wanted",
            )

    # ---- timers -------------------------------------------------------------------------------------------

    def next_due(self) -> float:
        """Seconds until `tick` has something to do."""
        return _STOP_POLL if self._checkpoints.leaving else _NEVER

    def tick(self, outcomes: OutcomesFunction) -> None:
        """Do what is due: start the timer of the log, set versions aside, begin a checkpoint."""
        core, now = self._running(), time.monotonic()
        if core.log is not None and self._sync is None:
            try:
                self._sync = LogSync(core.log, self._settings.sync_interval, self._sync_failed)
            except RuntimeError as error:
                complain(f"no thread to sync the log, it is tried again: {error}")
        if core.log is None and now >= self._next_reserve:
            self._next_reserve = now + _RESERVE_SECONDS
            try:
                self._directory.reserve_versions(core.committed_version)
            except OSError as error:
                # What is set aside lasts for days, and the next try is in a minute.
                complain(f"no further versions set aside: {error}")
        self._checkpoints.tick(outcomes)

    def _sync_failed(self, error: OSError) -> None:
        # The failed sync has poisoned the log: commits are refused until a restart, reads go on.
        complain(f"fdatasync of the log failed, commits are refused from here on: {error}")
        self._running().wake()

    # ---- questions ----------------------------------------------------------------------------------------

    def checkpoint(self, outcomes: OutcomesFunction) -> dict[str, Any]:
        """Make a checkpoint, or report on the one being made; see `Checkpointer.request`."""
        return self._checkpoints.request(outcomes)

    def checkpoint_state(self) -> dict[str, Any]:
        """The state of the last checkpoint; see `Checkpointer.state`."""
        return self._checkpoints.state()

    def logged_commit(self, version: int) -> dict[str, Any]:
        """What the log holds of one commit; see `LoggedCommits.find`."""
        return self._logged.find(version)

    def figures(self) -> dict[str, Any]:
        """For `stats`: the last recovery and the last checkpoint."""
        result = self._result
        recovery = {} if result is None else {
            "version": result.version,
            "keys_loaded": result.keys_loaded,
            "transactions_replayed": result.transactions_replayed,
            "bytes_cut": result.bytes_cut,
            "seconds": result.seconds,
            "warnings": list(result.warnings),
        }  # fmt: skip
        return {"recovery": recovery, "checkpoint": self.checkpoint_state()}

    # ---- the end ------------------------------------------------------------------------------------------

    def ready_to_stop(self, outcomes: OutcomesFunction) -> bool:
        """Whether the commit thread may end now; see `Checkpointer.ready_to_stop`."""
        return self._checkpoints.ready_to_stop(outcomes)

    def stay(self) -> None:
        """The stop is no longer wanted: a worker attached in the meantime."""
        self._checkpoints.stay()

    def finish(self, outcomes: OutcomesFunction) -> None:
        """Leave everything in checkpoint and log, and note the clean stop. REQUIRES: the commit thread has
        ended.

        Raises:
          OSError, OccamError: a file could not be written. Unless the log failed, it still has everything.
        """
        self._end_background()
        logged = self._close_log()
        self._checkpoints.finish(outcomes, logged=logged)
        self._directory.note_clean_stop(self._running().committed_version)

    def _close_log(self) -> bool:
        """Close the log. Returns whether everything acknowledged is in it, on disk."""
        log = self._running().log
        if log is None:
            return False
        try:
            log.close()
        except OSError as error:
            complain(f"the log could not be synced, a checkpoint takes its place: {error}")
            return False
        return True

    def abandon(self) -> None:
        """End without writing: the content of the directory is no longer ours. REQUIRES: as for `finish`."""
        self._end_background()
        self.close()

    def _end_background(self) -> None:
        """End the checkpoint under way and the timer of the log, and wait for their threads."""
        self._checkpoints.end()
        self._end_sync()

    def _end_sync(self) -> None:
        sync, self._sync = self._sync, None
        if sync is not None:
            sync.stop()

    def release_core(self) -> None:
        """Drop the references to the core, so that its memory can be unmapped."""
        self._core = None
        self._checkpoints.release_core()

    def close(self) -> None:
        """For a start that failed, and after `finish`."""
        self._end_sync()
        if self._core is not None and self._core.log is not None:
            self._core.log.abandon()
