"""Every offset, size and alignment of the channel segment and the doorbell segment, and the segments' names.

Used by every process that creates or attaches a segment. The compiled side has the same constants in
`_layout.pxd`, and a test keeps the two equal. ipc does not know what a slot value means.

Invariants:
1. Each word that one process writes and another polls has a 64-byte line of its own.
2. A word has one writer. The worker writes request tail, reply head, sleeping flag, `slots_high`, tally, slot
   values, watch slots and their high mark; the coordinator writes request head, reply tail, slot marks,
   `closed` and `drained`. Doorbell words are counters that any ringer increments. The watch sleeping flag is
   the exception: the worker sets it, and both clear it.
3. The header page is written once, before the name is handed over. The coordinator never reads it back,
   because the worker can write there.
4. Rings are powers of two and page-aligned; counters are u64 and never wrap in practice.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from .errors import LayoutError, SegmentError

PAGE_SIZE: Final = 4096
LINE_SIZE: Final = 64

CHANNEL_MAGIC: Final = 0x314E414843434F43  # "COCCHAN1" as little-endian bytes
BELL_MAGIC: Final = 0x314C4C4542434F43  # "COCBELL1"
LAYOUT_VERSION: Final = 2

# Channel segment.
REQUEST_HEAD_OFFSET: Final = 0x100
REQUEST_TAIL_OFFSET: Final = 0x140
REPLY_HEAD_OFFSET: Final = 0x180
REPLY_TAIL_OFFSET: Final = 0x1C0
WORKER_BELL_OFFSET: Final = 0x200
WORKER_SLEEPING_OFFSET: Final = 0x240
PACE_OFFSET: Final = 0x244  # how the worker waits for its answer, a hint; in a line that it has anyway
SLOTS_HIGH_OFFSET: Final = 0x280
CLOSED_OFFSET: Final = 0x2C0
DRAINED_OFFSET: Final = 0x2C4  # beside it: both are written when the channel ends
TALLY_OFFSET: Final = 0x300  # what the worker counts itself; ipc does not know what
TALLY_SIZE: Final = 0xD00
SLOTS_OFFSET: Final = 0x1000
SLOT_SIZE: Final = 16
SLOT_COUNT: Final = 1024
# What this process waits for; see `engine/commit/_interest.pyx`.
WATCH_OFFSET: Final = SLOTS_OFFSET + SLOT_SIZE * SLOT_COUNT
WATCH_BELL_OFFSET: Final = WATCH_OFFSET
WATCH_SLEEPING_OFFSET: Final = WATCH_OFFSET + 0x40
WATCH_HIGH_OFFSET: Final = WATCH_OFFSET + 0x80  # slots at and above this are free
WATCH_REGISTER_OFFSET: Final = (
    WATCH_OFFSET + 0xC0
)  # stands for BELL_REGISTER_OFFSET where there is no doorbell segment
WATCH_SLOTS_OFFSET: Final = WATCH_OFFSET + 0x100
WATCH_SLOT_COUNT: Final = 480  # u64 hashes
RINGS_OFFSET: Final = WATCH_SLOTS_OFFSET + 8 * WATCH_SLOT_COUNT

RING_SIZE_MIN: Final = PAGE_SIZE
RING_SIZE_MAX: Final = 1 << 30

# Doorbell segment: one page.
BELL_WORD_OFFSET: Final = 0x00
BELL_SLEEPING_OFFSET: Final = 0x40
BELL_OWNER_OFFSET: Final = 0x80  # who created it, for `doctor`; see BellOwner
BELL_RINGER_OFFSET: Final = 0xC0  # core of the last worker that woke the coordinator, plus one: a hint
BELL_SERVER_OFFSET: Final = 0xC4  # core of the coordinator, plus one, while a turn runs: a hint
BELL_REGISTER_OFFSET: Final = 0x100  # grows whenever a worker has changed what it waits for
BELL_SEGMENT_SIZE: Final = PAGE_SIZE

# A message on a ring.
MESSAGE_HEADER_SIZE: Final = 8
MESSAGE_CHECK: Final = 0x4F43434D

# magic, layout version, header size, session id, ring size, segment size, slot count, reserved
_CHANNEL_HEADER: Final = struct.Struct("<QIIQQQII")
# magic, layout version, pid, start time in clock ticks since boot
_BELL_OWNER: Final = struct.Struct("<QIIQ")

SHM_PREFIX: Final = "occam-"

_polled = (
    REQUEST_HEAD_OFFSET,
    REQUEST_TAIL_OFFSET,
    REPLY_HEAD_OFFSET,
    REPLY_TAIL_OFFSET,
    WORKER_BELL_OFFSET,
    WORKER_SLEEPING_OFFSET,
    SLOTS_HIGH_OFFSET,
    CLOSED_OFFSET,
    WATCH_BELL_OFFSET,
    WATCH_SLEEPING_OFFSET,
    WATCH_HIGH_OFFSET,
    WATCH_REGISTER_OFFSET,
)
assert all(offset % LINE_SIZE == 0 for offset in _polled)
assert len({offset // LINE_SIZE for offset in _polled}) == len(_polled)
assert _CHANNEL_HEADER.size <= min(_polled) and CLOSED_OFFSET + LINE_SIZE <= SLOTS_OFFSET
assert max(_polled) + LINE_SIZE <= WATCH_SLOTS_OFFSET
assert CLOSED_OFFSET + LINE_SIZE <= TALLY_OFFSET and TALLY_OFFSET + TALLY_SIZE <= SLOTS_OFFSET
assert SLOTS_OFFSET % PAGE_SIZE == 0 and RINGS_OFFSET % PAGE_SIZE == 0
assert LINE_SIZE % SLOT_SIZE == 0
assert BELL_WORD_OFFSET // LINE_SIZE != BELL_SLEEPING_OFFSET // LINE_SIZE
assert BELL_SLEEPING_OFFSET + LINE_SIZE <= BELL_OWNER_OFFSET
assert BELL_OWNER_OFFSET + _BELL_OWNER.size <= BELL_RINGER_OFFSET < BELL_REGISTER_OFFSET < BELL_SEGMENT_SIZE
assert BELL_REGISTER_OFFSET - BELL_RINGER_OFFSET >= LINE_SIZE


def check_ring_size(ring_size: int) -> int:
    """Return `ring_size` if a channel can have it.

    Raises:
      SegmentError: it is not a power of two, or outside [RING_SIZE_MIN, RING_SIZE_MAX]: change `ring_size`.
    """
    if ring_size & (ring_size - 1) or not RING_SIZE_MIN <= ring_size <= RING_SIZE_MAX:
        raise SegmentError(
            f"ring size {ring_size} is not a power of two between {RING_SIZE_MIN} and {RING_SIZE_MAX}",
            hint="change the setting `ring_size`",
            details={"ring_size": ring_size},
        )
    return ring_size


def channel_size(ring_size: int) -> int:
    """Bytes of a channel segment whose two rings have `ring_size` bytes each."""
    return RINGS_OFFSET + 2 * check_ring_size(ring_size)


def reply_data_offset(ring_size: int) -> int:
    """Where the reply ring's data starts."""
    return RINGS_OFFSET + check_ring_size(ring_size)


def slot_offset(index: int) -> int:
    """Where slot `index` starts: its u64 value, then its u64 mark."""
    if not 0 <= index < SLOT_COUNT:
        raise SegmentError(f"slot {index} is outside 0..{SLOT_COUNT - 1}")
    return SLOTS_OFFSET + SLOT_SIZE * index


@dataclass(frozen=True, slots=True)
class ChannelHeader:
    """What a worker learns from the header page of its channel segment."""

    session_id: int
    ring_size: int


def write_channel_header(buffer: memoryview | bytearray, session_id: int, ring_size: int) -> None:
    """Fill the header of a fresh (zero-filled) channel segment. Called once by its creator."""
    size = channel_size(ring_size)
    _CHANNEL_HEADER.pack_into(
        buffer,
        0,
        CHANNEL_MAGIC,
        LAYOUT_VERSION,
        _CHANNEL_HEADER.size,
        session_id,
        ring_size,
        size,
        SLOT_COUNT,
        0,
    )


def read_channel_header(buffer: memoryview | bytes | bytearray) -> ChannelHeader:
    """Check the header of a channel segment and return what it says.

    Raises:
      LayoutError: not a channel segment of this build, or its size does not agree with its header.
    """
    if len(buffer) < RINGS_OFFSET:
        raise LayoutError(
            f"channel segment has {len(buffer)} bytes, its fixed part alone takes {RINGS_OFFSET}"
        )
    magic, version, header_size, session, ring_size, size, slots, _ = _CHANNEL_HEADER.unpack_from(buffer, 0)
    found = (magic, version, header_size, slots)
    expected = (CHANNEL_MAGIC, LAYOUT_VERSION, _CHANNEL_HEADER.size, SLOT_COUNT)
    if found != expected:
        raise LayoutError(
            f"channel segment header says (magic, version, header size, slots) {found}, expected {expected}"
        )
    if size != channel_size(ring_size) or len(buffer) < size:
        raise LayoutError(
            f"channel segment of {len(buffer)} bytes claims {size} for rings of {ring_size}, "
            f"which take {channel_size(ring_size)}"
        )
    return ChannelHeader(session_id=session, ring_size=ring_size)


def write_bell_owner(buffer: memoryview | bytearray, pid: int, start_time: int) -> None:
    """Note in a fresh doorbell segment which process owns its incarnation. For `stale` and `doctor` only."""
    _BELL_OWNER.pack_into(buffer, BELL_OWNER_OFFSET, BELL_MAGIC, LAYOUT_VERSION, pid, start_time)


def read_bell_owner(buffer: memoryview | bytes | bytearray) -> tuple[int, int] | None:
    """Return (pid, start time) noted in a doorbell segment, or None if there is no such note."""
    if len(buffer) < BELL_OWNER_OFFSET + _BELL_OWNER.size:
        return None
    magic, version, pid, start_time = _BELL_OWNER.unpack_from(buffer, BELL_OWNER_OFFSET)
    return (pid, start_time) if magic == BELL_MAGIC and version == LAYOUT_VERSION else None


# ---- names ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SegmentName:
    """The parts of a segment's name. `role` is "store", "bell" or "c<session hex>"."""

    database: str
    incarnation: int
    role: str

    def __str__(self) -> str:
        return f"/{SHM_PREFIX}{self.database}-{self.incarnation:x}-{self.role}"


def database_prefix(database_id: bytes) -> str:
    """The first 16 hex digits of a database id, as they stand in segment names."""
    if len(database_id) < 8:
        raise SegmentError(f"a database id has 16 bytes, not {len(database_id)}")
    return database_id[:8].hex()


def store_name(database_id: bytes, incarnation: int) -> str:
    """Name of the store segment."""
    return str(SegmentName(database_prefix(database_id), incarnation, "store"))


def bell_name(database_id: bytes, incarnation: int) -> str:
    """Name of the coordinator's doorbell segment."""
    return str(SegmentName(database_prefix(database_id), incarnation, "bell"))


def channel_name(database_id: bytes, incarnation: int, session_id: int) -> str:
    """Name of one worker's channel segment."""
    return str(SegmentName(database_prefix(database_id), incarnation, f"c{session_id:016x}"))


def parse_segment_name(name: str) -> SegmentName | None:
    """Split a segment's name (with or without the leading slash); None if it is not one of ours."""
    parts = name.removeprefix("/").removeprefix(SHM_PREFIX).split("-")
    if not name.removeprefix("/").startswith(SHM_PREFIX) or len(parts) != 3:
        return None
    database, incarnation, role = parts
    known_role = role in ("store", "bell") or (role[:1] == "c" and _is_hex(role[1:]))
    if len(database) != 16 or not _is_hex(database) or not _is_hex(incarnation) or not known_role:
        return None
    return SegmentName(database, int(incarnation, 16), role)


def _is_hex(text: str) -> bool:
    return bool(text) and all(character in "0123456789abcdef" for character in text)
