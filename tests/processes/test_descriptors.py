"""A process, or its coordinator, that has no descriptors left: said at once, with the limit."""

from __future__ import annotations

import functools
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import occamdb
from occamdb import Database, OccamError, RunId
from tests.support.processes import Peer, Worker, open_database

TIMEOUT = 30.0


def fill_descriptors() -> tuple[int, list[int]]:
    """Take all descriptors, under a limit of our own; the limit, and what was taken."""
    lowest = os.open(os.devnull, os.O_RDONLY)
    limit = lowest + 40
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    taken = [lowest]
    while True:
        try:
            taken.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            break
    return limit, taken


def outcome(call: Callable[[], Any]) -> dict[str, Any]:
    """What came of a call, and how long it took."""
    began = time.monotonic()
    try:
        value = call()
        found = {"error": "", "text": repr(value)}
    except Exception as error:
        found = {"error": type(error).__name__, "text": str(error)}
        if isinstance(error, OccamError):
            found["details"] = dict(error.details)  # type: ignore[assignment]
    return {**found, "seconds": time.monotonic() - began}


def open_into(opened: list[Database], path: Path, **settings: Any) -> None:
    """Open a database and keep it."""
    opened.append(open_database(path, timeout=TIMEOUT, **settings))


def open_with_few(peer: Peer, path: Path, highest: int) -> list[dict[str, Any]]:
    """Open with 0, 1, 2, ... free descriptors, until it works."""
    # Imported and used once, so that no module has to be read meanwhile.
    open_database(path, timeout=TIMEOUT).close()
    limit, taken = fill_descriptors()
    found = []
    for _ in range(highest):
        opened: list[Database] = []
        found.append(outcome(functools.partial(open_into, opened, path)) | {"limit": limit})
        if opened:
            opened[0].close()
            break
        os.close(taken.pop())
    return found


def check_named(found: dict[str, Any]) -> None:
    assert found["error"] == "CoordinatorUnavailable", found
    assert f"{found['limit']} open (RLIMIT_NOFILE)" in found["text"] and "ulimit -n" in found["text"]
    assert found["details"]["limit"] == found["limit"]
    assert found["seconds"] < TIMEOUT / 2


@pytest.mark.parametrize("served", [True, False])
def test_an_open_without_descriptors(served: bool, database_path: Path, start: Callable[..., Worker]) -> None:
    """Each step of an attach needs one: the socket, the segments, /proc. And each step of a start."""
    if served:
        keeper = open_database(database_path)
    worker = start(open_with_few, database_path, 20)
    *failed, last = worker.result(300)
    assert len(failed) >= 2 and last["error"] == ""
    for found in failed:
        check_named(found)
    if served:
        keeper.close()


def start_with_few(peer: Peer, paths: list[Path]) -> list[dict[str, Any]]:
    """Start coordinators of new directories with 0, 1, 2, ... free descriptors, until it works."""
    open_database(paths[0], timeout=TIMEOUT, idle_timeout=0.0).close()
    limit, taken = fill_descriptors()
    found = []
    for path in paths[1:]:
        opened: list[Database] = []
        found.append(outcome(functools.partial(open_into, opened, path, idle_timeout=0.0)) | {"limit": limit})
        if opened:
            opened[0].close()
            break
        os.close(taken.pop())
    return found


def test_a_start_without_descriptors(tmp_path: Path, start: Callable[..., Worker]) -> None:
    worker = start(start_with_few, [tmp_path / str(number) for number in range(20)])
    *failed, last = worker.result(300)
    assert len(failed) >= 2 and last["error"] == "", last
    for found in failed:
        check_named(found)


def commit_by_a_new_link(peer: Peer, path: Path, run: RunId) -> list[dict[str, Any]]:
    """Commit with the only link in use elsewhere, so that a further one is needed; then with room again."""
    db = open_database(path, timeout=TIMEOUT)
    db.put(run, "k", 1)
    handle: Any = db.handle
    idle, handle.pool.idle = handle.pool.idle, []
    limit, taken = fill_descriptors()
    found = [outcome(lambda: db.put(run, "k", 2)) | {"limit": limit}]
    txn = db.begin(run, timeout=TIMEOUT)
    txn.put("k", 3)
    found.append(outcome(txn.commit) | {"limit": limit, "status": txn.status.value})
    for fd in taken[-20:]:
        os.close(fd)
    found.append(outcome(lambda: db.put(run, "k", 4)))
    handle.pool.idle += idle
    return found


def test_a_commit_that_needs_a_further_link(
    database_path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    with open_database(database_path) as db:
        by_itself, in_transaction, again = start(commit_by_a_new_link, database_path, run).result()
        check_named(by_itself)
        check_named(in_transaction)
        assert in_transaction["status"] == "aborted"
        assert again["error"] == "" and db.get(run, "k") == 4


def test_a_coordinator_without_descriptors(database_path: Path, run: RunId) -> None:
    """It names itself and its limit, also where only its last descriptors are gone, and the open ends at once."""
    with open_database(database_path) as db:
        pid = db.stats()["pid"]
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        highest = max(int(name) for name in os.listdir(f"/proc/{pid}/fd"))
        for spare in range(0, 24):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 1 + spare, before[1]))
            found = outcome(lambda: occamdb.open(database_path, timeout=TIMEOUT).close())
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
            assert found["seconds"] < TIMEOUT / 2
            if not found["error"]:
                break
            assert found["error"] == "TooManyChannelsError", (spare, found)
            assert f"pid {pid}" in found["text"] and str(highest + 1 + spare) in found["text"]
        assert spare > 0 and not found["error"]
        assert db.put(run, "k", 1)
