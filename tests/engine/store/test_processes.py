"""One writer process and reader processes with pins: every snapshot is exactly the state of its version.

The history is a function of the version, so a reader knows what it must see at any version: version v writes all keys
of group v % GROUPS, deletes some of them, and sizes vary so that freed blocks are reused for other things.
"""

from __future__ import annotations

import mmap
import multiprocessing
import random
import time
import zlib
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from occamdb._testing._store_reader import StoreReader
from occamdb._testing._store_writer import StoreWriter

GROUPS = 16
KEYS = 12
READERS = 2
SIZE = 64 << 20
DEADLINE_S = 60.0


def key_of(group: int, index: int) -> bytes:
    return b"group %02d key %02d" % (group, index)


def value_at(version: int, index: int) -> bytes | None:
    """What version `version` writes to key `index` of its group; None: it deletes the key."""
    noise = zlib.crc32(b"%d %d" % (version, index))
    if noise % 5 == 0:
        return None
    return b"%d/%d;" % (version, index) * (1 + noise % 60)


def state_at(version: int) -> list[tuple[bytes, bytes, int]]:
    rows = []
    for group in range(GROUPS):
        newest = version - (version - group) % GROUPS
        if newest <= 0:
            continue
        for index in range(KEYS):
            value = value_at(newest, index)
            if value is not None:
                rows.append((key_of(group, index), value, newest))
    return rows


def map_file(path: Path) -> mmap.mmap:
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), 0)


def run_reader(store_path: Path, slots_path: Path, slot: int, snapshots: int, report: Connection) -> None:
    """Take snapshots, some for long, and compare each with what its version must hold."""
    reader = StoreReader(memoryview(map_file(store_path)).toreadonly())
    slots = memoryview(map_file(slots_path)).cast("Q")
    chance = random.Random(slot)
    versions = set()
    for number in range(snapshots):
        version = reader.pin(slots, slot)
        versions.add(version)
        expected = state_at(version)
        rounds = 30 if number % 25 == 0 else 1  # a long snapshot: the writer goes on far beyond it
        for _ in range(rounds):
            wrong = mistake(reader, version, expected, chance)
            if wrong:
                report.send(f"snapshot {number} at {version}: {wrong}")
                return
        slots[slot] = 0
    report.send(len(versions))


def mistake(
    reader: StoreReader, version: int, expected: list[tuple[bytes, bytes, int]], chance: random.Random
) -> str:
    if reader.scan(version, page_rows=chance.randrange(1, 100)) != expected:
        return "ascending scan differs"
    if reader.scan(version, page_rows=chance.randrange(1, 100), reverse=True) != expected[::-1]:
        return "descending scan differs"
    by_key = {key: (written, value, 0, 0) for key, value, written in expected}
    for _ in range(20):
        key = key_of(chance.randrange(GROUPS), chance.randrange(KEYS))
        if reader.get(key, version) != by_key.get(key):
            return f"get {key!r} differs"
    return ""


def write_until(writer: StoreWriter, slots: memoryview, finished: Callable[[], bool]) -> int:
    """Commit version after version, collecting as the coordinator does."""
    version = 0
    while not finished():
        for _ in range(20):
            version += 1
            for index in range(KEYS):
                key, value = key_of(version % GROUPS, index), value_at(version, index)
                assert writer.put(key, value, version) if value is not None else writer.delete(key, version)
            if version % 7 == 0:
                # A commit that fails after it was applied: undone, then done again.
                writer.undo()
                for index in range(KEYS):
                    key, value = key_of(version % GROUPS, index), value_at(version, index)
                    assert (
                        writer.put(key, value, version) if value is not None else writer.delete(key, version)
                    )
            writer.publish(version)
            writer.collect_slots(slots)
    return version


def test_readers_in_other_processes_see_exact_snapshots_while_the_writer_reclaims(tmp_path: Path) -> None:
    store_path, slots_path = tmp_path / "store", tmp_path / "slots"
    store_path.write_bytes(b"")
    with store_path.open("r+b") as file:
        file.truncate(SIZE)
    slots_path.write_bytes(bytes(8 * READERS))
    writer = StoreWriter(map_file(store_path))
    slots = memoryview(map_file(slots_path)).cast("Q")
    write_until(writer, slots, iter([False, True]).__next__)

    context = multiprocessing.get_context("spawn")
    processes, reports = [], []
    for slot in range(READERS):
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=run_reader, args=(store_path, slots_path, slot, 250, there))
        process.start()
        there.close()
        processes.append(process)
        reports.append(here)
    deadline = time.monotonic() + DEADLINE_S
    try:
        version = write_until(
            writer,
            slots,
            lambda: time.monotonic() > deadline or not any(process.is_alive() for process in processes),
        )
        results: list[int | str] = [report.recv() if report.poll() else "no report" for report in reports]
    finally:
        for process in processes:
            process.kill()
            process.join()
    versions_met = [result for result in results if isinstance(result, int)]
    assert len(versions_met) == READERS, results
    assert min(versions_met) > 10, "the readers must have met many different versions"
    stats = writer.stats()
    assert stats["flips"] > 20, "memory must have been reused under the readers"
    for slot in range(READERS):
        slots[slot] = 0
    writer.collect_slots(slots)
    writer.collect_slots(slots)
    writer.flip()
    writer.check()
    assert writer.stats()["superseded"] == 0
    assert StoreReader(map_file(store_path)).scan(version) == state_at(version)
    assert stats["used_bytes"] < SIZE // 8, "snapshots that end must not leave memory behind"


CHAIN = 3000
HOT = [b"hot 1", b"hot 2"]


def run_chain_reader(store_path: Path, slots_path: Path, report: Connection) -> None:
    """From one snapshot, read keys whose chains are long and freed over and over, until slot 1 says stop."""
    reader = StoreReader(memoryview(map_file(store_path)).toreadonly())
    slots = memoryview(map_file(slots_path)).cast("Q")
    version = reader.pin(slots, 0)
    expected = {key: reader.get(key, version) for key in HOT}
    report.send("ready")
    wrong = ""
    while slots[1] == 0 and not wrong:
        for key in HOT:
            if reader.get(key, version) != expected[key]:
                wrong = f"{key!r} changed in the snapshot at {version}"
        if reader.scan(version) != [(key, found[1], found[0]) for key, found in expected.items() if found]:
            wrong = f"the scan at {version} changed"
    slots[0] = 0
    report.send(wrong)


def test_a_walk_whose_blocks_are_reused_is_walked_again(tmp_path: Path) -> None:
    """Chains so long that a walk takes longer than the writer needs to free them and use them for another key."""
    store_path, slots_path = tmp_path / "store", tmp_path / "slots"
    store_path.touch()
    with store_path.open("r+b") as file:
        file.truncate(SIZE)
    slots_path.write_bytes(bytes(16))
    writer = StoreWriter(map_file(store_path))
    slots = memoryview(map_file(slots_path)).cast("Q")
    for key in HOT:
        writer.put(key, b"seen by the snapshot of " + key, 1)
    writer.publish(1)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=run_chain_reader, args=(store_path, slots_path, there))
    process.start()
    there.close()
    try:
        assert here.recv() == "ready"
        version = 1
        for cycle in range(40):
            key = HOT[cycle % 2]
            for _ in range(CHAIN):
                version += 1
                assert writer.put(key, b"written later, of the same size." + key, version)
            writer.publish(version)
            writer.collect([1], horizon=version, force=True)
        slots[1] = 1
        assert here.poll(DEADLINE_S)
        assert here.recv() == ""
    finally:
        process.kill()
        process.join()
    writer.check()
    assert writer.stats()["records"] == 4
