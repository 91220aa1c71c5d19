"""C3, C7, C8, F13: SIGKILL before or inside any file operation, in life, creation, checkpoint and recovery."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from occamdb.engine.disk import failpoints
from tests.support.log_driver import (
    Database,
    Model,
    Operation,
    content,
    fingerprint,
    in_child,
    memory_directory,
    write,
)

SEGMENT_SIZE = 4096


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """The same operations on a file system where a sync costs nothing."""
    with memory_directory(tmp_path) as path:
        yield path


def operations(version: int) -> list[Operation]:
    return [write(b"key %d" % (version % 5), b"%03d" % version * 300), write(b"last", b"%d" % version)]


def state(version: int) -> list[tuple[bytes, bytes, int, int, int]]:
    model = Model()
    for number in range(1, version + 1):
        model.apply(number, number * 10, operations(number))
    return model.listing()


def live(path: Path, notes: int) -> None:
    """Two runs with rotations, a checkpoint and removals; each acknowledgement is written to `notes`."""
    for _ in range(3):
        database = Database(path, segment_size=SEGMENT_SIZE)
        if database.version:
            database.checkpoint()
        for number in range(5):
            database.commit(operations(database.version + 1), sync=number % 2 == 0)
            os.pwrite(notes, database.version.to_bytes(8, "little"), 0)
        database.kill()


def run_killed(path: Path, notes_path: Path, point: str, action: str) -> tuple[int, int]:
    """How the child ended, and the last version it had been acknowledged."""
    notes = os.open(notes_path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:

        def act() -> None:
            failpoints.set(point, action)
            live(path, notes)

        return in_child(act), int.from_bytes(os.pread(notes, 8, 0), "little")
    finally:
        os.close(notes)


def check(path: Path, acknowledged: int, note: str) -> None:
    database = Database(path)
    version = database.result.version
    assert acknowledged <= version <= acknowledged + 1, note
    assert database.store.rows() == state(version), note
    assert database.store.check() is None
    database.commit(operations(version + 1))
    database.kill()
    assert content(path)[1] == state(version + 1), note


def test_killed_before_any_operation(tmp_path: Path) -> None:
    number = 0
    while True:
        number += 1
        path = tmp_path / f"{number}"
        code, acknowledged = run_killed(path, tmp_path / "notes", "file.any", f"kill@{number}")
        if code == 0:
            break
        assert code == -signal.SIGKILL
        check(path, acknowledged, f"killed at operation {number}")
    assert number > 100 and acknowledged == 15


@pytest.mark.parametrize("size", [0, 8, 100, 600])
def test_killed_inside_any_write(tmp_path: Path, size: int) -> None:
    number = 0
    while True:
        number += 1
        path = tmp_path / f"{number}"
        code, acknowledged = run_killed(path, tmp_path / "notes", "file.write", f"torn:{size}@{number}")
        if code == 0:
            break
        assert code == -signal.SIGKILL
        check(path, acknowledged, f"killed {size} bytes into write {number}")
    assert number > 15


@pytest.mark.parametrize(
    "point",
    [
        "wal.before_write",
        "wal.after_write",
        "wal.before_sync",
        "wal.after_sync",
        "wal.rotate",
        "wal.rotate_rename",
        "wal.after_rotate",
        "checkpoint.begin",
        "checkpoint.block",
        "checkpoint.before_rename",
        "checkpoint.after_rename",
        "checkpoint.before_remove",
        "checkpoint.after_remove",
        "recovery.begin",
        "recovery.after_checkpoint",
        "recovery.after_replay",
        "recovery.after_cut",
        "recovery.after_segment",
        "meta.before_rename",
        "meta.after_rename",
        "create.before_meta",
    ],
)
def test_killed_at_each_failpoint(tmp_path: Path, point: str) -> None:
    code, acknowledged = run_killed(tmp_path / "db", tmp_path / "notes", point, "kill@1")
    assert code == -signal.SIGKILL, f"{point} was not passed"
    check(tmp_path / "db", acknowledged, point)


def test_recovery_killed_again_and_again(tmp_path: Path) -> None:
    """C8: a torn tail, a damaged checkpoint and left-over files; recovery dies at every operation in turn."""
    path = tmp_path / "db"
    notes = os.open(tmp_path / "notes", os.O_RDWR | os.O_CREAT)
    live(path, notes)
    os.close(notes)
    database = Database(path)
    database.commit(operations(16))
    end = int(database.appender.statistics()["log_segment_bytes"])
    database.encode(operations(17))
    database.flush()
    database.kill()
    newest = sorted((path / "checkpoints").glob("*.ckpt"))[-1]
    newest.write_bytes(newest.read_bytes()[:-10])
    segment = sorted((path / "wal").glob("*.log"))[-1]
    segment.write_bytes(segment.read_bytes()[: end + 300])
    (path / "checkpoints" / "00000000000000000099.ckpt.new").write_bytes(b"unfinished")
    number, kills = 0, 0
    while True:
        number += 1

        def recover_and_die(at: int = number) -> None:
            failpoints.set("file.any", f"kill@{at}")
            Database(path)

        if in_child(recover_and_die) == 0:
            break
        kills += 1
        assert content(path)[1] == state(16)
    assert kills > 20
    check(path, 16, "after all")
    names = set(fingerprint(path))
    assert not any(name.endswith(".new") for name in names)
    assert any(name.endswith(".damaged") for name in names)
