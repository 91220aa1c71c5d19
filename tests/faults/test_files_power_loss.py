"""F12, F13, C7: a power cut after any single file operation, whatever the disk kept of what was not synced.

A database lives through commits, rotations, checkpoints, removals and restarts while every file operation is
recorded. Then, for every prefix of the record, states that a power cut may leave are built and recovered from:
acknowledged <= recovered <= begun, the content is exactly that of the recovered version, and it can be written to.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from occamdb.engine.disk import _files
from occamdb.engine.disk.directory import read_meta
from occamdb.engine.model.errors import OccamError
from tests.support.disk_model import DIRECTORY_SYNC, MARK, SYNC, Call, Disk, read_trace
from tests.support.log_driver import (
    OTHER_BOOT,
    Database,
    Model,
    Operation,
    content,
    memory_directory,
    write,
)

SEGMENT_SIZE = 4096  # the smallest: a rotation every few commits


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """The same operations on a file system where a sync costs nothing."""
    with memory_directory(tmp_path) as path:
        yield path


def operations(version: int) -> list[Operation]:
    """What the commit of this version does; some larger than a sector."""
    result: list[Operation] = [
        write(b"key %d" % (version % 7), b"%02d" % version * (1 + 1200 * (version % 2))),
        write(b"last", b"%d" % version),
    ]
    if version % 5 == 0:
        result.append(("delete", b"key %d" % (version % 4), 0))
    if version % 8 == 0:
        result.insert(0, ("delete_range", b"key 1", b"key 4"))
    return result


def states(count: int) -> list[list[tuple[bytes, bytes, int, int, int]]]:
    model, result = Model(), [Model().listing()]
    for version in range(1, count + 1):
        model.apply(version, version * 10, operations(version))
        result.append(model.listing())
    return result


def commits(database: Database, sync: str) -> None:
    """Seven commits in five batches, some acknowledged as synced."""
    for batch in (1, 2, 1, 1, 2):
        _files.trace_mark(b"begin %d" % (database.version + batch))
        for _ in range(batch):
            database.encode(operations(database.version + 1))
        synced = sync == "always" or (sync == "mixed" and batch == 2)
        database.flush(sync=synced)
        if synced:
            _files.trace_mark(b"synced %d" % database.version)


def live(path: Path, sync: str) -> None:
    """The recorded life: four runs, ended by a kill or a clean close, a checkpoint between them."""
    for run in range(4):
        database = Database(
            path, durability="always" if sync == "always" else "standard", segment_size=SEGMENT_SIZE
        )
        if run:
            database.checkpoint()
        commits(database, sync)
        if run == 1:
            database.appender.sync_in_background()
            _files.trace_mark(b"synced %d" % database.version)
        if run == 2:
            database.close()
            _files.trace_mark(b"synced %d" % database.version)
        else:
            database.kill()


def record(tmp_path: Path, sync: str) -> list[Call]:
    root = tmp_path / "root"
    root.mkdir()
    _files.trace_start(tmp_path / "trace")
    try:
        live(root / "db", sync)
    finally:
        _files.trace_stop()
    return read_trace(tmp_path / "trace")


def cut_everywhere(tmp_path: Path, calls: list[Call], stride: int = 1) -> tuple[int, int]:
    """Check images of the prefixes of the record; returns the last version begun and how many were checked."""
    expected = states(28)
    disk, begun, synced, checked = Disk(tmp_path / "root"), 0, 0, 0
    for index, call in enumerate(calls):
        disk.apply(call)
        if call.op == MARK:
            kind, number = call.first.split()
            if kind == b"begin":
                begun = int(number)
            else:
                synced = int(number)
        elif index % stride == 0:
            chances: list[tuple[random.Random | None, float]] = [(None, 0.0), (None, 1.0)]
            chances += [(random.Random(index * 10 + number), keep) for number, keep in enumerate((0.3, 0.7))]
            for chance, keep in chances:
                image = tmp_path / "image"
                shutil.rmtree(image, ignore_errors=True)
                image.mkdir()
                disk.crash(image, chance, keep)
                note = f"after call {index} ({call.op}), keep {keep}"
                check_image(image / "db", expected, synced, begun, note, write_too=index % 4 == 0)
                checked += 1
    return begun, checked


@pytest.mark.parametrize(("sync", "stride"), [("always", 1), ("mixed", 1), ("never", 1)])
def test_power_cut_after_every_operation(tmp_path: Path, sync: str, stride: int) -> None:
    calls = record(tmp_path, sync)
    assert sum(b".log.new" in call.first for call in calls) > 12, "too few rotations to mean anything"
    begun, checked = cut_everywhere(tmp_path, calls, stride)
    assert begun == 28 and checked > 200


@pytest.mark.parametrize("op", [SYNC, DIRECTORY_SYNC])
def test_a_missing_sync_would_be_noticed(tmp_path: Path, op: int) -> None:
    """The canary: with syncs taken out of the record, the same checks must fail."""
    calls = [call for call in record(tmp_path, "always") if call.op != op]
    with pytest.raises((AssertionError, OccamError)):
        cut_everywhere(tmp_path, calls, stride=3)


def check_image(
    path: Path, expected: list[list[tuple[bytes, bytes, int, int, int]]], synced: int, begun: int, note: str,
    *, write_too: bool,
) -> None:  # fmt: skip
    meta = read_meta(path)
    if meta is None:
        assert synced == 0, f"{note}: the database is gone, {synced} had been acknowledged"
        Database(path).kill()
        return
    _, rows = content(path, boot_id=OTHER_BOOT)
    version = max((row[2] for row in rows), default=0)
    assert rows == expected[version], f"{note}: not the content of version {version}"
    assert synced <= version <= begun, f"{note}: recovered {version}, acknowledged {synced}, begun {begun}"
    if not write_too:
        return
    # Opens for writing, gives out no version twice, and what is written then is there afterwards.
    database = Database(path, boot_id=OTHER_BOOT)
    assert database.store.rows() == rows
    written = database.commit([write(b"new")], sync=True)
    assert written > version
    if meta.durability == "standard" and not meta.clean:
        assert written > begun, f"{note}: version {written} may have been given out before the power cut"
    database.kill()
    _, after = content(path)
    assert (b"new", b"value", written, written * 10, 0) in after and len(after) == len(rows) + 1, note
