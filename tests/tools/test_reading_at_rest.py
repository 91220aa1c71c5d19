"""Commands that read a directory that nobody serves: no coordinator starts, and no byte changes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import occamdb
from occamdb import Thought
from occamdb.engine.disk.directory import read_meta
from occamdb.ipc.stale import remove_dead
from occamdb.tools import console
from occamdb.tools.coordinator import coordinator_of, stop_coordinator
from tests.support.shell import RUN, Shell


def content(path: Path) -> dict[str, tuple[bytes, int]]:
    """Every file of a directory, with the time it was changed."""
    files = (file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


@pytest.fixture
def at_rest(database_path: Path) -> Iterator[Path]:
    """A directory with one record of each kind whose coordinator was killed, so that the log is to be replayed."""
    with occamdb.open(database_path) as db:
        db.runs.create_run_with_options("notes", run_id=RUN)
        db.kv.put(RUN, "k", [1])
        db.events.append(RUN, "step", {"n": 1})
        db.cells.init(RUN, "cell", 5)
        db.traces.record(RUN, Thought("hm"))
        stop_coordinator(database_path, kill=True)
    yield database_path
    meta = read_meta(database_path)
    assert meta is not None
    remove_dead(meta.database_id)


READING = [
    (["get", "DB", "notes", "k"], "[1]"),
    (["list", "DB", RUN], "k"),
    (["scan", "DB", RUN], "[1]"),
    (["runs", "DB"], "notes"),
    (["runs", "DB", "--tree"], "notes"),
    (["events", "DB", RUN], "step"),
    (["events", "DB", RUN, "--verify"], "valid"),
    (["cells", "DB", RUN], "cell"),
    (["traces", "DB", RUN], "hm"),
    (["traces", "DB", RUN, "--tree"], "hm"),
]


def test_a_directory_at_rest_is_read_without_a_coordinator(shell: Shell, at_rest: Path) -> None:
    before = content(at_rest)
    for words, expected in READING:
        assert expected in shell(*words), words
        assert coordinator_of(at_rest) is None, words
        assert content(at_rest) == before, words


def test_a_backup_can_be_read_and_then_restored(shell: Shell, db: occamdb.Database, tmp_path: Path) -> None:
    db.kv.put(RUN, "k", 7)
    copy = tmp_path / "copy"
    shell("backup", "DB", str(copy))
    assert shell("get", str(copy), RUN, "k") == "7\n"
    shell("restore", str(copy), str(tmp_path / "again"))
    assert shell("get", str(tmp_path / "again"), RUN, "k") == "7\n"


def test_a_served_directory_is_read_through_its_coordinator(shell: Shell, db: occamdb.Database) -> None:
    db.kv.put(RUN, "k", 1)
    assert shell("get", "DB", RUN, "k") == "1\n"
    with console.reading(shell.path) as reader:
        db.kv.put(RUN, "k", 2)
        assert reader.kv.get(RUN, "k") == 2


def test_a_coordinator_that_starts_meanwhile_is_read_through(
    at_rest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from occamdb.engine.client import offline

    recovered = offline.recovered_database

    def overtaken(database: type[occamdb.Database], path: Path, **options: Any) -> object:
        with occamdb.open(path) as other:
            other.kv.put(RUN, "k", "newer")
        return recovered(database, path, **options)

    monkeypatch.setattr(offline, "recovered_database", overtaken)
    with console.reading(at_rest) as db:
        assert db.kv.get(RUN, "k") == "newer"
        db.kv.put(RUN, "seen", True)
    with occamdb.open(at_rest) as db:
        assert db.kv.get(RUN, "seen"), "it went through the coordinator"


def test_a_coordinator_that_ends_meanwhile_is_not_started_again(
    at_rest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([True])
    really_served, really_open = console.is_served, occamdb.open
    monkeypatch.setattr(console, "is_served", lambda path: next(answers, None) or really_served(path))
    monkeypatch.setattr(occamdb, "open", lambda path, **options: really_open(path, timeout=0.1, **options))
    before = content(at_rest)
    with console.reading(at_rest) as db:
        assert db.kv.get(RUN, "k") == [1]
        assert coordinator_of(at_rest) is None
    assert content(at_rest) == before


def test_doctor_names_a_dead_coordinators_directory(
    shell: Shell, at_rest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(at_rest.parent)
    shell("doctor", code=1)
    found = [row for row in shell.json("doctor", "--json", code=1) if f"({at_rest})" in row["text"]]
    assert len(found) == 1
    assert "left by a dead coordinator" in found[0]["text"]
    assert found[0]["hint"] == f"occamdb doctor --clean {at_rest} removes it"
