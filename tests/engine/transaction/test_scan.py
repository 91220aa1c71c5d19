"""Ordered walks: bounds, paging, order, own writes, binary keys, and the same against a plain model."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from occamdb import Database
from occamdb.engine.model.errors import TransactionStateError
from occamdb.engine.model.public_types import RunId
from tests.support.engines import Engine


def fill(db: Database, run: RunId, count: int) -> list[str]:
    names = [f"k{index:05}" for index in range(count)]
    with db.begin(run) as txn:
        for index, name in enumerate(names):
            txn.put(name, index)
    return names


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 143, 144, 145, 1000])
def test_pages_join_without_gap_or_double(db: Database, run: RunId, count: int) -> None:
    names = fill(db, run, count)
    txn = db.begin(run)
    assert [(key, row.value) for key, row in txn.scan()] == list(zip(names, range(count), strict=True))
    assert list(txn.keys()) == names
    assert list(txn.keys(reverse=True)) == names[::-1]
    assert txn.count() == count


@pytest.mark.parametrize("limit", [0, 1, 16, 17, 100, 200, 10**30])
def test_limits(db: Database, run: RunId, limit: int) -> None:
    names = fill(db, run, 150)
    txn = db.begin(run)
    assert list(txn.keys(limit=limit)) == names[:limit]
    assert list(txn.keys(limit=limit, reverse=True)) == names[::-1][:limit]


def test_prefix_start_and_end_are_intersected(db: Database, run: RunId) -> None:
    for key in ("a", "ab", "abc", "abd", "ac", "b", "b\x00", "bc"):
        db.put(run, key, 1)
    txn = db.begin(run)
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"prefix": "ab"}, ["ab", "abc", "abd"]),
        ({"start": "ab", "end": "b"}, ["ab", "abc", "abd", "ac"]),
        ({"prefix": "a", "start": "abd"}, ["abd", "ac"]),
        ({"prefix": "a", "end": "abd"}, ["a", "ab", "abc"]),
        ({"prefix": "ab", "start": "a", "end": "z"}, ["ab", "abc", "abd"]),
        ({"start": "b"}, ["b", "b\x00", "bc"]),
        ({"start": "b\x00"}, ["b\x00", "bc"]),
        ({"end": "a"}, []),
        ({"end": ""}, []),
        ({"start": "", "prefix": ""}, ["a", "ab", "abc", "abd", "ac", "b", "b\x00", "bc"]),
        ({"prefix": "x"}, []),
        ({"start": "b", "end": "a"}, []),
        ({"start": "b", "end": "b"}, []),
    ]
    for arguments, expected in cases:
        assert list(txn.keys(**arguments)) == expected, arguments
        assert list(txn.keys(**arguments, reverse=True)) == expected[::-1], arguments
        assert txn.count(**arguments) == len(expected)


def test_a_prefix_of_ff_bytes_has_an_end(db: Database, run: RunId) -> None:
    space = db.space(run, 3, raw=True)
    for key in (b"\xfe", b"\xff", b"\xff\xff", b"\xff\xff\x00"):
        space.put(key, 1)
    db.space(run, 4).put("k", 1)
    assert list(space.keys(b"\xff\xff")) == [b"\xff\xff", b"\xff\xff\x00"]
    assert list(space.keys(b"\xff")) == [b"\xff", b"\xff\xff", b"\xff\xff\x00"]
    assert space.count() == 4


def test_binary_keys_come_back_escaped_and_from_raw_spaces_as_bytes(db: Database, run: RunId) -> None:
    db.put(run, b"\x00\xff", 1)
    db.put(run, "text", 2)
    txn = db.begin(run)
    assert list(txn.keys()) == ["\x00\udcff", "text"]
    assert list(txn.space(1, raw=True).keys()) == [b"\x00\xff", b"text"]
    assert [key for key, _ in txn.space(1, raw=True).scan()] == [b"\x00\xff", b"text"]
    txn.put(b"own\xff", 3)
    assert list(txn.keys()) == ["\x00\udcff", "own\udcff", "text"]


def test_long_keys_and_values(db: Database, run: RunId) -> None:
    keys = [f"{index}" * 900 for index in range(5)]
    for key in keys:
        db.put(run, key, key * 3)
    txn = db.begin(run)
    assert [(key, row.value) for key, row in txn.scan()] == [(key, key * 3) for key in keys]


def test_scan_sees_the_writes_made_before_it_was_called(db: Database, run: RunId) -> None:
    fill(db, run, 3)
    txn = db.begin(run)
    txn.put("k00001x", "before")
    rows = txn.scan()
    txn.put("k00001y", "after")
    txn.put("k00002", "after")
    txn.delete("k00000")
    assert [row.value for _, row in rows] == [0, 1, "before", 2]
    assert [row.value for _, row in txn.scan()] == [1, "before", "after", "after"]


def test_writing_while_walking_ends(db: Database, run: RunId) -> None:
    names = fill(db, run, 200)
    with db.begin(run) as txn:
        for key, row in txn.scan():
            txn.put(f"{key}x", row.value)
            txn.put(key, -row.value)
            txn.delete(names[0])
        assert txn.count() == 399


def test_many_own_writes_between_scans_stay_in_order(db: Database, run: RunId) -> None:
    txn = db.begin(run)
    expected: set[str] = set()
    for step in range(300):
        for name in (f"{step * 7919 % 1000:04}", f"{step * 104729 % 1000:04}"):
            txn.put(name, step)
            expected.add(name)
        if step % 90 == 0 or step % 7 == 0:
            assert list(txn.keys()) == sorted(expected)
    assert list(txn.keys(reverse=True, limit=10)) == sorted(expected)[::-1][:10]


def test_iterator_ends_for_good(db: Database, run: RunId) -> None:
    fill(db, run, 3)
    rows = db.begin(run).scan()
    assert len(list(rows)) == 3
    assert list(rows) == []
    with pytest.raises(StopIteration):
        next(rows)


def test_closed_iterator_gives_nothing_more(db: Database, run: RunId) -> None:
    fill(db, run, 100)
    rows = db.begin(run).scan()
    next(rows)
    rows.close()
    assert list(rows) == []


def test_iterator_outlives_its_transaction_only_in_name(db: Database, run: RunId) -> None:
    fill(db, run, 100)
    txn = db.begin(run)
    rows = txn.scan()
    next(rows)
    txn.abort()
    with pytest.raises(TransactionStateError):
        next(rows)


def test_implicit_scan_is_one_snapshot(db: Database, run: RunId) -> None:
    names = fill(db, run, 300)
    rows = db.space(run, 1).scan()
    first = next(rows)[0]
    for name in names:
        db.delete(run, name)
    assert [first] + [key for key, _ in rows] == names
    del rows
    assert db.list(run) == []


def test_mostly_deleted_ranges_are_walked_through(db: Database, run: RunId) -> None:
    names = fill(db, run, 3000)
    keeper = db.begin(run)  # its pin keeps the deleted nodes linked
    with db.begin(run) as txn:
        for name in names[5:-5]:
            txn.delete(name)
    assert db.list(run) == names[:5] + names[-5:]
    assert keeper.count() == 3000
    txn = db.begin(run)
    assert list(txn.keys(reverse=True)) == (names[:5] + names[-5:])[::-1]


KEYS = st.binary(min_size=1, max_size=3).map(lambda raw: bytes(byte % 4 for byte in raw))
BOUND = st.none() | st.binary(max_size=3).map(lambda raw: bytes(byte % 4 for byte in raw))
CHANGES = st.lists(st.tuples(KEYS, st.none() | st.integers(0, 9)), max_size=30)


@pytest.mark.by_default("memory")
@given(
    stored=CHANGES,
    own=CHANGES,
    cleared=st.none() | st.tuples(KEYS, KEYS),
    late=CHANGES,
    prefix=BOUND,
    start=BOUND,
    end=BOUND,
    limit=st.none() | st.integers(0, 12),
    reverse=st.booleans(),
)
def test_scans_agree_with_a_sorted_dict(
    engine: Engine,
    stored: list[tuple[bytes, int | None]],
    own: list[tuple[bytes, int | None]],
    cleared: tuple[bytes, bytes] | None,
    late: list[tuple[bytes, int | None]],
    prefix: bytes | None,
    start: bytes | None,
    end: bytes | None,
    limit: int | None,
    reverse: bool,
) -> None:
    db, run = engine.fresh(), RunId.new()
    model: dict[bytes, int] = {}

    def change(target: Any, key: bytes, value: int | None) -> None:
        if value is None:
            target.delete(key)
            model.pop(key, None)
        else:
            target.put(key, value)
            model[key] = value

    space = db.space(run, 1)
    for key, value in stored:
        change(space, key, value)
    txn = db.begin(run).space(1, raw=True)
    for key, value in own[: len(own) // 2]:
        change(txn, key, value)
    if cleared is not None:
        txn.delete_range(start=cleared[0], end=cleared[1])
        for key in [key for key in model if cleared[0] <= key < cleared[1]]:
            del model[key]
    for key, value in own[len(own) // 2 :]:
        change(txn, key, value)
    expected = [
        (key, value)
        for key, value in sorted(model.items(), reverse=reverse)
        if key.startswith(prefix or b"") and (start or b"") <= key and (end is None or key < end)
    ]
    rows = txn.scan(prefix or b"", start=start, end=end, limit=limit, reverse=reverse)
    for key, value in late:
        change(txn, key, value)
    assert [(key, row.value) for key, row in rows] == expected[:limit]
    engine.discard(db)
