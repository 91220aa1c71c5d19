"""F10, W11, W14: what a worker asks for, or takes, ends at worst that worker; the coordinator goes on."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

import occamdb
from occamdb import Database, RunId, TooManyChannelsError
from occamdb.ipc.control import DESCRIPTORS_KEPT
from tests.support.processes import coordinator_pid, open_database, wait_until


@pytest.fixture
def path(database_path: Path) -> Path:
    return database_path


@pytest.fixture
def db(path: Path) -> Iterator[Database]:
    with open_database(path) as database:
        yield database


@pytest.fixture
def run() -> RunId:
    return RunId.new()


# ---- descriptors ----------------------------------------------------------------------------------------------


def descriptor_count(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def open_if_room(path: Path) -> Database | None:
    with contextlib.suppress(TooManyChannelsError):
        return occamdb.open(path, start="never")
    return None


@contextlib.contextmanager
def descriptors_limited(pid: int, limit: int) -> Iterator[None]:
    """Give a running process a lower limit for a while."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def test_a_worker_costs_two_descriptors(path: Path, db: Database) -> None:
    """Its connection and the mapping of its channel."""
    pid = coordinator_pid(path)
    before = descriptor_count(pid)
    others = [open_database(path) for _ in range(5)]
    assert descriptor_count(pid) == before + 2 * len(others)
    for other in others:
        other.close()
    wait_until(lambda: descriptor_count(pid) == before, what="the descriptors to be given back")


def test_more_workers_than_descriptors(path: Path, db: Database, run: RunId) -> None:
    """Nobody hostile: the one too many is refused, with what the coordinator itself needs kept free."""
    pid = coordinator_pid(path)
    limit = descriptor_count(pid) + 2 * 3 + DESCRIPTORS_KEPT
    opened: list[Database] = []
    with descriptors_limited(pid, limit):
        with pytest.raises(TooManyChannelsError) as refused:
            while len(opened) < 10:
                opened.append(occamdb.open(path, start="never"))
        assert str(limit) in str(refused.value) and "ulimit" in refused.value.hint
        assert opened
        for number, other in enumerate([db, *opened]):
            other.put(run, "k", number)
        # A checkpoint opens files.
        db.checkpoint()
        opened.pop().close()
        late = wait_until(lambda: open_if_room(path), what="a place to be free")
        assert late is not None and late.get(run, "k") == len(opened) + 1
        late.close()
    for other in opened:
        other.close()
    assert coordinator_pid(path) == pid


def test_not_one_descriptor_left(path: Path, db: Database, run: RunId) -> None:
    """As after a leak in it: who comes is told why, who is there goes on."""
    pid = coordinator_pid(path)
    with open_database(path) as other:
        with descriptors_limited(pid, descriptor_count(pid)):
            with pytest.raises(TooManyChannelsError):
                occamdb.open(path, start="never")
            for number in range(50):
                other.put(run, "k", number)
            assert db.get(run, "k") == 49 and db.stats()["pid"] == pid
        with occamdb.open(path, start="never") as late:
            assert late.get(run, "k") == 49
    assert coordinator_pid(path) == pid
