"""The py-key-value store: what its project asks of every store, case by case, and what ours promises on top."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from key_value.aio.errors import InvalidKeyError, InvalidTTLError, SerializationError, ValueTooLargeError
from key_value.aio.protocols.key_value import (
    AsyncCullProtocol,
    AsyncDestroyCollectionProtocol,
    AsyncDestroyStoreProtocol,
    AsyncEnumerateCollectionsProtocol,
    AsyncEnumerateKeysProtocol,
    AsyncKeyValueProtocol,
)
from pydantic import AnyHttpUrl

import occamdb
import occamdb.aio
from occamdb import Database
from occamdb.plugins.key_value import OccamKeyValueStore

A, B = {"v": "a"}, {"v": "b"}
MOMENT = datetime(2025, 1, 1, tzinfo=UTC)

ROUND_TRIPS: dict[str, dict[str, Any]] = {
    "none": {"k": None},
    "nones in a list": {"k": [None, None, None]},
    "nones in a dict": {"k": {"x": None, "y": None}},
    "a key that reads as null": {"null": "text"},
    "text that reads as null": {"k": "null"},
    "true": {"k": True},
    "false": {"k": False},
    "booleans in a list": {"k": [True, False, True]},
    "booleans in a dict": {"k": {"x": True, "y": False}},
    "a key that reads as true": {"true": "text"},
    "text that reads as true": {"k": "true"},
    "an integer": {"k": 1},
    "a negative integer": {"k": -42},
    "a large integer": {"k": 10**18},
    "an integer beyond 64 bits": {"k": 10**30},
    "a key that reads as an integer": {"1": "text"},
    "text that reads as an integer": {"k": "1"},
    "a float": {"k": 1.0},
    "a large float": {"k": 1.23456789012345 * 10**10},
    "a key that reads as a float": {"1.0": "text"},
    "text that reads as a float": {"k": "1.0"},
    "text": {"k": "text"},
    "a KiB of text": {"k": "a" * 1024},
    "text of several scripts": {"k": "Hello 世界 🌍 émojis"},
    "control characters": {"k": "Line1\nLine2\tTabbed"},
    "a key that reads as a uuid": {str(uuid.UUID(int=7)): "text"},
    "text that reads as a uuid": {"k": str(uuid.UUID(int=7))},
    "long text": {"k": "a" * 10_000},
    "a long list": {"k": list(range(1000))},
    "dicts in dicts": {"a": {"b": {"c": {"d": {"e": "deep"}}}}},
    "dicts in a long list": {"items": [{"id": 1}, {"id": 2}] * 1000},
}
REFUSED: dict[str, dict[str, Any]] = {
    "a datetime": {"k": MOMENT},
    "a date": {"k": MOMENT.date()},
    "a time": {"k": MOMENT.time()},
    "a uuid": {"k": uuid.UUID(int=7)},
    "bytes": {"k": b"hello"},
    "a set": {"k": {1, 2, 3}},
    "a url": {"k": AnyHttpUrl("https://example.com")},
}


@pytest.fixture
async def db() -> AsyncIterator[occamdb.aio.AsyncDatabase]:
    async with occamdb.aio.open_in_memory(max_store_size="32MiB") as opened:
        yield opened


@pytest.fixture
async def store(db: occamdb.aio.AsyncDatabase) -> OccamKeyValueStore:
    return OccamKeyValueStore(db)


async def until_gone(store: OccamKeyValueStore, key: str, collection: str) -> None:
    end = time.monotonic() + 30
    while await store.get(key, collection=collection) is not None:
        assert time.monotonic() < end, "the entry did not expire"
        await asyncio.sleep(0.01)


class TestWhatEveryStoreMust:
    """The cases of upstream's BaseStoreTests, in its order."""

    async def test_it_is_one(self, store: OccamKeyValueStore) -> None:
        for protocol in (
            AsyncKeyValueProtocol,
            AsyncCullProtocol,
            AsyncEnumerateKeysProtocol,
            AsyncEnumerateCollectionsProtocol,
            AsyncDestroyStoreProtocol,
            AsyncDestroyCollectionProtocol,
        ):
            assert isinstance(store, protocol)

    async def test_an_empty_store(self, store: OccamKeyValueStore) -> None:
        assert await store.get("k", collection="c") is None
        assert await store.ttl("k", collection="c") == (None, None)
        assert await store.delete("k", collection="c") is False
        assert await store.delete_many(["k", "l"], collection="c") == 0
        await store.put("k", A, collection="c")

    @pytest.mark.parametrize("name", ROUND_TRIPS)
    async def test_values(self, store: OccamKeyValueStore, name: str) -> None:
        await store.put("k", ROUND_TRIPS[name], collection="c")
        assert await store.get("k", collection="c") == ROUND_TRIPS[name]

    @pytest.mark.parametrize("name", REFUSED)
    async def test_values_that_are_not_json(self, store: OccamKeyValueStore, name: str) -> None:
        with pytest.raises(SerializationError):
            await store.put("k", REFUSED[name], collection="c")
        with pytest.raises(SerializationError):
            await store.put_many(["j", "k"], [A, REFUSED[name]], collection="c")
        assert await store.get_many(["j", "k"], collection="c") == [None, None]

    async def test_tuples_come_back_as_lists(self, store: OccamKeyValueStore) -> None:
        await store.put("k", {"k": (1, "two", 3.0)}, collection="c")
        assert await store.get("k", collection="c") == {"k": [1, "two", 3.0]}

    async def test_get_put_get_delete_get(self, store: OccamKeyValueStore) -> None:
        assert await store.get("k", collection="c") is None
        await store.put("k", A, collection="c")
        assert await store.get("k", collection="c") == A
        assert await store.delete("k", collection="c") is True
        assert await store.get("k", collection="c") is None
        assert await store.delete("k", collection="c") is False

    async def test_put_put_delete_get(self, store: OccamKeyValueStore) -> None:
        await store.put("k", A, collection="c")
        await store.put("k", B, collection="c")
        assert await store.get("k", collection="c") == B
        assert await store.delete("k", collection="c")
        assert await store.get("k", collection="c") is None

    async def test_many_put_as_one(self, store: OccamKeyValueStore) -> None:
        await store.put_many(["k", "l"], [A, B], collection="c")
        assert await store.get("k", collection="c") == A
        assert await store.get("l", collection="c") == B
        assert await store.get_many(["k", "l"], collection="c") == [A, B]
        await store.put_many(["k", "l"], (B, A), collection="c")
        assert await store.get_many(("k", "l"), collection="c") == [B, A]
        await store.put_many([], [], collection="c")
        with pytest.raises(ValueError, match="different number of keys and values"):
            await store.put_many(["k"], [A, B], collection="c")

    async def test_one_by_one_got_as_many(self, store: OccamKeyValueStore) -> None:
        await store.put("k", A, collection="c")
        await store.put("l", B, collection="c")
        assert await store.get_many(["k", "l"], collection="c") == [A, B]
        assert await store.get_many(["k", "l", "m"], collection="c") == [A, B, None]
        assert await store.get_many(["m", "k", "k"], collection="c") == [None, A, A]

    async def test_many_deleted(self, store: OccamKeyValueStore) -> None:
        await store.put_many(["k", "l"], [A, B], collection="c")
        assert await store.delete_many(["k", "l"], collection="c") == 2
        assert await store.get_many(["k", "l"], collection="c") == [None, None]
        await store.put("k", A, collection="c")
        assert await store.delete_many(["k", "l", "k"], collection="c") == 1
        assert await store.delete_many(["k", "l"], collection="c") == 0

    async def test_many_put_and_deleted_one_by_one(self, store: OccamKeyValueStore) -> None:
        await store.put_many(["k", "l"], [A, B], collection="c")
        assert await store.delete("k", collection="c")
        assert await store.delete("l", collection="c")
        assert await store.get_many(["k", "l"], collection="c") == [None, None]

    async def test_a_time_to_live(self, store: OccamKeyValueStore) -> None:
        await store.put("k", A, collection="c", ttl=100)
        value, seconds = await store.ttl("k", collection="c")
        assert value == A
        assert seconds == pytest.approx(100, abs=30) and seconds <= 100
        await store.put_many(["l", "m"], [A, B], collection="c", ttl=200.5)
        pairs = await store.ttl_many(["k", "l", "m", "n"], collection="c")
        assert [value for value, _ in pairs] == [A, A, B, None]
        assert [None if seconds is None else round(seconds, -2) for _, seconds in pairs] == [
            100,
            200,
            200,
            None,
        ]
        await store.put("k", A, collection="c")
        assert await store.ttl("k", collection="c") == (A, None), "the last put counts"

    @pytest.mark.parametrize("ttl", [-100, 0, True])
    async def test_a_wrong_time_to_live(self, store: OccamKeyValueStore, ttl: Any) -> None:
        with pytest.raises(InvalidTTLError):
            await store.put("k", A, collection="c", ttl=ttl)
        with pytest.raises(InvalidTTLError):
            await store.put_many(["k"], [A], collection="c", ttl=ttl)
        with pytest.raises(InvalidTTLError):
            await store.put_if_absent("k", A, collection="c", ttl=ttl)

    async def test_what_expired_is_absent(self, store: OccamKeyValueStore) -> None:
        await store.put("k", A, collection="c", ttl=0.2)
        await store.put(
            "l", A, collection="c", ttl=300 * 365 * 86_400
        )  # beyond what the engine keeps time of
        await until_gone(store, "k", "c")
        assert await store.ttl_many(["k"], collection="c") == [(None, None)]
        assert await store.delete("k", collection="c") is False
        assert await store.keys("c") == ["l"]

    @pytest.mark.parametrize("name", ["test_collection" * 100, "test_collection!@#$%^&*()", "a/b", "世界"])
    async def test_names_of_collections(self, store: OccamKeyValueStore, name: str) -> None:
        await store.put("k", A, collection=name)
        assert await store.get("k", collection=name) == A
        assert await store.collections() == [name]

    @pytest.mark.parametrize("key", ["test_key" * 100, "test_key!@#$%^&*()", "a/b", "世界", "nul\0"])
    async def test_keys(self, store: OccamKeyValueStore, key: str) -> None:
        await store.put(key, A, collection="c")
        assert await store.get(key, collection="c") == A
        assert await store.get_many([key], collection="c") == [A]
        assert await store.keys("c") == [key]

    async def test_it_has_no_bound_of_entries(self, store: OccamKeyValueStore) -> None:
        await store.put_many([f"k{n}" for n in range(1000)], [{"n": n} for n in range(1000)], collection="c")
        assert await store.get("k0", collection="c") == {"n": 0}
        assert len(await store.keys("c")) == 1000
        assert len(await store.keys("c", limit=10)) == 10

    async def test_tasks_at_once(self, store: OccamKeyValueStore) -> None:
        async def worker(number: int) -> None:
            for n in range(5):
                key = f"{number}/{n}"
                assert await store.get(key, collection="c") is None
                for value in (A, B):
                    await store.put(key, value, collection="c")
                    assert await store.get(key, collection="c") == value
                assert await store.delete(key, collection="c")
                assert await store.get(key, collection="c") is None

        await asyncio.gather(*[worker(number) for number in range(3)])

    async def test_put_if_absent(self, store: OccamKeyValueStore) -> None:
        assert await store.put_if_absent("k", A, collection="c") is True
        assert await store.put_if_absent("k", B, collection="c") is False
        assert await store.get("k", collection="c") == A
        assert await store.put_if_absent("l", A, collection="c", ttl=0.2) is True
        assert await store.put_if_absent("l", B, collection="c") is False
        await until_gone(store, "l", "c")
        assert await store.put_if_absent("l", B, collection="c", ttl=100) is True
        value, seconds = await store.ttl("l", collection="c")
        assert value == B and seconds == pytest.approx(100, abs=30)

    async def test_put_if_absent_has_one_winner(self, store: OccamKeyValueStore) -> None:
        tries = [store.put_if_absent("k", {"n": n}, collection="c") for n in range(20)]
        results = await asyncio.gather(*tries)
        assert results.count(True) == 1 and results.count(False) == 19
        assert await store.get("k", collection="c") == {"n": results.index(True)}


class TestCollections:
    async def test_one_is_a_run(self, db: occamdb.aio.AsyncDatabase, store: OccamKeyValueStore) -> None:
        await store.put("k", A, collection="users")
        await store.put("k", B)
        runs = db.runs.query_runs(tag="key-value")
        assert [run.name for run in runs] == ["key-value/users", "key-value/default_collection"]
        assert db.kv.list(runs[0]) == ["k"]
        assert await store.collections() == ["users", "default_collection"]
        assert await store.get("k", collection="users") == A
        await db.runs.delete_run(runs[0])
        assert await store.get("k", collection="users") is None
        await store.put("k", B, collection="users")
        assert "users" in await store.collections(), "a run that was deleted is created again"

    async def test_destroying_one(self, store: OccamKeyValueStore) -> None:
        await store.put("k", A, collection="c")
        await store.put("k", A, collection="d")
        assert await store.destroy_collection("c") is True
        assert await store.destroy_collection("c") is False
        assert await store.get("k", collection="c") is None
        assert await store.collections() == ["d"]

    async def test_destroying_all(self, db: occamdb.aio.AsyncDatabase, store: OccamKeyValueStore) -> None:
        other = OccamKeyValueStore(db, name="tokens")
        for each in (store, other):
            await each.put("k", A, collection="c")
            await each.put("k", A, collection="d")
        assert await store.destroy() is True
        assert await store.collections() == []
        assert await other.get("k", collection="c") == A, "another store of the database stays"
        assert await other.collections() == ["c", "d"]

    async def test_culling(self, db: occamdb.aio.AsyncDatabase, store: OccamKeyValueStore) -> None:
        await store.put("k", A, collection="c", ttl=0.1)
        await store.put("k", A, collection="d", ttl=0.1)
        await store.put("l", A, collection="d")
        await until_gone(store, "k", "c")
        await until_gone(store, "k", "d")
        assert await store.collections() == ["c", "d"]
        await store.cull()
        assert await store.collections() == ["d"], "collections without entries go"
        assert await store.get("l", collection="d") == A

    async def test_seeds(self, db: occamdb.aio.AsyncDatabase) -> None:
        store = OccamKeyValueStore(db, seed={"c": {"k": A}}, default_collection="c")
        assert await store.get("k") == A


class TestBadInput:
    @pytest.mark.parametrize("key", ["", "a" * 20_000, "\ud800"])
    async def test_keys_that_cannot_be(self, store: OccamKeyValueStore, key: str) -> None:
        with pytest.raises(InvalidKeyError):
            await store.put(key, A, collection="c")
        with pytest.raises(InvalidKeyError):
            await store.put_many(["k", key], [A, B], collection="c")
        assert await store.get("k", collection="c") is None

    async def test_a_collection_that_cannot_be(self, store: OccamKeyValueStore) -> None:
        with pytest.raises(InvalidKeyError, match="lone surrogates"):
            await store.put("k", A, collection="\ud800")

    async def test_a_value_that_is_too_large(self, tmp_path: Path) -> None:
        async with occamdb.aio.open_in_memory(value_size_max="64KiB", max_store_size="16MiB") as db:
            store = OccamKeyValueStore(db)
            with pytest.raises(ValueTooLargeError, match="max_size: 65536"):
                await store.put("k", {"v": "a" * 100_000}, collection="c")
            assert await store.collections() == []

    def test_things_that_are_no_database_or_name(self, tmp_path: Path) -> None:
        wrong: Any = 7
        with pytest.raises(TypeError, match="the path of a database, got int"):
            OccamKeyValueStore(wrong)
        with pytest.raises(TypeError, match="must be a str"):
            OccamKeyValueStore(tmp_path, name=wrong)

    def test_without_the_extra(self) -> None:
        program = "import sys; sys.modules['key_value.aio.errors'] = None\nimport occamdb.plugins.key_value\n"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.returncode == 1
        assert "pip install 'occamdb[key-value]'" in done.stderr


@pytest.mark.parametrize("in_context", [True, False])
async def test_a_path_is_opened_and_closed(database_path: Path, in_context: bool) -> None:
    store = OccamKeyValueStore(database_path)
    if in_context:
        async with store:
            await store.put("k", A)
    else:
        await store.put("k", A)
        await store.close()
    assert await store.get("k") == A, "it is opened again when it is used again"
    await store.close()


def test_event_loops_one_after_the_other(database_path: Path) -> None:
    with occamdb.open(database_path) as db:
        store = OccamKeyValueStore(db)
        asyncio.run(store.put("k", A))
        assert asyncio.run(store.get("k")) == A


def count_in(path: Path, number: int) -> int:
    """A process that puts 50 entries and claims what is free of 20 names; how many it got."""

    async def work() -> int:
        async with OccamKeyValueStore(path) as store:
            for n in range(50):
                await store.put(f"{number}/{n}", {"n": n}, collection="entries")
            claims = [
                await store.put_if_absent(f"{n}", {"by": number}, collection="claims") for n in range(20)
            ]
            return claims.count(True)

    return asyncio.run(work())


def test_processes_at_once(database_path: Path) -> None:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        won = [future.result(60) for future in [pool.submit(count_in, database_path, n) for n in range(4)]]
    assert sum(won) == 20, "each name has one owner"
    with occamdb.open(database_path) as db:
        store = OccamKeyValueStore(db)
        assert len(asyncio.run(store.keys("entries"))) == 200
        assert len(runs_of(db)) == 2


def runs_of(db: Database) -> list[str]:
    return [run.name for run in db.runs.query_runs(tag="key-value")]
