"""Keys are text: what gives keys back gives `str`, which names the same bytes when it is given as a key."""

from typing import Any

import pytest

from occamdb import ConflictError, Database, InvalidKeyError, NotAnIntegerError, RunId

BINARY = b"\xff\x00\xe9"
AS_TEXT = "\udcff\x00\udce9"


@pytest.fixture
def full(db: Database, run: RunId) -> Database:
    for key in (BINARY, "plain", "ké"):
        db.put(run, key, 1)
    return db


IN_ORDER = ["ké", "plain", AS_TEXT]
IN_ORDER.sort(key=lambda key: key.encode("utf-8", "surrogateescape"))
RAW = [key.encode("utf-8", "surrogateescape") for key in IN_ORDER]


def test_everything_that_lists_keys_gives_text_or_bytes_when_asked(full: Database, run: RunId) -> None:
    with full.begin(run) as txn:
        txn.put(b"own\xfe", 2)  # own writes are laid over the snapshot's rows
        txn.delete(b"own\xfe")
        assert list(txn.keys()) == IN_ORDER and list(txn.keys(raw=True)) == RAW
        assert [key for key, _ in txn.scan()] == IN_ORDER
        assert [key for key, _ in txn.scan(raw=True)] == RAW
        for store in (txn.kv, full.kv.mapping(run)):
            assert list(store.keys()) == IN_ORDER
        assert txn.kv.list(raw=True) == RAW and [key for key, _ in txn.kv.scan(raw=True)] == RAW
        assert [key for key, _ in txn.kv.list_with_values(raw=True)] == RAW
    assert full.list(run) == IN_ORDER and full.list(run, raw=True) == RAW
    assert full.kv.list(run) == IN_ORDER and full.kv.list(run, raw=True) == RAW
    assert list(full.kv.keys(run, raw=True)) == RAW
    assert [key for key, _ in full.kv.list_with_values(run)] == IN_ORDER
    with full.snapshot(run) as view:
        assert list(view.keys()) == IN_ORDER
        assert [key for key, _ in view.scan_prefix()] == IN_ORDER
        assert [key for key, _ in view.clone().scan_prefix()] == IN_ORDER


def test_an_own_write_comes_back_as_text_too(db: Database, run: RunId) -> None:
    with db.begin(run) as txn:
        txn.put(BINARY, 1)
        assert list(txn.keys()) == [AS_TEXT] and list(txn.keys(raw=True)) == [BINARY]


def test_a_key_given_back_names_the_same_bytes_in_every_call(full: Database, run: RunId) -> None:
    assert full.get(run, AS_TEXT) == 1
    assert full.kv.exists(run, AS_TEXT) and full.kv.get_many(run, [BINARY]) == {AS_TEXT: 1}
    full.put(run, AS_TEXT, 2)
    assert full.get(run, BINARY) == 2
    assert full.kv.increment(run, AS_TEXT) == 3
    with full.begin(run) as txn:
        assert txn.get(AS_TEXT) == 3  # tracked
        assert txn.get(AS_TEXT, track=False) == 3
        found = txn.get_versioned(AS_TEXT)
        assert found is not None
        txn.cas(AS_TEXT, found.version, 4)
    assert full.list(run, AS_TEXT[0]) == [AS_TEXT]
    assert list(full.kv.keys(run, start=AS_TEXT)) == [AS_TEXT]
    assert full.kv.list(run, end=AS_TEXT) == IN_ORDER[:-1]
    assert full.delete(run, AS_TEXT) and full.get(run, BINARY) is None


def test_errors_name_keys_as_text(full: Database, run: RunId) -> None:
    one, other = full.begin(run), full.begin(run)
    for txn in (one, other):
        txn.put(BINARY, txn.get(BINARY))
    one.commit()
    with pytest.raises(ConflictError) as caught:
        other.commit()
    assert caught.value.conflicts[0].key == AS_TEXT
    full.put(run, BINARY, "text")
    with pytest.raises(NotAnIntegerError) as refused:
        full.kv.increment(run, BINARY)
    assert refused.value.key == AS_TEXT
    caught.value.message.encode()
    refused.value.message.encode()


@pytest.mark.parametrize(
    "wrong",
    ["\ud800", "a\udc7f", "\udd00", "\udcc3\udca9", "\udc41"],
    ids=["high", "low", "far", "joined", "ascii"],
)
def test_a_surrogate_that_no_byte_made_is_refused(full: Database, run: RunId, wrong: Any) -> None:
    with pytest.raises(InvalidKeyError, match="surrogate") as caught:
        full.get(run, wrong)
    caught.value.message.encode()
    with pytest.raises(InvalidKeyError, match="surrogate"):
        full.put(run, wrong, 1)
    with pytest.raises(InvalidKeyError, match="surrogate"):
        full.list(run, wrong)
    assert full.list(run) == IN_ORDER
