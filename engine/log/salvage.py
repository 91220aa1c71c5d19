"""`occamdb check --repair`: make a damaged directory open again, with everything that is provably in order.

No coordinator may serve the directory. What can be proved: the newest sound checkpoint, and the transactions
after it up to the first damage that the checkpoint does not cover. What lies behind that can no longer be put
in order.

Invariants:
1. Nothing is deleted. Damaged files, and segments behind the first gap, stay as `<name>.damaged`.
2. The salvaged state is on disk as a checkpoint before any file is set aside.
3. No version that the lost part may have given out is given out again (`meta.version_ceiling`).
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections import Counter
from dataclasses import dataclass, field, replace

from ...ipc.lock import FileLock
from ..disk.directory import DatabaseDirectory, Meta, current_boot_id, decode_meta
from ..disk.files import Folder
from ..model.errors import CorruptionError, StoreFullError
from ..model.public_types import Durability
from ._replay import Loader, SegmentImage
from ._scratch import ScratchStore
from ._tail_scan import resume_after
from .checkpoint import (
    CheckpointFile,
    checkpoint_header,
    list_checkpoints,
    load_checkpoint,
    verify_checkpoint,
    write_checkpoint,
)
from .recovery import VERSION_SKIP, Progress
from .wal_format import HEADER_SIZE, decode_header, parse_segment_name
from .wal_reader import Segment, judge_tail, open_image, read_segment

__all__ = ["RepairReport", "repair"]

_STEP = 50_000
_SUFFIX = ".damaged"


@dataclass(slots=True)
class RepairReport:
    """What `repair` did.

    Attributes:
      version: the version of the salvaged content.
      keys: in it.
      set_aside: files that were renamed to `<name>.damaged`.
      actions: one sentence for each thing done or lost.
    """

    path: str
    version: int = 0
    keys: int = 0
    set_aside: list[str] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Salvage:
    """State of the replay: the version reached, the highest heard of, and which segments are not to stay."""

    base: int
    version: int
    highest: int
    damaged: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    stopped: bool = False


def repair(path: str | os.PathLike[str], *, progress: Progress | None = None) -> RepairReport:
    """Salvage a damaged directory. Does nothing to a sound one.

    Args:
      progress: called with a stage, the bytes done and the bytes in all.

    Raises:
      LockHeldError: a coordinator serves it.
      CorruptionError: not even the database's id can be found out.
      StoreFullError: the content does not fit into private memory.
      OSError: the disk.
    """
    report = RepairReport(os.fspath(path))
    with FileLock(os.path.join(path, "LOCK")):
        _repair_meta(report)
        directory = DatabaseDirectory(path, create=False)
        try:
            _repair_content(directory, report, progress or (lambda stage, done, total: None))
        finally:
            directory.close()
    return report


# --- meta -------------------------------------------------------------------------------------------------


def _repair_meta(report: RepairReport) -> None:
    """Rebuild a meta file that is damaged or missing from what the headers of the other files say."""
    with Folder(report.path) as folder:
        names = folder.names()
        if "meta" in names:
            try:
                decode_meta(folder.read("meta"), folder.file_path("meta"))
                return
            except CorruptionError as error:
                report.actions.append(f"meta was damaged: {error.message}")
        headers = _headers(report.path)
        if not headers:
            raise CorruptionError(
                f"{report.path}: no meta file, and no file that says whose it is",
                file=report.path,
                expected="a sound meta, segment or checkpoint",
                hint="restore a backup",
            )
        database_id = Counter(identity for identity, _ in headers).most_common(1)[0][0]
        incarnation = max(number for identity, number in headers if identity == database_id)
        if "meta" in names:
            folder.rename("meta", "meta" + _SUFFIX)
            report.set_aside.append("meta")
        for name in ("wal", "checkpoints"):
            folder.make(name)
        # The durability of the last run is unknown. "standard" is the safe choice.
        meta = Meta(database_id, incarnation + 1, Durability.STANDARD, clean=False)
        folder.replace("meta", meta.encode())
        report.actions.append(f"meta was made anew for database {database_id.hex()}")


def _headers(path: str) -> list[tuple[bytes, int]]:
    """(database id, incarnation) of every file with a sound header."""
    found = []
    for name in ("wal", "checkpoints"):
        if not os.path.isdir(os.path.join(path, name)):
            continue
        with Folder(os.path.join(path, name)) as folder:
            for file_name in folder.names():
                with folder.open(file_name) as file:
                    data = file.read(HEADER_SIZE)
                with contextlib.suppress(CorruptionError, struct.error):
                    if name == "wal":
                        header = decode_header(data, file.path)
                        found.append((header.database_id, header.incarnation))
                    else:
                        found.append(checkpoint_header(data, file.path))
    return found


# --- content ----------------------------------------------------------------------------------------------


def _repair_content(directory: DatabaseDirectory, report: RepairReport, progress: Progress) -> None:
    store = ScratchStore(directory.database_id)
    loader = store.loader()
    checkpoint, unsound = _newest_sound(directory, report, progress)
    base = checkpoint.version if checkpoint else 0
    horizon = 0
    if checkpoint is not None:
        horizon = load_checkpoint(checkpoint, directory.database_id, loader, progress)
    loader.begin_log(base)
    state = _Salvage(base, base, max([base, *(file.version for file in unsound)]))
    _replay_log(directory, loader, state, report, progress)
    if loader.is_full:
        raise StoreFullError("the content does not fit into private memory")
    loader.finish(loader.version, horizon)
    report.version, report.keys = loader.version, store.key_count
    if not (report.actions or _lacks_something(directory, loader.version, report)):
        return
    if checkpoint is None or loader.version > base:
        outcomes = [(session, *outcome) for session, outcome in loader.outcome_table().items()]
        write_checkpoint(directory, store.mapping, loader.version, outcomes, duty=1, remove=False)
        report.actions.append(f"wrote a checkpoint of version {loader.version} with {store.key_count} keys")
    _settle(directory, state, [file.name for file in unsound], report)


def _lacks_something(directory: DatabaseDirectory, version: int, report: RepairReport) -> bool:
    """Whether the meta file knows of more than there is."""
    meta = directory.meta
    segments = [parse_segment_name(name) or 0 for name in directory.wal.names()]
    if meta.log_first_version and max(segments, default=0) < meta.log_first_version:
        report.actions.append(f"the segment beginning with version {meta.log_first_version} is missing")
    if meta.clean and version < meta.clean_version:
        report.actions.append(f"versions {version + 1} to {meta.clean_version} are lost")
    return bool(report.actions)


def _settle(directory: DatabaseDirectory, state: _Salvage, unsound: list[str], report: RepairReport) -> None:
    """The checkpoint holds all there is: say so in meta, then set aside what would stand in the way."""
    meta = directory.meta
    ceiling = max(state.highest, report.version, meta.version_ceiling, meta.clean_version) + VERSION_SKIP
    # Before the renames: a crash between them leaves a directory that the next repair finishes.
    meta = replace(
        meta, clean=True, clean_version=report.version, log_first_version=0, version_ceiling=ceiling
    )
    directory.folder.replace("meta", meta.encode())
    report.actions.append(f"versions up to {ceiling} will not be used")
    _set_aside(directory.wal, [*state.damaged, *state.torn], report)
    _set_aside(directory.checkpoints, unsound, report)


def _newest_sound(
    directory: DatabaseDirectory, report: RepairReport, progress: Progress
) -> tuple[CheckpointFile | None, list[CheckpointFile]]:
    newest: CheckpointFile | None = None
    unsound = []
    for file in reversed(list_checkpoints(directory)):
        try:
            verify_checkpoint(file, directory.database_id, progress)
        except CorruptionError as error:
            report.actions.append(error.message)
            unsound.append(file)
        else:
            newest = newest or file
    return newest, unsound


def _set_aside(folder: Folder, names: list[str], report: RepairReport) -> None:
    for name in names:
        folder.rename(name, name + _SUFFIX)
        report.set_aside.append(name)
    if names:
        folder.sync()


def _replay_log(
    directory: DatabaseDirectory, loader: Loader, state: _Salvage, report: RepairReport, progress: Progress
) -> None:
    names = [name for name in directory.wal.names() if parse_segment_name(name) is not None]
    for index, name in enumerate(names):
        progress("log", index, len(names))
        state.highest = max(state.highest, parse_segment_name(name) or 0)
        try:
            segment = read_segment(directory, name)
        except CorruptionError as error:
            report.actions.append(error.message)
            state.damaged.append(name)
            continue
        if state.stopped or segment.previous_version > max(state.version, state.base):
            if not state.stopped:
                missing = f"versions {state.version + 1} to {segment.previous_version}"
                report.actions.append(f"{missing} are lost; nothing behind them can be put in order")
            state.stopped = True
            state.damaged.append(name)
        else:
            _replay_segment(directory, loader, segment, state, report, last=index == len(names) - 1)


def _replay_segment(
    directory: DatabaseDirectory,
    loader: Loader,
    segment: Segment,
    state: _Salvage,
    report: RepairReport,
    *,
    last: bool,
) -> None:
    """Replay what of one segment follows on; damage inside what the checkpoint covers is stepped over."""
    image = open_image(directory, segment)
    version: int | None = segment.first_version - 1
    damaged = False
    while version is not None:
        status = "whole"
        while status == "whole" and not loader.is_full:
            status, version = loader.replay(image, version, state.base, _STEP)
        if image.offset > HEADER_SIZE:
            state.version = max(state.version, version)
        if status == "end" or loader.is_full:
            break
        # Asked once for a segment, because it scans all the rest. Behind damage that was stepped over, the
        # end is damaged too.
        if status == "broken" and last and not damaged and _is_torn(directory, segment, image):
            state.torn.append(segment.name)
            break
        damaged = True
        version = _step_over(segment, image, state, report)
    if damaged:
        state.damaged.append(segment.name)


def _is_torn(directory: DatabaseDirectory, segment: Segment, image: SegmentImage) -> bool:
    """Whether the broken entry is what a crash may leave; then the next recovery cuts it off."""
    same_boot = directory.meta.boot_id == current_boot_id()
    with contextlib.suppress(CorruptionError):
        judge_tail(segment, image, last=True, same_boot=same_boot, clean=directory.meta.clean)
        return True
    return False


def _step_over(segment: Segment, image: SegmentImage, state: _Salvage, report: RepairReport) -> int | None:
    """Behind damage: the version to go on from, None when what is missing is not in the checkpoint."""
    offset = image.error_offset
    report.actions.append(f"{segment.path} is damaged at offset {offset}: {image.reason}")
    before = resume_after(image, offset)
    if before is not None and before <= max(state.base, state.version):
        return before
    state.stopped = before is not None or state.stopped
    if before is not None:
        state.highest = max(state.highest, before + 1)
        report.actions.append(
            f"versions {state.version + 1} to {before} are lost; nothing behind them can be put in order"
        )
    return None
