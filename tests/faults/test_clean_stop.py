"""A clean stop of a coordinator that workers are using: commits wait for a moment, and none is left in doubt."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import occamdb
from occamdb import CoordinatorUnavailable, Database, RunId
from occamdb.engine.client.link import CoordinatorGone, Link
from occamdb.engine.client.shared_handle import SharedHandle
from tests.support.processes import (
    Peer,
    Worker,
    coordinator_identity,
    open_database,
    set_coordinator_failpoint,
    stop_coordinator,
    wait_gone,
    wait_until,
)

SLOW_CHECKPOINT = ("checkpoint.begin", "sleep:3000*1")
# Rows, outcomes and the end of the file are a block each at least.
SLOW_BLOCKS, CHECKPOINT_S = ("checkpoint.block", "sleep:1000"), 3.0
KEYS = 2_000


def count_until_told(peer: Peer, path: Path, run: RunId, name: str, timeout: float) -> int:
    """Count in a shared and in an own key until told to end; any error ends the worker, and so fails the test."""
    count = 0
    with open_database(path, timeout=timeout) as db:
        db.put(run, name, count)
        peer.say("ready")
        while not peer.told():
            with db.begin(run, isolation="snapshot") as txn:
                txn.kv.increment("shared")
                txn.put(name, count + 1)
            count += 1
    return count


def started(start: Callable[..., Worker], path: Path, run: RunId, count: int, timeout: float) -> list[Worker]:
    team = [start(count_until_told, path, run, f"worker {n}", timeout) for n in range(count)]
    for worker in team:
        worker.hear()
    return team


def counts_of(team: list[Worker]) -> list[int]:
    for worker in team:
        worker.say("stop")
    return [worker.result() for worker in team]


def wait_for_commits(db: Database, count: int) -> None:
    floor = db.stats()["version"] + count
    wait_until(lambda: db.stats()["version"] > floor, what="commits")


def test_no_commit_is_in_doubt_over_several_stops(
    database_path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    path = database_path
    with open_database(path) as db:
        team = started(start, path, run, 4, 30.0)
        for _ in range(4):
            wait_for_commits(db, 50)
            stop_coordinator(path)
        wait_for_commits(db, 50)
        counts = counts_of(team)
        assert min(counts) > 0
        assert db.get(run, "shared") == sum(counts)
        assert [db.get(run, f"worker {n}") for n in range(4)] == counts


def test_commits_go_on_while_the_last_checkpoint_is_written(
    database_path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    path = database_path
    with open_database(path) as db:
        team = started(start, path, run, 2, 30.0)
        wait_for_commits(db, 50)
        set_coordinator_failpoint(path, *SLOW_CHECKPOINT)
        stopping = stop_coordinator(path, wait=False)
        wait_until(lambda: db.stats()["durable"]["checkpoint"]["running"], what="the last checkpoint")
        wait_for_commits(db, 50)
        # Opened while it stops.
        with open_database(path, timeout=30.0) as other:
            assert other.get(run, "shared") > 0
            assert other.stats()["pid"] == stopping.pid, "the checkpoint was over too soon to show anything"
        wait_gone(stopping)
        wait_for_commits(db, 50)
        counts = counts_of(team)
        assert db.get(run, "shared") == sum(counts)
        # What was committed after the checkpoint began is in the log, and the stop is a clean one.
        recovery = db.stats()["durable"]["recovery"]
        assert recovery["transactions_replayed"] > 0
        assert recovery["warnings"] == []


def test_an_idle_coordinator_goes_on_for_who_opens_meanwhile(database_path: Path, run: RunId) -> None:
    path = database_path
    settings: dict[str, Any] = {"idle_timeout": 0.3, "timeout": 30.0}
    with open_database(path, **settings) as db:
        db.put(run, "k", 1)
        identity = coordinator_identity(path)
        set_coordinator_failpoint(path, *SLOW_CHECKPOINT)
    # Its last worker has left: it begins to end, which takes three seconds.
    draft = path / "checkpoints"
    time_limit = time.monotonic() + 1.0
    while time.monotonic() < time_limit and not list(draft.iterdir()):
        os.sched_yield()
    with open_database(path, **settings) as db:
        assert db.put(run, "k", 2)
        assert coordinator_identity(path) == identity


def meet_nobody(limit: float, *, session: int) -> Link:
    raise CoordinatorUnavailable("there is no other coordinator")


def last_commit(peer: Peer, path: Path, run: RunId) -> float:
    """Commit until the coordinator is gone; when the last commit was acknowledged (time.monotonic)."""
    last = 0.0
    with occamdb.open(path, start="never", timeout=60.0) as db:
        handle = db.handle
        assert isinstance(handle, SharedHandle)
        peer.say("ready")
        # It looks for no other coordinator, which would take as long as a commit under way may take.
        handle.pool.attach = meet_nobody  # type: ignore[method-assign, assignment]
        while True:
            try:
                with db.begin(run, timeout=30.0) as txn:
                    txn.put("k", last)
                last = time.monotonic()
            except CoordinatorUnavailable:
                return last


def test_commits_pause_for_a_log_tail_and_not_for_a_checkpoint(
    database_path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    """From the last commit under constant load until another coordinator may serve, when a checkpoint takes long.

    That every block of it takes long stands for a great number of keys. A stop that lets commits wait for a checkpoint,
    be it the first or another one, lets them wait for all of its time.
    """
    path = database_path
    with open_database(path) as db:
        with db.begin(run) as txn:
            for n in range(KEYS):
                txn.put(f"key {n}", n)
        worker = start(last_commit, path, run)
        worker.hear()
        wait_for_commits(db, 50)
        lock = path / "LOCK"
        set_coordinator_failpoint(path, *SLOW_BLOCKS)
        began = time.monotonic()
        stop_coordinator(path, wait=False)
        ended = 0.0
        while not ended:
            if not lock.read_bytes():
                ended = time.monotonic()
        pause = ended - worker.result()
        assert ended - began > CHECKPOINT_S
        assert 0 < pause < CHECKPOINT_S / 3
        with open_database(path, timeout=60.0) as again:
            assert again.get(run, f"key {KEYS - 1}") == KEYS - 1
            assert again.get(run, "k") is not None


def count_until_it_stops(peer: Peer, path: Path, run: RunId, durability: str) -> int:
    """Count until there is no coordinator; any other error fails the test. How often it was acknowledged."""
    count = 0
    with occamdb.open(path, start="never", durability=occamdb.Durability(durability), timeout=60.0) as db:
        db.put(run, "other", 1)
        handle = db.handle
        assert isinstance(handle, SharedHandle)
        peer.say("ready")
        handle._timeout = 1.0
        while True:
            try:
                with db.begin(run, isolation="snapshot") as txn:
                    txn.kv.increment("shared")
            except CoordinatorUnavailable:
                return count
            count += 1


@pytest.mark.parametrize("durability", ["none", "standard"])
def test_what_was_not_taken_is_not_in_doubt(
    database_path: Path, run: RunId, durability: str, start: Callable[..., Worker]
) -> None:
    """The workers find no other coordinator, while this one takes its time to end after it has closed connections."""
    path = database_path
    with open_database(path, durability=durability) as db:
        db.put(run, "shared", 0)
        team = [start(count_until_it_stops, path, run, durability) for _ in range(4)]
        for worker in team:
            worker.hear()
        wait_for_commits(db, 50)
        set_coordinator_failpoint(path, "coordinator.stopping", "sleep:100")
        set_coordinator_failpoint(path, "meta.before_rename", "sleep:2000")
        stop_coordinator(path)
        counts = [worker.result() for worker in team]
        assert db.get(run, "shared") == sum(counts)


def test_an_answer_that_was_on_its_way_counts(database_path: Path, run: RunId) -> None:
    """A worker that looks only after the end of the connection finds what it was told before."""
    path = database_path
    with open_database(path) as db:
        db.put(run, "k", 1)
        handle = db.handle
        assert isinstance(handle, SharedHandle)
        link = handle.pool.idle[-1]

        def exchange(request: Any, timeout: float | None, on_idle: Any = None) -> bytes:
            link.channel.send(request, timeout, on_idle)
            wait_until(lambda: db.stats()["version"] > before, what="the commit")
            stop_coordinator(path)
            raise CoordinatorGone

        before = db.stats()["version"]
        link.exchange = exchange
        handle.pool.idle[:] = [link]
        version = db.put(run, "k", 2)
        assert version == before + 1
        found = db.get_versioned(run, "k")
        assert found is not None and (found.value, found.version) == (2, version)
