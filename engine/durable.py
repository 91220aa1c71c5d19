"""What a coordinator does about files: recovery at the start, the log's timer, checkpoints, the clean stop.

Threads: the control plane's main thread calls everything here; a checkpoint runs in a thread of its own, so
that workers can attach meanwhile. The log is written by the commit thread alone; `sync_in_background` is made for
others.

A checkpoint pins its version first and asks for the sessions' outcomes afterwards: an outcome is noted before its
commit is published, so every commit up to the pinned version has its outcome in the table.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import msgpack

from ._commit import CommitCore
from .checkpoint import CheckpointInfo, make_room, write_checkpoint
from .complaints import complain
from .directory import DatabaseDirectory
from .errors import (
    InvalidArgumentError,
    LogWriteError,
    NotFoundError,
    SettingsMismatchError,
    SnapshotExpired,
)
from .recovery import Progress, RecoveryResult, recover
from .reserve import keep_reserve
from .settings import Settings
from .wal_format import CommitTxn, Delete, Write
from .wal_reader import read_log
from .wal_writer import start_log

__all__ = ["DurableState", "OutcomesFunction"]

_INTEGER_SIZE_MAX = 9

OutcomesFunction = Callable[[], dict[int, tuple[int, int]]]

_NEVER = 3600.0
_RETRY_SECONDS = 5.0
_RESERVE_SECONDS = 60.0
_UNANSWERED_MAX = (
    1024  # versions: more than a batch has, and a few coordinators that died soon after each other
)
_ASKED_SECONDS = 60.0
_DUTY, _DUTY_FAR_BEHIND = 0.3, 0.9
_FAR_BEHIND = 4  # times `checkpoint_bytes`


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
        self.mode = "standard" if mode == "none" and kept in ("standard", "always") else mode
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
        self._next_sync = 0.0
        self._next_reserve = 0.0
        self._next_checkpoint = 0.0
        self._not_before = 0.0  # after a failure: no further try until then
        self._log_errors = 0  # when the last checkpoint began
        self._log_from = 0  # commits after this version may be asked for, until then
        self._asked_until = 0.0

    def recover(self, progress: Progress | None = None) -> None:
        """Fill the core with what the directory holds, and open the log for what comes.

        Args:
          progress: as `recovery.recover` calls it; what it raises ends the recovery before anything on disk changed.

        Raises:
          CorruptionError, IncompatibleFormatError, StoreFullError, LogWriteError: as `recovery.recover` and
            `wal_writer.start_log` say; nothing is served then.
        """
        core = self._running()
        result = recover(self._directory, core.loader(), progress=progress)
        for warning in result.warnings:
            complain(f"recovery: {warning}")
        log = start_log(self._directory, result, self.mode, self._settings.wal_segment_size)
        core.limit_store(self._settings.max_store_size)
        core.start_at(result.version, result.version if result.version != result.log_version else 0)
        if log is not None:
            core.attach_log(log, self.mode == "always")
        self._result = result
        self.outcomes = result.outcomes
        self._checkpointed_version = result.checkpoint_version if not result.checkpoint_advised else 0
        # What was replayed counts: a coordinator that never lives long would let the log grow for ever.
        self._checkpointed_bytes = -result.log_bytes
        # Workers that were not answered will ask what their last commit resulted in, and only the log can tell.
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
        if durability not in ("none", "standard", "always"):
            raise InvalidArgumentError(
                f"durability {durability!r} is unknown", hint='choose "none", "standard" or "always"'
            )
        if self.mode == "none" and durability != "none":
            raise SettingsMismatchError(
                f"the running coordinator keeps no log (durability 'none'), asked for {durability!r}",
                hint="`occamdb stop` it, then open with the durability wanted",
            )

    # ---- timers -------------------------------------------------------------------------------------------

    def next_due(self) -> float:
        """Seconds until `tick` has something to do."""
        if self._running().log is None:
            return _NEVER
        return max(0.0, self._next_sync - time.monotonic())

    def tick(self, outcomes: OutcomesFunction) -> None:
        """Sync the log, begin a checkpoint, set versions aside: whatever is due."""
        core, now = self._running(), time.monotonic()
        if core.log is not None and now >= self._next_sync:
            self._next_sync = now + self._settings.sync_interval
            try:
                core.log.sync_in_background()
            except OSError as error:
                # The log is poisoned by it: commits are refused until a restart, reads go on.
                complain(f"fdatasync of the log failed, commits are refused from here on: {error}")
                self._next_sync = now + _NEVER
        if core.log is None and now >= self._next_reserve:
            self._next_reserve = now + _RESERVE_SECONDS
            try:
                self._directory.reserve_versions(core.committed_version)
            except OSError as error:
                # What is set aside lasts for days, and the next try is in a minute.
                complain(f"no further versions set aside: {error}")
        if self._checkpoint_due(now):
            self._begin(outcomes)

    def _checkpoint_due(self, now: float) -> bool:
        core = self._running()
        if core.log is None or self._thread is not None or core.log_poisoned:
            return False
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
        try:
            if self._running().committed_version > self._checkpointed_version:
                self._write(outcomes, duty=self._duty())
            elif make_room(self._directory, self._kept_log()):
                keep_reserve(self._directory)
        except Exception as error:
            if not self._stopping.is_set():
                self._no_checkpoint(error)
        finally:
            self._next_checkpoint = time.monotonic() + (self._settings.checkpoint_interval or _NEVER)
            self._thread = None

    def _duty(self) -> float:
        """Share of its time that a checkpoint in the background works."""
        # Deaths that come too soon for any to be finished would have every recovery replay more than the one before.
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

        A checkpoint ahead of the log would leave a hole before the next run's segment if the power went: the log could
        not stand in for the checkpoint any more.

        Raises:
          OSError: the log is poisoned by it, as by any failed sync.
        """
        core = self._running()
        # A closed log was synced. One whose sync failed earlier never will be: a checkpoint then saves what was
        # acknowledged, which is worth more than the log as its stand-in.
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

        Returns at once: {"running": True} until it is done, then {"running": False, version, bytes, rows, seconds}.
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
        }

    def _no_checkpoint(self, error: Exception) -> None:
        self._last_error = f"no checkpoint: {error}"
        self._not_before = time.monotonic() + _RETRY_SECONDS
        complain(self._last_error)

    # ---- outcomes -----------------------------------------------------------------------------------------

    def logged_commit(self, version: int) -> dict[str, Any]:
        """What the log holds of one commit: {"committed_at": ns, "writes": [(key, integer)]}.

        Integers are what increments resulted in; None stands for any other value, True for a delete.

        Raises:
          NotFoundError: no log, or it does not reach back so far.
        """
        writes: list[tuple[bytes, Any]] = []
        committed_at = 0
        for found in read_log(self._directory, start_version=version):
            entry = found.entry
            if found.version != version:
                break
            if isinstance(entry, Write):
                writes.append((entry.key, _integer_in(entry.value)))
            elif isinstance(entry, Delete):
                writes.append((entry.key, True))
            elif not isinstance(entry, CommitTxn):
                committed_at = getattr(entry, "timestamp", committed_at)
        if not committed_at:
            raise NotFoundError(f"commit {version} is not in the log any more")
        return {"committed_at": committed_at, "writes": writes}

    # ---- the end -------------------------------------------------------------------------------------------

    def finish(self, outcomes: OutcomesFunction) -> None:
        """A clean stop: the commit thread has ended. Leaves everything in a checkpoint, and says so in meta.

        Raises:
          OSError, OccamError: it could not be written; the log has everything all the same.
        """
        core = self._running()
        self._end_checkpoint()
        self._stopping.clear()
        log = core.log
        if core.log_poisoned:
            raise LogWriteError(
                "the log failed earlier: the next start recovers from what is on disk", errno=0
            )
        if log is not None:
            log.close()
        version = core.committed_version
        if version > self._checkpointed_version:
            self._write(outcomes, duty=1.0)
        self._directory.note_clean_stop(version)

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
        if self._core is not None and self._core.log is not None:
            self._core.log.abandon()


def _integer_in(value: bytes) -> int | None:
    """The integer that a stored value is; None for any other. Nothing large is decoded or sent."""
    if len(value) > _INTEGER_SIZE_MAX or not (
        value[0] <= 0x7F or 0xCC <= value[0] <= 0xD3 or value[0] >= 0xE0
    ):
        return None
    return int(msgpack.unpackb(value))
