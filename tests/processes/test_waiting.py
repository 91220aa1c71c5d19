"""Waiting workers that are stopped, killed, forked, interrupted, very many, or whose coordinator dies."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from occamdb import Database, RunId
from occamdb.engine.disk import failpoints
from occamdb.ipc import layout
from tests.support.processes import (
    DEADLINE_S,
    Peer,
    kill_coordinator,
    open_database,
    set_coordinator_failpoint,
    stop_coordinator,
    wait_until,
    workers,
)


def wait_for_key(peer: Peer, path: Path, run: RunId, key: str, failpoint: str) -> Any:
    """Wait for one key, with a failpoint in the way."""
    with open_database(path) as db:
        if failpoint:
            failpoints.configure(failpoint)
        peer.say("waiting")
        return db.kv.wait(run, key, timeout=DEADLINE_S).value


def test_a_commit_between_the_last_look_and_the_sleep_wakes(tmp_path: Path, run: RunId) -> None:
    with open_database(tmp_path) as db, workers() as start:
        worker = start(wait_for_key, tmp_path, run, "k", "worker.before_sleep=stop@1")
        worker.wait_stopped()
        db.put(run, "k", 1)
        worker.resume()
        # Not after the quarter of a second in which it looks whether its store was replaced: see the next test.
        assert worker.result() == 1
        stop_coordinator(tmp_path)


def count_sleeps(peer: Peer, path: Path, run: RunId) -> int:
    """Wait for a key; how often this process went to sleep meanwhile."""
    with open_database(path) as db:
        failpoints.set("worker.before_sleep", "stop@1")
        db.kv.wait(run, "k", timeout=DEADLINE_S)
        return failpoints.hits("worker.before_sleep")


def test_such_a_commit_ends_the_first_sleep(tmp_path: Path, run: RunId) -> None:
    with open_database(tmp_path) as db, workers() as start:
        worker = start(count_sleeps, tmp_path, run)
        worker.wait_stopped()
        db.put(run, "k", 1)
        worker.resume()
        assert worker.result() == 1
        stop_coordinator(tmp_path)


def follow_numbers(peer: Peer, path: Path, run: RunId, last: int) -> list[int]:
    """Follow a counter up to `last`; every number seen."""
    seen: list[int] = []
    with open_database(path) as db, db.watch(run, since=0, timeout=DEADLINE_S) as watch:
        peer.say("watching")
        for change in watch:
            seen.append(change.value)
            if change.value == last:
                return seen
    return seen


@pytest.mark.parametrize("how", ["kill", "stop", "logged"])
def test_a_restart_is_slept_through_without_gap_or_repetition(tmp_path: Path, run: RunId, how: str) -> None:
    with open_database(tmp_path) as db, workers() as start:
        followers = [start(follow_numbers, tmp_path, run, 60) for _ in range(2)]
        for follower in followers:
            assert follower.hear() == "watching"
        waiter = start(wait_for_key, tmp_path, run, "end", "")
        assert waiter.hear() == "waiting"
        for number in range(1, 61):
            if number in (20, 40):
                if how == "kill":
                    kill_coordinator(tmp_path)
                elif how == "stop":
                    stop_coordinator(tmp_path)
                else:
                    # Logged and not published: the followers can have this one from the log alone.
                    set_coordinator_failpoint(tmp_path, "commit.before_publish", "kill@1")
            db.put(run, "n", number)
        assert [follower.result() for follower in followers] == [list(range(1, 61))] * 2
        db.put(run, "end", "over")
        assert waiter.result() == "over"
        stop_coordinator(tmp_path)


def test_ready_goes_on_in_the_store_of_a_new_coordinator(tmp_path: Path, run: RunId) -> None:
    with open_database(tmp_path) as db, db.watch(run) as watch:
        db.put(run, "n", 1)
        assert [change.value for change in watch.ready()] == [1]
        kill_coordinator(tmp_path)
        version = db.put(run, "n", 2)
        assert [change.value for change in watch.ready()] == [2]
        assert watch.version == version
        assert watch.ready() == []
        stop_coordinator(tmp_path)


def test_a_watch_goes_on_in_another_process_after_a_restart(tmp_path: Path, run: RunId) -> None:
    with open_database(tmp_path) as db:
        version = db.put(run, "n", 0)
        for number in range(1, 5):
            db.put(run, "n", number)
        kill_coordinator(tmp_path)
        with workers() as start:
            worker = start(follow_numbers, tmp_path, run, 6)
            assert worker.hear() == "watching"
            db.put(run, "n", 5)
            db.put(run, "n", 6)
            assert worker.result() == list(range(7))
        assert version == 1
        stop_coordinator(tmp_path)


def test_a_stopped_and_a_killed_watcher_hold_nobody_back(tmp_path: Path, run: RunId) -> None:
    with open_database(tmp_path, watch_history="64KiB") as db, workers() as start:
        stopped = start(follow_or_lag, tmp_path, run)
        killed = start(follow_or_lag, tmp_path, run)
        for worker in (stopped, killed):
            assert worker.hear() == "watching"
        stopped.stop()
        killed.kill()
        for number in range(3000):
            db.put(run, "n", [number, "x" * 50])
        stopped.resume()
        db.put(run, "n", "end")
        numbers, lagged = stopped.result()
        assert lagged or numbers == list(range(3000))
        assert numbers == sorted(set(numbers))
        stop_coordinator(tmp_path)


def follow_or_lag(peer: Peer, path: Path, run: RunId) -> tuple[list[int], int]:
    """Follow a counter up to "end" from the ring and the log; what was seen, and how often it lagged."""
    from occamdb.engine.model.errors import WatchLagged

    seen: list[int] = []
    lagged = 0
    with open_database(path, watch_history="64KiB") as db:
        watch = db.watch(run, since=0, timeout=DEADLINE_S)
        peer.say("watching")
        while True:
            try:
                for change in watch:
                    if change.value == "end":
                        return seen, lagged
                    assert not seen or lagged or change.value[0] == seen[-1] + 1, "a gap"
                    seen.append(change.value[0])
            except WatchLagged as lag:
                lagged += 1
                watch = db.watch(run, since=lag.oldest, timeout=DEADLINE_S)


def many_waits(peer: Peer, path: Path, run: RunId, keys: list[str]) -> list[str]:
    """One thread a key; the keys whose threads woke, when the test says so."""
    woken: list[str] = []
    with open_database(path) as db:

        def wait(key: str) -> None:
            db.kv.wait(run, key, timeout=DEADLINE_S)
            woken.append(key)

        threads = [threading.Thread(target=wait, args=(key,)) for key in keys]
        for thread in threads:
            thread.start()
        hub = db.handle.waits
        wait_until(lambda: len(hub._waiters) == len(keys))
        peer.say("waiting")
        while peer.hear() != "end":
            peer.say(list(woken))
        for thread in threads:
            thread.join(DEADLINE_S)
    return woken


@pytest.mark.parametrize("same", [True, False], ids=["one key", "1,000 keys"])
def test_a_thousand_waiters_and_one_change(tmp_path: Path, run: RunId, same: bool) -> None:
    with open_database(tmp_path) as db, workers() as start:
        keys = ["k" if same else f"k{number}" for number in range(1000)]
        started = [start(many_waits, tmp_path, run, keys[part::4]) for part in range(4)]
        for worker in started:
            assert worker.hear() == "waiting"
        db.put(run, keys[500], 1)

        def woken() -> list[str]:
            found = []
            for worker in started:
                worker.say("who")
                found += worker.hear()
            return found

        wait_until(lambda: len(woken()) == (1000 if same else 1))
        if not same:
            assert woken() == ["k500"]
            with db.begin(run) as txn:
                for key in keys:
                    txn.put(key, 2)
        for worker in started:
            worker.say("end")
        assert sorted(key for worker in started for key in worker.result()) == sorted(keys)
        stop_coordinator(tmp_path)


# ---- forks and signals --------------------------------------------------------------------------------------------


class Interrupted(Exception):
    """Raised by a signal handler."""


def interrupted_wait(peer: Peer, path: Path, run: RunId) -> str:
    """A signal handler raises while the main thread waits, and another thread waits beside it."""

    def handler(_number: int, _frame: Any) -> None:
        raise Interrupted

    signal.signal(signal.SIGUSR1, handler)
    with open_database(path) as db:
        beside: list[Any] = []
        thread = threading.Thread(
            target=lambda: beside.append(db.kv.wait(run, "beside", timeout=DEADLINE_S).value)
        )
        for which in ("leads", "follows"):
            try:
                peer.say(which)
                db.kv.wait(run, "never", timeout=DEADLINE_S)
                return "not interrupted"
            except Interrupted:
                if which == "leads":
                    thread.start()
        hub = db.handle.waits
        wait_until(lambda: hub._leader is not None)
        peer.say("change it")
        thread.join(DEADLINE_S)
        value = db.kv.wait(run, "beside").value
        return f"{beside} {value} {len(hub._waiters)} {len(hub._held)}"


def test_a_signal_handler_raises_while_waiting(tmp_path: Path, run: RunId) -> None:
    with open_database(tmp_path) as db, workers() as start:
        worker = start(interrupted_wait, tmp_path, run)
        for _ in range(2):
            assert worker.hear() in ("leads", "follows")
            wait_until(lambda: in_futex(worker.pid), what="the sleep")
            worker.signal(signal.SIGUSR1)
        assert worker.hear() == "change it"
        db.put(run, "beside", 5)
        assert worker.result() == "[5] 5 0 0"
        stop_coordinator(tmp_path)


def in_futex(pid: int) -> bool:
    """Whether the main thread of a process sleeps on a futex."""
    text = Path(f"/proc/{pid}/syscall").read_text(errors="replace")
    return text.split()[0] == str({"x86_64": 202, "aarch64": 98}[os.uname().machine])


def fork_while_waiting(peer: Peer, path: Path, run: RunId) -> tuple[Any, Any]:
    """A thread waits; the main thread forks, and the child waits for something itself."""
    with open_database(path) as db:
        result: list[Any] = []
        thread = threading.Thread(
            target=lambda: result.append(db.kv.wait(run, "parent", timeout=DEADLINE_S).value)
        )
        thread.start()
        hub = db.handle.waits
        wait_until(lambda: hub._leader is not None)
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            found = db.kv.wait(run, "child", timeout=DEADLINE_S).value
            os.write(write_end, str(found).encode())
            os._exit(0)
        peer.say("forked")
        answer = os.read(read_end, 100)
        os.waitpid(child, 0)
        thread.join(DEADLINE_S)
        os.close(read_end)
        os.close(write_end)
        return answer, result


def test_a_fork_while_waiting(tmp_path: Path, run: RunId) -> None:
    with open_database(tmp_path) as db, workers() as start:
        worker = start(fork_while_waiting, tmp_path, run)
        assert worker.hear() == "forked"
        db.put(run, "child", "c")
        db.put(run, "parent", "p")
        assert worker.result() == (b"c", ["p"])
        stop_coordinator(tmp_path)


def close_inherited_watches(peer: Peer, path: Path, run: RunId) -> tuple[bytes, int]:
    """A forked child waits, and meanwhile closes the watches that it inherited."""
    with open_database(path) as db:
        inherited = [db.watch(run) for _ in range(3)]
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            watch = db.watch(run, timeout=DEADLINE_S)

            def close() -> None:
                wait_until(lambda: db.handle.waits._leader is not None)
                for other in inherited:
                    other.close()
                os.write(write_end, f"{next(iter(db.handle.waits._held.values()), [0])[0]} ".encode())

            threading.Thread(target=close).start()
            found = next(watch).value
            os.write(write_end, str(found).encode())
            os._exit(0)
        held = os.read(read_end, 100)
        peer.say("closed")
        answer = os.read(read_end, 100)
        os.waitpid(child, 0)
        os.close(read_end)
        os.close(write_end)
        return held + answer, len(inherited)


def test_watches_that_a_child_inherited_take_nothing_of_its_own_back(tmp_path: Path, run: RunId) -> None:
    with open_database(tmp_path) as db, workers() as start:
        worker = start(close_inherited_watches, tmp_path, run)
        assert worker.hear() == "closed"
        db.put(run, "k", 5)
        # Its watch and its wait: both are registered still.
        assert worker.result() == (b"2 5", 3)
        stop_coordinator(tmp_path)


def test_closing_the_database_ends_a_wait(tmp_path: Path, run: RunId) -> None:
    from occamdb import DatabaseClosedError

    db: Database = open_database(tmp_path)
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            db.kv.wait(run, "never", timeout=DEADLINE_S)
        except DatabaseClosedError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: db.handle.waits._leader is not None)
    db.close()
    thread.join(DEADLINE_S)
    assert len(errors) == 1
    stop_coordinator(tmp_path)


def forge_slots(peer: Peer, path: Path, seed: int) -> None:
    """Write bytes that no worker writes into the watch page of the own channel, and into the register word."""
    chance = random.Random(seed)
    with open_database(path) as db:
        db.put(RunId.new(), "k", 1)
        _, bell, channel = db.handle.pool.primary._segments  # type: ignore[attr-defined]
        for _ in range(20):
            page = layout.WATCH_OFFSET
            channel.map[page : page + layout.PAGE_SIZE] = chance.randbytes(layout.PAGE_SIZE)
            at = layout.BELL_REGISTER_OFFSET
            bell.map[at : at + 4] = chance.randbytes(4)
            peer.say("forged")
            peer.hear()


def test_forged_slots_harm_nobody_else(tmp_path: Path, run: RunId) -> None:
    with open_database(tmp_path) as db, workers() as start:
        forger = start(forge_slots, tmp_path, 1)
        for number in range(20):
            assert forger.hear() == "forged"
            waiter = start(wait_for_key, tmp_path, run, f"k{number}", "") if number % 5 == 0 else None
            if waiter is not None:
                assert waiter.hear() == "waiting"
            for repeated in range(50):
                db.put(run, "other", repeated)
            db.put(run, f"k{number}", number)
            if waiter is not None:
                assert waiter.result() == number
            forger.say("again")
        forger.result()
        stop_coordinator(tmp_path)


def lose_the_leader(peer: Peer, path: Path, run: RunId) -> Any:
    """Two threads wait; the one that leads forgets to hand over."""
    with open_database(path) as db:
        hub = db.handle.waits
        values: list[Any] = []
        thread = threading.Thread(
            target=lambda: values.append(db.kv.wait(run, "k", timeout=DEADLINE_S).value)
        )
        # As if an exception had struck between two lines of the leader's own hand-over.
        hub._leader, hub._beat = object(), time.monotonic()  # type: ignore[assignment]
        thread.start()
        wait_until(lambda: hub._waiters)
        peer.say("waiting")
        thread.join(DEADLINE_S)
        return values


def test_a_lost_leader_is_replaced(tmp_path: Path, run: RunId) -> None:
    with open_database(tmp_path) as db, workers() as start:
        worker = start(lose_the_leader, tmp_path, run)
        assert worker.hear() == "waiting"
        db.put(run, "k", 1)
        assert worker.result() == [1]
        stop_coordinator(tmp_path)
