"""What a disk may hold after a power cut, computed from a trace of `occamdb.engine.disk._files`.

The model is harsher than real file systems: what was not synced may be lost, kept or torn at 512-byte sectors,
each sector independently; a name made, renamed or removed since the last sync of its directory may be lost,
in any prefix of that directory's changes; syncing a file does not make its name durable.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SECTOR = 512
_HEADER = struct.Struct("<IIqqQQ")
OPEN, CLOSE, WRITE, SYNC, DIRECTORY_SYNC, TRUNCATE, ALLOCATE, RENAME, UNLINK, MKDIR, MARK = range(1, 12)


@dataclass(frozen=True, slots=True)
class Call:
    """One record of a trace."""

    op: int
    fd: int
    number: int
    first: bytes
    second: bytes


def read_trace(path: Path) -> list[Call]:
    """All records of a trace file."""
    data, at, calls = path.read_bytes(), 0, []
    while at < len(data):
        magic, op, fd, number, first, second = _HEADER.unpack_from(data, at)
        assert magic == 0x5452414F
        at += _HEADER.size
        calls.append(Call(op, fd, number, data[at : at + first], data[at + first : at + first + second]))
        at += first + second
    return calls


@dataclass
class _File:
    """Durable bytes and what was done since: (op, offset or size, data)."""

    durable: bytes = b""
    pending: list[tuple[int, int, bytes]] = field(default_factory=list)


@dataclass
class _Directory:
    """Names as programs see them, as they are on disk, and the changes in between."""

    live: dict[str, _File | _Directory] = field(default_factory=dict)
    durable: dict[str, _File | _Directory] = field(default_factory=dict)
    pending: list[tuple[str, str | None, _File | _Directory | None]] = field(default_factory=list)

    def change(self, name: str, new_name: str | None, node: _File | _Directory | None) -> None:
        """name -> node made (new_name None), renamed to new_name, or (node None too) removed."""
        _change(self.live, name, new_name, node)
        self.pending.append((name, new_name, node))


def _change(
    names: dict[str, _File | _Directory], name: str, new_name: str | None, node: _File | _Directory | None
) -> None:
    if new_name is not None:
        if name in names:
            names[new_name] = names.pop(name)
    elif node is None:
        names.pop(name, None)
    else:
        names[name] = node


class Disk:
    """Follows a trace; `crash` writes out one of the states a power cut may leave now."""

    def __init__(self, root: Path) -> None:
        """`root`: an existing directory below which all happens; its own name is durable."""
        self.root = os.fspath(root)
        self.tree = _Directory()
        self.open: dict[int, _File | _Directory] = {}

    def _resolve(self, path: str) -> _Directory:
        node: _File | _Directory = self.tree
        for part in Path(os.path.relpath(path, self.root)).parts:
            if part != ".":
                assert isinstance(node, _Directory)
                node = node.live[part]
        assert isinstance(node, _Directory)
        return node

    def _open(self, call: Call) -> None:
        directory_fd = struct.unpack("<i", call.second)[0]
        name = call.first.decode()
        if directory_fd == -100:
            parent, base = os.path.split(name)
            if name == self.root or parent == "/" or not name.startswith(self.root):
                self.open[call.fd] = self.tree
                return
            directory = self._resolve(parent)
        else:
            found = self.open[directory_fd]
            assert isinstance(found, _Directory)
            directory, base = found, name
            if name == ".":
                self.open[call.fd] = directory
                return
        if base not in directory.live:
            assert call.number & os.O_CREAT, name
            directory.change(base, None, _File())
        node = directory.live[base]
        if call.number & os.O_TRUNC:
            assert isinstance(node, _File)
            node.pending.append((TRUNCATE, 0, b""))
        self.open[call.fd] = node

    def apply(self, call: Call) -> None:
        """Take in the next call of the trace."""
        if call.op == OPEN:
            self._open(call)
            return
        if call.op == MARK:
            return
        node = self.open[call.fd]
        if call.op == CLOSE:
            del self.open[call.fd]
        elif isinstance(node, _File):
            if call.op == SYNC:
                node.durable = _settled(node, None)
                node.pending.clear()
            else:
                node.pending.append((call.op, call.number, call.first))
        elif call.op == DIRECTORY_SYNC:
            node.durable = dict(node.live)
            node.pending.clear()
        elif call.op == RENAME:
            node.change(call.first.decode(), call.second.decode(), None)
        elif call.op == UNLINK:
            node.change(call.first.decode(), None, None)
        elif call.op == MKDIR:
            node.change(call.first.decode(), None, _Directory())
        else:
            raise AssertionError(f"call {call.op} on a directory")

    def crash(self, into: Path, chance: random.Random | None, keep: float) -> None:
        """Write a possible state into the empty directory `into`.

        Args:
          chance: decides what un-synced changes survive; None: `keep` is 0 (all lost) or 1 (all kept).
          keep: the probability that a change survives.
        """
        _write_out(self.tree, into, chance, keep)


def _survives(chance: random.Random | None, keep: float) -> bool:
    return keep >= 1 if chance is None else chance.random() < keep


def _settled(file: _File, chance: random.Random | None, keep: float = 1.0) -> bytes:
    content = bytearray(file.durable)
    for op, number, data in file.pending:
        if op == TRUNCATE:
            if _survives(chance, keep):
                del content[number:]
                content.extend(bytes(number - len(content)))
        elif op == ALLOCATE:
            if _survives(chance, keep):
                content.extend(bytes(max(0, number - len(content))))
        else:
            for offset, piece in _sectors(number, data):
                if _survives(chance, keep):
                    content.extend(bytes(max(0, offset - len(content))))
                    content[offset : offset + len(piece)] = piece
    return bytes(content)


def _sectors(offset: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        size = min(SECTOR - (offset + at) % SECTOR, len(data) - at)
        yield offset + at, data[at : at + size]
        at += size


def _write_out(directory: _Directory, into: Path, chance: random.Random | None, keep: float) -> None:
    names = dict(directory.durable)
    count = len(directory.pending)
    kept = count if keep >= 1 else 0 if chance is None else chance.randint(0, count)
    for change in directory.pending[:kept]:
        _change(names, *change)
    for name, node in names.items():
        if isinstance(node, _Directory):
            (into / name).mkdir()
            _write_out(node, into / name, chance, keep)
        else:
            (into / name).write_bytes(_settled(node, chance, keep))
