"""Reading the log: which segments there are, whether they follow each other, what is in them.

Used by recovery, the checks and the dump; nothing here writes.

Invariants:
1. A segment's header is trusted only after its checksum, its database id and its name have been compared.
2. Damage is reported as CorruptionError with file and offset; only the tail of the last segment may be torn,
   and whether it is one is decided in `judge_tail` alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..disk.directory import DatabaseDirectory
from ..model.errors import CorruptionError
from ._replay import SegmentImage
from ._tail_scan import tail_kind
from .wal_format import (
    HEADER_SIZE,
    Entry,
    SegmentHeader,
    decode_body,
    decode_header,
    parse_segment_name,
    segment_name,
)

__all__ = [
    "LogEntry",
    "Segment",
    "broken_entry",
    "chain_from",
    "judge_tail",
    "list_segments",
    "open_image",
    "read_log",
]


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment file whose header is sound."""

    name: str
    path: str
    header: SegmentHeader
    size: int

    @property
    def first_version(self) -> int:
        """Of the first transaction in it."""
        return self.header.first_version

    @property
    def previous_version(self) -> int:
        """The last version before it."""
        return self.header.previous_version


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One entry and where it lies."""

    segment: str
    offset: int
    version: int
    entry: Entry


def read_segment(directory: DatabaseDirectory, name: str) -> Segment:
    """Read and check the header of one segment.

    Raises:
      CorruptionError: empty, cut short, damaged, under a wrong name, or of another database.
      IncompatibleFormatError: a later format.
    """
    with directory.wal.open(name) as file:
        header = decode_header(file.read(HEADER_SIZE), file.path)
        segment = Segment(name, file.path, header, file.size())
    if header.database_id != directory.database_id:
        raise CorruptionError(
            f"{segment.path} belongs to database {header.database_id.hex()}, not {directory.database_id.hex()}",
            file=segment.path,
            offset=16,
            expected=f"database id {directory.database_id.hex()}",
        )
    if header.first_version != parse_segment_name(name) or header.previous_version >= header.first_version:
        raise CorruptionError(
            f"{segment.path} says it begins with version {header.first_version}",
            file=segment.path,
            offset=32,
            expected=f"the name {segment_name(header.first_version)}",
        )
    return segment


def list_segments(directory: DatabaseDirectory) -> list[Segment]:
    """All segments, oldest first. Raises what `read_segment` does."""
    segments = []
    for name in directory.wal.names():
        if parse_segment_name(name) is not None:
            # A checkpoint may have removed it since. Whether those needed are there is for `chain_from` to
            # say.
            with contextlib.suppress(FileNotFoundError):
                segments.append(read_segment(directory, name))
    return segments


def chain_from(segments: Sequence[Segment], version: int, folder: str) -> list[Segment]:
    """The segments that hold everything after `version`.

    Raises:
      CorruptionError: the first of them is missing.
    """
    start = max((i for i, s in enumerate(segments) if s.previous_version <= version), default=None)
    if start is None and segments:
        raise CorruptionError(
            f"{folder}: versions {version + 1} to {segments[0].previous_version} are missing",
            file=segments[0].path,
            offset=40,
            expected=f"a segment that begins at or before version {version + 1}",
        )
    return list(segments[start:])


def open_image(directory: DatabaseDirectory, segment: Segment) -> SegmentImage:
    """Read a segment into memory."""
    with directory.wal.open(segment.name) as file:
        return SegmentImage(file.fd, segment.header.crc)


def broken_entry(segment: Segment, image: SegmentImage, note: str = "") -> CorruptionError:
    """The error for what the image met at `error_offset`."""
    offset = image.error_offset
    return CorruptionError(
        f"{segment.path} is damaged at offset {offset}: {image.reason}{note}",
        file=segment.path,
        offset=offset,
        expected="a valid log entry",
    )


def judge_tail(segment: Segment, image: SegmentImage, *, last: bool, same_boot: bool, clean: bool) -> None:
    """Decide whether a broken entry is the torn tail of a crash, which may be cut off at `image.offset`.

    A killed process leaves a prefix of what it wrote, so while the machine has been up since, nothing valid
    can lie behind a broken entry. A power loss may also keep later sectors and lose earlier ones, but none
    that an fdatasync covered, and each BeginTxn says how far the last one before it reached.

    Args:
      last: it is the last segment.
      same_boot: the machine has not been restarted since it was written.
      clean: it was closed in good order.

    Raises:
      CorruptionError: it is damage.
    """
    if not last or clean:
        raise broken_entry(segment, image)
    found, synced = tail_kind(image, image.error_offset)
    if same_boot and found:
        raise broken_entry(segment, image, f", and {found} valid entries follow it")
    if synced > image.error_offset:
        raise broken_entry(segment, image, f", and was on disk: {synced} bytes had been synced")


def read_log(directory: DatabaseDirectory, *, start_version: int = 0) -> Iterator[LogEntry]:
    """Every entry of every whole transaction from `start_version` on, oldest first; for dumps.

    Stops silently at a torn tail of the last segment. A running coordinator may be appending meanwhile.

    Raises:
      CorruptionError: damage, or versions that do not follow each other.
    """
    segments = list_segments(directory)
    if start_version:
        segments = chain_from(segments, start_version - 1, directory.wal.path)
    for segment in segments:
        try:
            image = open_image(directory, segment)
        except FileNotFoundError:
            continue  # superfluous, and removed since it was listed
        previous = image.skip_to(segment.first_version - 1, start_version)
        while (found := image.advance(previous))[0] == "whole":
            _, previous, start, end, _ = found
            if previous >= start_version:
                yield from _entries(segment, image, previous, start, end)
        if found[0] == "wrong" or (found[0] == "broken" and segment is not segments[-1]):
            raise broken_entry(segment, image)


def _entries(segment: Segment, image: SegmentImage, version: int, start: int, end: int) -> Iterator[LogEntry]:
    while start < end:
        found = image.entry(start)
        assert found is not None, "a whole transaction has valid entries"
        kind, body, following = found
        yield LogEntry(segment.name, start, version, decode_body(kind, body))
        start = following
