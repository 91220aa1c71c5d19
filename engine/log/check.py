"""Looking through a whole database directory for damage, without changing anything: `check`.

Reads meta, every checkpoint and every segment from end to end, whether a recovery would need them or not. It
may run while a coordinator serves the directory: what that is writing at the moment counts as unfinished, not
as damaged. `salvage.py` repairs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..disk.directory import DatabaseDirectory, current_boot_id
from ..model.errors import CorruptionError, IncompatibleFormatError, OccamError
from ._replay import SegmentImage
from ._scratch import ScratchStore
from .checkpoint import CheckpointFile, list_checkpoints, verify_checkpoint
from .recovery import Progress, recover
from .wal_format import parse_segment_name
from .wal_reader import Segment, broken_entry, judge_tail, open_image, read_segment

__all__ = ["CheckReport", "CheckpointReport", "Finding", "SegmentReport", "check"]

_LIVE_ATTEMPTS = 5
_LIVE_PAUSE = 0.02


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
      level: "damage" (data is lost, or the next open is refused) or "warning" (it heals at the next open).
    """

    level: str
    file: str
    offset: int | None
    message: str


@dataclass(frozen=True, slots=True)
class CheckpointReport:
    """One checkpoint; `sound` says whether every byte of it is right."""

    name: str
    version: int
    rows: int
    outcomes: int
    size: int
    sound: bool


@dataclass(frozen=True, slots=True)
class SegmentReport:
    """One segment and what is whole in it; `torn`: bytes behind that, which a recovery cuts off."""

    name: str
    first_version: int
    last_version: int
    transactions: int
    entries: int
    size: int
    torn: int
    sound: bool


@dataclass(slots=True)
class CheckReport:
    """What `check` found.

    Attributes:
      version: the version the log and the checkpoints lead to.
      keys: when the content was rebuilt, how many keys there are; else None.
    """

    path: str
    database_id: str = ""
    version: int = 0
    keys: int | None = None
    checkpoints: list[CheckpointReport] = field(default_factory=list)
    segments: list[SegmentReport] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Nothing is damaged."""
        return not any(finding.level == "damage" for finding in self.findings)

    def note(self, error: OccamError) -> None:
        """Take in an error as damage."""
        file, offset = getattr(error, "file", ""), getattr(error, "offset", None)
        self.findings.append(Finding("damage", file, offset, error.message))


def check(
    path: str | os.PathLike[str], *, rebuild: bool = False, progress: Progress | None = None
) -> CheckReport:
    """Read everything and report.

    Args:
      rebuild: also recover the content into private memory (as large as the content) and audit its indices.
      progress: called with a stage, the bytes done and the bytes in all.

    Raises:
      FileNotFoundError: there is no database.
      OSError: the directory cannot be read.
    """
    report = CheckReport(os.fspath(path))
    try:
        directory = DatabaseDirectory(path, create=False)
    except (CorruptionError, IncompatibleFormatError) as error:
        report.note(error)
        return report
    try:
        report.database_id = directory.database_id.hex()
        _check_checkpoints(directory, report, progress or _quiet)
        _check_log(directory, report, progress or _quiet)
        _check_together(directory, report)
        if rebuild and report.sound:
            _rebuild(directory, report, progress or _quiet)
    finally:
        directory.close()
    return report


def _quiet(stage: str, done: int, total: int) -> None:
    pass


def _check_checkpoints(directory: DatabaseDirectory, report: CheckReport, progress: Progress) -> None:
    for file in list_checkpoints(directory):
        try:
            size = os.path.getsize(file.path)
            rows, outcomes = verify_checkpoint(file, directory.database_id, progress)
        except FileNotFoundError:
            continue  # superseded and removed since it was listed
        except (CorruptionError, IncompatibleFormatError) as error:
            report.note(error)
            report.checkpoints.append(_unsound(file))
        else:
            report.checkpoints.append(CheckpointReport(file.name, file.version, rows, outcomes, size, True))


def _unsound(file: CheckpointFile) -> CheckpointReport:
    return CheckpointReport(file.name, file.version, 0, 0, os.path.getsize(file.path), False)


def _check_log(directory: DatabaseDirectory, report: CheckReport, progress: Progress) -> None:
    names = [name for name in directory.wal.names() if parse_segment_name(name) is not None]
    previous: SegmentReport | None = None
    for index, name in enumerate(names):
        try:
            segment = read_segment(directory, name)
        except FileNotFoundError:
            continue
        except (CorruptionError, IncompatibleFormatError) as error:
            report.note(error)
            previous = None
            continue
        found = _check_segment(directory, report, segment, last=index == len(names) - 1)
        if previous is not None and previous.sound and segment.previous_version != previous.last_version:
            report.findings.append(
                Finding(
                    "damage",
                    segment.path,
                    40,
                    f"{segment.path} follows version {segment.previous_version}, "
                    f"the segment before it ends with {previous.last_version}",
                )
            )
        report.segments.append(found)
        previous = found
        progress("log", index + 1, len(names))


def _check_segment(
    directory: DatabaseDirectory, report: CheckReport, segment: Segment, *, last: bool
) -> SegmentReport:
    image, state, transactions, entries, version = _scan(directory, segment)
    error: CorruptionError | None = None
    torn = 0
    for attempt in range(_LIVE_ATTEMPTS):
        error = _judge(directory, segment, image, state, last)
        if error is None or not last or attempt == _LIVE_ATTEMPTS - 1:
            break
        # A coordinator may have been in the middle of writing it: look again before calling it damaged.
        time.sleep(_LIVE_PAUSE)
        image, state, transactions, entries, version = _scan(directory, segment)
    if error is not None:
        report.note(error)
    elif state == "broken":
        torn = image.size - image.offset
        report.findings.append(
            Finding("warning", segment.path, image.offset, f"{torn} bytes of an unfinished write")
        )
    return SegmentReport(
        segment.name, segment.first_version, version, transactions, entries, segment.size, torn, error is None
    )


def _scan(directory: DatabaseDirectory, segment: Segment) -> tuple[SegmentImage, str, int, int, int]:
    """Read a segment to where it is no longer whole: (image, state, transactions, entries, last version)."""
    image = open_image(directory, segment)
    version, transactions, entries = segment.first_version - 1, 0, 0
    while (found := image.advance(version))[0] == "whole":
        version = found[1]
        transactions += 1
        entries += found[4]
    return image, found[0], transactions, entries, version if transactions else segment.previous_version


def _judge(
    directory: DatabaseDirectory, segment: Segment, image: SegmentImage, state: str, last: bool
) -> CorruptionError | None:
    if state == "wrong":
        return broken_entry(segment, image)
    if state == "broken":
        same_boot = directory.meta.boot_id == current_boot_id()
        try:
            judge_tail(segment, image, last=last, same_boot=same_boot, clean=directory.meta.clean)
        except CorruptionError as error:
            return error
    return None


def _check_together(directory: DatabaseDirectory, report: CheckReport) -> None:
    """Whether checkpoints and log lead to where the meta file says."""
    newest = max((c.version for c in report.checkpoints if c.sound), default=0)
    report.version = max([newest, *(segment.last_version for segment in report.segments)])
    needed = _needed(directory, report.segments, newest)
    if needed:
        report.findings.append(Finding("damage", directory.wal.path, None, needed))
    meta = directory.meta
    if meta.clean and report.version < meta.clean_version:
        report.findings.append(
            Finding(
                "damage",
                directory.path,
                None,
                f"closed at version {meta.clean_version}, but only version {report.version} is left",
            )
        )


def _needed(directory: DatabaseDirectory, segments: Sequence[SegmentReport], newest: int) -> str | None:
    expected = directory.meta.log_first_version
    if expected and not any(segment.first_version >= expected for segment in segments):
        return f"the segment beginning with version {expected} is missing"
    if segments and segments[0].first_version > newest + 1 and directory.meta.durability != "none":
        first = read_segment(directory, segments[0].name)
        if first.previous_version > newest:
            return f"versions {newest + 1} to {first.previous_version} are missing"
    return None


def _rebuild(directory: DatabaseDirectory, report: CheckReport, progress: Progress) -> None:
    store = ScratchStore(directory.database_id)
    try:
        result = recover(directory, store.loader(), progress=progress, repair_disk=False)
    except OccamError as error:
        report.note(error)
        return
    report.version = result.version
    report.keys = store.key_count
    fault = store.check()
    if fault is not None:
        report.findings.append(
            Finding("damage", directory.path, None, f"the rebuilt store is unsound: {fault}")
        )
