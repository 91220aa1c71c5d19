"""The bytes of the log: the compiled appender and reader against the plain-Python encoding, on any transaction."""

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from occamdb.engine.disk._crc32c import checksum
from occamdb.engine.log import wal_format
from occamdb.engine.log._replay import SegmentImage
from occamdb.engine.log.wal_format import BeginTxn, BoundWrite, CommitTxn, Delete, DeleteRange, Entry, Write
from occamdb.engine.log.wal_reader import read_log
from tests.support.log_driver import RUN_ID, Database, Model, Operation, content, memory_directory, segments

KEYS = st.binary(min_size=1, max_size=40)
TIMES = st.integers(min_value=0, max_value=2**63 - 1)
OPERATIONS: st.SearchStrategy[Operation] = st.one_of(
    st.tuples(st.just("write"), KEYS, st.binary(max_size=300), TIMES),
    st.tuples(st.just("bound_write"), KEYS, st.binary(max_size=300), TIMES, st.integers(1, 2**64 - 1)),
    st.tuples(st.just("delete"), KEYS, st.integers(min_value=0, max_value=2**60)),
    st.tuples(st.just("delete_range"), KEYS, KEYS),
)
TRANSACTIONS = st.lists(st.lists(OPERATIONS, max_size=6), min_size=1, max_size=8)


def expected_entries(version: int, operations: list[Operation], synced: int) -> list[Entry]:
    entries: list[Entry] = [BeginTxn(5, version, RUN_ID, version * 10, synced)]
    for operation in operations:
        if operation[0] == "write":
            entries.append(Write(version, operation[3], operation[1], operation[2]))
        elif operation[0] == "bound_write":
            entries.append(BoundWrite(version, operation[3], operation[4], operation[1], operation[2]))
        elif operation[0] == "delete":
            entries.append(Delete(version, operation[2], operation[1]))
        else:
            entries.append(DeleteRange(version, operation[1], operation[2]))
    return [*entries, CommitTxn(5, version, version, len(operations))]


def test_known_checksums() -> None:
    assert checksum(b"123456789") == 0xE3069283  # the check value of the CRC catalogue
    assert checksum(b"") == 0
    assert checksum(bytes(32)) == 0x8A9136AA  # RFC 3720, appendix B.4


@given(st.binary(max_size=600), st.integers(min_value=0, max_value=2**32 - 1))
def test_both_ways_of_the_checksum_agree(data: bytes, start: int) -> None:
    assert checksum(data, start) == checksum(data, start, by_table=True)


@given(st.binary(max_size=300), st.integers(min_value=0, max_value=300))
def test_a_checksum_can_be_continued(data: bytes, middle: int) -> None:
    assert checksum(data[middle:], checksum(data[:middle])) == checksum(data)


@given(TRANSACTIONS)
def test_appended_bytes_and_what_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, transactions: list[list[Operation]]
) -> None:
    with memory_directory(tmp_path_factory.mktemp("format")) as parent:
        append_and_compare(parent / "db", transactions)


def append_and_compare(path: Path, transactions: list[list[Operation]]) -> None:
    database = Database(path)
    model = Model()
    entries: list[Entry] = []
    for operations in transactions:
        version = database.encode(operations, session=5)
        model.apply(version, version * 10, operations)
        entries += expected_entries(version, operations, wal_format.HEADER_SIZE)
    database.flush()
    database.close()

    data = segments(path)[0].read_bytes()
    header = wal_format.decode_header(data, "")
    encoded = b""
    for entry in entries:
        encoded += wal_format.encode_entry(entry, header.crc, wal_format.HEADER_SIZE + len(encoded))
    assert data == header.encode() + encoded

    reader = Database(path, durability=None)
    assert [found.entry for found in read_log(reader.directory)] == entries
    reader.close()
    result, rows = content(path)
    assert rows == model.listing()
    assert result.outcomes == {5: (len(transactions), len(transactions))}


def test_an_entry_is_valid_only_where_it_was_written(tmp_path: Path) -> None:
    """Same bytes, other place or other segment: no entry."""
    database = Database(tmp_path / "db")
    database.commit([("write", b"key", b"value", 0)])
    database.close()
    path = segments(tmp_path / "db")[0]
    data = path.read_bytes()
    seed = struct.unpack_from("<I", data, wal_format.HEADER_SIZE - 4)[0]
    with open(path, "rb") as file:
        assert SegmentImage(file.fileno(), seed).entry(wal_format.HEADER_SIZE) is not None
        assert SegmentImage(file.fileno(), seed ^ 1).entry(wal_format.HEADER_SIZE) is None
    path.write_bytes(data[: wal_format.HEADER_SIZE] + b"\0" + data[wal_format.HEADER_SIZE :])
    with open(path, "rb") as file:
        assert SegmentImage(file.fileno(), seed).entry(wal_format.HEADER_SIZE + 1) is None
