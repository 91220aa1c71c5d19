"""Turns between processes: a holder that is killed, stopped, or never comes back; a coordinator that dies."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from occamdb import Database, RunId, Transaction
from occamdb.engine.disk import failpoints
from tests.support.processes import (
    Peer,
    Worker,
    kill_coordinator,
    open_database,
    stop_coordinator,
    wait_until,
)

TURN_AFTER = 3  # RetryPolicy's
BOUND_S = 5.0  # how long a write may wait for one turn of 20 ms on a busy machine
READS = 200
WRITERS = 4


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A database of its own: its figures are this test's."""
    directory = tmp_path / "db"
    with open_database(directory):
        yield directory
    stop_coordinator(directory)


def hold(peer: Peer, path: Path, run: RunId, failpoint: str) -> int:
    """Read and write one key; says the number of each attempt and waits for the word to go on. Returns the attempts."""
    attempts = 0

    def read_and_write(txn: Transaction) -> None:
        nonlocal attempts
        attempts += 1
        value = txn.get("key")
        peer.say(attempts)
        if peer.hear() == "arm":
            failpoints.set("worker.before_submit", failpoint)
        txn.put("key", value)

    with open_database(path) as db:
        db.transaction(run, read_and_write)
    return attempts


def get_a_turn(db: Database, run: RunId, holder: Worker, last: str = "") -> None:
    """Make the worker lose until it has a turn. It waits in its next attempt then, or has gone on with `last`."""
    for attempt in range(1, TURN_AFTER + 1):
        assert holder.hear() == attempt
        db.put(run, "key", attempt)
        holder.say("go")
    assert holder.hear() == TURN_AFTER + 1
    if last:
        holder.say(last)


def put_in_time(db: Database, run: RunId) -> None:
    """A write that the turn holds up at first is done soon."""
    began = time.monotonic()
    db.put(run, "key", "in spite of the turn")
    assert time.monotonic() - began < BOUND_S


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_holder_that_dies_or_stands_still_while_it_commits_delays_others_by_one_turn(
    path: Path, start: Callable[..., Worker], how: str
) -> None:
    run = RunId.new()
    with open_database(path) as db:
        holder = start(hold, path, run, f"{how}@1")
        get_a_turn(db, run, holder, "arm")
        if how == "kill":
            assert holder.wait_dead() < 0
        else:
            holder.wait_stopped()
        put_in_time(db, run)
        turns = db.stats()["turns"]
        assert turns["granted"] == 1
        if how == "stop":
            assert turns["expired"] == 1
            # Its commit comes late, and loses like any other. It asks again, and gets another turn.
            holder.resume()
            assert holder.hear() == TURN_AFTER + 2
            holder.say("go")
            assert holder.result() == TURN_AFTER + 2
            assert db.stats()["turns"]["granted"] == 2


def test_a_holder_that_never_comes_back_delays_others_by_one_turn(
    path: Path, start: Callable[..., Worker]
) -> None:
    run = RunId.new()
    with open_database(path) as db:
        holder = start(hold, path, run, "")
        get_a_turn(db, run, holder)
        put_in_time(db, run)
        assert db.stats()["turns"]["expired"] == 1
        holder.kill()


def test_a_coordinator_that_dies_ends_turns(path: Path, start: Callable[..., Worker]) -> None:
    """The next one knows of no turn. The transaction loses, asks again, and needs one attempt more."""
    run = RunId.new()
    with open_database(path) as db:
        holder = start(hold, path, run, "")
        get_a_turn(db, run, holder)
        kill_coordinator(path)
        put_in_time(db, run)
        holder.say("go")
        assert holder.hear() == TURN_AFTER + 2
        holder.say("go")
        assert holder.result() == TURN_AFTER + 2


def write(peer: Peer, path: Path, run: RunId) -> int:
    """Write the same keys over and over, until told to stop."""
    count = 0
    with open_database(path) as db:
        peer.say("ready")
        while not peer.told():
            db.put(run, f"k{count % READS}", count)
            count += 1
    return count


def test_a_long_transaction_commits_in_a_bounded_number_of_attempts(
    path: Path, start: Callable[..., Worker]
) -> None:
    """A few milliseconds of reads against writers of the same keys that never pause."""
    run = RunId.new()
    with open_database(path) as db:
        with db.begin(run) as txn:
            for number in range(READS):
                txn.put(f"k{number}", -1)
        team = [start(write, path, run) for _ in range(WRITERS)]
        for worker in team:
            worker.hear()
        most = 0
        for _ in range(5):
            attempts = 0

            def add_up(txn: Transaction) -> None:
                nonlocal attempts
                attempts += 1
                total = 0
                end = time.monotonic() + 0.003
                while time.monotonic() < end:
                    total = sum(txn.get(f"k{number}", 0) for number in range(READS))
                txn.put("sum", total)

            db.transaction(run, add_up)
            most = max(most, attempts)
        turns = db.stats()["turns"]
        for worker in team:
            worker.say("stop")
        assert all(worker.result() for worker in team)
        # A turn that was over before the transaction came back, because the machine was busy, costs an attempt.
        assert most <= TURN_AFTER + 1 + turns["expired"]
        assert turns["granted"] >= 1


def give_up(peer: Peer, path: Path, run: RunId) -> None:
    """Lose until there is a turn, and then raise."""

    def fail(txn: Transaction) -> None:
        value = txn.get("key")
        peer.say("attempt")
        if peer.hear() == "raise":
            raise KeyError("given up")
        txn.put("key", value)

    with open_database(path) as db:
        try:
            db.transaction(run, fail)
        except KeyError:
            peer.say("raised")
            peer.hear()


def test_a_turn_that_is_not_used_is_given_up(path: Path, start: Callable[..., Worker]) -> None:
    run = RunId.new()
    with open_database(path) as db:
        holder = start(give_up, path, run)
        for attempt in range(TURN_AFTER):
            holder.hear()
            db.put(run, "key", attempt)
            holder.say("go")
        holder.hear()
        holder.say("raise")
        assert holder.hear() == "raised"
        wait_until(lambda: db.stats()["turns"]["granted"] == 1)
        waited = db.stats()["turns"]["waited"]
        put_in_time(db, run)
        assert db.stats()["turns"]["waited"] == waited
        holder.say("go")
        holder.result()


def test_a_write_with_a_short_deadline_learns_its_outcome(path: Path, start: Callable[..., Worker]) -> None:
    """It was sent in time, and then has to wait for a turn beyond its deadline."""
    run = RunId.new()
    with open_database(path) as db:
        holder = start(hold, path, run, "")
        get_a_turn(db, run, holder)
        with db.begin(run, timeout=0.005) as txn:
            txn.put("key", "late")
        assert db.get(run, "key") == "late"
        holder.kill()


def increase(peer: Peer, path: Path, run: RunId) -> tuple[int, int]:
    """Read and write one key over and over, until told to stop. Returns (commits, attempts)."""
    attempts = 0

    def add_one(txn: Transaction) -> None:
        nonlocal attempts
        attempts += 1
        txn.put("hot", txn.get("hot", 0) + 1)

    count = 0
    with open_database(path) as db:
        peer.say("ready")
        while not peer.told():
            for _ in range(20):
                db.transaction(run, add_one)
            count += 20
    return count, attempts


def grows(db: Database, run: RunId) -> None:
    """Return when the key was written some hundred times more."""
    wanted = (db.get(run, "hot") or 0) + 300
    wait_until(lambda: (db.get(run, "hot") or 0) >= wanted)


def test_workers_on_one_hot_key_seldom_lose(path: Path, start: Callable[..., Worker]) -> None:
    """They take turns of many commits each, and lose once in each of them."""
    run = RunId.new()
    with open_database(path) as db:
        team = [start(increase, path, run) for _ in range(WRITERS)]
        for worker in team:
            worker.hear()
        for _ in range(10):
            grows(db, run)
        for worker in team:
            worker.say("stop")
        done = [worker.result() for worker in team]
        total = sum(count for count, _ in done)
        assert db.get(run, "hot") == total
        assert min(count for count, _ in done) > 0
        assert sum(attempts for _, attempts in done) < 1.25 * total + 100
        assert db.stats()["turns"]["granted"] > 0


def test_a_worker_that_is_stopped_or_killed_among_others_on_a_hot_key_holds_nobody_up(
    path: Path, start: Callable[..., Worker]
) -> None:
    """Whether it has the turn, keeps it, or stands in the line."""
    run = RunId.new()
    with open_database(path) as db:
        team = [start(increase, path, run) for _ in range(WRITERS)]
        for worker in team:
            worker.hear()
        for _ in range(5):
            grows(db, run)
            for worker in team[:2]:
                worker.stop()
            grows(db, run)
            for worker in team[:2]:
                worker.resume()
        team[0].kill()
        grows(db, run)
        for worker in team[1:]:
            worker.say("stop")
        assert all(worker.result()[0] for worker in team[1:])
