"""History files: what is written is read back, and what a killed worker leaves is readable."""

from __future__ import annotations

from pathlib import Path

import pytest

from occamdb.stress.history import (
    LIST_APPEND,
    NEVER,
    OK,
    UNKNOWN,
    WORKERS_MAX,
    HistoryFormatError,
    HistoryWriter,
    history_files,
    read_header,
    read_history,
    unique_value,
)


def _write(path: Path) -> Path:
    with HistoryWriter(path, kind=LIST_APPEND, worker=3, meta={"seed": 5}) as history:
        first = history.invoke([["a", "x", 1], ["r", "x"]])
        history.ok(first, [[1]], version=9)
        second = history.invoke([["a", "x", 2]])
        history.conflict(second)
        third = history.invoke([["a", "x", 3]])
        history.unknown(third)
        history.invoke([["a", "x", 4]])
    return path


def test_round_trip(tmp_path: Path) -> None:
    path = _write(tmp_path / "3.hist")
    header = read_header(path)
    assert (header.kind, header.worker, header.meta) == (LIST_APPEND, 3, {"seed": 5})
    found = [txn for _, txn in read_history(path)]
    assert [txn.outcome for txn in found] == [0, 1, 2, 2]
    assert (found[0].ops, found[0].reads, found[0].version) == ([["a", "x", 1], ["r", "x"]], [[1]], 9)
    assert found[0].describe() == "a(x, 1) r(x)=[1]"
    assert found[0].invoked <= found[0].returned <= found[1].invoked
    assert found[2].returned == found[3].returned == NEVER
    assert history_files(tmp_path) == history_files(path) == [path]


def test_a_record_can_be_read_again_by_its_offset(tmp_path: Path) -> None:
    path = _write(tmp_path / "3.hist")
    for offset, txn in read_history(path):
        assert next(read_history(path, offset))[1] == txn


def test_every_torn_tail_is_readable(tmp_path: Path) -> None:
    """Cut at any byte after the header: whole transactions stay, an answer that is cut off becomes unknown."""
    path = _write(tmp_path / "3.hist")
    data = path.read_bytes()
    offsets = [offset for offset, _ in read_history(path)]
    for size in range(offsets[0], len(data)):
        path.write_bytes(data[:size])
        found = [txn for _, txn in read_history(path)]
        assert len(found) <= 4
        assert all(txn.outcome in (OK, 1, UNKNOWN) for txn in found)
        if size == offsets[1] - 1:
            assert found[0].outcome == UNKNOWN


def test_damage_in_the_middle_is_named(tmp_path: Path) -> None:
    path = _write(tmp_path / "3.hist")
    data = bytearray(path.read_bytes())
    offset = [offset for offset, _ in read_history(path)][1]
    data[offset] = 0x07
    path.write_bytes(data)
    with pytest.raises(HistoryFormatError, match=f"byte {offset}"):
        list(read_history(path))


def test_histories_are_never_overwritten(tmp_path: Path) -> None:
    _write(tmp_path / "3.hist")
    with pytest.raises(FileExistsError):
        _write(tmp_path / "3.hist")


def test_values_are_unique() -> None:
    values = {unique_value(worker, count) for worker in (0, 1, WORKERS_MAX - 1) for count in range(100)}
    assert len(values) == 300
