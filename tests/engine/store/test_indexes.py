"""Hash and ordered index at the edges: collisions, overflow chains, long keys, order of insertion, paging."""

from __future__ import annotations

import random

import pytest

from occamdb._testing._store_writer import hash_of
from tests.support.store_model import make_store, settle


def colliding_keys(count: int, bits: int) -> list[bytes]:
    """Keys whose hashes end in the same bits."""
    mask = (1 << bits) - 1
    wanted = hash_of(b"0") & mask
    found: list[bytes] = []
    number = 0
    while len(found) < count:
        key = b"%d" % number
        if hash_of(key) & mask == wanted:
            found.append(key)
        number += 1
    return found


def test_colliding_keys_chain_pages_and_split_when_the_directory_grows() -> None:
    writer, reader = make_store(32 << 20)
    keys = colliding_keys(150, 11)
    for i, key in enumerate(keys):
        assert writer.put(key, b"value of " + key, 1)
        if i % 10 == 0:
            writer.check()
    writer.publish(1)
    assert writer.stats()["hash_depth"] == 10, "a few bad keys must not grow the directory without end"
    assert all(reader.get(key, 1) == (1, b"value of " + key, 0, 0) for key in keys)
    assert reader.get(b"absent", 1) is None
    others = [b"other %d" % i for i in range(80_000)]
    for key in others:
        writer.put(key, b"", 2)
    writer.publish(2)
    writer.check()
    assert writer.stats()["hash_depth"] > 11
    assert all(reader.get(key, 2) == (1, b"value of " + key, 0, 0) for key in keys)
    for key in keys + others:
        writer.delete(key, 3)
    writer.publish(3)
    settle(writer)
    writer.check()
    assert writer.stats()["nodes"] == 0


def test_index_size_stays_proportional() -> None:
    writer, _ = make_store(64 << 20)
    for i in range(100_000):
        writer.put(b"some key %d" % i, b"", 1)
    writer.publish(1)
    stats = writer.stats()
    assert stats["index_bytes"] < 16 * 100_000
    writer.check()


@pytest.mark.parametrize("order", ["ascending", "descending", "shuffled", "interleaved"])
def test_every_order_of_insertion_gives_the_same_list(order: str) -> None:
    writer, reader = make_store(16 << 20)
    keys = [b"%06d" % i for i in range(5000)]
    inserted = list(keys)
    if order == "descending":
        inserted.reverse()
    elif order == "shuffled":
        random.Random(1).shuffle(inserted)
    elif order == "interleaved":
        inserted = [key for i in range(50) for key in keys[i::50]]
    for key in inserted:
        writer.put(key, key, 1)
    writer.publish(1)
    writer.check()
    assert writer.nodes_from(b"") == keys
    assert [row[0] for row in reader.scan(1, reverse=True)] == keys[::-1]
    # Removal in yet another order keeps the search finger right.
    random.Random(2).shuffle(inserted)
    for i, key in enumerate(inserted[:4000]):
        writer.delete(key, 2 + i)
        writer.publish(2 + i)
        if i % 100 == 0:
            settle(writer)
            writer.put(b"new %d" % i, b"", 2 + i)
            writer.publish(2 + i)
    settle(writer)
    writer.check()
    left = sorted(inserted[4000:]) + sorted(b"new %d" % i for i in range(0, 4000, 100))
    assert writer.nodes_from(b"") == left


def test_seek_finds_the_first_key_at_or_after() -> None:
    writer, _ = make_store()
    keys = sorted({random.Random(3).randbytes(i % 4) for i in range(200)})
    for key in keys:
        writer.put(key, b"", 1)
    for probe in [*keys, b"", b"\x80", b"\xff\xff\xff\xff", *(key + b"\x00" for key in keys)]:
        assert writer.nodes_from(probe) == [key for key in keys if key >= probe]


def test_keys_up_to_the_limit() -> None:
    writer, reader = make_store(8 << 20)
    keys = [b"k" * size for size in (1, 8192, 65534, 65535)]
    for key in keys:
        assert writer.put(key, b"v", 1)
    assert not writer.put(b"k" * 65536, b"v", 1)
    writer.publish(1)
    writer.check()
    assert [row[0] for row in reader.scan(1, page_rows=1)] == keys
    assert [row[0] for row in reader.scan(1, page_rows=1, reverse=True)] == keys[::-1]
    assert all(reader.get(key, 1) for key in keys)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_long_stretch_of_deleted_keys_is_walked_in_bounded_pages(reverse: bool) -> None:
    writer, reader = make_store(16 << 20)
    keys = [b"%06d" % i for i in range(20_000)]
    for key in keys:
        writer.put(key, b"", 1)
    writer.publish(1)
    for key in keys[1:-1]:
        writer.delete(key, 2)
    writer.publish(2)
    start: bytes = b""
    end: bytes | None = None
    rows: list[bytes] = []
    pages, exclusive = 0, False
    while True:
        more, resume = reader.page(start, end, 2, 1000, exclusive, reverse)
        rows += [row[0] for row in more]
        pages += 1
        if resume is None:
            break
        if reverse:
            end = resume
        else:
            start, exclusive = resume, True
    assert rows == ([keys[-1], keys[0]] if reverse else [keys[0], keys[-1]])
    assert 4 <= pages <= 8


def test_pages_of_every_size_join_without_gap() -> None:
    writer, reader = make_store(16 << 20)
    keys = [b"%06d" % i for i in range(3000)]
    for key in keys:
        writer.put(key, b"v" + key, 1)
    writer.publish(1)
    for page_rows in (1, 2, 3, 8, 9, 63, 64, 65, 255, 256, 257, 1000, 2999, 3000, 3001, 9000):
        assert [row[0] for row in reader.scan(1, page_rows=page_rows)] == keys
        assert [row[0] for row in reader.scan(1, page_rows=page_rows, reverse=True)] == keys[::-1]
        inner = reader.scan(1, b"000100", b"000900", page_rows=page_rows)
        assert [row[0] for row in inner] == keys[100:900]
        inner = reader.scan(1, b"000100", b"000900", page_rows=page_rows, reverse=True)
        assert [row[0] for row in inner] == keys[100:900][::-1]
