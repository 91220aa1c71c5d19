"""The change ring against a failing log, a writer that laps its readers, and bytes that no writer wrote."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import occamdb
from occamdb import Database, RunId
from occamdb.engine.model.errors import CorruptionError, LogWriteError, SettingsError, WatchLagged
from occamdb.engine.transaction.feeds import feed_of
from tests.support.databases import memory_database
from tests.support.followers import Follower, state_of_run
from tests.support.processes import Peer, open_database, set_coordinator_failpoint, workers

HISTORY = 1 << 16


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Database]:
    with open_database(tmp_path / "db", watch_history=HISTORY, idle_timeout=0.2, durability="always") as db:
        yield db


# ---- batches that are undone ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 1000])
def test_a_commit_that_the_log_refused_is_never_seen(shared: Database, run: RunId, size: int) -> None:
    """Its version is used again; a commit of 1,000 keys of 60 bytes each drives everything else out of the ring."""
    follower = Follower(shared, run, since=shared.put(run, "before", 0) - 1)
    behind = Follower(shared, run, since=follower.watch.version)
    follower.catch_up()
    set_coordinator_failpoint(Path(str(shared.path)), "wal.before_write", "errno:EIO@1")
    with pytest.raises(LogWriteError), shared.begin(run) as txn:
        for number in range(size):
            txn.put(f"refused/{number}", "x" * 20)
    assert follower.watch.ready() == []
    version = shared.put(run, "after", 1)
    assert [(c.key, c.version) for c in follower.watch.ready()] == [("after", version)]
    behind.catch_up()
    assert behind.state == state_of_run(shared, run)[0] == {"before": 0, "after": 1}


# ---- lapping --------------------------------------------------------------------------------------------------


def count_up(peer: Peer, path: str, run: RunId) -> int:
    """Commits numbered pairs of values whose halves are equal, until told to stop."""
    number = 0
    with open_database(path, watch_history=HISTORY, idle_timeout=0.2, durability="none") as db:
        peer.say("ready")
        while not peer.told():
            for _ in range(50):
                number += 1
                with db.begin(run) as txn:
                    txn.put("left", [number, "x" * (number * 37 % 3000)])
                    txn.put("right", [number, "y" * (number * 37 % 3000)])
    return number


def test_a_reader_that_is_lapped_reads_no_torn_commit_and_leaves_none_out(tmp_path: Path, run: RunId) -> None:
    path = str(tmp_path / "db")
    laps = commits = 0
    with (
        open_database(path, watch_history=HISTORY, idle_timeout=0.2, durability="none") as db,
        workers() as start,
    ):
        watch = db.watch(run, since=0)
        writer = start(count_up, path, run)
        assert writer.hear() == "ready"
        last = 0
        while laps < 20 or commits < 2000:
            try:
                for changes in iter(watch.ready, []):
                    for left, right in zip(changes[::2], changes[1::2], strict=True):
                        number = left.value[0]
                        assert (left.key, right.key, right.value[0]) == ("left", "right", number)
                        assert left.value[1] == "x" * (number * 37 % 3000)
                        assert right.value[1] == "y" * (number * 37 % 3000)
                        assert left.version == right.version
                        assert number == last + 1 or not last, "a commit was left out"
                        last = number
                        commits += 1
                    if commits % 7 == 0:
                        sum(range(200_000))  # fall behind
            except WatchLagged as lag:
                assert lag.oldest > lag.since
                laps += 1
                last = 0
                watch.close()
                watch = db.watch(run, since=state_of_run(db, run)[1])
        writer.say("stop")
        assert writer.result() >= commits
        watch.close()


# ---- settings -----------------------------------------------------------------------------------------------


def test_without_a_history_there_is_nothing_to_watch(run: RunId) -> None:
    with memory_database(watch_history=0) as db:
        db.put(run, "k", 1)
        with pytest.raises(occamdb.OccamError, match="watch_history") as caught:
            db.watch(run)
        assert "watch_history" in str(caught.value.hint)


@pytest.mark.parametrize("size", [1, 4096, 100_000, -1, "2GiB", True])
def test_sizes_that_no_ring_can_have(size: Any) -> None:
    with pytest.raises(SettingsError, match="watch_history"):
        occamdb.Settings.of({"watch_history": size})


# ---- memory that nobody wrote ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_whatever_the_ring_holds_a_reader_neither_faults_nor_hangs(run: RunId, seed: int) -> None:
    chance = random.Random(seed)
    with memory_database(watch_history=HISTORY, max_store_size="1MiB") as db:
        for number in range(300):
            db.put(run, f"k{number % 7}", "x" * (number % 200))
        memory: Any = db.handle._store  # type: ignore[attr-defined]
        ring = len(memory) - HISTORY
        for _ in range(chance.choice([1, 10, 1000])):
            where = chance.choice([ring + chance.randrange(HISTORY), 960 + chance.randrange(32)])
            memory[where] = chance.choice([0, 1, 0xFF, chance.randrange(256)])
        for since in (0, 10, 150, 300):
            feed = feed_of(db.attachment(), since, b"", b"\xff")
            try:
                for _ in range(400):
                    if not feed.poll():
                        break
            except (WatchLagged, CorruptionError):
                pass
