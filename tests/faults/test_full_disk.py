"""The file system of the database is full (F7): reads go on, commits are refused until there is room."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from occamdb import Database, LogWriteError, OccamError, RunId
from occamdb.engine.disk.reserve import RESERVE_NAME
from occamdb.engine.log import check
from tests.support.processes import (
    coordinator_identity,
    kill_coordinator,
    open_database,
    stop_coordinator,
    wait_until,
)

SIZE = 12 << 20
RUN = RunId.new()
SETTINGS: dict[str, Any] = {"wal_segment_size": 64 << 10, "checkpoint_bytes": 1 << 40}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(mount)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


@contextlib.contextmanager
def file_system(kind: str, size: int, place: Path) -> Iterator[Path]:
    """A small one of another kind, made in a file; the test is skipped where that is not possible."""
    if shutil.which(f"mkfs.{kind}") is None:
        pytest.skip(f"mkfs.{kind} is not installed")
    image, mount = place / "image", place / kind
    mount.mkdir()
    with open(image, "wb") as file:
        file.truncate(size)
    if subprocess.run([f"mkfs.{kind}", "-q", str(image)], capture_output=True, check=False).returncode:
        pytest.skip(f"mkfs.{kind} does not work here")
    command = ["mount", "-o", "loop", str(image), str(mount)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip(f"mounting an image is not permitted here, or the kernel has no {kind}")
    try:
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True)


@pytest.fixture
def btrfs(tmp_path: Path) -> Iterator[Path]:
    """There a page needs new space when it is written, allocated ahead or not."""
    with file_system("btrfs", 128 << 20, tmp_path) as mount:
        yield mount


@pytest.fixture
def xfs(tmp_path: Path) -> Iterator[Path]:
    """There a file can be created only while some hundred KiB are free."""
    with file_system("xfs", 320 << 20, tmp_path) as mount:
        yield mount


def fill(disk: Path) -> Path:
    """Take all the space that is left, to the last block."""
    filler = disk / "filler"
    with open(filler, "ab", buffering=0) as file:
        # Twice: a file system that allocates late finds some more room when it has written what it was given.
        for step in (1 << 20, 4096) * 2:
            try:
                while file.write(os.urandom(step)) == step:
                    pass
            except OSError:
                os.fsync(file.fileno())
    return filler


def is_refused(db: Database) -> bool:
    """Whether a commit was refused; if not, it is there."""
    try:
        db.put(RUN, "probe", "p" * 2000)
    except LogWriteError as error:
        assert error.errno == 28 and error.hint
        return True
    return False


def fill_until_refused(db: Database, disk: Path) -> Path:
    """Fill the disk, and the room the log has set aside for itself."""
    filler = fill(disk)
    wait_until(lambda: is_refused(db), what="a refusal")
    return filler


@pytest.mark.parametrize("end", [kill_coordinator, stop_coordinator])
def test_a_start_on_a_full_disk(end: Any, disk: Path) -> None:
    start_on(disk, end)


def test_a_start_on_a_full_disk_that_needs_much_for_a_file(xfs: Path) -> None:
    start_on(xfs, kill_coordinator)


def start_on(disk: Path, end: Callable[[Path], object]) -> None:
    """Ends of coordinators on a full disk: each successor serves reads and refuses commits."""
    path = disk / "db"
    with open_database(path, **SETTINGS) as db:
        db.put(RUN, "kept", "value")
        wait_until(lambda: (path / RESERVE_NAME).exists())
        filler = fill_until_refused(db, disk)
        before = coordinator_identity(path)
        end(path)
        # What a start leaves of the reserve it sets aside again.
        for _ in range(3):
            wait_until(lambda: is_refused(db), what="a refusal by the successor")
            assert coordinator_identity(path) != before
            assert db.get(RUN, "kept") == "value"
            fill(disk)
            before = coordinator_identity(path)
            kill_coordinator(path)
        filler.unlink()
        wait_until(lambda: not is_refused(db), what="a commit after there was room")
        db.checkpoint()
        assert (path / RESERVE_NAME).exists()
    stop_coordinator(path)
    assert check.check(path, rebuild=True).findings == []


def test_it_makes_room_by_itself(disk: Path) -> None:
    """The older checkpoint and the log behind it go, once the newest was found sound."""
    path = disk / "db"
    with open_database(path, **SETTINGS) as db:
        for part in range(2):
            for number in range(1000):
                db.put(RUN, f"key {number % 100}", f"{part}" * 1000)
            db.checkpoint()
        names = sorted(file.name for file in (path / "checkpoints").iterdir())
        assert len(names) == 2
        fill_until_refused(db, disk)
        # Nobody frees anything.
        wait_until(lambda: not is_refused(db), what="a commit although the disk is full")
        wait_until(
            lambda: (path / "checkpoints" / names[0]).exists() is False, what="the end of the older one"
        )
        kill_coordinator(path)
        db.put(RUN, "after", 1)
        assert db.get(RUN, "key 99") == "1" * 1000
        assert db.get(RUN, "probe") == "p" * 2000
    stop_coordinator(path)
    assert check.check(path, rebuild=True).findings == []


def test_a_damaged_checkpoint_is_never_the_only_one(disk: Path) -> None:
    """The newest checkpoint was damaged behind our back: what could stand in for it is not removed."""
    path = disk / "db"
    with open_database(path, **SETTINGS) as db:
        for part in range(2):
            for number in range(200):
                db.put(RUN, f"key {number % 100}", f"{part}" * 1000)
            db.checkpoint()
        older, newest = sorted((path / "checkpoints").iterdir())
        data = bytearray(newest.read_bytes())
        data[len(data) // 2] ^= 1
        newest.write_bytes(data)
        fill_until_refused(db, disk)
        with pytest.raises(OccamError):
            db.checkpoint()
        assert older.exists() and newest.exists()
        (disk / "filler").unlink()
        kill_coordinator(path)
        wait_until(lambda: not is_refused(db), what="a commit after there was room")
        assert db.get(RUN, "key 99") == "1" * 1000
    stop_coordinator(path)


def test_a_disk_that_is_full_although_the_log_was_allocated(btrfs: Path) -> None:
    """The copy into the mapped log is refused as a write is: the coordinator lives, and goes on once there is room."""
    path = btrfs / "db"
    with open_database(path) as db:
        db.put(RUN, "kept", "value")
        before = coordinator_identity(path)
        filler = fill_until_refused(db, btrfs)
        assert db.get(RUN, "kept") == "value"
        assert coordinator_identity(path) == before
        filler.unlink()
        wait_until(lambda: not is_refused(db), what="a commit after there was room")
        assert coordinator_identity(path) == before
    stop_coordinator(path)
    assert check.check(path, rebuild=True).findings == []


def test_a_log_whose_pages_vanish_under_the_coordinator(tmp_path: Path) -> None:
    """As above on any file system: the allocated part is cut off behind the mapping, so a copy meets SIGBUS."""
    path = tmp_path / "db"
    with open_database(path) as db:
        db.put(RUN, "before", 1)
        identity = coordinator_identity(path)
        (segment,) = (path / "wal").iterdir()
        os.truncate(segment, 4096)
        db.put(RUN, "large", "v" * 20000)
        db.put(RUN, "after", 2)
        assert coordinator_identity(path) == identity
        kill_coordinator(path)
        db.put(RUN, "recovered", 3)
        assert (db.get(RUN, "before"), db.get(RUN, "after")) == (1, 2)
        assert db.get(RUN, "large") == "v" * 20000
    stop_coordinator(path)
    assert check.check(path, rebuild=True).findings == []
