"""The search behind a broken entry: linear in the bytes, whatever they are, and right about what they hold."""

from __future__ import annotations

import random
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from occamdb.engine.disk._crc32c import checksum
from occamdb.engine.disk._crc_ranges import range_checksum
from occamdb.engine.log._replay import SegmentImage
from occamdb.engine.log._tail_scan import resume_after, scan_work, tail_kind
from occamdb.engine.log.wal_format import HEADER_SIZE
from occamdb.engine.model.errors import CorruptionError
from tests.support.log_driver import OTHER_BOOT, Database, content, segments, write
from tests.support.processes import kill_coordinator, open_database, stop_coordinator

SEED = 0x5EED
MIB = 1 << 20
WHOLE_SIZE = 64 * MIB
SECONDS_MAX = 1.0  # of the processor: other tests run beside these
BEGIN, WRITE, COMMIT = 1, 2, 5
PLACE = struct.Struct("<QQ")


def entry(position: int, body: bytes, seed: int = SEED) -> bytes:
    """A valid entry for this place; `body` begins with its type."""
    crc = checksum(body, checksum(PLACE.pack(position, len(body)), seed))
    return struct.pack("<II", len(body), crc) + body


def begin(position: int, synced: int = HEADER_SIZE, seed: int = SEED) -> bytes:
    return entry(position, struct.pack("<BQQ16sqQ", BEGIN, 1, 1, bytes(16), 1, synced), seed)


def written(position: int, version: int, value: bytes, seed: int = SEED) -> bytes:
    return entry(position, struct.pack("<BQqII", WRITE, version, 0, 3, len(value)) + b"key" + value, seed)


def commit(position: int, version: int, count: int, seed: int = SEED) -> bytes:
    return entry(position, struct.pack("<BQQQI", COMMIT, 1, 1, version, count), seed)


def transaction(position: int, version: int, value: bytes = b"value", seed: int = SEED) -> bytes:
    data = begin(position, seed=seed)
    data += written(position + len(data), version, value, seed)
    return data + commit(position + len(data), version, 1, seed)


def image(body: bytes, seed: int = SEED) -> SegmentImage:
    """A segment whose entries are `body`."""
    with tempfile.TemporaryFile() as file:
        file.write(bytes(HEADER_SIZE))
        file.write(body)
        file.flush()
        return SegmentImage(file.fileno(), seed)


def lying_headers(size: int) -> bytes:
    """Write headers, one behind the other, each of which announces all the rest; their sizes agree."""
    pitch = 33
    data = bytearray()
    for at in range(0, size - 2 * pitch, pitch):
        rest = size - at - 8
        data += struct.pack("<IIBQqII", rest, at, WRITE, 1, 0, 3, rest - 25 - 3)
    return bytes(data).ljust(size, b"\1")


def nested_log(position: int, size: int, seed: int = SEED) -> bytes:
    """Whole transactions, valid in this segment at this place."""
    pieces, at, version = [], position, 1
    while at < position + size:
        pieces.append(transaction(at, version, bytes(2000), seed))
        at += len(pieces[-1])
        version += 1
    return b"".join(pieces)


CONTENTS: dict[str, Callable[[int], bytes]] = {
    "zeros": lambda size: bytes(size),
    "0xff": lambda size: b"\xff" * size,
    "0x01": lambda size: b"\x01" * size,
    "0x02": lambda size: b"\x02" * size,
    "random": lambda size: random.Random(1).randbytes(size),
    "random 0 and 1": lambda size: random.Random(2).randbytes(size).translate(bytes(i & 1 for i in range(256))),
    "headers that announce the rest": lying_headers,
    "a log of another segment": lambda size: nested_log(HEADER_SIZE + 1, size, SEED + 0x12345678),
    "short headers": lambda size: (struct.pack("<IIB", 49, 0, BEGIN) * (size // 9 + 1))[:size],
}  # fmt: skip


@pytest.mark.parametrize("name", CONTENTS)
def test_the_scan_is_linear_and_finds_nothing(name: str) -> None:
    # The work is counted, so that a part of a segment shows as much as a whole one.
    segment = image(CONTENTS[name](WHOLE_SIZE if name == "headers that announce the rest" else 8 * MIB))
    begun = time.thread_time()
    assert tail_kind(segment, HEADER_SIZE) == (0, 0)
    assert time.thread_time() - begun < SECONDS_MAX
    # Once for the table of prefixes, and at most 512 bytes for each header whose sizes agree, here one in 33 bytes.
    assert scan_work(segment) < segment.size * (1 + 512 / 33)
    begun = time.thread_time()
    assert resume_after(segment, HEADER_SIZE) is None
    assert time.thread_time() - begun < SECONDS_MAX


def test_a_nested_log_of_this_very_segment_is_judged_in_linear_time() -> None:
    """Only somebody who computes checksums for the place can make one; then its entries count."""
    segment = image(b"\1" + nested_log(HEADER_SIZE + 1, WHOLE_SIZE))
    begun = time.thread_time()
    found, synced = tail_kind(segment, HEADER_SIZE)
    assert time.thread_time() - begun < SECONDS_MAX
    assert found > 3 * 30_000 and synced == HEADER_SIZE
    assert scan_work(segment) < segment.size * 4


def test_salvage_is_linear_over_begins_that_never_end() -> None:
    """Each is followed by valid entries up to the end; to look for the end anew each time is quadratic."""
    pieces, at = [], HEADER_SIZE + 1
    while at < HEADER_SIZE + 16 * MIB:
        pieces.append(begin(at))
        at += len(pieces[-1])
    segment = image(b"\1" + b"".join(pieces))
    begun = time.thread_time()
    assert resume_after(segment, HEADER_SIZE) is None
    assert time.thread_time() - begun < SECONDS_MAX
    assert segment.offset == HEADER_SIZE and scan_work(segment) < segment.size * 4


def test_what_is_inside_an_entry_is_content() -> None:
    """A value that holds valid transactions, in an entry that is whole: they are neither found nor resumed at."""
    start = HEADER_SIZE + 5
    value_at = start + 57 + 8 + 25 + 3
    inner = transaction(value_at, 77) + begin(value_at + len(transaction(value_at, 77)), synced=1 << 40)
    outer = transaction(start, 9, inner)
    segment = image(b"junk!" + outer)
    assert tail_kind(segment, HEADER_SIZE) == (3, HEADER_SIZE)
    assert resume_after(segment, HEADER_SIZE) == 8 and segment.offset == start


def test_salvage_steps_over_what_is_no_transaction() -> None:
    parts = [b"junk"]

    def add(make: object, *arguments: object) -> None:
        position = HEADER_SIZE + sum(map(len, parts))
        parts.append(make(position, *arguments) if callable(make) else make)  # type: ignore[arg-type]

    add(begin)  # a begin whose end is missing
    add(written, 4, b"lost")
    add(b"junk")
    add(begin)
    add(commit, 5, 3)  # another count
    add(begin)  # a begin inside a transaction
    add(written, 6, b"lost")
    good = HEADER_SIZE + sum(map(len, parts))
    add(transaction, 6, b"x" * 5000)
    add(transaction, 7)
    segment = image(b"".join(parts))
    assert resume_after(segment, HEADER_SIZE) == 5 and segment.offset == good
    assert segment.advance(5)[:2] == ("whole", 6)
    assert segment.advance(6)[:2] == ("whole", 7)


def test_checksums_of_ranges() -> None:
    data = random.Random(3).randbytes(40_000)
    chance = random.Random(4)
    ranges = [
        (0, 0),
        (0, 40_000),
        (39_999, 1),
        (256, 256),
        (255, 513),
        (0, 513),
        (512, 4096),
        (0, 4095),
        (1, 8192),
    ]
    ranges += [(start := chance.randrange(40_000), chance.randrange(40_001 - start)) for _ in range(500)]
    for start, size in ranges:
        seed = chance.getrandbits(32)
        assert range_checksum(data, start, size, seed) == checksum(data[start : start + size], seed)


def test_checksums_of_long_ranges() -> None:
    data = random.Random(5).randbytes((1 << 24) + 70_000)
    for start, size in [(0, 1 << 24), (3, (1 << 24) + 4097), (60_000, (1 << 24) - 1), (1, len(data) - 1)]:
        assert range_checksum(data, start, size, 99) == checksum(data[start : start + size], 99)


# --- the verdicts ------------------------------------------------------------------------------------------------


@pytest.fixture
def torn(tmp_path: Path) -> tuple[Path, int, int]:
    """Two commits, the second large and torn in its value; where each begins."""
    database = Database(tmp_path / "db", segment_size=64 * MIB)
    database.commit([write(b"first")], sync=True)
    middle = int(database.appender.statistics()["log_segment_bytes"])
    database.commit([write(b"second", b"\1" * (4 * MIB))])
    end = int(database.appender.statistics()["log_segment_bytes"])
    database.kill()
    segment = segments(tmp_path / "db")[0]
    segment.write_bytes(segment.read_bytes()[: end - MIB])
    return tmp_path / "db", middle, end


@pytest.mark.parametrize("boot", [None, OTHER_BOOT])
def test_a_torn_value_is_cut(torn: tuple[Path, int, int], boot: bytes | None) -> None:
    path, middle, end = torn
    result, rows = content(path, boot_id=boot)
    assert [row[0] for row in rows] == [b"first"] and result.bytes_cut == end - MIB - middle


def behind(torn: tuple[Path, int, int], synced: int) -> Path:
    """The torn log with a valid BeginTxn, as of a later batch, behind its tail."""
    path, _, end = torn
    segment = segments(path)[0]
    data = segment.read_bytes()[:end].ljust(end, b"\0")
    seed = struct.unpack_from("<I", data, HEADER_SIZE - 4)[0]
    segment.write_bytes(data + begin(end, synced, seed))
    return path


def test_a_valid_entry_behind_it_is_damage_in_the_same_boot(torn: tuple[Path, int, int]) -> None:
    with pytest.raises(CorruptionError, match="1 valid entries follow it") as caught:
        content(behind(torn, HEADER_SIZE))
    assert caught.value.offset == torn[1] + 57  # the Write, behind its BeginTxn


def test_after_a_power_loss_only_what_was_synced_is_damage(torn: tuple[Path, int, int]) -> None:
    path = behind(torn, torn[1])
    assert [row[0] for row in content(path, boot_id=OTHER_BOOT)[1]] == [b"first"]
    with pytest.raises(CorruptionError, match="was on disk"):
        content(behind(torn, torn[2]), boot_id=OTHER_BOOT)


# --- from end to end ---------------------------------------------------------------------------------------------


def test_open_after_a_large_value_was_torn(tmp_path: Path) -> None:
    """40,000,000 bytes of 0x01, of which 39,000,000 reached the file: what came before is served, in good time."""
    path = tmp_path / "db"
    db = open_database(path, idle_timeout=60)
    run = db.runs.create_run().run_id
    with db.begin(run) as txn:
        txn.kv.put("before", "here")
    with db.begin(run) as txn:
        txn.kv.put("large", b"\x01" * 40_000_000)
    kill_coordinator(path)
    db.close()
    segment = segments(path)[0]
    with segment.open("r+b") as file:
        file.truncate(39_000_000)
    with open_database(path, timeout=10) as again, again.begin(run) as txn:
        assert txn.kv.get("before") == "here" and txn.kv.get("large") is None
        txn.kv.put("after", "too")
    stop_coordinator(path)
