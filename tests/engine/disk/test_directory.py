"""The database directory and its meta file: creation, incarnations, damage, foreign directories."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from occamdb.engine.disk import failpoints
from occamdb.engine.disk.directory import DatabaseDirectory, Meta, current_boot_id, decode_meta, read_meta
from occamdb.engine.model.errors import CorruptionError, IncompatibleFormatError
from occamdb.engine.model.public_types import Durability
from occamdb.ipc.lock import FileLock
from tests.support.log_driver import fingerprint, flip, in_child


def test_new_directory(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "db"
    assert read_meta(path) is None
    directory = DatabaseDirectory(path)
    assert (directory.incarnation, directory.meta.durability, len(directory.database_id)) == (0, None, 16)
    assert [directory.begin_incarnation() for _ in range(3)] == [1, 2, 3]
    directory.close()
    again = DatabaseDirectory(path, create=False)
    assert (again.database_id, again.incarnation) == (directory.database_id, 3)
    assert read_meta(path) == again.meta
    assert sorted(os.listdir(path)) == ["checkpoints", "meta", "wal"]
    again.close()


def test_two_databases_have_two_ids(tmp_path: Path) -> None:
    first, second = DatabaseDirectory(tmp_path / "1"), DatabaseDirectory(tmp_path / "2")
    assert first.database_id != second.database_id
    first.close()
    second.close()


def test_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(FileNotFoundError):
            DatabaseDirectory(path, create=False)
    assert os.listdir(tmp_path) == []


def test_meta_round_trip() -> None:
    meta = Meta(bytes(range(16)), 7, Durability.ALWAYS, False, 2**63, 2**62, 5, current_boot_id(), 123)
    assert decode_meta(meta.encode(), "") == meta
    assert decode_meta(Meta(bytes(16)).encode(), "").durability is None


def test_every_flipped_bit_of_meta(tmp_path: Path) -> None:
    directory = DatabaseDirectory(tmp_path / "db")
    directory.begin_incarnation()
    directory.close()
    meta = tmp_path / "db" / "meta"
    for position in range(128 * 8):
        flip(meta, position // 8, position % 8)
        before = fingerprint(tmp_path / "db")
        with pytest.raises(CorruptionError) as caught:
            DatabaseDirectory(tmp_path / "db")
        assert caught.value.file == str(meta) and caught.value.offset is not None
        assert fingerprint(tmp_path / "db") == before
        flip(meta, position // 8, position % 8)
    DatabaseDirectory(tmp_path / "db").close()


@pytest.mark.parametrize("data", [b"", b"OCCAMDB\0", bytes(128), bytes(60)])
def test_cut_meta(tmp_path: Path, data: bytes) -> None:
    DatabaseDirectory(tmp_path / "db").close()
    (tmp_path / "db" / "meta").write_bytes(data)
    with pytest.raises(CorruptionError):
        DatabaseDirectory(tmp_path / "db")
    (tmp_path / "db" / "meta").unlink()


def test_foreign_meta(tmp_path: Path) -> None:
    (tmp_path / "meta").write_text("somebody else's file")
    with pytest.raises(IncompatibleFormatError, match="not written by occamdb"):
        DatabaseDirectory(tmp_path)
    assert (tmp_path / "meta").read_text() == "somebody else's file"


def test_folder_missing(tmp_path: Path) -> None:
    DatabaseDirectory(tmp_path / "db").close()
    (tmp_path / "db" / "checkpoints").rmdir()
    with pytest.raises(CorruptionError, match="no checkpoints/ folder"):
        DatabaseDirectory(tmp_path / "db")


def test_killed_at_any_moment_of_the_creation(tmp_path: Path) -> None:
    """F13: the next open works, and finds a database that was never there or the one that was made."""
    number = 0
    while True:
        number += 1
        path = tmp_path / f"{number}" / "db"

        def create(path: Path = path, number: int = number) -> None:
            failpoints.set("file.any", f"kill@{number}")
            DatabaseDirectory(path).begin_incarnation()

        code = in_child(create)
        directory = DatabaseDirectory(path)
        directory.begin_incarnation()
        directory.close()
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert number > 20


def test_error_at_any_moment_of_the_creation(tmp_path: Path) -> None:
    number = 0
    while True:
        number += 1
        path = tmp_path / f"{number}" / "db"
        failpoints.set("file.any", f"errno:EIO@{number}")
        try:
            directory = DatabaseDirectory(path)
        except OSError:
            pass
        else:
            directory.close()
        finally:
            passed = failpoints.hits("file.any")
            failpoints.clear()
        DatabaseDirectory(path).close()
        if passed < number:
            break
    assert number > 15


def test_descriptors_are_given_back(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    (tmp_path / "meta").write_text("foreign")
    for _ in range(5):
        with pytest.raises(IncompatibleFormatError):
            DatabaseDirectory(tmp_path)
        DatabaseDirectory(tmp_path / "db").close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_emptied_while_open(tmp_path: Path) -> None:
    """F15: the same directory, now empty or with another database: it may no longer be written to."""
    directory = DatabaseDirectory(tmp_path / "db")
    lock = FileLock(directory.lock_path)
    lock.acquire()
    assert directory.is_whole(lock.fileno())
    (tmp_path / "db").rename(tmp_path / "moved")
    assert directory.is_whole(lock.fileno())
    (tmp_path / "moved").rename(tmp_path / "db")
    for name in ("LOCK", "wal", "checkpoints"):
        # Held elsewhere, so that no new file can get the number of the old one.
        (tmp_path / "db" / name).rename(tmp_path / name)
        assert not directory.is_whole(lock.fileno())
        (tmp_path / "db" / name).mkdir()
        assert not directory.is_whole(lock.fileno())
        (tmp_path / "db" / name).rmdir()
        (tmp_path / name).rename(tmp_path / "db" / name)
        assert directory.is_whole(lock.fileno())
    lock.release()
    directory.close()


def test_renamed_while_open(tmp_path: Path) -> None:
    """F15: an open directory goes on meaning the same files."""
    directory = DatabaseDirectory(tmp_path / "db")
    assert directory.is_in_place()
    (tmp_path / "db").rename(tmp_path / "moved")
    assert not directory.is_in_place()
    (tmp_path / "db").mkdir()
    assert not directory.is_in_place()
    (tmp_path / "db").rmdir()
    assert directory.begin_incarnation() == 1
    directory.close()
    found = read_meta(tmp_path / "moved")
    assert found is not None and found.incarnation == 1
    assert not (tmp_path / "db").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a mount, or a user that permissions bind")
def test_read_only_file_system(tmp_path: Path) -> None:
    """F11."""
    import subprocess

    DatabaseDirectory(tmp_path / "db").close()
    target = tmp_path / "db"
    if subprocess.run(
        ["mount", "--bind", str(target), str(target)], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(target)], check=True)
        directory = DatabaseDirectory(target)
        with pytest.raises(OSError, match="Read-only file system"):
            directory.begin_incarnation()
        directory.close()
    finally:
        subprocess.run(["umount", str(target)], check=True)
