"""A disk that fails to sync the log: what was acknowledged is saved by a checkpoint, by itself and at a clean stop.

"standard" acknowledges before the sync. When that fails the kernel takes the pages for clean and may drop them, so the
tests destroy what was not synced before they look.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from occamdb import Database, LogWriteError, RunId
from occamdb.engine.disk.directory import read_meta
from occamdb.tools import doctor
from tests.support.processes import (
    kill_coordinator,
    open_database,
    set_coordinator_failpoint,
    stop_coordinator,
    wait_until,
)

HEADER = 80
COUNT = 50


def fill(db: Database, run: RunId) -> int:
    """Commits that were acknowledged; the last one's version."""
    for n in range(COUNT):
        version = db.put(run, f"key {n}", "v" * 200)
    return version


def forget_unsynced(segment: Path, how: str) -> None:
    """What may be left of a segment whose pages were never written."""
    content = segment.read_bytes()
    assert len(content) > HEADER + 4096
    if how == "all":
        segment.write_bytes(content[:HEADER])
    else:
        # One page was dropped, and those behind it not yet.
        segment.write_bytes(content[:HEADER] + bytes(4096) + content[HEADER + 4096 :])


def segment_of(path: Path) -> Path:
    return sorted((path / "wal").glob("*.log"))[-1]


def require_all(path: Path, run: RunId, version: int) -> None:
    """Every acknowledged commit is there, and the versions go on."""
    with open_database(path) as db:
        assert [db.get(run, f"key {n}") for n in range(COUNT)] == ["v" * 200] * COUNT
        assert db.put(run, "next", 1) == version + 1
    kill_coordinator(path)
    with open_database(path) as db:
        assert db.get(run, "next") == 1 and db.get(run, "key 0") is not None


def fail_the_log(db: Database, path: Path, run: RunId) -> int:
    set_coordinator_failpoint(path, "wal.before_sync", "errno:EIO")
    version = fill(db, run)
    wait_until(lambda: db.stats()["log"]["poisoned"], what="a sync that fails")
    return version


@pytest.mark.parametrize("how", ["all", "page"])
@pytest.mark.parametrize("refusals", [0, 3])
def test_saved_as_soon_as_the_disk_takes_it(database_path: Path, run: RunId, how: str, refusals: int) -> None:
    path = database_path
    with open_database(path, sync_interval=0.5) as db:
        if refusals:
            set_coordinator_failpoint(path, "checkpoint.begin", f"errno:EIO*{refusals}")
        segment = segment_of(path)
        version = fail_the_log(db, path, run)
        wait_until(lambda: db.stats()["durable"]["checkpoint"].get("saved"), 20.0, what="a checkpoint")
        assert db.stats()["durable"]["checkpoint"]["version"] == version
        assert db.get(run, "key 0") is not None
        assert any("is in a checkpoint" in found.text for found in doctor.directory(path))
        with pytest.raises(LogWriteError):
            db.put(run, "refused", 1)
        kill_coordinator(path)
    forget_unsynced(segment, how)
    require_all(path, run, version)


@pytest.mark.parametrize("how", ["all", "page"])
@pytest.mark.parametrize("when", ["before", "closing"])
def test_saved_by_a_clean_stop(database_path: Path, run: RunId, how: str, when: str) -> None:
    """The sync fails before the stop while no checkpoint can be made, or only when the log is closed."""
    path = database_path
    with open_database(path, sync_interval=0.5 if when == "before" else 60.0) as db:
        segment = segment_of(path)
        if when == "before":
            set_coordinator_failpoint(path, "checkpoint.begin", "errno:EIO")
            version = fail_the_log(db, path, run)
            set_coordinator_failpoint(path, "checkpoint.begin", "off")
        else:
            set_coordinator_failpoint(path, "wal.before_sync", "errno:EIO")
            version = fill(db, run)
        stop_coordinator(path)
    meta = read_meta(path)
    assert meta is not None and meta.clean and meta.clean_version == version
    forget_unsynced(segment, how)
    require_all(path, run, version)


def test_a_checkpoint_damaged_later_is_what_is_reported(database_path: Path, run: RunId) -> None:
    """The log can no longer replace it, and no reader gets the older state instead of the newer."""
    path = database_path
    with open_database(path, sync_interval=0.5) as db:
        segment = segment_of(path)
        fail_the_log(db, path, run)
        wait_until(lambda: db.stats()["durable"]["checkpoint"].get("saved"), 20.0, what="a checkpoint")
        kill_coordinator(path)
    forget_unsynced(segment, "all")
    newest = sorted((path / "checkpoints").glob("*.ckpt"))[-1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    with pytest.raises(Exception, match=newest.name) as caught:
        open_database(path)
    assert type(caught.value).__name__ == "CorruptionError"
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    with open_database(path) as db:
        assert db.get(run, "key 0") is not None
