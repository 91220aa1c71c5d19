"""A ring with more commits than the default one can hold: a watch that goes far back leaves none of them out."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from occamdb.engine.model.errors import CorruptionError
from occamdb.engine.transaction.feeds import feed_of
from tests.support.databases import memory_database

RING = 64 << 20
COUNT = 1_200_000
BLOCK = struct.Struct("<QqIIII")
ENTRY = struct.Struct("<HBBI")
COMMIT, PUT = 0x4D4D4F43, 1
# Where the store's header has these words; see engine/store/_layout.pxd.
COMMITTED_VERSION, CHANGE_END, CHANGE_LAST = 64, 960, 968


def forge(memory: Any, back: int) -> int:
    """Fill the ring: a commit of the key "k", then COUNT empty ones. Returns the newest version."""
    ring = len(memory) - RING
    blocks = bytearray(64 + 32 * COUNT)
    BLOCK.pack_into(blocks, 0, 1, 0, 64, 0, 1, COMMIT)
    blocks[32:42] = ENTRY.pack(1, PUT, 0, 1) + b"kv"
    for number in range(COUNT):
        BLOCK.pack_into(blocks, 64 + 32 * number, number + 2, 0, 32, back if number else 64, 0, COMMIT)
    memory[ring : ring + len(blocks)] = bytes(blocks)
    newest, end = COUNT + 1, RING + len(blocks)
    for offset, value in ((CHANGE_LAST, end - 32), (CHANGE_END, end), (COMMITTED_VERSION, newest)):
        memory[offset : offset + 8] = struct.pack("<Q", value)
    return newest


def test_a_watch_goes_back_over_more_than_a_million_commits() -> None:
    with memory_database(watch_history=RING, max_store_size="4MiB") as db:
        newest = forge(db.handle._store, 32)  # type: ignore[attr-defined]
        feed = feed_of(db.attachment(), 0, b"")
        assert feed.poll() == [(1, 0, [("put", b"k", b"v")])]
        assert feed.version == newest


@pytest.mark.parametrize("back", [8, 0xFFFFFFE0])
def test_a_link_that_no_writer_wrote_is_damage_and_no_gap(back: int) -> None:
    with memory_database(watch_history=RING, max_store_size="4MiB") as db:
        forge(db.handle._store, back)  # type: ignore[attr-defined]
        with pytest.raises(CorruptionError):
            feed_of(db.attachment(), 0, b"").poll()
