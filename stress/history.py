"""Histories: what every worker of a stress run invoked and what came back.

Each worker owns one file and only ever appends to it. The file is a msgpack stream: one header map, then
two kinds of records, each handed to the kernel with one `write` so that a SIGKILL loses at most a torn tail:

    [0, id, ns, ops]                     invoked; ops: ["a", key, value] append, ["w", key, value] write,
                                         ["r", key] read
    [1, id, ns, outcome, reads, version] came back: `reads` holds the result of each "r" in order (ok only)

Invariants:
1. An invocation is on file before the database is asked to commit, so whatever a crash left in the
   database has its invocation on file.
2. Ids grow by one in each file. An invocation without an answer has the outcome UNKNOWN.
3. Times are CLOCK_MONOTONIC nanoseconds, which all processes of one machine share.
4. A value is written at most once to a key in a whole history (`unique_value`); the checker relies on it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack

OK, CONFLICT, UNKNOWN = 0, 1, 2
OUTCOME_NAMES = ("ok", "conflict", "unknown")
LIST_APPEND, REGISTER = "list-append", "register"
FORMAT = "occam-history-1"
SUFFIX = ".hist"
WORKERS_MAX = 4096
NEVER = (1 << 63) - 1  # the completion time of a transaction nobody heard of again

_INVOKED, _RETURNED = 0, 1

Op = list[Any]


class HistoryFormatError(ValueError):
    """A file is not a history of this format; the message names file and byte."""


def unique_value(worker: int, count: int) -> int:
    """A number that no other (worker, count) pair of one history yields."""
    return count * WORKERS_MAX + worker


class HistoryWriter:
    """Appends one worker's transactions to its file. Used by one thread of one process."""

    def __init__(
        self, path: str | os.PathLike[str], *, kind: str, worker: int, meta: dict[str, Any] | None = None
    ):
        """Create the file (it must not exist) and write its header.

        Args:
          path: the file; the suffix `.hist` lets `history_files` find it in a directory.
          kind: LIST_APPEND or REGISTER.
          worker: 0 to WORKERS_MAX - 1, different in every file of a history.
          meta: what should stay with the history: seed, workload, settings.

        Raises:
          FileExistsError: histories are never overwritten; choose another directory.
        """
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._pack = msgpack.Packer(use_bin_type=True).pack
        self._next_id = 0
        self._write({"format": FORMAT, "kind": kind, "worker": worker, "meta": meta or {}})

    def invoke(self, ops: Sequence[Op]) -> int:
        """Record what is about to be asked for; returns the id to answer with."""
        txn = self._next_id
        self._next_id += 1
        self._write([_INVOKED, txn, time.monotonic_ns(), ops])
        return txn

    def ok(self, txn: int, reads: Sequence[Any], version: int = 0) -> None:
        """The transaction committed; `reads` are the results of its reads, in order."""
        self._write([_RETURNED, txn, time.monotonic_ns(), OK, reads, version])

    def conflict(self, txn: int) -> None:
        """The transaction was refused: it did not commit and never will."""
        self._write([_RETURNED, txn, time.monotonic_ns(), CONFLICT, [], 0])

    def unknown(self, txn: int) -> None:
        """Nobody can say what became of the transaction."""
        self._write([_RETURNED, txn, time.monotonic_ns(), UNKNOWN, [], 0])

    def happened(self, ops: Sequence[Op]) -> None:
        """Record writes that no worker asked for, such as an expiry, and whose time is not known.

        They happened at some time since the beginning, or will happen yet.
        """
        txn = self._next_id
        self._next_id += 1
        self._write([_INVOKED, txn, 0, ops])
        self._write([_RETURNED, txn, time.monotonic_ns(), UNKNOWN, [], 0])

    def close(self) -> None:
        """Close the file; harmless when repeated."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> HistoryWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, record: Any) -> None:
        data = self._pack(record)
        written = os.write(self._file, data)
        while written < len(data):  # a short write (a full disk) must not leave a hole between two records
            written += os.write(self._file, data[written:])


@dataclass(slots=True)
class Recorded:
    """One transaction as it stands in a history file."""

    ops: list[Op]
    invoked: int
    returned: int = NEVER
    outcome: int = UNKNOWN
    reads: list[Any] = field(default_factory=list)
    version: int = 0

    def describe(self) -> str:
        """`r(x)=[1, 2] a(x, 3)`, reads with their results when they are known."""
        results = iter(self.reads)
        parts = []
        for op in self.ops:
            if op[0] == "r":
                found = next(results, "?")
                parts.append(f"r({op[1]})={found}")
            else:
                parts.append(f"{op[0]}({op[1]}, {op[2]})")
        return " ".join(parts)


@dataclass(slots=True)
class HistoryHeader:
    """The first record of a history file."""

    kind: str
    worker: int
    meta: dict[str, Any]


def history_files(path: str | os.PathLike[str]) -> list[Path]:
    """The history's files: the file itself, or every `*.hist` in a directory, sorted."""
    place = Path(path)
    if place.is_dir():
        return sorted(place.glob(f"*{SUFFIX}"))
    return [place]


def read_header(path: Path) -> HistoryHeader:
    """Read only the header of a history file."""
    with open(path, "rb") as file:
        return _header(path, _unpacker(file))


def read_history(path: Path, offset_from: int = 0) -> Iterator[tuple[int, Recorded]]:
    """Yield (byte offset of the invocation, transaction) for every transaction of one worker.

    A torn record at the end of the file is what a killed worker leaves and ends the iteration. One
    transaction at a time is held in memory, because a worker has one outstanding at most.

    Args:
      path: a file a `HistoryWriter` made.
      offset_from: start at this offset, as yielded earlier; 0 is the beginning.

    Raises:
      HistoryFormatError: a record in the middle of the file makes no sense.
    """
    with open(path, "rb") as file:
        if offset_from:
            file.seek(offset_from)
        unpacker = _unpacker(file)
        if not offset_from:
            _header(path, unpacker)
        pending: tuple[int, int, Recorded] | None = None
        while True:
            offset = offset_from + unpacker.tell()
            try:
                record = unpacker.unpack()
            except (msgpack.OutOfData, msgpack.UnpackException, ValueError):
                break
            if not isinstance(record, list) or len(record) < 4:
                raise HistoryFormatError(
                    f"{path}: byte {offset} does not hold a history record: {record!r:.80}"
                )
            if record[0] == _INVOKED:
                if pending is not None:
                    yield pending[0], pending[2]
                pending = (offset, record[1], Recorded(record[3], record[2]))
            elif pending is not None and record[1] == pending[1]:
                found = pending[2]
                _, _, found.returned, found.outcome, found.reads, found.version = record
                if found.outcome == UNKNOWN:
                    found.returned = NEVER
                yield pending[0], found
                pending = None
            else:
                raise HistoryFormatError(
                    f"{path}: byte {offset} answers transaction {record[1]}, which is not open"
                )
        if pending is not None:
            yield pending[0], pending[2]


def _unpacker(file: Any) -> Any:
    return msgpack.Unpacker(
        file, raw=False, strict_map_key=False, use_list=True, read_size=1 << 20, max_buffer_size=1 << 30
    )


def _header(path: Path, unpacker: Any) -> HistoryHeader:
    try:
        header = unpacker.unpack()
    except (msgpack.OutOfData, msgpack.UnpackException, ValueError) as error:
        raise HistoryFormatError(f"{path}: no history header at the start: {error}") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise HistoryFormatError(f"{path}: not a history of format {FORMAT}")
    return HistoryHeader(header["kind"], header["worker"], header["meta"])
