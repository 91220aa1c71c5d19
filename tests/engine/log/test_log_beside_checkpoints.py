"""Reading the log of a running database: a checkpoint may remove segments between any two steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from occamdb.engine.disk.files import Folder
from occamdb.engine.log import wal_reader
from occamdb.engine.log.wal_format import Write
from occamdb.engine.log.wal_reader import list_segments, read_log
from tests.support.log_driver import Database, write


@pytest.fixture
def database(tmp_path: Path) -> Database:
    """With a log of many segments."""
    database = Database(tmp_path / "db", segment_size=4096)
    for number in range(40):
        database.commit([write(b"key %d" % number, b"v" * 500)])
    return database


def versions(database: Database, start: int = 0) -> list[int]:
    """Of the transactions that are read."""
    log = read_log(database.directory, start_version=start)
    return [found.version for found in log if isinstance(found.entry, Write)]


def test_removed_once_it_was_named(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    names = Folder.names
    first = names(database.directory.wal)[0]

    def names_then_remove(folder: Folder) -> list[str]:
        found = names(folder)
        if folder is database.directory.wal and first in found:
            folder.remove(first)
        return found

    monkeypatch.setattr(Folder, "names", names_then_remove)
    assert first not in [segment.name for segment in list_segments(database.directory)]
    assert versions(database, 30) == list(range(30, 41))


def test_removed_once_it_was_listed(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def list_then_remove(*arguments: object) -> list[wal_reader.Segment]:
        found = list_segments(database.directory)
        for segment in found[:3]:
            database.directory.wal.remove(segment.name)
        return found

    monkeypatch.setattr(wal_reader, "list_segments", list_then_remove)
    found = versions(database)
    assert found == list(range(found[0], 41))
    assert 1 < found[0] < 40
