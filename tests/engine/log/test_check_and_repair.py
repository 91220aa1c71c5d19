"""`check` finds every kind of damage and changes nothing; `repair` saves what can be proved and deletes nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from occamdb.engine.disk.directory import DatabaseDirectory
from occamdb.engine.log.check import check
from occamdb.engine.log.salvage import repair
from occamdb.engine.log.wal_format import HEADER_SIZE
from occamdb.engine.model.errors import CorruptionError
from occamdb.ipc.errors import LockHeldError
from occamdb.ipc.lock import FileLock
from tests.support.log_driver import Database, Model, checkpoints, content, fingerprint, flip, segments, write


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Model]]:
    """Segments from 5 (4 commits), 9 (4) and 13 (4), checkpoints at 4 and 8; states by version."""
    path = tmp_path_factory.mktemp("check") / "db"
    models = [Model()]
    for run in range(4):
        database = Database(path)
        if run in (1, 2):
            database.checkpoint()
        for number in range(4):
            operations = [write(b"%d" % (number * 3 + run), b"value %d" % run * 5)]
            version = database.commit(operations, sync=True)
            models.append(Model(dict(models[-1].rows)))
            models[-1].apply(version, version * 10, operations)
        database.kill()
    assert [int(p.name[:20]) for p in checkpoints(path)] == [4, 8]
    assert [int(p.name[:20]) for p in segments(path)] == [5, 9, 13]
    return path, models


@pytest.fixture
def path(source: tuple[Path, list[Model]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(source[0], tmp_path / "db"))


def repaired(path: Path, models: list[Model], version: int) -> None:
    """After a repair: opens, has exactly that version's content, uses none of the lost versions, loses no file."""
    before = fingerprint(path)
    report = repair(path)
    assert report.version == version and report.actions
    after = fingerprint(path)
    kept = set(after.values())
    assert {digest for name, digest in before.items() if name not in ("meta", "LOCK")} <= kept
    assert check(path, rebuild=True).sound
    database = Database(path)
    assert database.store.rows() == models[version].listing()
    assert database.version > 16
    written = database.commit([write(b"after")])
    database.kill()
    result, rows = content(path)
    assert (result.version, len(rows)) == (written, len(models[version].rows) + 1)
    assert repair(path).actions == []


def test_sound(path: Path, source: tuple[Path, list[Model]]) -> None:
    before = fingerprint(path)
    report = check(path, rebuild=True)
    assert report.sound and not report.findings
    assert (report.version, report.keys) == (16, len(source[1][16].rows))
    assert [(s.first_version, s.last_version, s.transactions, s.entries) for s in report.segments] == [
        (5, 8, 4, 12),
        (9, 12, 4, 12),
        (13, 16, 4, 12),
    ]
    assert [(c.version, c.rows, c.sound) for c in report.checkpoints] == [(4, 4, True), (8, 8, True)]
    assert fingerprint(path) == before
    assert repair(path).actions == []
    after = fingerprint(path)
    after.pop("LOCK")
    assert after == before


def test_no_database(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        check(tmp_path)


def test_torn_tail_is_a_warning(path: Path, source: tuple[Path, list[Model]]) -> None:
    segment = segments(path)[2]
    segment.write_bytes(segment.read_bytes().rstrip(b"\0")[:-20])
    report = check(path)
    assert report.sound and [finding.level for finding in report.findings] == ["warning"]
    assert report.version == 15
    assert repair(path).actions == []
    assert content(path)[1] == source[1][15].listing()


def test_damage_in_the_log_that_is_needed(path: Path, source: tuple[Path, list[Model]]) -> None:
    """The second transaction of the segment from 9: 9 is saved, 10 to 16 cannot be put in order."""
    segment = segments(path)[1]
    size = (len(segment.read_bytes().rstrip(b"\0")) - HEADER_SIZE) // 4
    flip(segment, HEADER_SIZE + size + 30)
    report = check(path)
    assert not report.sound
    assert (report.findings[0].file, report.findings[0].level) == (str(segment), "damage")
    with pytest.raises(CorruptionError):
        content(path)
    repaired(path, source[1], 9)


def test_damage_that_a_checkpoint_covers_loses_nothing(path: Path, source: tuple[Path, list[Model]]) -> None:
    flip(segments(path)[0], HEADER_SIZE + 30)
    assert not check(path).sound
    repaired(path, source[1], 16)


def test_segment_gone(path: Path, source: tuple[Path, list[Model]]) -> None:
    segments(path)[1].unlink()
    assert any("follows version" in finding.message for finding in check(path).findings)
    repaired(path, source[1], 8)


def test_last_segment_gone(path: Path, source: tuple[Path, list[Model]]) -> None:
    segments(path)[2].unlink()
    assert any("missing" in finding.message for finding in check(path).findings)
    report = repair(path)
    assert report.version == 12
    assert content(path)[1] == source[1][12].listing()


def test_header_of_a_segment(path: Path, source: tuple[Path, list[Model]]) -> None:
    flip(segments(path)[2], 40)
    assert not check(path).sound
    repaired(path, source[1], 12)


def test_newest_checkpoint(path: Path, source: tuple[Path, list[Model]]) -> None:
    flip(checkpoints(path)[1], 200)
    report = check(path)
    assert not report.sound and [c.sound for c in report.checkpoints] == [True, False]
    repaired(path, source[1], 16)


def test_meta_damaged_and_gone(path: Path, source: tuple[Path, list[Model]]) -> None:
    flip(path / "meta", 50)
    assert not check(path).sound
    repaired(path, source[1], 16)
    assert (path / "meta.damaged").exists()
    (path / "meta").unlink()
    with pytest.raises(CorruptionError, match="no meta file"):
        Database(path)
    assert "made anew" in " ".join(repair(path).actions)
    assert len(content(path)[1]) == len(source[1][16].rows) + 1


def test_nothing_left_to_go_by(tmp_path: Path) -> None:
    Database(tmp_path / "db", durability=None).close()
    flip(tmp_path / "db" / "meta", 20)
    with pytest.raises(CorruptionError, match="whose it is"):
        repair(tmp_path / "db")


def test_a_served_directory_is_not_repaired(path: Path) -> None:
    with FileLock(path / "LOCK"), pytest.raises(LockHeldError):
        repair(path)


def test_damage_and_a_torn_tail_in_one_segment(tmp_path: Path) -> None:
    """The segment is set aside once, with what the checkpoint covers stepped over."""
    path = tmp_path / "db"
    database = Database(path)
    for number in range(4):
        database.commit([write(b"%d" % number)])
    database.kill()
    database = Database(path)
    database.checkpoint()
    rows = database.store.rows()
    database.kill()
    for segment in segments(path)[1:]:
        segment.unlink()
    directory = DatabaseDirectory(path, create=False)
    directory.note_running("standard", 4, 1)
    directory.close()
    segment = segments(path)[0]
    segment.write_bytes(segment.read_bytes().rstrip(b"\0") + b"\x07torn")
    flip(segment, HEADER_SIZE + 20)
    report = repair(path)
    assert report.set_aside == [segment.name] and report.version == 4
    assert content(path)[1] == rows
