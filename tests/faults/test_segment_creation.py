"""A coordinator that dies while it makes a segment leaves one with a name and no bytes: the next start clears it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from occamdb import RunId
from occamdb.ipc.segment import list_segments, segment_stat
from tests.support.crash import arm_next, arms_left, take_arms_from
from tests.support.processes import kill_coordinator, open_database, segments_of, stop_coordinator

# The segments of a start in the order in which it makes them, and the channel of the worker that attaches first.
SEGMENTS = ["bell", "store", "channel"]


@pytest.fixture
def arms(tmp_path: Path) -> Iterator[Path]:
    """What is put in there arms the coordinators that this process starts."""
    folder = tmp_path / "arms"
    end = take_arms_from(folder)
    yield folder
    end()


def empty_segments() -> list[str]:
    return [name for name in list_segments() if (found := segment_stat(name)) and found.st_size == 0]


@pytest.mark.parametrize("number", range(1, 1 + len(SEGMENTS)), ids=SEGMENTS)
def test_the_next_start_clears_it(number: int, database_path: Path, arms: Path, run: RunId) -> None:
    """No user code sees an error, however many coordinators in a row die there."""
    path = database_path
    with open_database(path, timeout=30.0) as db:
        db.put(run, "k", 0)
        arm_next(arms, [f"shm.create=kill@{number}"] * 2)
        kill_coordinator(path)
        db.put(run, "k", 1)
        assert arms_left(arms) == 0, "a coordinator did not come to where it should die"
        assert db.get(run, "k") == 1
        assert len(segments_of(path, "store")) == 1
        assert not set(segments_of(path)) & {name[1:] for name in empty_segments()}
    stop_coordinator(path)
    assert segments_of(path) == []


def test_a_new_directory(database_path: Path, arms: Path, run: RunId) -> None:
    """There is nothing to recover, and no worker that has been attached before: the open itself goes on."""
    arm_next(arms, [f"shm.create=kill@{number}" for number in (2, 1, 3)])
    with open_database(database_path, timeout=30.0) as db:
        assert arms_left(arms) == 0
        db.put(run, "k", 1)
        assert db.get(run, "k") == 1
