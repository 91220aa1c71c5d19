"""A checkpoint is never ahead of the log on disk: else a power cut leaves a hole that the log cannot fill (C7, F12)."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from occamdb import LogWriteError, RunId
from occamdb.engine.disk import failpoints
from occamdb.engine.log import check
from tests.support.log_driver import Database, write
from tests.support.processes import (
    kill_coordinator,
    open_database,
    set_coordinator_failpoint,
    stop_coordinator,
    wait_until,
)

RUN = RunId.new()
# The timer must not do the checkpoint's work.
NO_TIMER = {"sync_interval": 60.0}


def test_the_log_is_on_disk_before_a_checkpoint_has_its_name(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with open_database(path, **NO_TIMER) as db:
        db.put(RUN, "key", "value")
        before = db.stats()["log"]["syncs"]
        set_coordinator_failpoint(path, "checkpoint.before_rename", "errno:EIO@1")
        with pytest.raises(LogWriteError):
            db.checkpoint()
        assert list((path / "checkpoints").iterdir()) == []
        assert db.stats()["log"]["syncs"] == before + 1
        # Nothing was written since: there is nothing to sync.
        db.checkpoint()
        assert len(list((path / "checkpoints").iterdir())) == 1
        assert db.stats()["log"]["syncs"] == before + 1
    stop_coordinator(path)


def test_a_sync_that_fails_ends_the_checkpoint(tmp_path: Path) -> None:
    """As any failed sync: no commits until a restart. What was acknowledged can still be saved on request."""
    path = tmp_path / "db"
    with open_database(path, **NO_TIMER) as db:
        db.put(RUN, "key", "value")
        set_coordinator_failpoint(path, "wal.before_sync", "errno:EIO@1")
        with pytest.raises(LogWriteError):
            db.checkpoint()
        assert list((path / "checkpoints").iterdir()) == []
        with pytest.raises(LogWriteError):
            db.put(RUN, "key", "refused")
        assert db.get(RUN, "key") == "value"
        db.checkpoint()
        kill_coordinator(path)
        db.put(RUN, "after", 1)
        assert (db.get(RUN, "key"), db.get(RUN, "after")) == ("value", 1)
    stop_coordinator(path)
    assert check.check(path, rebuild=True).findings == []


def test_waiting_for_the_sync_under_way_is_not_enough(tmp_path: Path) -> None:
    """It may have begun before the bytes that matter were written. Commits do not wait for either."""
    database = Database(tmp_path / "db")
    database.commit([write(b"before")])
    failpoints.set("wal.before_sync", "sleep:300@1")
    timer = threading.Thread(target=database.appender.sync_in_background)
    timer.start()
    wait_until(lambda: failpoints.hits("wal.before_sync") == 1, what="the timer's sync")
    database.commit([write(b"meanwhile")])
    database.appender.sync_in_background()
    assert timer.is_alive()
    figures = database.appender.statistics()
    assert figures["log_segment_synced"] < figures["log_segment_bytes"]
    database.appender.sync_in_background(wait=True)
    figures = database.appender.statistics()
    assert figures["log_segment_synced"] == figures["log_segment_bytes"]
    timer.join()
    database.kill()
