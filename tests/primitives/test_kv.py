"""KVStore: every method in both forms, the mapping, and what may not go in."""

import time
from datetime import timedelta
from typing import Any

import pytest

from occamdb.engine.model.errors import (
    CASConflict,
    ConflictError,
    IntegerOverflowError,
    InvalidArgumentError,
    InvalidKeyError,
    NotAnIntegerError,
    ValueEncodingError,
)
from occamdb.engine.model.public_types import RunId
from occamdb.primitives import KVStore, KVTransaction


def test_put_and_get(do: Any) -> None:
    do.kv.put("k", {"a": [1, 2.5, None, b"x"]})
    assert do.kv.get("k") == {"a": [1, 2.5, None, b"x"]}


def test_an_absent_key_is_the_default(do: Any) -> None:
    assert do.kv.get("k") is None
    assert do.kv.get("k", 7) == 7
    assert do.kv.get_versioned("k") is None
    assert not do.kv.exists("k")


def test_a_stored_none_is_there(do: Any) -> None:
    do.kv.put("k", None)
    assert do.kv.exists("k")
    assert do.kv.get("k", 7) is None


def test_get_versioned_grows_with_each_write(do: Any) -> None:
    do.kv.put("k", 1)
    first = do.kv.get_versioned("k")
    do.kv.put("k", 2)
    second = do.kv.get_versioned("k")
    assert (first.value, second.value) == (1, 2)
    assert second.version > first.version
    assert second.timestamp.utcoffset() == timedelta(0)
    assert second.expires_at is None


def test_delete_tells_whether_it_was_there(do: Any) -> None:
    do.kv.put("k", 1)
    assert do.kv.delete("k") is True
    assert do.kv.delete("k") is False
    assert not do.kv.exists("k")


def test_str_and_bytes_name_the_same_key(do: Any) -> None:
    do.kv.put("k", 1)
    do.kv.put(b"\xff", 2)
    assert do.kv.get(b"k") == 1
    assert do.kv.list() == ["k", "\udcff"]
    assert do.kv.list(raw=True) == [b"k", b"\xff"]


def test_list_bounds(do: Any) -> None:
    do.kv.put_many({f"a{n}": n for n in range(5)} | {"b": 9})
    assert do.kv.list() == ["a0", "a1", "a2", "a3", "a4", "b"]
    assert do.kv.list("a") == ["a0", "a1", "a2", "a3", "a4"]
    assert do.kv.list("a", start="a2") == ["a2", "a3", "a4"]
    assert do.kv.list("a", end="a2") == ["a0", "a1"]
    assert do.kv.list("a", limit=2) == ["a0", "a1"]
    assert do.kv.list("a", limit=2, reverse=True) == ["a4", "a3"]
    assert do.kv.list("c") == []


def test_list_with_values(do: Any) -> None:
    do.kv.put_many([("a", 1), ("b", 2)])
    rows = do.kv.list_with_values()
    assert rows == [("a", 1), ("b", 2)]
    assert do.kv.list_with_values("b", limit=1) == [("b", 2)]


def test_keys_and_scan(do: Any) -> None:
    do.kv.put_many({f"a{n}": n for n in range(5)} | {"b": 9})
    assert do.kv.keys("a", start="a1", end="a4", reverse=True) == ["a3", "a2", "a1"]
    rows = do.kv.scan("a", limit=2)
    assert [(key, found.value) for key, found in rows] == [("a0", 0), ("a1", 1)]
    assert rows[0][1] == do.kv.get_versioned("a0")


def test_count(do: Any) -> None:
    do.kv.put_many({"a1": 1, "a2": 2, "b": 3})
    assert do.kv.count() == 3
    assert do.kv.count("a") == 2


def test_keys_are_read_lazily_from_one_snapshot(db: Any, run: RunId) -> None:
    db.kv.put_many(run, {f"k{n:04}": n for n in range(1000)})
    keys = db.kv.keys(run)
    assert next(keys) == "k0000"
    db.kv.delete(run, "k0999")
    assert list(keys)[-1] == "k0999"
    assert db.kv.count(run) == 999


def test_get_many_leaves_out_what_is_absent(do: Any) -> None:
    do.kv.put_many({"a": 1, "b": None})
    assert do.kv.get_many(["a", "b", "c"]) == {"a": 1, "b": None}
    with pytest.raises(InvalidArgumentError, match="several keys"):
        do.kv.get_many("abc")


def test_put_many_is_all_or_nothing(do: Any) -> None:
    with pytest.raises(ValueEncodingError):
        do.kv.put_many([("a", 1), ("b", object())])
    assert do.kv.list() == []


def test_cas(do: Any) -> None:
    do.kv.cas("k", 0, "created")
    version = do.kv.get_versioned("k").version
    do.kv.cas("k", version, "changed")
    assert do.kv.get("k") == "changed"
    for stale in (0, version):
        with pytest.raises(ConflictError) as caught:
            do.kv.cas("k", stale, "no")
        assert [type(conflict) for conflict in caught.value.conflicts] == [CASConflict]
        assert caught.value.conflicts[0].expected_version == stale
    assert do.kv.get("k") == "changed"


def test_implicit_writes_return_the_new_version(db: Any, run: RunId) -> None:
    assert db.kv.put(run, "k", 1) == db.kv.get_versioned(run, "k").version
    version = db.kv.get_versioned(run, "k").version
    assert db.kv.cas(run, "k", version, 2) == db.kv.get_versioned(run, "k").version > version
    with pytest.raises(CASConflict) as caught:
        db.kv.cas(run, "k", version, 3)
    assert (caught.value.key, caught.value.expected_version) == ("k", version)


def test_put_if_absent(do: Any) -> None:
    assert do.kv.put_if_absent("k", 1) is True
    assert do.kv.put_if_absent("k", 2) is False
    assert do.kv.get("k") == 1


def test_an_expired_key_is_absent(do: Any) -> None:
    do.kv.put_with_ttl("k", 1, 0.02)
    do.kv.put("l", 1, ttl=timedelta(hours=1))
    deadline = time.monotonic() + 10
    while do.kv.exists("k") and time.monotonic() < deadline:
        time.sleep(0.005)
    assert do.kv.get("k") is None
    assert do.kv.list() == ["l"]
    assert do.kv.put_if_absent("k", 2) is True


def test_ttl_is_the_time_left(do: Any) -> None:
    do.kv.put_with_ttl("k", 1, 60)
    do.kv.put("forever", 1)
    assert 0 < do.kv.ttl("k") <= 60
    assert do.kv.ttl("forever") is None
    assert do.kv.ttl("absent") is None
    with pytest.raises(InvalidArgumentError):
        do.kv.put_with_ttl("k", 1, None)
    with pytest.raises(InvalidArgumentError):
        do.kv.put_with_ttl("k", 1, -1)


def test_increment_from_absent(do: Any) -> None:
    do.kv.increment("n")
    do.kv.increment("n", by=41)
    do.kv.increment("n", -2)
    assert do.kv.get("n") == 40


def test_increment_returns_the_value_outside_and_none_inside(db: Any, run: RunId) -> None:
    assert db.kv.increment(run, "n", 5) == 5
    assert db.kv.increment(run, "n") == 6
    with db.begin(run) as txn:
        assert txn.kv.increment("n") is None
        assert txn.kv.get("n") == 7
    assert db.kv.get(run, "n") == 7


def test_increment_of_something_else_changes_nothing(do: Any) -> None:
    do.kv.put("k", "text")
    with pytest.raises(NotAnIntegerError):
        do.kv.increment("k")
    assert do.kv.get("k") == "text"


def test_increment_that_overflows_changes_nothing(do: Any) -> None:
    do.kv.put("k", 2**64 - 1)
    with pytest.raises(IntegerOverflowError):
        do.kv.increment("k")
    assert do.kv.get("k") == 2**64 - 1
    with pytest.raises(InvalidArgumentError):
        do.kv.increment("k", "1")


def test_increments_never_conflict(db: Any, run: RunId) -> None:
    with db.begin(run) as first, db.begin(run) as second:
        first.kv.increment("n")
        second.kv.increment("n")
        db.kv.increment(run, "n")
    assert db.kv.get(run, "n") == 3


def test_an_increment_that_is_read_can_conflict(db: Any, run: RunId) -> None:
    txn = db.begin(run)
    txn.kv.increment("n")
    assert txn.kv.get("n") == 1
    db.kv.increment(run, "n")
    with pytest.raises(ConflictError):
        txn.commit()
    assert db.kv.get(run, "n") == 1


@pytest.mark.parametrize("key", ["", b"", 1, None])
def test_a_wrong_key_is_refused(do: Any, key: Any) -> None:
    with pytest.raises(InvalidKeyError):
        do.kv.put(key, 1)
    with pytest.raises(InvalidKeyError):
        do.kv.get(key)


def test_a_value_that_cannot_be_stored_names_its_place(do: Any) -> None:
    with pytest.raises(ValueEncodingError) as caught:
        do.kv.put("k", {"a": [1, {2}]})
    assert caught.value.path == 'value["a"][1]'
    assert caught.value.hint


def test_what_comes_back_is_a_fresh_object(do: Any) -> None:
    value = {"a": [1]}
    do.kv.put("k", value)
    value["a"].append(2)
    do.kv.get("k")["a"].append(3)
    assert do.kv.get("k") == {"a": [1]}


def test_transaction_of_its_own(db: Any, run: RunId) -> None:
    def move(kv: KVTransaction) -> int:
        assert isinstance(kv, KVTransaction)
        amount: int = kv.get("a")
        kv.put("b", amount)
        kv.delete("a")
        return amount

    db.kv.put(run, "a", 5)
    assert db.kv.transaction(run, move) == 5
    assert dict(db.kv.mapping(run)) == {"b": 5}


def test_transaction_aborts_on_an_exception(db: Any, run: RunId) -> None:
    def fail(kv: KVTransaction) -> None:
        kv.put("a", 1)
        raise KeyError("no")

    with pytest.raises(KeyError):
        db.kv.transaction(run, fail)
    assert db.kv.get(run, "a") is None


def test_transaction_is_retried(db: Any, run: RunId) -> None:
    tries = []

    def raced(kv: KVTransaction) -> None:
        tries.append(kv.get("n", 0))
        if len(tries) == 1:
            db.kv.put(run, "n", 10)
        kv.put("n", tries[-1] + 1)

    db.kv.transaction(run, raced)
    assert (tries, db.kv.get(run, "n")) == ([0, 10], 11)


def test_facades_are_made_by_hand_too(db: Any, run: RunId) -> None:
    KVStore(db).put(run, "k", 1)
    with db.begin(run) as txn:
        assert KVStore(txn).get("k") == 1


def test_the_database_form_has_no_space(db: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="inside a transaction"):
        _ = KVStore(db).space


# --- mapping ---


@pytest.fixture(params=["implicit", "in_transaction"])
def mapping(request: pytest.FixtureRequest, db: Any, run: RunId) -> Any:
    if request.param == "implicit":
        yield db.kv.mapping(run)
    else:
        with db.begin(run) as txn:
            yield txn.kv.mapping()


def test_mapping_is_a_mutable_mapping(mapping: Any) -> None:
    mapping["b"] = 2
    mapping["a"] = 1
    mapping.update({"c": 3}, d=4)
    assert list(mapping) == ["a", "b", "c", "d"]
    assert dict(mapping) == {"a": 1, "b": 2, "c": 3, "d": 4}
    assert list(mapping.items())[:2] == [("a", 1), ("b", 2)]
    assert list(mapping.values()) == [1, 2, 3, 4]
    assert len(mapping) == 4
    assert "a" in mapping and "z" not in mapping and 5 not in mapping and "" not in mapping
    assert mapping == {"a": 1, "b": 2, "c": 3, "d": 4}


def test_mapping_errors(mapping: Any) -> None:
    for action in (lambda: mapping["x"], lambda: mapping.pop("x"), mapping.popitem):
        with pytest.raises(KeyError):
            action()
    with pytest.raises(KeyError):
        del mapping["x"]


def test_mapping_pop_setdefault_clear(mapping: Any) -> None:
    mapping.update(a=1, b=2, c=None)
    assert mapping.pop("a") == 1
    assert mapping.pop("a", 9) == 9
    assert mapping.setdefault("b", 5) == 2
    assert mapping.setdefault("c", 5) is None
    assert mapping.setdefault("d", 5) == 5
    assert mapping.popitem() == ("d", 5)
    del mapping["c"]
    mapping.clear()
    assert len(mapping) == 0
    mapping["again"] = 1
    assert list(mapping) == ["again"]
