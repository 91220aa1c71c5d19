"""A `Database` goes everywhere its process goes: pickle, fork, spawn, pools, threads."""

from __future__ import annotations

import functools
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

import occamdb
from occamdb import Database, DatabaseClosedError, ForkedHandleError, RetryPolicy, RunId, Transaction
from occamdb.ipc.process import is_alive
from tests.support.processes import (
    Peer,
    Worker,
    environment,
    identity_of,
    open_database,
    segments_of,
    wait_gone,
    wait_until,
)

PATIENT = RetryPolicy(max_attempts=100_000)


# ---- every way to start a process ---------------------------------------------------------------------------


def session_of(db: Database, run: RunId) -> int:
    """The session of a commit by the calling thread."""
    with db.begin(run) as txn:
        txn.put("session", 1)
    assert txn.txn_id is not None
    return txn.txn_id[0]


def work_with(peer: Peer, db: Database, run: RunId, key: str) -> dict[str, Any]:
    """Use a database that came as an argument: read, write, read own write, count with the others."""
    assert db.get(run, "from parent") == 1
    db.put(run, key, os.getpid())

    def count(txn: Transaction) -> None:
        txn.put("count", txn.get("count", 0) + 1)

    db.transaction(run, count, retry=PATIENT)
    return {"pid": os.getpid(), "session": session_of(db, run)}


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_database_goes_to_a_worker(
    method: str, shared: Database, shared_path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    shared.put(run, "from parent", 1)
    shared_session = session_of(shared, run)
    channels = set(segments_of(shared_path, "c"))
    team = [start(work_with, shared, run, f"child {n}", method=method) for n in range(2)]
    children = [worker.result() for worker in team]
    assert len({child["session"] for child in children} | {shared_session}) == 3
    for number, child in enumerate(children):
        assert shared.get(run, f"child {number}") == child["pid"]
    assert shared.get(run, "count") == 2
    # No exiting worker took anything along that others use, and each left nothing of its own.
    wait_until(lambda: set(segments_of(shared_path, "c")) <= channels, what="the removal of the channels")
    shared.put(run, "after", 1)
    assert shared.get(run, "after") == 1


_pool_database: Database


def enter_pool(db: Database) -> None:
    """A pool's initializer."""
    global _pool_database
    _pool_database = db


def work_in_pool(run: RunId, number: int) -> int:
    """One task of a pool."""
    _pool_database.put(run, f"task {number}", number)
    return os.getpid()


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_a_database_goes_to_a_pool(method: str, shared: Database, run: RunId) -> None:
    shared.put(run, "first", 1)
    with ProcessPoolExecutor(
        2, mp_context=get_context(method), initializer=enter_pool, initargs=(shared,)
    ) as pool:
        pids = set(pool.map(work_in_pool, [run] * 10, range(10)))
    assert os.getpid() not in pids
    assert sorted(shared.list(run, "task ")) == [f"task {number}" for number in range(10)]


def test_a_plain_subprocess_attaches_by_path(shared: Database, shared_path: Path, run: RunId) -> None:
    script = (
        "import sys, occamdb\n"
        "with occamdb.open(sys.argv[1], start='never') as db:\n"
        "    db.put(sys.argv[2], 'from', 'outside')\n"
        "    print(db.get(sys.argv[2], 'here'))\n"
    )
    shared.put(run, "here", "inside")
    done = subprocess.run(
        [sys.executable, "-c", script, shared_path, str(run)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "inside"), done.stderr
    assert shared.get(run, "from") == "outside"


def test_a_pickled_database_is_a_way_to_attach(shared: Database, run: RunId) -> None:
    other = shared.namespace(tenant="acme", agent="planner")
    other.put(run, "k", "theirs")
    shared.put(run, "k", "ours")
    with pickle.loads(pickle.dumps(other)) as copy:
        assert copy.current_namespace == other.current_namespace
        assert copy.get(run, "k") == "theirs"
        copy.put(run, "k", "new")
    assert other.get(run, "k") == "new"
    assert shared.get(run, "k") == "ours"


# ---- fork -----------------------------------------------------------------------------------------------------


def in_child(body: Callable[[], Any]) -> Any:
    """What `body` returns in a forked child of this very process, by way of JSON."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read_end)
            os.write(write_end, json.dumps({"value": body()}).encode())
        except BaseException as error:
            os.write(write_end, json.dumps({"error": repr(error)}).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        outcome = json.loads(pipe.read())
    os.waitpid(pid, 0)
    assert "value" in outcome, outcome["error"]
    return outcome["value"]


def names_of_errors(calls: list[Callable[[], Any]]) -> list[str]:
    found = []
    for call in calls:
        try:
            call()
        except Exception as error:
            found.append(type(error).__name__)
        else:
            found.append("no error")
    return found


def test_a_fork_in_an_open_transaction(shared: Database, run: RunId) -> None:
    """W8: every use of what was open raises in the child; the parent goes on as if nothing had been."""
    shared.put(run, "k", 1)
    childs_run = RunId.new()
    with shared.snapshot(run) as view, shared.begin(run) as txn:
        rows = txn.scan()
        assert txn.get("k") == 1
        txn.put("k", 2)

        def child() -> Any:
            errors = names_of_errors(
                [
                    lambda: txn.get("k"),
                    lambda: txn.put("k", 3),
                    lambda: txn.delete("k"),
                    lambda: next(rows),
                    txn.commit,
                    txn.abort,
                    lambda: view.get("k"),
                    lambda: list(view.scan_prefix()),
                ]
            )
            shared.put(childs_run, "child", "own handle")
            return [errors, shared.get(run, "k")]

        errors, seen = in_child(child)
        assert errors == ["ForkedHandleError"] * 8
        assert seen == 1
        assert [key for key, _ in rows] == ["k"]
    assert txn.status is occamdb.TransactionStatus.COMMITTED
    assert shared.get(run, "k") == 2
    assert shared.get(childs_run, "child") == "own handle"


def test_a_fork_while_other_threads_commit(shared: Database, run: RunId) -> None:
    """A child of a busy process finds no lock held and no link in use."""
    stop = threading.Event()
    errors: list[BaseException] = []

    def commit_until_stopped(name: str) -> None:
        count = 0
        try:
            while not stop.is_set():
                count += 1
                shared.put(run, name, count)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=commit_until_stopped, args=(f"thread {n}",)) for n in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(10):
            assert in_child(functools.partial(shared.put, run, f"child {number}", number))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors
    assert len(shared.list(run, "child ")) == 10


def fork_and_die(peer: Peer, path: Path, run: RunId) -> None:
    """Hold a snapshot, fork a child that lives on, and die without a word."""
    db = open_database(path)
    db.put(run, "parent", os.getpid())
    view = db.snapshot(run)
    child = os.fork()
    if child == 0:
        # Never touches the database. It has copies of every descriptor of its parent.
        while True:
            signal.pause()
    assert view.get("parent") == os.getpid()
    peer.say(child)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_parent_that_dies_while_its_forked_child_lives(
    shared: Database, shared_path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    channels = set(segments_of(shared_path, "c"))
    worker = start(fork_and_die, shared_path, run)
    child = identity_of(worker.hear())
    try:
        wait_until(lambda: set(segments_of(shared_path, "c")) <= channels, what="the parent's channel to go")
        assert is_alive(child)
        assert worker.pid not in {w["pid"] for w in shared.stats()["workers"]}
    finally:
        os.kill(child.pid, signal.SIGKILL)
        wait_gone(child)


# ---- leaving ------------------------------------------------------------------------------------------------------


def leave(peer: Peer, path: Path, run: RunId, how: str) -> None:
    """End with an open transaction, in one of many ways."""
    db = open_database(path)
    txn = db.begin(run)
    txn.put(how, 1)
    view = db.snapshot(run)
    assert view.get(how) is None
    peer.say("open")
    if how == "_exit":
        os._exit(0)
    elif how == "exit":
        raise SystemExit(0)
    elif how == "exception":
        raise RuntimeError("on purpose")
    elif how == "abort":
        os.kill(os.getpid(), signal.SIGABRT)
    elif how == "close":
        db.close()


@pytest.mark.parametrize("how", ["_exit", "exit", "exception", "abort", "close", "return"])
def test_an_open_transaction_of_one_who_leaves_never_commits(
    how: str, shared: Database, shared_path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    """W7."""
    channels = set(segments_of(shared_path, "c"))
    worker = start(leave, shared_path, run, how)
    assert worker.hear() == "open"
    worker.wait_dead()
    wait_until(lambda: set(segments_of(shared_path, "c")) <= channels, what="the removal of its channel")
    assert shared.get(run, how) is None
    assert worker.pid not in {w["pid"] for w in shared.stats()["workers"]}


# ---- threads ----------------------------------------------------------------------------------------------------


def test_eight_threads_through_one_database(shared: Database, run: RunId) -> None:
    """W13: exact counts, each thread's own order, snapshots that are one state."""
    errors: list[BaseException] = []

    def both(txn: Transaction) -> None:
        value = txn.get("a", 0) + 1
        txn.put("a", value)
        txn.put("b", value)

    def work(number: int) -> None:
        try:
            for count in range(40):
                shared.transaction(run, both, retry=PATIENT)
                shared.kv.increment(run, "adds")
                shared.put(run, f"own {number}", count)
                assert shared.get(run, f"own {number}") == count
                with shared.snapshot(run) as view:
                    assert view.get("a") == view.get("b")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert shared.get(run, "a") == shared.get(run, "b") == shared.get(run, "adds") == 8 * 40


def test_a_database_closed_by_another_thread(shared_path: Path, run: RunId) -> None:
    db = open_database(shared_path)
    started = threading.Event()
    ended: list[str] = []

    def work() -> None:
        count = 0
        try:
            while True:
                count += 1
                db.put(run, "k", count)
                started.set()
        except Exception as error:
            ended.append(type(error).__name__)

    thread = threading.Thread(target=work)
    thread.start()
    assert started.wait(60)
    db.close()
    thread.join(60)
    assert ended and ended[0] in ("DatabaseClosedError", "CommitOutcomeUnknown")


def test_what_is_open_ends_with_its_database(shared_path: Path, run: RunId) -> None:
    """Not as an expired snapshot, which would be worth a retry."""
    db = open_database(shared_path)
    db.put(run, "k", 1)
    view, txn, rows = db.snapshot(run), db.begin(run), db.kv.keys(run)
    txn.put("mine", 2)
    db.close()
    for call in (lambda: view.get("k"), lambda: txn.get("k"), lambda: next(rows), lambda: txn.commit()):
        with pytest.raises(DatabaseClosedError):
            call()
    view.close()


def test_an_inherited_in_memory_database_raises() -> None:
    run = RunId.new()
    with occamdb.open_in_memory(max_store_size="4MiB") as db:
        db.put(run, "k", 1)
        with pytest.raises(TypeError):
            pickle.dumps(db)
        assert in_child(lambda: names_of_errors([lambda: db.put(run, "k", 2)])) == [
            ForkedHandleError.__name__
        ]
        assert db.get(run, "k") == 1
