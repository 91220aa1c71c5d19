"""The space set aside for a start on a full disk: how much of it, and when."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from occamdb.engine.disk import failpoints
from occamdb.engine.disk.directory import DatabaseDirectory
from occamdb.engine.disk.reserve import RESERVE_NAME, give_up_reserve, keep_reserve

USEFUL = 256 << 10
FULL = 1 << 20


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[DatabaseDirectory]:
    opened = DatabaseDirectory(tmp_path / "db")
    yield opened
    opened.close()


def size(directory: DatabaseDirectory) -> int:
    """Bytes set aside; -1: no file of that name."""
    file = Path(directory.path) / RESERVE_NAME
    return file.stat().st_size if file.exists() else -1


def test_it_is_as_large_as_there_is_room_for(directory: DatabaseDirectory) -> None:
    failpoints.set("file.write", "errno:ENOSPC@1*20")
    keep_reserve(directory)
    kept = size(directory)
    assert USEFUL <= kept < FULL
    # There is room again: the whole of it.
    keep_reserve(directory)
    assert size(directory) == FULL
    keep_reserve(directory)
    assert size(directory) == FULL
    assert give_up_reserve(directory.path) and size(directory) == -1


def test_too_little_to_be_of_use_is_left_to_others(directory: DatabaseDirectory) -> None:
    """What an xfs would not even create a file in."""
    failpoints.set("file.write", "errno:ENOSPC")
    keep_reserve(directory)
    tried = failpoints.hits("file.write")
    assert size(directory) == -1
    # The smallest size that is tried is one of use: the last try succeeds.
    failpoints.set("file.write", f"errno:ENOSPC@1*{tried - 1}")
    keep_reserve(directory)
    assert size(directory) == USEFUL


def test_a_smaller_one_of_an_earlier_build_is_replaced(directory: DatabaseDirectory) -> None:
    (Path(directory.path) / RESERVE_NAME).write_bytes(b"r" * (128 << 10))
    keep_reserve(directory)
    assert size(directory) == FULL
