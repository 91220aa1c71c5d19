"""What a coordinator does about files: recovery at the start, the log's timer, checkpoints, the clean stop.

Threads: the control plane's main thread calls everything here; a checkpoint runs in a thread of its own, and
so does the timer that syncs the log, so that workers can attach meanwhile. The log is written by the commit
thread alone; `sync_in_background` is made for others.

A checkpoint pins its version first and asks for the sessions' outcomes afterwards: an outcome is noted before
its commit is published, so every commit up to the pinned version has its outcome in the table.

A clean stop writes its checkpoint while commits go on (`ready_to_stop`). What is committed meanwhile is in
the log alone, which `finish` syncs and closes once the commit thread has ended: both together are everything.

A log that failed takes no commit any more, and what it acknowledged before may be in memory only. A
checkpoint of the last version saves that, and an empty segment behind it (`begin_anew`) keeps a recovery from
reading the failed one: its bytes may be lost by then.
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
from ..log.recovery import Progress, RecoveryResult, recover
from ..log.wal_writer import begin_anew, start_log
from ..model.errors import (
    InvalidArgumentError,
    SettingsMismatchError,
    SnapshotExpired,
)
from ..model.public_types import Durability
from ..model.settings import Settings
from .complaints import complain
from .log_sync import LogSync
from .logged import LoggedCommits

__all__ = ["DurableState", "OutcomesFunction", "require_durability"]

OutcomesFunction = Callable[[], dict[int, tuple[int, int]]]

_NEVER = 3600.0
_RETRY_SECONDS = 5.0
_RETRY_FIRST, _RETRY_LAST = 0.25, 30.0  # when the log failed: what it acknowledged waits to be saved
_STOP_POLL = 0.005
_BRIEF_SECONDS = 0.05  # a checkpoint that commits may wait for
_RESERVE_SECONDS = 60.0
# Versions: more than a batch has, and a few coordinators that died soon after each other; as many as
# `Loader.places`.
_UNANSWERED_MAX = 1024
_ASKED_SECONDS = 60.0
_DUTY, _DUTY_FAR_BEHIND = 0.3, 0.9
_FAR_BEHIND = 4  # times `checkpoint_bytes`


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
    """The durability to run with: a database that keeps a log goes on keeping one."""
    if asked == Durability.NONE and kept in (Durability.STANDARD, Durability.ALWAYS):
        return Durability.STANDARD.value
    return asked


class DurableState:
    """The durable side of one coordinator.

    Args:
      directory: opened, LOCK held.
      core: empty, not yet running.
      mode: the durability asked for. A database that keeps a log goes on keeping one, whatever is asked.
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
        self._store = store
        self._result: RecoveryResult | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._last: CheckpointInfo | None = None
        self._last_error = ""
        self._checkpointed_version = 0
        self._checkpointed_bytes = 0
        self._sync: LogSync | None = None
        self._logged = LoggedCommits(directory, {})
        self._saved = False  # the log failed, and all that it acknowledged is safe without it
        self._failures = 0  # checkpoints in a row that could not be made
        self._leaving = False  # a stop is wanted: the last checkpoint was begun
        self._prepared = False  # ... and is there
        self._next_reserve = 0.0
        self._next_checkpoint = 0.0
        self._not_before = 0.0  # after a failure: no further try until then
        self._log_errors = 0  # when the last checkpoint began
        self._log_from = 0  # commits after this version may be asked for, until then
        self._asked_until = 0.0

    def recover(self, progress: Progress | None = None) -> None:
        """Fill the core with what the directory holds, and open the log for what comes.

        Args:
          progress: as `recovery.recover` calls it; what it raises ends the recovery before anything on disk
            changed.

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
        self._checkpointed_version = result.checkpoint_version if not result.checkpoint_advised else 0
        # The replayed bytes count, or the log would grow without bound under coordinators that never live
        # long.
        self._checkpointed_bytes = -result.log_bytes
        # Workers that were not answered will ask what their last commit resulted in, and only the log can
        # tell.
        self._log_from = max(0, result.log_version - _UNANSWERED_MAX)
        self._asked_until = time.monotonic() + _ASKED_SECONDS
        self._next_checkpoint = time.monotonic() + (self._settings.checkpoint_interval or _NEVER)

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
        return _STOP_POLL if self._leaving else _NEVER

    def tick(self, outcomes: OutcomesFunction) -> None:
        """Begin a checkpoint, set versions aside: whatever is due."""
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
        if self._checkpoint_due(now):
            self._begin(outcomes)

    def _sync_failed(self, error: OSError) -> None:
        # The failed sync has poisoned the log: commits are refused until a restart, reads go on.
        complain(f"fdatasync of the log failed, commits are refused from here on: {error}")
        self._running().wake()

    def _checkpoint_due(self, now: float) -> bool:
        core = self._running()
        if core.log is None or self._thread is not None or self._leaving:
            return False
        if core.log_poisoned:
            # Not before the last version is known: a commit under way may have been logged before the sync
            # failed.
            return core.commits_over and not self._saved and now >= self._not_before
        if (
            core.log_bytes - self._checkpointed_bytes >= self._settings.checkpoint_bytes
            or core.log_errors
            > self._log_errors  # the disk may be full: a checkpoint frees what the log takes
        ):
            return now >= self._not_before
        return now >= self._next_checkpoint and core.committed_version > self._checkpointed_version

    # ---- checkpoints --------------------------------------------------------------------------------------

    def _begin(self, outcomes: OutcomesFunction) -> None:
        if self._running().log_errors > self._log_errors:
            self._log_errors = self._running().log_errors
            self._not_before = time.monotonic() + _RETRY_SECONDS
        self._thread = threading.Thread(
            target=self._in_background, args=(outcomes,), name="checkpoint", daemon=True
        )
        try:
            self._thread.start()
        except RuntimeError as error:  # no more threads for this user
            self._thread = None
            self._no_checkpoint(error)
            self._next_checkpoint = max(self._next_checkpoint, self._not_before)

    def _in_background(self, outcomes: OutcomesFunction) -> None:
        core = self._running()
        try:
            # Read first: with it the version read after it is the last.
            over = core.commits_over
            if core.committed_version > self._checkpointed_version:
                self._write(outcomes, duty=self._duty())
            elif over:
                pass
            elif make_room(self._directory, self._kept_log()):
                keep_reserve(self._directory)
            if over:
                self._begin_anew(core.committed_version)
            elif self._leaving:
                # Sync as much of the log as possible now: commits wait for the rest.
                self._sync_log()
            self._failures = 0
            self._prepared = self._leaving
        except Exception as error:
            if not self._stopping.is_set():
                self._no_checkpoint(error)
        finally:
            self._next_checkpoint = time.monotonic() + (self._settings.checkpoint_interval or _NEVER)
            self._thread = None

    def _duty(self) -> float:
        """Share of its time that a checkpoint in the background works."""
        if self._running().log_poisoned:
            return 1.0
        # A stop waits for this checkpoint; or the last one was given up because the store was full: be
        # quicker.
        if self._leaving or self._failures:
            return _DUTY_FAR_BEHIND
        # If coordinators die before they finish a checkpoint, each recovery replays more than the one before.
        behind = self._running().log_bytes - self._checkpointed_bytes
        return _DUTY if behind < _FAR_BEHIND * self._settings.checkpoint_bytes else _DUTY_FAR_BEHIND

    def _write(self, outcomes: OutcomesFunction, *, duty: float) -> CheckpointInfo:
        """One checkpoint of the newest version."""
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

        A checkpoint ahead of the log would leave a hole before the next run's segment if the power went: the
        log could no longer stand in for the checkpoint.

        Raises:
          OSError: the log is poisoned by it, as by any failed sync.
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

    def checkpoint(self, outcomes: OutcomesFunction) -> dict[str, Any]:
        """Make a checkpoint, or report on the one being made.

        Returns at once: {"running": True} until it is done, then {"running": False, version, bytes, rows,
        seconds}.
        """
        if self._thread is None and self._checkpointed_version < self._running().committed_version:
            self._last_error = ""
            self._begin(outcomes)
        return self.checkpoint_state()

    def checkpoint_state(self) -> dict[str, Any]:
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

    def _no_checkpoint(self, error: Exception) -> None:
        self._last_error = f"no checkpoint: {error}"
        pause = _RETRY_SECONDS
        if self._running().log_poisoned:
            pause = min(_RETRY_FIRST * 2 ** min(self._failures, 10), _RETRY_LAST)
        self._failures += 1
        self._not_before = time.monotonic() + pause
        complain(self._last_error)

    def _begin_anew(self, version: int) -> None:
        """All up to `version`, which is the last, is in a checkpoint: no recovery from it is to read the failed log."""
        begin_anew(self._directory, version)
        self._saved = True

    # ---- outcomes -----------------------------------------------------------------------------------------

    def logged_commit(self, version: int) -> dict[str, Any]:
        """What the log holds of one commit; see `LoggedCommits.find`."""
        return self._logged.find(version)

    # ---- the end -------------------------------------------------------------------------------------------

    def ready_to_stop(self, outcomes: OutcomesFunction) -> bool:
        """Whether the commit thread may end now; call it again until it is so. Commits go on meanwhile.

        The first call begins a checkpoint, in place of one under way, which may be nearly as old as its pin.
        There is one only, so a stop under load ends; without a log there is none, for it would be too old at
        once.
        """
        core = self._running()
        if core.log is None or self._saved:
            return True
        if not self._leaving:
            self._leaving, self._prepared = True, False
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
        """No stop is wanted any longer: a worker attached in the meantime."""
        if self._leaving:
            self._leaving = False
            self._stopping.clear()

    def finish(self, outcomes: OutcomesFunction) -> None:
        """A clean stop: the commit thread has ended. Leaves everything in checkpoint and log, and says so in
        meta.

        Another checkpoint is written here where the log cannot have the rest (there is none, or it failed),
        where none could be written before, and where it takes but a moment.

        Raises:
          OSError, OccamError: it could not be written; the log has everything all the same, unless it failed.
        """
        self._end_checkpoint()
        self._stopping.clear()
        logged = self._close_log()
        core = self._running()
        version = core.committed_version
        brief = self._last is not None and self._last.seconds < _BRIEF_SECONDS
        if version > self._checkpointed_version and (brief or not (logged and self._prepared)):
            self._write(outcomes, duty=1.0)
        if core.log is not None and not logged and not self._saved:
            self._begin_anew(version)
        self._directory.note_clean_stop(version)

    def _close_log(self) -> bool:
        """Close the log; whether everything acknowledged is in it, on disk."""
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
        """A stop that writes nothing: what lies in the directory is not ours any more. The commit thread has ended."""
        self._end_checkpoint()
        self.close()

    def _end_checkpoint(self) -> None:
        """Wait for the checkpoint under way to give up; none begins while `_stopping` is set."""
        self._stopping.set()
        thread = self._thread
        if thread is not None:
            thread.join()
        self._end_sync()

    def _end_sync(self) -> None:
        sync, self._sync = self._sync, None
        if sync is not None:
            sync.stop()

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

    def release_core(self) -> None:
        """Let go of the core, so that its memory can be unmapped."""
        self._core = None
        self._store = None

    def close(self) -> None:
        """For a start that failed, and after `finish`."""
        self._end_sync()
        if self._core is not None and self._core.log is not None:
            self._core.log.abandon()
