"""Copying a database into a new directory: one checkpoint of one version, under a database id of its own.

A copy can be opened, checked and restored on a machine where the original is open. It is taken from a snapshot while
commits go on.

1. The destination is new or empty; what a failed copy made is removed again.
2. Versions, expiry times and values are those of the original at one version.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...ipc.errors import SegmentMissingError
from ...ipc.layout import store_name
from ...ipc.segment import Segment, attach_segment
from ..disk.directory import DatabaseDirectory
from ..log._checkpoint import CheckpointWriter
from ..log.checkpoint import checkpoint_name
from ..model.errors import AlreadyExistsError, SnapshotExpired
from ..model.public_types import BackupSummary
from ..transaction.engine_handle import PinnedSnapshot

__all__ = ["attach_store", "copy_snapshot", "require_free", "write_copy"]

# Called with the number of rows written so far.
Progress = Callable[[int], None]


def copy_snapshot(
    snapshot: PinnedSnapshot,
    mapping: Any,
    destination: Path,
    durability: str,
    progress: Progress | None = None,
) -> BackupSummary:
    """Copy what a snapshot holds, from the store that it is pinned in.

    Raises:
      AlreadyExistsError: there is something at the destination.
      SnapshotExpired: it took longer than `snapshot_max_age`, or the store filled up; nothing is left of the copy.
      OSError: it could not be written.
    """

    def check(rows: int) -> None:
        if progress is not None:
            progress(rows)
        if snapshot.expired:
            raise SnapshotExpired("the backup's snapshot was revoked", hint="raise snapshot_max_age")

    return write_copy(mapping, snapshot.start_version, destination, durability, check)


def attach_store(database_id: bytes, incarnation: int) -> Segment:
    """The store that a snapshot is pinned in, and no other: what a new coordinator's store has at that version is not
    held for us. A coordinator that dies from here on does no harm, since the mapping keeps the store.

    Raises:
      SnapshotExpired: a new coordinator has taken it away.
    """
    try:
        return attach_segment(store_name(database_id, incarnation), writable=False)
    except SegmentMissingError as error:
        raise SnapshotExpired(
            "a new coordinator took over before the backup had begun; nothing was copied", hint="run it again"
        ) from error


def write_copy(
    mapping: Any, version: int, destination: Path, durability: str, check: Progress
) -> BackupSummary:
    """A new database at `destination` with what `mapping` holds at `version`.

    Args:
      check: called now and then; what it raises ends the copy, and removes what there is of it.
    """
    require_free(destination)
    existed = destination.exists()
    started = time.monotonic()
    try:
        directory = DatabaseDirectory(destination)
        try:
            rows, size = _write_checkpoint(directory, mapping, version, check)
            directory.note_running(durability, version, 0)
            directory.note_clean_stop(version)
        finally:
            directory.close()
    except BaseException:
        shutil.rmtree(destination, ignore_errors=True)
        if existed:
            destination.mkdir(exist_ok=True)
        raise
    return BackupSummary(version, rows, size, time.monotonic() - started)


def _write_checkpoint(
    directory: DatabaseDirectory, mapping: Any, version: int, check: Progress
) -> tuple[int, int]:
    name = checkpoint_name(version)
    with directory.checkpoints.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
        writer = CheckpointWriter(file.fd, directory.database_id, 0, version, time.time_ns(), mapping)
        try:
            while writer.write_rows():
                check(writer.rows)
            writer.write_outcomes(())  # sessions belong to the original: nobody asks the copy about them
            writer.finish(tombstone_horizon=version)
            check(writer.rows)
            written = writer.rows, writer.position
        finally:
            # The traceback of an error keeps this frame, and the writer the mapping, which the caller unmaps.
            del writer
        file.sync()
    directory.checkpoints.sync()
    return written


def require_free(destination: Path) -> None:
    """Refuse a destination that holds anything.

    Raises:
      AlreadyExistsError: it does.
    """
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise AlreadyExistsError(
            f"{destination} is not empty", hint="choose a directory that does not exist yet"
        )
