"""The bytes of the log for Python code (docs/log-format.md): names, segment headers, entries.

The compiled side is `_entries.pyx` (encodes) and `_replay.pyx` (checks and applies). This module serves the
dump, the checks of headers and the tests.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import TypeAlias

from ..disk._crc32c import checksum
from ..model.errors import CorruptionError, IncompatibleFormatError
from ._segments import FORMAT_VERSION, FORMATS_READ, HEADER_SIZE, MAGIC

__all__ = [
    "HEADER_SIZE",
    "BeginTxn",
    "BoundWrite",
    "CommitTxn",
    "Delete",
    "DeleteRange",
    "Entry",
    "SegmentHeader",
    "Write",
    "decode_body",
    "encode_entry",
    "parse_segment_name",
    "segment_name",
]

_HEADER = struct.Struct("<8sII16sQQQqQII")
_ENTRY = struct.Struct("<IIB")
_BEGIN = struct.Struct("<QQ16sqQ")
_WRITE = struct.Struct("<QqII")
_BOUND = struct.Struct("<QqIIQ")
_DELETE = struct.Struct("<QQI")
_RANGE = struct.Struct("<QII")
_COMMIT = struct.Struct("<QQQI")
_NAME = re.compile(r"(\d{20})\.log")
assert _HEADER.size == HEADER_SIZE


@dataclass(frozen=True, slots=True)
class BeginTxn:
    """The first entry of a transaction. `synced`: bytes of the segment known to be on disk then."""

    session: int
    sequence: int
    run_id: bytes
    timestamp: int
    synced: int
    type = 1


@dataclass(frozen=True, slots=True)
class Write:
    """A key got a value. `expires_at` in ns since the epoch, 0 never."""

    version: int
    expires_at: int
    key: bytes
    value: bytes
    type = 2


@dataclass(frozen=True, slots=True)
class BoundWrite:
    """A Write of a key that lives as long as the handle whose session this is."""

    version: int
    expires_at: int
    session: int
    key: bytes
    value: bytes
    type = 7


@dataclass(frozen=True, slots=True)
class Delete:
    """A key was deleted; `removed`: version of the record whose expiry this is; 0: a user did it."""

    version: int
    removed: int
    key: bytes
    type = 3


@dataclass(frozen=True, slots=True)
class DeleteRange:
    """Every key in [start, end) that had a value was deleted."""

    version: int
    start: bytes
    end: bytes
    type = 4


@dataclass(frozen=True, slots=True)
class CommitTxn:
    """The last entry of a transaction; `count` entries lie between it and its BeginTxn."""

    session: int
    sequence: int
    version: int
    count: int
    type = 5


Entry: TypeAlias = BeginTxn | Write | BoundWrite | Delete | DeleteRange | CommitTxn


def encode_body(entry: Entry) -> bytes:
    """The body of an entry, after its type byte."""
    match entry:
        case BeginTxn():
            return _BEGIN.pack(entry.session, entry.sequence, entry.run_id, entry.timestamp, entry.synced)
        case Write():
            sizes = (len(entry.key), len(entry.value))
            return _WRITE.pack(entry.version, entry.expires_at, *sizes) + entry.key + entry.value
        case BoundWrite():
            sizes = (len(entry.key), len(entry.value))
            head = _BOUND.pack(entry.version, entry.expires_at, *sizes, entry.session)
            return head + entry.key + entry.value
        case Delete():
            return _DELETE.pack(entry.version, entry.removed, len(entry.key)) + entry.key
        case DeleteRange():
            return _RANGE.pack(entry.version, len(entry.start), len(entry.end)) + entry.start + entry.end
        case CommitTxn():
            return _COMMIT.pack(entry.session, entry.sequence, entry.version, entry.count)


def encode_entry(entry: Entry, seed: int, position: int) -> bytes:
    """The bytes of an entry at `position` of the segment whose header checksum is `seed`."""
    content = bytes([entry.type]) + encode_body(entry)
    crc = checksum(content, checksum(struct.pack("<QQ", position, len(content)), seed))
    return struct.pack("<II", len(content), crc) + content


def decode_body(kind: int, body: bytes) -> Entry:
    """Read the body of an entry whose checksum and sizes have been checked."""
    if kind == 1:
        return BeginTxn(*_BEGIN.unpack(body))
    if kind == 2:
        version, expires_at, key_size, _ = _WRITE.unpack_from(body)
        key_end = _WRITE.size + key_size
        return Write(version, expires_at, body[_WRITE.size : key_end], body[key_end:])
    if kind == 7:
        version, expires_at, key_size, _, session = _BOUND.unpack_from(body)
        key_end = _BOUND.size + key_size
        return BoundWrite(version, expires_at, session, body[_BOUND.size : key_end], body[key_end:])
    if kind == 3:
        version, removed, _ = _DELETE.unpack_from(body)
        return Delete(version, removed, body[_DELETE.size :])
    if kind == 4:
        version, start_size, _ = _RANGE.unpack_from(body)
        start_end = _RANGE.size + start_size
        return DeleteRange(version, body[_RANGE.size : start_end], body[start_end:])
    return CommitTxn(*_COMMIT.unpack(body))


def segment_name(first_version: int) -> str:
    """The file name of the segment whose first transaction has this version."""
    return f"{first_version:020d}.log"


def parse_segment_name(name: str) -> int | None:
    """The first version in a segment's name; None when it is not one."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """The first bytes of a segment.

    Attributes:
      first_version: of the first transaction in it; also its name.
      previous_version: the last version before it; first_version - 1 unless versions were skipped.
      crc: of the header, and the seed of all checksums in the segment.
    """

    database_id: bytes
    first_version: int
    previous_version: int
    incarnation: int
    created_at: int
    crc: int = 0

    def encode(self) -> bytes:
        """The bytes of it, with its checksum filled in."""
        body = _HEADER.pack(
            MAGIC, FORMAT_VERSION, HEADER_SIZE, self.database_id, self.first_version, self.previous_version,
            self.incarnation, self.created_at, 0, 0, 0,
        )  # fmt: skip
        return body[:-4] + struct.pack("<I", checksum(body[:-4]))


def decode_header(data: bytes, path: str) -> SegmentHeader:
    """Read and check a segment's header.

    Raises:
      CorruptionError: it is cut short or damaged.
      IncompatibleFormatError: a later format.
    """
    if len(data) < HEADER_SIZE:
        raise CorruptionError(
            f"{path}: the header is cut short at {len(data)} bytes",
            file=path, offset=len(data), expected=f"{HEADER_SIZE} bytes",
        )  # fmt: skip
    fields = _HEADER.unpack(data[:HEADER_SIZE])
    found = checksum(data[: HEADER_SIZE - 4])
    if fields[0] != MAGIC or fields[-1] != found:
        raise CorruptionError(
            f"{path}: not a log segment, or its header is damaged", file=path, offset=0,
            expected=f"magic {MAGIC!r} and checksum {found:#010x}",
        )  # fmt: skip
    if fields[1] not in FORMATS_READ:
        raise IncompatibleFormatError(
            f"{path} has log format version {fields[1]}; "
            f"this build reads {', '.join(map(str, FORMATS_READ))}",
            found=fields[1],
            supported=FORMAT_VERSION,
        )
    return SegmentHeader(fields[3], fields[4], fields[5], fields[6], fields[7], fields[10])
