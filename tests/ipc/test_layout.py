"""The two copies of the layout agree, and headers and names survive a round trip or are refused."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from occamdb.ipc import layout
from occamdb.ipc.errors import LayoutError, SegmentError
from occamdb.ipc.layout import SegmentName

PXD = Path(layout.__file__).with_name("_layout.pxd")


def pxd_constants() -> dict[str, int]:
    found = re.findall(r"^    ([A-Z][A-Z0-9_]*) = (\w+)$", PXD.read_text(), re.MULTILINE)
    return {name: int(value, 0) for name, value in found}


def test_compiled_and_python_constants_are_equal() -> None:
    constants = pxd_constants()
    assert len(constants) > 20
    assert {name: getattr(layout, name) for name in constants} == constants


def test_offsets_are_those_of_the_contract() -> None:
    words = [layout.REQUEST_HEAD_OFFSET, layout.REQUEST_TAIL_OFFSET, layout.REPLY_HEAD_OFFSET]
    words += [layout.REPLY_TAIL_OFFSET, layout.WORKER_BELL_OFFSET, layout.WORKER_SLEEPING_OFFSET]
    assert words == [0x100, 0x140, 0x180, 0x1C0, 0x200, 0x240]
    assert (layout.SLOTS_HIGH_OFFSET, layout.SLOTS_OFFSET, layout.SLOT_COUNT) == (0x280, 0x1000, 1024)
    assert layout.slot_offset(1023) + layout.SLOT_SIZE == layout.WATCH_OFFSET == 0x5000
    words = [layout.WATCH_BELL_OFFSET, layout.WATCH_SLEEPING_OFFSET, layout.WATCH_HIGH_OFFSET]
    assert words == [0x5000, 0x5040, 0x5080]
    assert layout.WATCH_SLOTS_OFFSET + 8 * layout.WATCH_SLOT_COUNT == layout.RINGS_OFFSET == 0x6000
    assert layout.channel_size(4096) == layout.reply_data_offset(4096) + 4096


@pytest.mark.parametrize("ring_size", [0, -4096, 2048, 4097, 3 * 4096, 1 << 31])
def test_ring_sizes_that_cannot_be(ring_size: int) -> None:
    with pytest.raises(SegmentError, match="ring size"):
        layout.channel_size(ring_size)


@pytest.mark.parametrize("index", [-1, 1024])
def test_slots_that_do_not_exist(index: int) -> None:
    with pytest.raises(SegmentError):
        layout.slot_offset(index)


def channel(ring_size: int = 4096, session_id: int = 0xFFFF_FFFF_FFFF_FFFF) -> bytearray:
    buffer = bytearray(layout.channel_size(ring_size))
    layout.write_channel_header(buffer, session_id, ring_size)
    return buffer


def test_channel_header_round_trip() -> None:
    header = layout.read_channel_header(channel(8192, 2**64 - 1))
    assert (header.session_id, header.ring_size) == (2**64 - 1, 8192)


@pytest.mark.parametrize("offset", [*range(16), *range(24, 44)])
def test_a_damaged_channel_header_is_refused(offset: int) -> None:
    buffer = channel()
    buffer[offset] ^= 0x40
    with pytest.raises(SegmentError):
        layout.read_channel_header(buffer)


@pytest.mark.parametrize("size", [0, 100, layout.RINGS_OFFSET, layout.channel_size(4096) - 1])
def test_a_short_channel_segment_is_refused(size: int) -> None:
    with pytest.raises(LayoutError):
        layout.read_channel_header(channel()[:size])


def test_bell_owner_round_trip() -> None:
    buffer = bytearray(layout.BELL_SEGMENT_SIZE)
    assert layout.read_bell_owner(buffer) is None
    layout.write_bell_owner(buffer, 4711, 2**63)
    assert layout.read_bell_owner(buffer) == (4711, 2**63)
    assert layout.read_bell_owner(buffer[:0x80]) is None
    assert not any(buffer[:0x80]), "the note leaves the polled words alone"


@given(st.binary(min_size=16, max_size=16), st.integers(0, 2**64 - 1), st.integers(1, 2**64 - 1))
def test_names_round_trip(database_id: bytes, incarnation: int, session: int) -> None:
    database = layout.database_prefix(database_id)
    names = {
        layout.store_name(database_id, incarnation): "store",
        layout.bell_name(database_id, incarnation): "bell",
        layout.channel_name(database_id, incarnation, session): f"c{session:016x}",
    }
    for name, role in names.items():
        assert layout.parse_segment_name(name) == SegmentName(database, incarnation, role)
        assert len(name) < 100 and name.count("/") == 1


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "/occam-",
        "/occam-00-1-store",
        "/occam-0123456789abcdef-1-else",
        "/occam-0123456789abcdef--bell",
        "/other-0123456789abcdef-1-bell",
        "/occam-0123456789abcdeF-1-bell",
        "/occam-0123456789abcdef-1-c",
    ],
)
def test_foreign_names_are_none(name: str) -> None:
    assert layout.parse_segment_name(name) is None
