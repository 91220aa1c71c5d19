"""What the store's tests share: memory to build stores in, and the plain model they are compared with."""

from __future__ import annotations

import bisect
import mmap
from collections.abc import Iterable

from occamdb._testing._store_reader import StoreReader
from occamdb._testing._store_writer import StoreWriter

Row = tuple[bytes, bytes, int]


class Model:
    """A dict of version lists: what a multi-version store means, without any of its machinery."""

    def __init__(self) -> None:
        self.versions: dict[bytes, list[tuple[int, bytes | None]]] = {}

    def write(self, key: bytes, value: bytes | None, version: int) -> None:
        """Value None is a delete. The latest of several writes at one version counts."""
        self.versions.setdefault(key, []).append((version, value))

    def undo(self, key: bytes) -> None:
        """Take back the latest write of the key."""
        self.versions[key].pop()

    def get(self, key: bytes, version: int) -> tuple[int, bytes] | None:
        history = self.versions.get(key, [])
        index = bisect.bisect_right(history, version, key=lambda entry: entry[0])
        if index == 0:
            return None
        found, value = history[index - 1]
        return None if value is None else (found, value)

    def rows(
        self, version: int, start: bytes = b"", end: bytes | None = None, reverse: bool = False
    ) -> list[Row]:
        found = []
        for key in sorted(self.versions, reverse=reverse):
            if key >= start and (end is None or key < end):
                row = self.get(key, version)
                if row is not None:
                    found.append((key, row[1], row[0]))
        return found

    def live_keys(self) -> int:
        """Keys that exist now."""
        return sum(1 for history in self.versions.values() if history and history[-1][1] is not None)


def make_store(size: int = 4 << 20) -> tuple[StoreWriter, StoreReader]:
    """A store on anonymous memory, and a reader of it."""
    memory = mmap.mmap(-1, size)
    return StoreWriter(memory), StoreReader(memory)


def settle(writer: StoreWriter, pins: Iterable[int] = (), horizon: int | None = None) -> None:
    """Collect until nothing more can be, and give the quarantine back."""
    newest = writer.stats()["committed_version"] if horizon is None else horizon
    held = list(pins)
    writer.collect(held, horizon=newest)
    writer.collect(held)
    writer.flip()
