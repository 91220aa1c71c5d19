"""Pins as the coordinator sees them: slot values, marks, the published count of slots; stores superseded and closed."""

import mmap
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from occamdb import Database
from occamdb._testing._store_writer import StoreWriter
from occamdb.engine.model.errors import CorruptionError, LimitExceeded, SnapshotExpired
from occamdb.engine.model.limits import Limits
from occamdb.engine.model.public_types import RunId
from occamdb.engine.model.values import encode_value
from occamdb.engine.transaction._view import StoreAttachment
from occamdb.ipc import layout

GC_HORIZON = 128
SUPERSEDED = 256
SIZE = 1 << 20


class Bench:
    """A store and a channel in private memory, a writer for the one and a database that reads through both."""

    durability = log_mode = "none"
    limits = Limits()

    def of(self, base: bytes) -> "Bench":
        """All namespaces are in the one store."""
        return self

    def __init__(self) -> None:
        self.store = mmap.mmap(-1, SIZE)
        self.channel = mmap.mmap(-1, layout.RINGS_OFFSET + layout.PAGE_SIZE)
        self.writer = StoreWriter(self.store)
        self.attachments = 0
        self.current = StoreAttachment(self.store, self.channel)
        self.db = Database(self)  # type: ignore[arg-type]

    def attachment(self) -> StoreAttachment:
        self.attachments += 1
        return self.current

    def slot(self, index: int) -> tuple[int, int]:
        value, mark = struct.unpack_from("<QQ", self.channel, layout.slot_offset(index))
        return value, mark

    def slots_high(self) -> int:
        (high,) = struct.unpack_from("<I", self.channel, layout.SLOTS_HIGH_OFFSET)
        return int(high)

    def commit(self, run: RunId, version: int, **values: Any) -> None:
        for key, value in values.items():
            assert self.writer.put(self.db.prefix_of(run) + key.encode(), encode_value(value), version)
        self.writer.publish(version)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.writer.close()


def test_a_pin_is_its_version_plus_one_in_the_lowest_free_slot(bench: Bench, run: RunId) -> None:
    first = bench.db.begin(run)
    assert (bench.slot(0), bench.slots_high()) == ((1, 0), 1)
    bench.commit(run, 7, k=1)
    second, third = bench.db.begin(run), bench.db.begin(run)
    assert [bench.slot(index)[0] for index in range(4)] == [1, 8, 8, 0]
    assert bench.slots_high() == 3 and bench.current.pin_count == 3
    second.abort()
    assert bench.slot(1)[0] == 0
    again = bench.db.begin(run)
    assert bench.slot(1)[0] == 8 and bench.slots_high() == 3
    for txn in (first, third, again):
        txn.abort()
    assert [bench.slot(index)[0] for index in range(3)] == [0, 0, 0]
    assert bench.slots_high() == 3  # never goes down: a scan may be under way


def test_a_view_shows_its_version_only(bench: Bench, run: RunId) -> None:
    bench.commit(run, 1, a="one")
    old = bench.db.begin(run)
    bench.commit(run, 2, a="two", b="two")
    new = bench.db.begin(run)
    bench.writer.delete(bench.db.prefix_of(run) + b"a", 3)  # installed, not yet published
    assert (old.get("a"), old.get("b"), new.get("a"), new.get("b")) == ("one", None, "two", "two")
    assert [key for key, _ in new.scan()] == ["a", "b"]
    assert bench.db.begin(run).get("a") == "two"
    bench.writer.publish(3)
    assert bench.db.begin(run).get("a") is None
    assert old.get("a") == "one"
    bench.writer.collect(sorted({old.start_version, new.start_version}))
    assert (old.get("a"), new.get("a")) == ("one", "two")


def test_a_mark_equal_to_the_value_revokes(bench: Bench, run: RunId) -> None:
    bench.commit(run, 5, k=1)
    txn = bench.db.begin(run)
    struct.pack_into("<Q", bench.channel, layout.slot_offset(0) + 8, 5)  # of another version: not ours
    assert txn.get("k") == 1
    struct.pack_into("<Q", bench.channel, layout.slot_offset(0) + 8, 6)
    with pytest.raises(SnapshotExpired) as caught:
        txn.get("k")
    assert caught.value.details["version"] == 5
    txn.abort()
    assert bench.db.begin(run).get("k") == 1  # the mark was cleared with the next use of the slot


def test_superseded_and_retired_stores_are_left_for_new_snapshots(bench: Bench, run: RunId) -> None:
    bench.commit(run, 1, k="old")
    open_before = bench.db.begin(run)
    asked = bench.attachments
    assert bench.db.begin(run).get("k") == "old"
    assert bench.attachments == asked  # not asked while the last answer holds
    next_one = Bench()
    next_one.commit(run, 2, k="new")
    struct.pack_into("<I", bench.store, SUPERSEDED, 1)
    assert not bench.current.usable and bench.current.superseded
    bench.current = next_one.current
    assert bench.db.begin(run).get("k") == "new"
    assert open_before.get("k") == "old"
    next_one.current.retire()
    assert not next_one.current.usable
    third = Bench()
    bench.current = third.current
    assert bench.db.begin(run).get("k") is None
    open_before.abort()
    for other in (next_one, third):
        other.writer.close()


def test_a_closed_channel_takes_no_pins(bench: Bench, run: RunId) -> None:
    bench.commit(run, 1, k=1)
    struct.pack_into("<I", bench.channel, layout.CLOSED_OFFSET, 1)
    assert not bench.current.usable
    with pytest.raises(SnapshotExpired):
        bench.db.begin(run).get("k")


def test_a_horizon_above_every_version_is_damage_and_not_a_hang(bench: Bench, run: RunId) -> None:
    struct.pack_into("<Q", bench.store, GC_HORIZON, 100)
    with pytest.raises(CorruptionError, match="100"):
        bench.db.begin(run)
    assert bench.current.pin_count == 0
    struct.pack_into("<Q", bench.store, GC_HORIZON, 0)
    bench.db.begin(run).commit()


def test_slots_run_out_with_a_number(bench: Bench, run: RunId) -> None:
    opened = [bench.db.begin(run) for _ in range(layout.SLOT_COUNT)]
    assert bench.slots_high() == layout.SLOT_COUNT
    with pytest.raises(LimitExceeded, match="1,024"):
        bench.db.get(run, "k")
    opened.pop()
    assert bench.db.get(run, "k") is None


@pytest.mark.parametrize(
    ("store_size", "channel_size"), [(0, 1 << 20), (512, 1 << 20), (SIZE, layout.RINGS_OFFSET - 1)]
)
def test_wrong_memory_is_refused(store_size: int, channel_size: int) -> None:
    writer_memory = mmap.mmap(-1, SIZE)
    writer = StoreWriter(writer_memory)
    with pytest.raises(CorruptionError):
        StoreAttachment(bytes(writer_memory[:store_size]), bytearray(channel_size))
    writer.close()
    with pytest.raises(CorruptionError):
        StoreAttachment(bytes(SIZE), bytearray(1 << 20))  # zeros are not a store
    with pytest.raises(BufferError):
        StoreAttachment(bytes(SIZE), bytes(1 << 20))  # the channel has to be writable


def test_memory_stays_mapped_while_a_view_needs_it(bench: Bench, run: RunId) -> None:
    bench.commit(run, 1, k=1)
    txn = bench.db.begin(run)
    with pytest.raises(BufferError):
        bench.store.close()
    assert txn.get("k") == 1


def test_damaged_values_are_an_error_and_not_a_crash(bench: Bench, run: RunId) -> None:
    for version, damage in enumerate(
        (b"\xc1", b"\xd9\xff", b"\xdf\xff\xff\xff\xff", b"\x81\x01\x01"), start=1
    ):
        bench.writer.put(bench.db.prefix_of(run) + b"k", damage, version)
        bench.writer.publish(version)
        txn = bench.db.begin(run)
        for read in (lambda: txn.get("k"), lambda: txn.get_versioned("k"), lambda: list(txn.scan())):  # noqa: B023
            with pytest.raises(CorruptionError):
                read()
        assert txn.exists("k")
