"""The memory profile: bytes a key, garbage of old versions, private memory of workers.

Shared memory is the store up to its high-water mark, and the pages that back its segment; private
memory is USS (what would be given back if the process ended), from the kernel.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from occamdb.stress.bench.model import OCCAM, Row, Scale, Target, own_row
from occamdb.stress.bench.occam import OccamTask, SoloSide, fill, long_key, open_db, store_bytes
from occamdb.stress.bench.stores import RUN, key_name, value_of
from occamdb.stress.coordinators import stop_coordinator

KEYS = 1_000_000
OVERWRITES = 10_000_000
VALUE = "v" * 98  # 100 bytes as msgpack
PER_TRANSACTION = 100


class _Filled(SoloSide):
    """Base: 1,000,000 keys of 40 bytes with values of 100 bytes, durability none."""

    def setup(self, scratch: Path, scale: Scale) -> None:
        """Fill and note the bytes a key."""
        super().setup(scratch, scale)
        self.db = self.opened(open_db(scratch, "none"))
        empty = store_bytes(self.db)["used"]
        self.count = scale.count(KEYS)
        fill(self.db, ((long_key(index), VALUE) for index in range(self.count)))
        self.filled = settled(self.db)
        self.per_key = (self.filled["used"] - empty) / self.count
        self._notes["keys"] = self.count

    def close(self) -> None:
        """Also end the coordinator, whose memory is large."""
        super().close()
        stop_coordinator(str(self.path / "occam"))


def in_use(figures: dict[str, int]) -> int:
    """Bytes of live and of replaced records, without what was freed below the high-water mark."""
    return figures["used"] - figures["free"]


def settled(db: Any) -> dict[str, int]:
    """The store's figures once its background collection has caught up, or after five seconds."""
    figures = store_bytes(db)
    for _ in range(100):
        time.sleep(0.05)
        now = store_bytes(db)
        if in_use(now) == in_use(figures) and not now["superseded"]:
            return now
        figures = now
    return figures


class BytesPerKey(_Filled):
    """Shared memory a key."""

    def measure(self, scale: Scale) -> float:
        """Bytes in use for each key; the pages behind them are in the notes."""
        self._notes["backed_per_key"] = self.filled["backed"] / self.count
        return self.per_key


class AfterOverwrites(_Filled):
    """Shared memory after ten million overwrites, as a share of what it was before."""

    def measure(self, scale: Scale) -> float:
        """Overwrite in transactions of 100, with a short-lived reader every thousand."""
        dice, db, value = random.Random(1), self.db, VALUE
        most = 0
        for number in range(scale.count(OVERWRITES) // PER_TRANSACTION):
            with db.begin(RUN) as txn:
                for _ in range(PER_TRANSACTION):
                    txn.put(long_key(dice.randrange(self.count)), value)
            if number % 10 == 0:
                with db.begin(RUN, read_only=True) as txn:
                    txn.get(long_key(0))
            if number % 1000 == 0:
                most = max(most, store_bytes(db)["used"])
        self._notes["peak"] = most / self.filled["used"]
        return settled(db)["used"] / self.filled["used"]


class HeldGarbage(SoloSide):
    """Bytes held back by a snapshot while a small set of keys is overwritten, per overwritten key."""

    def __init__(self, held: bool):
        """`held`: keep one snapshot open all the while, or open none."""
        super().__init__()
        self._held = held

    def setup(self, scratch: Path, scale: Scale) -> None:
        """Ten thousand keys."""
        super().setup(scratch, scale)
        self.db = self.opened(open_db(scratch, "none"))
        fill(self.db, ((key_name(index), value_of(index)) for index in range(10_000)))

    def measure(self, scale: Scale) -> float:
        """Overwrite everything twenty times; growth in bytes for each key."""
        before = in_use(settled(self.db))
        snapshot = self.db.snapshot(RUN) if self._held else None
        for turn in range(20):
            fill(self.db, ((key_name(index), value_of(index + turn)) for index in range(10_000)))
        time.sleep(0.3)
        after = in_use(store_bytes(self.db) if self._held else settled(self.db))
        if snapshot is not None:
            snapshot.close()
        return (after - before) / 10_000


@dataclass
class _Idle(OccamTask):
    def prepare(self) -> None:
        """Read and commit a little, so that everything a worker needs is there."""
        for number in range(1000):
            with self.db.begin(RUN) as txn:
                txn.get(key_name(number))
                txn.put(f"own/{self.worker}", number)

    def step(self) -> int:
        """Nothing."""
        time.sleep(0.01)
        return 1


class PrivateMemory(SoloSide):
    """USS of an attached worker, and what attaching adds to a bare Python process."""

    def setup(self, scratch: Path, scale: Scale) -> None:
        """100,000 keys, two workers."""
        super().setup(scratch, scale)
        self.db = self.opened(open_db(scratch, "none"))
        fill(self.db, ((key_name(index), value_of(index)) for index in range(scale.count(100_000))))
        self.workers = self.pool([_Idle(scratch, "none", worker) for worker in range(2)])

    def measure(self, scale: Scale) -> float:
        """MiB."""
        self.workers.run(0.05)
        sizes = [_private_size(pid) for pid in self.workers.pids]
        return sum(sizes) / len(sizes) / (1 << 20)


def memory_rows() -> list[Row]:
    """The memory profile."""
    return [
        own_row(
            "memory-key",
            "shared memory a key of 40 bytes with a value of 100, at 1,000,000 keys",
            "bytes",
            {OCCAM: BytesPerKey},
            "memory",
            target=Target(absolute=400),
            repeat_max=1,
        ),
        own_row(
            "memory-overwrites",
            "shared memory after 10,000,000 overwrites, as a share of before",
            "of 1",
            {OCCAM: AfterOverwrites},
            "memory",
            target=Target(absolute=1.05),
            repeat_max=1,
        ),
        own_row(
            "memory-garbage",
            "growth under 20 overwrites of every key, without a snapshot and with a long one",
            "bytes/key",
            {OCCAM: lambda: HeldGarbage(False), "long snapshot": lambda: HeldGarbage(True)},
            "memory",
            repeat_max=3,
        ),
        own_row(
            "memory-worker",
            "private memory of an attached worker",
            "MiB",
            {OCCAM: PrivateMemory},
            "memory",
            repeat_max=3,
        ),
    ]


def _private_size(pid: int) -> int:
    """The bytes of memory that a process shares with nobody."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kib = [int(line.split()[1]) for line in lines if line.startswith(("Private_Clean:", "Private_Dirty:"))]
    return 1024 * sum(kib)
