"""A batch that the log refused: it never comes back, and nothing that is written later can be mixed with it."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from occamdb.engine.disk import _files, failpoints
from occamdb.engine.log._wal_appender import WalAppender
from occamdb.engine.log.wal_format import decode_header
from tests.support.disk_model import SECTOR, Disk, read_trace
from tests.support.log_driver import OTHER_BOOT, Database, content, memory_directory, segments, write

IMAGES = 200


@contextlib.contextmanager
def armed(name: str, specification: str) -> Iterator[None]:
    failpoints.set(name, specification)
    try:
        yield
    finally:
        failpoints.clear()


def keys(path: Path, boot_id: bytes | None = OTHER_BOOT) -> list[bytes]:
    return [row[0] for row in content(path, boot_id=boot_id)[1]]


def refuse(database: Database, prefix: bytes) -> None:
    """A batch of two transactions that reaches the file whole and is refused nevertheless."""
    with armed("wal.after_write", "errno:EIO"):
        database.encode([write(prefix + b"1", b"x" * 300)])
        database.encode([write(prefix + b"2", b"x" * 300)])
        with pytest.raises(OSError, match="Input/output error"):
            database.flush()


def pad_to_sector(database: Database) -> None:
    """One commit that ends where a sector does."""
    position = int(database.appender.statistics()["log_segment_bytes"])
    empty = 57 + 8 + 25 + len(b"padding") + 37
    database.commit([write(b"padding", b"p" * (-(position + empty) % SECTOR))], sync=True)
    assert int(database.appender.statistics()["log_segment_bytes"]) % SECTOR == 0


@pytest.mark.parametrize("first", [True, False], ids=["in an empty segment", "behind other commits"])
def test_a_power_cut_never_mixes_old_and_new(tmp_path: Path, first: bool) -> None:
    """The refused transactions, their versions and places are used again, and the disk keeps any of the sectors."""
    with memory_directory(tmp_path) as fast:
        root = fast / "root"
        root.mkdir()
        _files.trace_start(fast / "trace")
        try:
            database = Database(root / "db", segment_size=1 << 20)
            if not first:
                pad_to_sector(database)
            before = [] if first else [b"padding"]
            refuse(database, b"refused ")
            database.commit([write(b"written 1", b"y" * 298)])
            database.commit([write(b"written 2", b"y" * 298)])
            database.kill()
        finally:
            _files.trace_stop()
        calls = read_trace(fast / "trace")
        allowed = [sorted(before + [b"written 1", b"written 2"][:count]) for count in range(3)]
        disk = Disk(root)
        for call in calls:
            disk.apply(call)
        for number in range(IMAGES):
            image = fast / "image"
            shutil.rmtree(image, ignore_errors=True)
            image.mkdir()
            disk.crash(image, random.Random(number), 0.5)
            found = keys(image / "db")
            assert found in allowed, f"image {number}"


def test_what_was_refused_stays_refused_after_a_power_cut(tmp_path: Path) -> None:
    """Also when nothing is written after it: the cut itself is on disk before anybody is told."""
    with memory_directory(tmp_path) as fast:
        root = fast / "root"
        root.mkdir()
        _files.trace_start(fast / "trace")
        try:
            database = Database(root / "db")
            database.commit([write(b"before")], sync=True)
            refuse(database, b"refused ")
            database.kill()
        finally:
            _files.trace_stop()
        disk = Disk(root)
        for call in read_trace(fast / "trace"):
            disk.apply(call)
        for number in range(IMAGES):
            image = fast / "image"
            shutil.rmtree(image, ignore_errors=True)
            image.mkdir()
            disk.crash(image, random.Random(number), 0.5)
            assert keys(image / "db") == [b"before"], f"image {number}"


def seeds(path: Path) -> list[int]:
    return [decode_header(p.read_bytes()[:80], str(p)).crc for p in segments(path)]


def test_what_follows_is_in_a_segment_with_another_seed(tmp_path: Path) -> None:
    path = tmp_path / "db"
    database = Database(path)
    refuse(database, b"in an empty segment ")
    seen = seeds(path)
    assert len(seen) == 1
    database.commit([write(b"a")])
    # It had no transaction yet: the new segment has its name, and takes its place.
    assert len(seeds(path)) == 1 and seeds(path) != seen
    refuse(database, b"behind another ")
    database.commit([write(b"b")])
    database.commit([write(b"c")])
    assert len(set(seeds(path))) == 2
    database.kill()
    assert keys(path, None) == [b"a", b"b", b"c"]


def test_an_empty_segment_keeps_what_it_follows(tmp_path: Path) -> None:
    """A segment behind skipped versions names the last one before them, and so does the one in its place."""
    path = tmp_path / "db"
    database = Database(path)
    database.commit([write(b"before")])
    database.kill()
    database = Database(path, boot_id=OTHER_BOOT)
    assert database.version > 1 << 32
    refuse(database, b"refused ")
    database.commit([write(b"after")])
    database.kill()
    assert keys(path, None) == [b"after", b"before"]


def test_without_a_new_segment_nothing_is_written(tmp_path: Path) -> None:
    """No room for one: the next commits are refused, and none lands where the refused one lay."""
    path = tmp_path / "db"
    database = Database(path)
    database.commit([write(b"before")])
    refuse(database, b"refused ")
    with armed("wal.rotate", "errno:ENOSPC"):
        for _ in range(3):
            with pytest.raises(OSError) as caught:
                database.commit([write(b"too early")])
            database.version -= 1
            assert caught.value.errno == errno.ENOSPC
    assert not database.appender.statistics()["log_poisoned"]
    database.commit([write(b"after")])
    database.kill()
    assert keys(path, None) == [b"after", b"before"]


def test_a_log_that_takes_nothing_never_says_yes(tmp_path: Path) -> None:
    """Whatever the errno of the failure was, 0 included in what the kernel may be thought to say."""
    database = Database(tmp_path / "db")
    database.commit([write(b"before")])
    with armed("wal.before_sync", "errno:EIO"), pytest.raises(OSError):
        database.appender.sync_in_background()
    appender: WalAppender = database.appender
    for sync in (False, True):
        with pytest.raises(OSError) as caught:
            appender.flush_batch(sync)
        assert caught.value.errno == errno.EIO
    with pytest.raises(OSError):
        database.commit([write(b"after")])
    database.kill()
    assert keys(tmp_path / "db", None) == [b"before"]
    assert os.listdir(tmp_path / "db" / "wal") == ["00000000000000000001.log"]
