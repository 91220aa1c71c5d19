"""Recovery: the newest sound checkpoint, then the log after it, into an empty store.

Called by the coordinator at its start, under LOCK, before anybody can connect; and by tools on a scratch
store.

Invariants:
1. Nothing on disk changes before everything has been read and judged. A CorruptionError leaves all as it was.
2. What changes then (`_settle_disk`) is idempotent: a torn tail is cut, damaged checkpoints are set aside,
   temporary files are removed. A recovery that is killed anywhere is simply done again (docs/faults.md#c8).
3. The last segment is synced before a later one exists, so "only the last can be torn" always holds.
4. No version is given out twice (docs/faults.md#m8). Versions that may have been given out and lost are
   skipped: without a log, all below `meta.version_ceiling`; after a power loss, VERSION_SKIP of them.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from ..disk import failpoints
from ..disk.directory import DatabaseDirectory, current_boot_id
from ..disk.files import TEMPORARY_SUFFIX
from ..model.errors import CorruptionError, StoreFullError
from ._replay import Loader, SegmentImage
from .checkpoint import CheckpointFile, list_checkpoints, load_checkpoint, verify_checkpoint
from .wal_format import HEADER_SIZE
from .wal_reader import Segment, broken_entry, chain_from, judge_tail, list_segments, open_image

__all__ = ["Progress", "RecoveryResult", "recover"]

# Far more than are committed between two syncs of the timer.
VERSION_SKIP = 1 << 32
_TRANSACTIONS_PER_STEP = 50_000

Progress = Callable[[str, int, int], None]
"""Called with a stage ("checkpoint check", "checkpoint load", "log"), the bytes done and the bytes in all."""


@dataclass(frozen=True, slots=True)
class RecoveryResult:
    """What recovery found.

    Attributes:
      version: the version the database stands at; the next commit is version + 1.
      log_version: the last version in checkpoint and log; less than `version` when versions were skipped.
      checkpoint_version: of the checkpoint used, 0 for none.
      outcomes: session -> (sequence, version) of its last commit.
      transactions_replayed: from the log.
      entries_replayed: from the log.
      log_bytes: of the segments that were read.
      bytes_cut: of the torn tail.
      keys_loaded: from the checkpoint.
      seconds: it took.
      checkpoint_advised: the next recovery would lack a checkpoint to fall back to; write one soon.
      warnings: one sentence each; empty after an ordinary start.
    """

    version: int
    log_version: int
    checkpoint_version: int
    outcomes: dict[int, tuple[int, int]]
    transactions_replayed: int
    entries_replayed: int
    log_bytes: int
    bytes_cut: int
    keys_loaded: int
    seconds: float
    checkpoint_advised: bool
    warnings: tuple[str, ...]


@dataclass(slots=True)
class _Tail:
    """Where the last segment ends, once replayed; `unsynced`: its last bytes, not known to be on disk."""

    segment: Segment
    end: int
    torn: int
    unsynced: bytes


def recover(
    directory: DatabaseDirectory,
    loader: Loader,
    *,
    progress: Progress | None = None,
    boot_id: bytes | None = None,
    repair_disk: bool = True,
) -> RecoveryResult:
    """Bring the loader's empty store to the last state the directory can prove.

    Args:
      progress: called every now and then in long recoveries.
      boot_id: of this boot of the machine; tests pass another one to simulate a power loss.
      repair_disk: False leaves the disk as it is even when a tail is torn (for tools that only read).

    Raises:
      CorruptionError: damage that a crash cannot have caused, with file and offset; nothing was changed on
      disk. IncompatibleFormatError: a file of a later format. StoreFullError: the content is larger than
      `max_store_size`. OSError: the disk.
    """
    started = time.monotonic()
    report = progress or (lambda stage, done, total: None)
    failpoints.hit("recovery.begin")
    meta = directory.meta
    same_boot = meta.boot_id == (boot_id or current_boot_id())
    segments = list_segments(directory)
    _require_latest(directory, segments)
    checkpoint, damaged = _choose_checkpoint(directory, report)
    base = checkpoint.version if checkpoint else 0
    try:
        chain = chain_from(segments, base, directory.wal.path)
    except CorruptionError as error:
        raise _blame(error, damaged) from None
    horizon = _load(checkpoint, directory.database_id, loader, report)
    failpoints.hit("recovery.after_checkpoint")
    try:
        tail = _replay(directory, loader, chain, base, same_boot, report)
        _require_clean_version(directory, loader.version)
    except CorruptionError as error:
        raise _blame(error, damaged) from None
    version = _next_base(directory, loader.version, tail, same_boot)
    log_version = _last_logged(loader.version, tail)
    loader.finish(version, horizon)
    failpoints.hit("recovery.after_replay")
    warnings = [f"{file.path} is damaged at offset {error.offset}: {error}" for file, error in damaged]
    if tail and tail.torn:
        warnings.append(f"cut {tail.torn} bytes of an unfinished write off {tail.segment.path} at {tail.end}")
    if version > log_version:
        warnings.append(f"versions {log_version + 1} to {version} are skipped: they may have been in use")
    if repair_disk:
        _settle_disk(directory, tail, [file for file, _ in damaged])
    return RecoveryResult(
        version=version,
        log_version=log_version,
        checkpoint_version=base,
        outcomes=loader.outcome_table(),
        transactions_replayed=loader.transactions,
        entries_replayed=loader.entries,
        log_bytes=sum(segment.size for segment in chain),
        bytes_cut=tail.torn if tail else 0,
        keys_loaded=loader.keys_loaded,
        seconds=time.monotonic() - started,
        checkpoint_advised=bool(damaged),
        warnings=tuple(warnings),
    )


def _require_latest(directory: DatabaseDirectory, segments: Sequence[Segment]) -> None:
    """The segment that the last run began, or a later one, must be there."""
    expected = directory.meta.log_first_version
    if expected and not any(segment.first_version >= expected for segment in segments):
        raise CorruptionError(
            f"{directory.wal.path}: the segment beginning with version {expected} is missing",
            file=directory.wal.path,
            expected=f"{expected:020d}.log",
        )


def _choose_checkpoint(
    directory: DatabaseDirectory, report: Progress
) -> tuple[CheckpointFile | None, list[tuple[CheckpointFile, CorruptionError]]]:
    """The newest checkpoint that is sound from end to end, and the newer ones that are not."""
    damaged: list[tuple[CheckpointFile, CorruptionError]] = []
    for file in reversed(list_checkpoints(directory)):
        try:
            verify_checkpoint(file, directory.database_id, report)
        except CorruptionError as error:
            damaged.append((file, error))
        else:
            return file, damaged
    return None, damaged


def _blame(
    error: CorruptionError, damaged: Sequence[tuple[CheckpointFile, CorruptionError]]
) -> CorruptionError:
    """The error to report: if a checkpoint is damaged and the log cannot replace it, that of the checkpoint."""
    return damaged[0][1] if damaged else error


def _full(loader: Loader) -> StoreFullError:
    return StoreFullError(
        f"the database does not fit into max_store_size = {loader.store_size} bytes: "
        f"{loader.keys_loaded} keys and {loader.transactions} transactions of it did",
        hint="open it with a larger max_store_size",
    )


def _load(checkpoint: CheckpointFile | None, database_id: bytes, loader: Loader, report: Progress) -> int:
    """Load the checkpoint; returns its tombstone horizon."""
    if checkpoint is None:
        return 0
    horizon = load_checkpoint(checkpoint, database_id, loader, report)
    if loader.is_full:
        raise _full(loader)
    loader.begin_log(checkpoint.version)
    return horizon


def _replay(
    directory: DatabaseDirectory,
    loader: Loader,
    chain: Sequence[Segment],
    base: int,
    same_boot: bool,
    report: Progress,
) -> _Tail | None:
    """Replay the chain; returns where its last segment ends. Nothing on disk changes."""
    total = sum(segment.size for segment in chain)
    done = 0
    tail: _Tail | None = None
    version = 0
    for index, segment in enumerate(chain):
        if index and segment.previous_version != version:
            raise CorruptionError(
                f"{segment.path} follows version {segment.previous_version}, "
                f"but the segment before it ends with {version}",
                file=segment.path,
                offset=40,
                expected=f"a segment that follows version {version}",
            )
        image = open_image(directory, segment)
        last = index == len(chain) - 1
        version = _replay_segment(loader, image, segment, base, partial(_report_log, report, done, total))
        state = image.advance(version)[0]
        if state == "wrong":
            raise broken_entry(segment, image)
        if state == "broken":
            judge_tail(segment, image, last=last, same_boot=same_boot, clean=directory.meta.clean)
        done += segment.size
        torn = segment.size - image.offset if state == "broken" else 0
        tail = _Tail(segment, image.offset, torn, image.part(min(image.synced, image.offset), image.offset))
    return tail


def _report_log(report: Progress, before: int, total: int, offset: int) -> None:
    report("log", before + offset, total)


def _replay_segment(
    loader: Loader, image: SegmentImage, segment: Segment, base: int, report: Callable[[int], None]
) -> int:
    """Replay what is whole in one segment; returns the last version in it."""
    version = segment.first_version - 1
    state = "whole"
    while state == "whole":
        state, version = loader.replay(image, version, base, _TRANSACTIONS_PER_STEP)
        if loader.is_full:
            raise _full(loader)
        report(image.offset)
    # A segment without a transaction adds nothing to the log, also when it skipped versions.
    return segment.previous_version if image.offset == HEADER_SIZE else version


def _require_clean_version(directory: DatabaseDirectory, version: int) -> None:
    """After a clean stop everything must still be there."""
    meta = directory.meta
    if meta.clean and version < meta.clean_version:
        raise CorruptionError(
            f"{directory.path} was closed at version {meta.clean_version}, but only version {version} is left",
            file=directory.path,
            expected=f"version {meta.clean_version}",
        )


def _next_base(directory: DatabaseDirectory, version: int, tail: _Tail | None, same_boot: bool) -> int:
    """The version that the database continues from."""
    meta = directory.meta
    # A ceiling: set while no log was kept, and by a repair. An empty segment may carry an earlier skip.
    version = max(version, meta.version_ceiling, tail.segment.first_version - 1 if tail else 0)
    if meta.durability in ("standard", "always") and not meta.clean and not same_boot:
        # Commits that no fdatasync had reached are gone; their versions were seen. With "always" these are
        # removals of expired keys, which are published without waiting for the disk.
        return version + VERSION_SKIP
    return version


def _last_logged(version: int, tail: _Tail | None) -> int:
    """The version before the next segment, as its header names it: the last one a recovery must have reached.

    This is the version of the content. But if versions were skipped and nothing was committed since, it is
    the version before the skip, which is the last one that an older checkpoint and the log lead to.
    """
    if tail and tail.end == HEADER_SIZE and version < tail.segment.first_version:
        return tail.segment.previous_version
    return version


def _settle_disk(directory: DatabaseDirectory, tail: _Tail | None, damaged: Sequence[CheckpointFile]) -> None:
    """Make the directory ready for a new segment. Idempotent; each step durable."""
    if tail is not None:
        with directory.wal.open(tail.segment.name, os.O_RDWR) as file:
            if file.size() > tail.end:
                file.truncate(tail.end)
            failpoints.hit("recovery.after_cut")
            # Once there is a next segment, this one must be whole. So what may be only in the page cache is
            # synced, even when nothing was cut. It is written again first: if a sync failed in the last run,
            # the kernel took those pages for clean, and would not write them now.
            file.write(tail.unsynced, tail.end - len(tail.unsynced))
            file.sync()
    for checkpoint in damaged:
        directory.checkpoints.rename(checkpoint.name, checkpoint.name + ".damaged")
    for folder in (directory.folder, directory.wal, directory.checkpoints):
        for name in folder.names():
            if name.endswith(TEMPORARY_SUFFIX):
                with contextlib.suppress(FileNotFoundError):
                    folder.remove(name)
    if damaged:
        directory.checkpoints.sync()
    failpoints.hit("recovery.after_segment")
