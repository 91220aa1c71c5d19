"""F7-F10, M2: every file operation fails in turn. What was acknowledged is there, what was refused is not."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from occamdb.engine.disk import _files, failpoints
from occamdb.engine.model.errors import LogWriteError
from tests.support.disk_model import SYNC, WRITE, read_trace
from tests.support.log_driver import (
    Database,
    Model,
    Operation,
    content,
    fingerprint,
    memory_directory,
    segments,
    write,
)

SEGMENT_SIZE = 4096


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """The same operations on a file system where a sync costs nothing."""
    with memory_directory(tmp_path) as path:
        yield path


def operations(attempt: int) -> list[Operation]:
    return [write(b"key %d" % (attempt % 5), b"%03d" % attempt * 300), write(b"last", b"%d" % attempt)]


class Life:
    """A run of commits that writes down which were acknowledged; errors are met as the commit core meets them."""

    def __init__(self) -> None:
        self.model = Model()
        self.acknowledged = 0
        self.refused = 0
        self.last_refused: list[Operation] = []
        self.uncertain = False
        self.attempt = 0

    def commits(self, database: Database, count: int) -> None:
        for _ in range(count):
            self.attempt += 1
            attempted = operations(self.attempt)
            before = database.version
            try:
                version = database.commit(attempted, sync=self.attempt % 3 == 0)
            except OSError:
                database.version = before
                self.refused += 1
                self.last_refused = attempted
                if database.appender.statistics()["log_uncertain"]:
                    # The commit core ends the process here: nobody is answered.
                    self.uncertain = True
                    return
            else:
                assert not self.uncertain
                self.model.apply(version, version * 10, attempted)
                self.acknowledged = version

    def run(self, path: Path) -> None:
        """Two runs with rotations, a timer sync, a checkpoint and removals in between."""
        for _ in range(2):
            try:
                database = Database(path, segment_size=SEGMENT_SIZE)
            except (OSError, LogWriteError):
                continue
            with contextlib.suppress(OSError):
                database.checkpoint()
            self.commits(database, 6)
            try:
                database.appender.sync_in_background()
            except OSError:
                assert database.appender.statistics()["log_poisoned"]
            if not self.uncertain:
                self.commits(database, 4)
            database.kill()
            if self.uncertain:
                return


def check(path: Path, life: Life, note: str) -> None:
    failpoints.clear()
    database = Database(path)
    rows = database.store.rows()
    if life.uncertain and rows != life.model.listing():
        version = life.acknowledged + 1
        life.model.apply(version, version * 10, life.last_refused)
    assert rows == life.model.listing(), note
    assert database.store.check() is None
    # Usable afterwards.
    database.commit([write(b"after")], sync=True)
    database.kill()
    assert len(content(path)[1]) == len(rows) + 1, note


@pytest.mark.parametrize("error", ["ENOSPC", "EIO", "EMFILE"])
def test_any_operation_fails_once(tmp_path: Path, error: str) -> None:
    number, refused = 0, 0
    while True:
        number += 1
        path = tmp_path / f"{number}"
        life = Life()
        failpoints.set("file.any", f"errno:{error}@{number}")
        life.run(path)
        if failpoints.hits("file.any") < number:
            break
        refused += life.refused
        check(path, life, f"{error} at operation {number}")
    assert number > 60 and refused > 20


@pytest.mark.parametrize("point", ["file.write", "file.sync", "file.truncate", "file.open", "file.rename"])
def test_an_operation_fails_from_some_moment_on(tmp_path: Path, point: str) -> None:
    """A full or a broken disk: no commit works, and the engine says so every time."""
    for number in (4, 9, 12, 17):
        path = tmp_path / f"{number}"
        life = Life()
        failpoints.set(point, f"errno:EIO@{number}*1000000")
        life.run(path)
        check(path, life, f"{point} from {number} on")


@pytest.mark.parametrize("size", [1, 7, 512])
def test_short_writes_are_completed(tmp_path: Path, size: int) -> None:
    life = Life()
    failpoints.set("file.write", f"short:{size}")
    life.run(tmp_path / "db")
    assert (life.acknowledged, life.refused) == (20, 0)
    check(tmp_path / "db", life, "short writes")


def test_short_write_then_full(tmp_path: Path) -> None:
    """Part of the batch is in the file when the disk is full: it is cut off, and the next batch is readable."""
    database = Database(tmp_path / "db")
    database.commit([write(b"a")])
    size = database.appender.statistics()["log_segment_bytes"]
    failpoints.set("file.any", "short:100")
    failpoints.set("file.write", "errno:ENOSPC@2")
    with pytest.raises(OSError, match="No space left"):
        database.commit([write(b"b")])
    failpoints.clear()
    assert database.appender.statistics()["log_segment_bytes"] == size
    assert segments(tmp_path / "db")[0].stat().st_size == size
    assert database.commit([write(b"c")]) == 2
    database.kill()
    assert [row[0] for row in content(tmp_path / "db")[1]] == [b"a", b"c"]


def test_no_commit_after_a_failed_sync(tmp_path: Path) -> None:
    database = Database(tmp_path / "db")
    database.commit([write(b"a")], sync=True)
    failpoints.set("file.sync", "errno:EIO@1")
    with pytest.raises(OSError, match="Input/output"):
        database.commit([write(b"b")], sync=True)
    assert failpoints.hits("file.sync") == 1
    for sync in (False, True):
        with pytest.raises(OSError, match="Input/output"):
            database.commit([write(b"c")], sync=sync)
    assert failpoints.hits("file.sync") == 1, "a failed sync must not be repeated"
    database.kill()
    failpoints.clear()
    assert [row[0] for row in content(tmp_path / "db")[1]] == [b"a"]
    database = Database(tmp_path / "db")
    assert database.commit([write(b"d")], sync=True) == 2
    database.kill()


def test_a_failed_timer_sync_stops_commits(tmp_path: Path) -> None:
    database = Database(tmp_path / "db")
    database.commit([write(b"a")])
    failpoints.set("file.sync", "errno:EIO@1")
    with pytest.raises(OSError, match="Input/output"):
        database.appender.sync_in_background()
    with pytest.raises(OSError, match="Input/output"):
        database.commit([write(b"b")])
    database.kill()
    # What was acknowledged in "standard" was in the kernel's hands, and is still there.
    assert [row[0] for row in content(tmp_path / "db")[1]] == [b"a"]


def test_a_batch_that_cannot_be_cut_off_is_uncertain(tmp_path: Path) -> None:
    database = Database(tmp_path / "db")
    database.commit([write(b"a")])
    failpoints.set("wal.after_write", "errno:EIO@1")
    failpoints.set("file.truncate", "errno:EIO")
    with pytest.raises(OSError, match="Input/output"):
        database.commit([write(b"b")])
    statistics = database.appender.statistics()
    assert statistics["log_uncertain"] and statistics["log_poisoned"]
    with pytest.raises(OSError, match="Input/output"):
        database.commit([write(b"c")])
    database.kill()
    failpoints.clear()
    # Whole or absent; here it had been written.
    assert [row[0] for row in content(tmp_path / "db")[1]] == [b"a", b"b"]


def test_a_failed_rotation_goes_on_in_the_old_segment(tmp_path: Path) -> None:
    database = Database(tmp_path / "db", segment_size=SEGMENT_SIZE)
    failpoints.set("file.open", "errno:EMFILE")
    for _ in range(20):
        database.commit([write(b"key", b"v" * 500)])
    assert len(segments(tmp_path / "db")) == 1
    database.kill()
    failpoints.clear()
    assert content(tmp_path / "db")[0].version == 20


def test_a_failed_checkpoint_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "db"
    database = Database(path)
    database.commit([write(b"a")])
    database.kill()
    database = Database(path, durability=None)
    before = fingerprint(path)
    number = 0
    while True:
        number += 1
        failpoints.set("file.any", f"errno:ENOSPC@{number}")
        try:
            database.checkpoint()
        except OSError:
            # Its directory may fail to be synced after the rename; then the checkpoint may stay, and is whole.
            after = {name: digest for name, digest in fingerprint(path).items() if not name.endswith(".ckpt")}
            assert after == before
        if failpoints.hits("file.any") < number:
            break
        failpoints.clear()
        assert content(path)[0].version == 1
    assert number > 6
    database.close()


FILL = """
import resource, sys
from pathlib import Path
from tests.support.log_driver import Database, write
import signal
limited = sys.argv[2] == "limit"
if limited:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
database = Database(Path(sys.argv[1]))
written = 0
try:
    while written < 100_000:
        database.commit([write(b"key %d" % written, b"v" * 700)])
        written += 1
except OSError as error:
    print(written, error.errno)
database.kill()
"""


def fill(path: Path, how: str) -> tuple[int, int]:
    run = subprocess.run(
        [sys.executable, "-c", FILL, str(path), how], capture_output=True, text=True, timeout=60, check=True
    )
    written, errno = run.stdout.split()
    return int(written), int(errno)


def test_file_size_limit(tmp_path: Path) -> None:
    written, errno = fill(tmp_path / "db", "limit")
    assert errno == 27  # EFBIG
    assert 100 < written < 300
    assert content(tmp_path / "db")[0].version == written


def test_a_really_full_disk(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting is not permitted here; test_file_size_limit covers the path")
    try:
        written, errno = fill(mount / "db", "disk")
        assert errno == 28  # ENOSPC
        assert written > 500
        result, rows = content(mount / "db")
        assert (result.version, len(rows)) == (written, written)
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_out_of_descriptors(tmp_path: Path) -> None:
    """F10: a clear error that names the file, and a database that opens once there are descriptors again."""
    Database(tmp_path / "db").kill()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open("/", os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            Database(tmp_path / "db")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    Database(tmp_path / "db").kill()


def test_a_synced_commit_learns_of_the_timers_failure(tmp_path: Path) -> None:
    """The kernel reports a lost page to one fsync only; the one beside it must not be taken for success.

    The timer's sync is held back, a synced commit comes, then the timer's sync fails.
    """
    database = Database(tmp_path / "db")
    database.commit([write(b"a")])
    failpoints.set("wal.before_sync", "sleep:200@1")
    failpoints.set("file.sync", "errno:EIO@1")
    failures: list[OSError] = []

    def timer() -> None:
        try:
            database.appender.sync_in_background()
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=timer)
    thread.start()
    deadline = time.monotonic() + 10
    while failpoints.hits("wal.before_sync") == 0:
        assert time.monotonic() < deadline
    with pytest.raises(OSError, match="Input/output"):
        database.commit([write(b"b")], sync=True)
    thread.join()
    assert len(failures) == 1
    assert failpoints.hits("file.sync") == failpoints.hits("wal.before_sync") == 1
    database.kill()
    assert [row[0] for row in content(tmp_path / "db")[1]] == [b"a"]


def test_recovery_writes_again_what_no_sync_had_reached(tmp_path: Path) -> None:
    """After a failed fsync the page cache holds what the disk lost, marked clean: a sync alone would not help."""
    path = tmp_path / "db"
    database = Database(path)
    database.commit([write(b"synced")], sync=True)
    synced = int(database.appender.statistics()["log_segment_bytes"])
    for number in range(3):
        database.commit([write(b"%d" % number)])
    end = int(database.appender.statistics()["log_segment_bytes"])
    failpoints.set("file.sync", "errno:EIO@1")
    with pytest.raises(OSError, match="Input/output"):
        database.appender.sync_in_background()
    database.kill()
    segment = segments(path)[0]
    written = segment.read_bytes()[synced:end]
    _files.trace_start(tmp_path / "trace")
    try:
        Database(path, durability=None).close()
    finally:
        _files.trace_stop()
    calls = read_trace(tmp_path / "trace")
    again = [
        index
        for index, call in enumerate(calls)
        if (call.op, call.number, call.first) == (WRITE, synced, written)
    ]
    assert len(again) == 1
    assert calls[again[0] + 1].op == SYNC and calls[again[0] + 1].fd == calls[again[0]].fd
