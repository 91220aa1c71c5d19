"""Checkpoints: making one durable under its name, removing what it makes superfluous, reading one back.

Written by the coordinator's control plane from a snapshot it keeps pinned, while commits go on; read by
recovery.

Invariants:
1. A file under `<version>.ckpt` is whole and on disk: temporary name, fsync, rename, fsync of the directory.
2. Two checkpoints are kept, and all of the log after the older one; while there is only one, all of the log.
   So a damaged newest checkpoint loses nothing. Only then are older files removed. A full disk is the
   exception: rather than refuse every commit, the newest checkpoint is read from end to end, and if it is
   sound, it alone is kept.
3. Removal is unordered and may stop anywhere: a file that should have gone is ignored, and goes the next
   time.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..disk import failpoints
from ..disk._crc32c import checksum
from ..disk.directory import DatabaseDirectory
from ..disk.files import TEMPORARY_SUFFIX, File
from ..disk.reserve import is_disk_full
from ..model.errors import CorruptionError, IncompatibleFormatError
from ._checkpoint import FORMAT_VERSION, FORMATS_READ, HEADER_SIZE, MAGIC, CheckpointReader, CheckpointWriter
from ._replay import Loader
from .wal_reader import list_segments

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = [
    "CheckpointFile",
    "CheckpointInfo",
    "list_checkpoints",
    "load_checkpoint",
    "make_room",
    "remove_superfluous",
    "verify_checkpoint",
    "write_checkpoint",
]

KEEP = 2
_NAME = re.compile(r"(\d{20})\.ckpt")
_HEADER = struct.Struct("<8sII16sQQqQQII")
_BLOCKS_PER_STEP = 64
# About a tenth of a processor that others want too; all of one that nobody wants.
_NICENESS = 10
assert _HEADER.size == HEADER_SIZE


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """A file under a checkpoint's name; its content has not been looked at."""

    version: int
    name: str
    path: str


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """What a checkpoint took."""

    version: int
    path: str
    rows: int
    size: int
    seconds: float


def checkpoint_name(version: int) -> str:
    """The file name of the checkpoint of this version."""
    return f"{version:020d}.ckpt"


def list_checkpoints(directory: DatabaseDirectory) -> list[CheckpointFile]:
    """All files under a checkpoint's name, oldest first."""
    found = []
    for name in directory.checkpoints.names():
        if match := _NAME.fullmatch(name):
            found.append(CheckpointFile(int(match[1]), name, directory.checkpoints.file_path(name)))
    return found


# --- writing ----------------------------------------------------------------------------------------------


def write_checkpoint(
    directory: DatabaseDirectory,
    mapping: ReadableBuffer,
    version: int,
    outcomes: Iterable[tuple[int, int, int]],
    *,
    duty: float = 0.5,
    still_wanted: Callable[[], None] | None = None,
    remove: bool = True,
    log_from: int | None = None,
) -> CheckpointInfo:
    """Write a checkpoint of the snapshot at `version` and remove what it makes superfluous.

    On a full disk it removes what can be spared (`make_room`) and tries once more.

    Called by the control plane, which keeps `version` pinned until this returns and has the log on disk up to
    it (after a power cut the next segment goes on from the checkpoint, and must not leave a hole). Works a
    block (256 KiB) at a time with the GIL released, and sleeps in between; a thread other than the main one
    lowers its own priority.

    Args:
      mapping: the store segment.
      outcomes: (session, sequence, version) of sessions' last commits. Those after `version` are left out,
        because the log after the checkpoint has them.
      duty: share of the time to work, from 0 to 1; 1 for a clean stop, when nobody else is there.
      still_wanted: called after each block; what it raises ends the checkpoint (a revoked pin, a stop).
      remove: remove the files it makes superfluous.
      log_from: keep the log after this version, whatever is superfluous.

    Raises:
      OSError: it could not be written; the directory is as before.
    """
    started = time.monotonic()
    table = list(outcomes)

    def write() -> CheckpointWriter:
        return _write_file(directory, mapping, version, table, duty, still_wanted)

    try:
        writer = write()
    except OSError as error:
        if not (remove and is_disk_full(error) and make_room(directory, log_from)):
            raise
        writer = write()
    failpoints.hit("checkpoint.after_rename")
    # Before anything it supersedes is removed.
    directory.checkpoints.sync()
    if remove:
        # The checkpoint stands: files that cannot be removed this time go the next time.
        with contextlib.suppress(OSError):
            remove_superfluous(directory, log_from=log_from)
    return CheckpointInfo(
        version,
        directory.checkpoints.file_path(checkpoint_name(version)),
        writer.rows,
        writer.position,
        time.monotonic() - started,
    )


def _write_file(
    directory: DatabaseDirectory,
    mapping: ReadableBuffer,
    version: int,
    outcomes: list[tuple[int, int, int]],
    duty: float,
    still_wanted: Callable[[], None] | None,
) -> CheckpointWriter:
    """The file itself, whole under its name; on an error nothing is left of it."""
    name = checkpoint_name(version)
    temporary = name + TEMPORARY_SUFFIX
    failpoints.hit("checkpoint.begin")
    try:
        with directory.checkpoints.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
            writer = CheckpointWriter(
                file.fd, directory.database_id, directory.incarnation, version, time.time_ns(), mapping
            )
            _write_rows(writer, duty, still_wanted)
            writer.write_outcomes(outcome for outcome in outcomes if outcome[2] <= version)
            # The store keeps no record of older deletes behind a checkpoint: all up to it may be forgotten.
            writer.finish(tombstone_horizon=version)
            # The name must not come to mean a file that is not on disk: it would supersede the log.
            file.sync()
        failpoints.hit("checkpoint.before_rename")
        directory.checkpoints.rename(temporary, name)
    except BaseException:
        with contextlib.suppress(OSError):
            directory.checkpoints.remove(temporary)
        raise
    return writer


def _step_back() -> None:
    """Let commits go first where processors are short: a thread of its own gives up priority for good."""
    if threading.current_thread() is not threading.main_thread():
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def _write_rows(writer: CheckpointWriter, duty: float, still_wanted: Callable[[], None] | None) -> None:
    more = True
    if duty < 1:
        _step_back()
    while more:
        begun = time.perf_counter()
        more = writer.write_rows()
        if still_wanted is not None:
            still_wanted()
        if more and duty < 1:
            time.sleep((time.perf_counter() - begun) * (1 / duty - 1))


def make_room(directory: DatabaseDirectory, log_from: int | None = None) -> bool:
    """Remove what a recovery from the newest checkpoint does not need, if that checkpoint is sound.

    Returns whether anything was removed.
    """
    try:
        for newest in list_checkpoints(directory)[-1:]:
            verify_checkpoint(newest, directory.database_id, lambda *_: None)
        # The name may be younger than the last sync, if the coordinator that made it was killed.
        directory.checkpoints.sync()
    except (OSError, CorruptionError, IncompatibleFormatError):
        return False
    return bool(remove_superfluous(directory, 1, log_from))


def remove_superfluous(
    directory: DatabaseDirectory, keep: int = KEEP, log_from: int | None = None
) -> list[str]:
    """Remove checkpoints and segments that recovery no longer needs; returns their names.

    Args:
      keep: checkpoints, the newest ones, any of which a recovery shall be able to begin with.
      log_from: keep the log after this version too.
    """
    checkpoints = list_checkpoints(directory)
    kept = checkpoints[-keep:]
    oldest_needed = kept[0].version if len(kept) == keep else 0
    if log_from is not None:
        oldest_needed = min(oldest_needed, log_from)
    segments = list_segments(directory)
    # The segments before the last one that begins at or below the older checkpoint; never the last of all.
    needed_from = max((i for i, s in enumerate(segments) if s.previous_version <= oldest_needed), default=0)
    removed = []
    for segment in segments[:needed_from]:
        failpoints.hit("checkpoint.before_remove")
        directory.wal.remove(segment.name)
        removed.append(segment.name)
    for checkpoint in checkpoints[:-keep]:
        failpoints.hit("checkpoint.before_remove")
        directory.checkpoints.remove(checkpoint.name)
        removed.append(checkpoint.name)
    failpoints.hit("checkpoint.after_remove")
    return removed


# --- reading ----------------------------------------------------------------------------------------------


def _fields(data: bytes, path: str) -> tuple[Any, ...]:
    """The fields of a sound header."""
    fields = _HEADER.unpack(data) if len(data) == HEADER_SIZE else None
    if fields is None or fields[0] != MAGIC or fields[-1] != checksum(data[:-4]):
        raise CorruptionError(
            f"{path}: not a checkpoint, or its header is damaged",
            file=path,
            offset=min(len(data), HEADER_SIZE - 4),
            expected=f"a header of {HEADER_SIZE} bytes with magic {MAGIC!r} and its checksum",
        )
    return fields


def checkpoint_header(data: bytes, path: str) -> tuple[bytes, int]:
    """(database id, incarnation) of a checkpoint's header.

    Raises:
      CorruptionError: it is damaged.
    """
    fields = _fields(data, path)
    return fields[3], fields[5]


def _decode_header(data: bytes, file: CheckpointFile, database_id: bytes) -> int:
    """Check a checkpoint's header; returns its checksum, the seed of all others."""
    fields = _fields(data, file.path)
    if fields[1] not in FORMATS_READ:
        raise IncompatibleFormatError(
            f"{file.path} has checkpoint format version {fields[1]}; "
            f"this build reads {', '.join(map(str, FORMATS_READ))}",
            found=fields[1],
            supported=FORMAT_VERSION,
        )
    if fields[3] != database_id or fields[4] != file.version:
        raise CorruptionError(
            f"{file.path} is of database {fields[3].hex()} at version {fields[4]}",
            file=file.path,
            offset=16,
            expected=f"database {database_id.hex()} at version {file.version}",
        )
    return int(fields[-1])


def _open_reader(file: CheckpointFile, handle: File, database_id: bytes) -> CheckpointReader:
    seed = _decode_header(handle.read(HEADER_SIZE), file, database_id)
    return CheckpointReader(handle.fd, seed, file.version)


def _read_all(
    file: CheckpointFile,
    reader: CheckpointReader,
    loader: Loader | None,
    stage: str,
    report: Callable[[str, int, int], None],
) -> None:
    state = "more"
    while state == "more":
        state = reader.read_blocks(loader, _BLOCKS_PER_STEP)
        report(stage, reader.position, reader.size)
    if state == "damaged":
        raise CorruptionError(
            f"{file.path} is damaged at offset {reader.position}: {reader.reason}",
            file=file.path,
            offset=reader.position,
            expected="a valid block",
        )


def verify_checkpoint(
    file: CheckpointFile, database_id: bytes, report: Callable[[str, int, int], None]
) -> tuple[int, int]:
    """Read a checkpoint from end to end; returns (rows, outcomes).

    Raises:
      CorruptionError: with the offset of the damage.
      IncompatibleFormatError: a later format.
    """
    with File.open(file.path) as handle:
        reader = _open_reader(file, handle, database_id)
        _read_all(file, reader, None, "checkpoint check", report)
        return reader.row_count, reader.outcome_count


def load_checkpoint(
    file: CheckpointFile, database_id: bytes, loader: Loader, report: Callable[[str, int, int], None]
) -> int:
    """Load a verified checkpoint; returns its tombstone horizon. Check `loader.is_full` after it."""
    with File.open(file.path) as handle:
        reader = _open_reader(file, handle, database_id)
        _read_all(file, reader, loader, "checkpoint load", report)
        return reader.tombstone_horizon
