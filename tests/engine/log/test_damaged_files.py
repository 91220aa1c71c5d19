"""F3-F6, F15: damage that no crash can cause is refused with file and offset, and nothing on disk changes."""

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from occamdb.engine.disk._crc32c import checksum
from occamdb.engine.log import wal_format
from occamdb.engine.model.errors import CorruptionError, IncompatibleFormatError
from tests.support.log_driver import (
    OTHER_BOOT,
    Database,
    Model,
    checkpoints,
    content,
    fingerprint,
    flip,
    segments,
    write,
)

COMMITS = 12


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Model]:
    """Three segments and two checkpoints (at 4 and 8), twelve commits; the last run was killed."""
    path = tmp_path_factory.mktemp("damage") / "db"
    model = Model()
    for run in range(3):
        database = Database(path)
        for number in range(4):
            operations = [write(b"%d" % (number * 3 + run), b"value %d" % run * 5)]
            version = database.commit(operations, sync=True)
            model.apply(version, version * 10, operations)
        database.kill()
        if run < 2:
            database = Database(path, durability=None)
            database.checkpoint()
            database.close()
    assert [p.name[:20].lstrip("0") for p in checkpoints(path)] == ["4", "8"]
    assert [p.name[:20].lstrip("0") for p in segments(path)] == ["5", "9"]
    return path, model


@pytest.fixture
def path(source: tuple[Path, Model], tmp_path: Path) -> Path:
    return Path(shutil.copytree(source[0], tmp_path / "db"))


def refuse(path: Path, boot_id: bytes | None = None) -> CorruptionError:
    """The open is refused, for any reader, and the disk is as before."""
    before = fingerprint(path)
    with pytest.raises(CorruptionError) as caught:
        content(path, boot_id=boot_id)
    with pytest.raises(CorruptionError):
        Database(path, boot_id=boot_id)
    after = fingerprint(path)
    # The count of starts is the one thing that moves, and it moves before recovery.
    before.pop("meta"), after.pop("meta")
    assert after == before
    assert caught.value.file and caught.value.expected
    return caught.value


def test_sound(path: Path, source: tuple[Path, Model]) -> None:
    result, rows = content(path)
    assert (result.version, result.checkpoint_version, rows) == (COMMITS, 8, source[1].listing())


def test_every_flipped_byte_of_a_log_in_use(tmp_path: Path) -> None:
    """Refused, or (in the very last entry only, which looks like a torn write) cut and reported."""
    path = tmp_path / "db"
    database = Database(path)
    for number in range(6):
        database.commit([write(b"key %d" % number, b"some value")])
    end = int(database.appender.statistics()["log_segment_bytes"])
    database.kill()
    segment = segments(path)[0]
    whole = segment.read_bytes()[:end]
    last_entry = len(whole) - 37  # a CommitTxn
    for offset in range(len(whole)):
        segment.write_bytes(whole[:offset] + bytes([whole[offset] ^ (1 << offset % 8)]) + whole[offset + 1 :])
        try:
            result, _ = content(path)
        except CorruptionError as error:
            assert error.file == str(segment)
            assert error.offset is not None and error.offset <= offset
        else:
            assert offset >= last_entry, f"a flipped bit at {offset} went unnoticed"
            assert result.version == 5 and result.bytes_cut > 0
    segment.write_bytes(whole)
    assert content(path)[0].version == 6


def test_flipped_bit_refuses_and_leaves_the_disk(path: Path) -> None:
    segment = segments(path)[1]
    flip(segment, wal_format.HEADER_SIZE + 60, 3)
    error = refuse(path)
    assert error.file == str(segment)
    assert error.offset is not None and error.offset >= wal_format.HEADER_SIZE
    assert "occamdb check" in error.hint


def test_synced_bytes_are_never_taken_for_a_torn_tail(path: Path) -> None:
    """After a power loss later sectors may lie behind a hole; but not behind one that had been synced."""
    segment = segments(path)[1]
    flip(segment, wal_format.HEADER_SIZE + 60, 3)
    assert "synced" in str(refuse(path, OTHER_BOOT))


def test_unsynced_hole_after_a_power_loss_is_a_torn_tail(tmp_path: Path) -> None:
    """The same hole: damage while the machine has been up, a torn tail after it went down."""
    path = tmp_path / "db"
    database = Database(path)
    for number in range(4):
        database.commit([write(b"key %d" % number)])
    database.kill()
    flip(segments(path)[0], wal_format.HEADER_SIZE + 200, 1)
    with pytest.raises(CorruptionError, match="valid entries follow"):
        content(path)
    result, rows = content(path, boot_id=OTHER_BOOT)
    assert result.bytes_cut > 0 and len(rows) < 4


@pytest.mark.parametrize("offset", [0, 8, 16, 32, 40, 48, 60, 76, 79])
def test_flipped_segment_header(path: Path, offset: int) -> None:
    flip(segments(path)[1], offset)
    assert refuse(path).file == str(segments(path)[1])


def test_missing_segments(path: Path, tmp_path: Path) -> None:
    first, second = segments(path)
    saved = second.read_bytes()
    second.unlink()
    assert "missing" in str(refuse(path))
    second.write_bytes(saved)
    # The older segment is needed only when the newer checkpoint is damaged.
    first.unlink()
    assert content(path)[0].version == COMMITS
    checkpoints(path)[1].unlink()
    assert "missing" in str(refuse(path))


def test_all_checkpoints_gone(path: Path) -> None:
    for checkpoint in checkpoints(path):
        checkpoint.unlink()
    assert "missing" in str(refuse(path))


@pytest.mark.parametrize("size", [0, 1, 79])
def test_empty_and_cut_segments(path: Path, size: int) -> None:
    segment = segments(path)[1]
    segment.write_bytes(segment.read_bytes()[:size])
    error = refuse(path)
    assert (error.file, error.offset) == (str(segment), size)


def test_segment_of_another_database(path: Path, tmp_path: Path) -> None:
    other = Database(tmp_path / "other")
    other.commit([write(b"foreign")])
    other.close()
    shutil.copy(segments(tmp_path / "other")[0], path / "wal" / wal_format.segment_name(13))
    assert "belongs to database" in str(refuse(path))


def test_segment_under_another_name(path: Path) -> None:
    segments(path)[1].rename(path / "wal" / wal_format.segment_name(10))
    assert refuse(path).offset == 32


def reseal(data: bytes, crc_at: int) -> bytes:
    return data[:crc_at] + struct.pack("<I", checksum(data[:crc_at])) + data[crc_at + 4 :]


@pytest.mark.parametrize("which", ["meta", "segment", "checkpoint"])
def test_later_formats(path: Path, which: str) -> None:
    file, crc_at, newest = {
        "meta": (path / "meta", 124, 3),
        "segment": (segments(path)[1], 76, 2),
        "checkpoint": (checkpoints(path)[1], 76, 2),
    }[which]
    data = file.read_bytes()
    file.write_bytes(reseal(data[:8] + struct.pack("<I", newest + 1) + data[12:], crc_at))
    before = fingerprint(path)
    with pytest.raises(IncompatibleFormatError) as caught:
        content(path)
    assert (caught.value.found, caught.value.supported) == (newest + 1, newest)
    assert fingerprint(path) == before


@pytest.mark.parametrize("damage", ["cut", "empty", "flip", "header", "longer", "doubled block"])
def test_damaged_newest_checkpoint_falls_back(path: Path, source: tuple[Path, Model], damage: str) -> None:
    newest = checkpoints(path)[1]
    data = newest.read_bytes()
    damaged: dict[str, Callable[[], bytes]] = {
        "cut": lambda: data[:-9],
        "empty": lambda: b"",
        "flip": lambda: data[:150] + bytes([data[150] ^ 4]) + data[151:],
        "header": lambda: data[:20] + b"?" + data[21:],
        "longer": lambda: data + b"\0",
        "doubled block": lambda: data[:80] + data[80:] + data[80:],
    }
    newest.write_bytes(damaged[damage]())
    database = Database(path)
    assert database.result.checkpoint_version == 4
    assert database.result.version == COMMITS
    assert database.store.rows() == source[1].listing()
    assert database.result.checkpoint_advised
    assert any(newest.name in warning for warning in database.result.warnings)
    database.kill()
    # Set aside, so that it never counts as one of the two that are kept.
    assert not newest.exists() and newest.with_name(newest.name + ".damaged").exists()
    assert content(path)[1] == source[1].listing()


def test_every_flipped_byte_of_a_checkpoint_is_noticed(path: Path, source: tuple[Path, Model]) -> None:
    newest = checkpoints(path)[1]
    whole = newest.read_bytes()
    for offset in range(0, len(whole), 3):
        newest.write_bytes(whole[:offset] + bytes([whole[offset] ^ (1 << offset % 8)]) + whole[offset + 1 :])
        result, rows = content(path)
        assert result.checkpoint_version == 4, f"a flipped bit at {offset} went unnoticed"
        assert rows == source[1].listing()


def test_both_checkpoints_damaged(path: Path) -> None:
    for checkpoint in checkpoints(path):
        flip(checkpoint, 130)
    assert refuse(path).file == str(checkpoints(path)[1])


def test_after_a_clean_stop_nothing_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "db"
    database = Database(path)
    for number in range(3):
        database.commit([write(b"%d" % number)])
    database.appender.close()
    database.directory.note_clean_stop(3)
    database.close()
    segment = segments(path)[0]
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-1])
    refuse(path)
    segment.write_bytes(whole[: wal_format.HEADER_SIZE])
    assert "closed at version 3" in str(refuse(path))
    segment.write_bytes(whole)
    assert content(path)[0].version == 3
