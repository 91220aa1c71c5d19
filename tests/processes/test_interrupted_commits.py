"""An exception, or a whole commit, of a signal handler at every line of the Python side of a commit.

A signal handler runs between two lines; a trace function stands in for it, so every line has its turn, none by luck.
"""

import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from occamdb import Database, RunId
from occamdb.engine.client.shared_handle import SharedHandle
from occamdb.engine.transaction.transaction import TransactionStatus
from tests.support.at_line import AtLine, interrupt
from tests.support.databases import memory_database
from tests.support.processes import open_database, segments_of, stop_coordinator, wait_until


def make_attach(db: Database) -> None:
    """Leave the next commit no link but a new one."""
    if isinstance(db.handle, SharedHandle):
        db.handle.pool.idle.clear()


def interrupt_everywhere(db: Database, run: RunId, prepare: Callable[[Database], None]) -> int:
    """Commit again and again, interrupted one line later each time, until one gets through; how many were not."""
    db.put(run, "k", 0)
    number, before = 1, 0
    while True:
        txn = db.begin(run)
        txn.put("k", number)
        prepare(db)
        with AtLine(number, interrupt) as at:
            try:
                txn.commit()
            except KeyboardInterrupt:
                assert at.reached
        # Nothing is locked, nothing is shared, and the value says whether it happened.
        assert db.put(run, "other", number) > 0
        found = db.get(run, "k")
        assert found in (before, number)
        if txn.status is TransactionStatus.COMMITTED:
            assert found == number
        elif txn.status is TransactionStatus.ABORTED:
            assert found == before
        before = found
        if not at.reached:
            return number - 1
        number += 1


def test_interrupted_in_memory(run: RunId) -> None:
    with memory_database() as db:
        assert interrupt_everywhere(db, run, lambda _: None) >= 8


# A socket between two owners is closed by its last reference, with a warning.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("prepare", [lambda _: None, make_attach], ids=["attached", "attaching"])
def test_interrupted_at_every_line(tmp_path: Path, run: RunId, prepare: Callable[[Database], None]) -> None:
    path = tmp_path / "db"
    with open_database(path) as db:
        lines = interrupt_everywhere(db, run, prepare)
        assert lines >= (50 if prepare is make_attach else 10)
        gc.collect()
        # What an interrupt took out of all hands has given its channel back.
        wait_until(
            lambda: gc.collect() >= 0 and len(segments_of(path, "c")) <= 3, what="the end of lost channels"
        )
    stop_coordinator(path)


def commit_inside_everywhere(db: Database, run: RunId, prepare: Callable[[Database], None]) -> int:
    """Commit again and again, each time with another commit below one line of it."""
    number = 1
    while True:
        prepare(db)
        with AtLine(number, lambda: db.put(run, "inner", number)) as at:  # noqa: B023
            db.put(run, "outer", number)
        assert db.get(run, "outer") == number
        if isinstance(db.handle, SharedHandle):
            assert len(set(map(id, db.handle.pool.idle))) == len(db.handle.pool.idle)
        if not at.reached:
            return number - 1
        assert db.get(run, "inner") == number
        number += 1


def test_commits_of_a_handler_in_memory(run: RunId) -> None:
    with memory_database() as db:
        assert commit_inside_everywhere(db, run, lambda _: None) >= 8


@pytest.mark.parametrize("prepare", [lambda _: None, make_attach], ids=["attached", "attaching"])
def test_commits_of_a_handler_at_every_line(
    tmp_path: Path, run: RunId, prepare: Callable[[Database], None]
) -> None:
    path = tmp_path / "db"
    with open_database(path) as db:
        assert commit_inside_everywhere(db, run, prepare) >= (50 if prepare is make_attach else 10)
        assert os.getpid() == db.handle.pool.pid  # type: ignore[attr-defined]
    stop_coordinator(path)
