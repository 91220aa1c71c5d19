"""F1, F2, C3: whatever a crash leaves behind the last whole transaction, the log opens and loses only the torn ones."""

import shutil
from pathlib import Path

import pytest

from occamdb.engine.log.wal_format import HEADER_SIZE
from tests.support.log_driver import Database, Model, content, fingerprint, segments, write


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int], list[Model]]:
    """A killed database of eight transactions; where each ends in its only segment; the states after each."""
    path = tmp_path_factory.mktemp("torn") / "db"
    database = Database(path)
    ends, models = [HEADER_SIZE], [Model()]
    for number in range(8):
        operations = [write(b"key %d" % (number % 5), b"v" * (number * 7)), write(b"all", b"%d" % number)]
        version = database.commit(operations)
        models.append(Model(dict(models[-1].rows)))
        models[-1].apply(version, version * 10, operations)
        ends.append(int(database.appender.statistics()["log_segment_bytes"]))
    database.kill()
    return path, ends, models


def copy(source: Path, to: Path, tail: bytes, keep: int) -> Path:
    """A copy whose segment is its first `keep` bytes, then `tail`."""
    shutil.copytree(source, to)
    segment = segments(to)[0]
    segment.write_bytes(segment.read_bytes()[:keep] + tail)
    return to


def test_cut_at_every_byte(written: tuple[Path, list[int], list[Model]], tmp_path: Path) -> None:
    path, ends, models = written
    target = copy(path, tmp_path / "db", b"", ends[-1])
    segment = segments(target)[0]
    whole = segment.read_bytes()
    for size in range(ends[-1], ends[4], -1):
        segment.write_bytes(whole[:size])
        result, rows = content(target)
        last = max(i for i, end in enumerate(ends) if end <= size)
        assert (result.version, rows) == (last, models[last].listing())
        assert result.bytes_cut == size - ends[last]


@pytest.mark.parametrize("zeros", [1, 4, 8, 9, 57, 512, 4096])
def test_zeros_are_no_entries(
    written: tuple[Path, list[int], list[Model]], tmp_path: Path, zeros: int
) -> None:
    path, ends, models = written
    result, rows = content(copy(path, tmp_path / "whole", bytes(zeros), ends[-1]))
    assert (result.version, rows, result.bytes_cut) == (8, models[8].listing(), 0)
    result, rows = content(copy(path, tmp_path / "torn", bytes(zeros), ends[-1] - 30))
    assert (result.version, rows) == (7, models[7].listing())


def test_zeros_inside_the_last_transaction(
    written: tuple[Path, list[int], list[Model]], tmp_path: Path
) -> None:
    """A crash may leave the size of the file right and its last pages unwritten."""
    path, ends, models = written
    # The very last bytes are zeros in truth (the high bytes of a count); up to the version they are not.
    for start in range(ends[7], ends[8] - 11, 5):
        target = copy(path, tmp_path / f"{start}", bytes(ends[8] - start), start)
        result, rows = content(target)
        assert (result.version, rows) == (7, models[7].listing())


@pytest.mark.parametrize(
    "junk", [b"\xff" * 100, bytes(range(1, 200)), b"\x31\0\0\0" * 40, bytes(64) + b"\x07"]
)
def test_junk_is_cut(written: tuple[Path, list[int], list[Model]], tmp_path: Path, junk: bytes) -> None:
    path, ends, models = written
    target = copy(path, tmp_path / "db", junk, ends[-1])
    result, rows = content(target)
    assert (result.version, rows, result.bytes_cut) == (8, models[8].listing(), len(junk))
    assert any("cut" in warning for warning in result.warnings)


@pytest.mark.parametrize("first", [0, 3, 7])
def test_doubled_tail_does_not_count_twice(
    written: tuple[Path, list[int], list[Model]], tmp_path: Path, first: int
) -> None:
    path, ends, models = written
    doubled = segments(path)[0].read_bytes()[ends[first] : ends[8]]
    result, rows = content(copy(path, tmp_path / "db", doubled, ends[8]))
    assert (result.version, rows, result.bytes_cut) == (8, models[8].listing(), len(doubled))


def test_what_follows_a_cut_is_readable(written: tuple[Path, list[int], list[Model]], tmp_path: Path) -> None:
    """The trap: appending behind a torn tail. And the version of the torn transaction is given out again."""
    path, ends, models = written
    target = copy(path, tmp_path / "db", b"", ends[8] - 1)
    database = Database(target)
    assert database.result.bytes_cut == ends[8] - 1 - ends[7]
    assert database.commit([write(b"after", b"the cut")]) == 8
    database.kill()
    result, rows = content(target)
    models[7].apply(8, 80, [write(b"after", b"the cut")])
    assert (result.version, rows, result.bytes_cut) == (8, models[7].listing(), 0)


def test_looking_changes_nothing(written: tuple[Path, list[int], list[Model]], tmp_path: Path) -> None:
    path, ends, _ = written
    target = copy(path, tmp_path / "db", b"junk", ends[8] - 1)
    before = fingerprint(target)
    content(target)
    assert fingerprint(target) == before
