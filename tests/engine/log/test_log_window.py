"""Batches that are copied into the mapped part of the segment: the same file as by writing, whatever goes wrong."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from occamdb.engine.disk import failpoints
from tests.support.log_driver import Database, content, write

PAGE = 4096


def copies(database: Database) -> int:
    return int(database.appender.statistics()["log_copies"])


def log_bytes(database: Database) -> bytes:
    """What the segment holds behind its header."""
    end = int(database.appender.statistics()["log_segment_bytes"])
    (segment,) = database.directory.wal.names()
    return (Path(database.directory.wal.path) / segment).read_bytes()[80:end]


def test_what_is_not_synced_is_copied(tmp_path: Path) -> None:
    database = Database(tmp_path / "db")
    for number in range(50):
        database.commit([write(b"key %d" % number, b"v" * 100)], sync=number % 2 == 0)
    assert copies(database) == 25
    assert database.appender.statistics()["log_flushes"] == 50
    database.kill()
    result, rows = content(tmp_path / "db")
    assert (result.version, len(rows), result.bytes_cut) == (50, 50, 0)


def test_a_file_system_that_cannot_allocate_gets_writes(tmp_path: Path) -> None:
    failpoints.set("file.allocate", "errno:EOPNOTSUPP")
    database = Database(tmp_path / "db")
    for number in range(50):
        database.commit([write(b"key %d" % number, b"v" * 100)])
    assert copies(database) == 0
    database.kill()
    assert len(content(tmp_path / "db")[1]) == 50


@pytest.mark.parametrize("size", [1, 100, PAGE - 80, PAGE, 3 * PAGE + 7, 5 << 20, 9 << 20])
def test_batches_of_any_size(tmp_path: Path, size: int) -> None:
    """Also those that are larger than what is allocated ahead, or than the window."""
    database = Database(tmp_path / "db", segment_size=1 << 30)
    for number in range(4):
        database.commit([write(b"key %d" % number, b"%d" % number * size)])
        database.commit([write(b"small", b"%d" % number)])
    database.kill()
    rows = {row[0]: row[1] for row in content(tmp_path / "db")[1]}
    assert rows == {b"key %d" % n: b"%d" % n * size for n in range(4)} | {b"small": b"3"}


def test_over_many_segments(tmp_path: Path) -> None:
    database = Database(tmp_path / "db", segment_size=2 * PAGE)
    for number in range(500):
        database.commit([write(b"key %d" % number, b"v" * (number % 300))])
    assert copies(database) == 500
    assert len(database.directory.wal.names()) > 5
    database.close()
    assert len(content(tmp_path / "db")[1]) == 500


@pytest.mark.parametrize("action", ["errno:ENOSPC@1", "errno:EIO@1", "short:10@1", "short:0@1"])
def test_a_copy_that_fails_leaves_nothing(tmp_path: Path, action: str) -> None:
    """As a write: a short one is continued, a failed one cut off, and the next goes on from there."""
    database = Database(tmp_path / "db")
    database.commit([write(b"before")])
    before = log_bytes(database)
    failpoints.set("file.write", action)
    fails = not action.startswith("short:10")
    if fails:
        with pytest.raises(OSError) as caught:
            database.commit([write(b"key", b"v" * 5000)])
        assert caught.value.errno == (errno.EIO if "EIO" in action else errno.ENOSPC)
        assert log_bytes(database) == before
    else:
        database.commit([write(b"key", b"v" * 5000)])
    for number in range(10):
        database.commit([write(b"after %d" % number)])
    assert copies(database) == 12
    database.kill()
    assert len(content(tmp_path / "db")[1]) == 11 + (not fails)


TORN = """
import sys
from pathlib import Path
from occamdb.engine.disk import failpoints
from tests.support.log_driver import Database, write
database = Database(Path(sys.argv[1]))
for number in range(10):
    database.commit([write(b"key %d" % number, b"v" * 100)])
failpoints.set("file.write", "torn:" + sys.argv[2])
database.encode([write(b"torn 1", b"t" * 3000)])
database.encode([write(b"torn 2", b"t" * 3000)])
database.flush()
"""


@pytest.mark.parametrize(("torn", "there"), [(0, 10), (1, 10), (60, 10), (3000, 10), (3500, 11), (6200, 11)])
def test_a_death_in_the_middle_leaves_a_prefix(tmp_path: Path, torn: int, there: int) -> None:
    run = subprocess.run(
        [sys.executable, "-c", TORN, str(tmp_path / "db"), str(torn)], timeout=60, check=False
    )
    assert run.returncode == -9
    result, rows = content(tmp_path / "db")
    assert (result.version, len(rows)) == (there, there)
