"""What a commit resulted in, read back from the log for a worker whose coordinator died before it answered.

Recovery noted where the last transactions lie, so an answer reads one transaction and not a whole segment.
The control plane answers between other requests, and many workers may ask at once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

import msgpack

from ..disk._crc32c import checksum
from ..disk.directory import DatabaseDirectory
from ..log.wal_format import BeginTxn, BoundWrite, Delete, Entry, Write, decode_body, parse_segment_name
from ..log.wal_reader import read_log, read_segment
from ..model.errors import CorruptionError, NotFoundError

__all__ = ["LoggedCommits"]

_ENTRY_HEADER = struct.Struct("<II")
_PLACE = struct.Struct("<QQ")
_INTEGER_SIZE_MAX = 9


class LoggedCommits:
    """Answers from the log of one directory.

    Args:
      places: {version: (start, end)} of transactions, in the segment that their version belongs to.
    """

    def __init__(self, directory: DatabaseDirectory, places: Mapping[int, tuple[int, int]]) -> None:
        self._directory = directory
        self._places = places

    def find(self, version: int) -> dict[str, Any]:
        """What the log holds of one commit: {"committed_at": ns, "writes": [(key, integer)]}.

        Integers are what increments resulted in; None stands for any other value, True for a delete.

        Raises:
          NotFoundError: no log, or it does not reach back so far.
          CorruptionError: it is damaged there.
        """
        writes: list[tuple[bytes, Any]] = []
        committed_at = 0
        place = self._places.get(version)
        entries = self._search(version) if place is None else self._read(version, *place)
        for entry in entries:
            if isinstance(entry, Write | BoundWrite):
                writes.append((entry.key, _integer_in(entry.value)))
            elif isinstance(entry, Delete):
                writes.append((entry.key, True))
            elif isinstance(entry, BeginTxn):
                committed_at = entry.timestamp
        if not committed_at:
            raise NotFoundError(f"commit {version} is no longer in the log")
        return {"committed_at": committed_at, "writes": writes}

    def _search(self, version: int) -> Iterator[Entry]:
        for found in read_log(self._directory, start_version=version):
            if found.version != version:
                return
            yield found.entry

    def _read(self, version: int, start: int, end: int) -> Iterator[Entry]:
        """The entries of a transaction whose place is known; none when its segment was removed."""
        names = [(parse_segment_name(name), name) for name in self._directory.wal.names()]
        known = [(first, name) for first, name in names if first is not None and first <= version]
        if not known:
            return
        segment = read_segment(self._directory, max(known)[1])
        with self._directory.wal.open(segment.name) as file:
            data = file.read(end - start, start)
        at = 0
        while at < end - start:
            length, crc = _ENTRY_HEADER.unpack_from(data.ljust(at + _ENTRY_HEADER.size, b"\0"), at)
            content = data[at + _ENTRY_HEADER.size : at + _ENTRY_HEADER.size + length]
            seed = checksum(_PLACE.pack(start + at, length), segment.header.crc)
            # The entry was sound when it was replayed, so these bytes are not that transaction.
            if length == 0 or len(content) != length or checksum(content, seed) != crc:
                raise CorruptionError(
                    f"{segment.path} is damaged at offset {start + at}, or was replaced by another segment",
                    file=segment.path,
                    offset=start + at,
                    expected=f"an entry of transaction {version}",
                )
            yield decode_body(content[0], content[1:])
            at += _ENTRY_HEADER.size + length


def _integer_in(value: bytes) -> int | None:
    """The stored value as an integer; None if it is not one. Nothing large is decoded or sent."""
    if len(value) > _INTEGER_SIZE_MAX or not (
        value[0] <= 0x7F or 0xCC <= value[0] <= 0xD3 or value[0] >= 0xE0
    ):
        return None
    return int(msgpack.unpackb(value))
