"""LangChain's BaseStore and BaseCache: its four public suites, and what they do not ask."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.caches import BaseCache
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, Generation, GenerationChunk
from langchain_core.stores import BaseStore
from langchain_tests.integration_tests import (
    AsyncCacheTestSuite,
    BaseStoreAsyncTests,
    BaseStoreSyncTests,
    SyncCacheTestSuite,
)

import occamdb
from occamdb import Database, ValueEncodingError
from occamdb.plugins.langchain import OccamCache, OccamKVStore
from tests.support.processes import Peer, Worker, environment, open_database, wait_until


@pytest.fixture
def db() -> Iterator[Database]:
    with occamdb.open_in_memory() as database:
        yield database


# --- The suites ---


class TestStore(BaseStoreSyncTests[bytes]):
    @pytest.fixture
    def kv_store(self, db: Database) -> BaseStore[str, bytes]:
        return OccamKVStore(db)

    @pytest.fixture
    def three_values(self) -> tuple[bytes, bytes, bytes]:
        return b"one", b"two", b""


class TestAsyncStore(BaseStoreAsyncTests[Any]):
    @pytest.fixture
    async def kv_store(self, db: Database) -> BaseStore[str, Any]:
        return OccamKVStore(occamdb.aio.wrap(db))

    @pytest.fixture
    def three_values(self) -> tuple[Any, Any, Any]:
        return {"a": [1, None]}, "text", 3.5


class TestCache(SyncCacheTestSuite):
    @pytest.fixture
    def cache(self, db: Database) -> BaseCache:
        return OccamCache(db)


class TestAsyncCache(AsyncCacheTestSuite):
    @pytest.fixture
    async def cache(self, db: Database) -> BaseCache:
        return OccamCache(occamdb.aio.wrap(db))


# --- The store ---


def test_keys_come_in_order_and_page_by_page(db: Database) -> None:
    store: OccamKVStore[int] = OccamKVStore(db)
    store.mset([(f"k{number:05}", number) for number in range(2500)] + [("", 0), ("k", 0), ("é/%\0", 0)])
    everything = ["", "k", *(f"k{number:05}" for number in range(2500)), "é/%\0"]
    assert list(store.yield_keys()) == everything
    assert list(store.yield_keys(prefix="k0001")) == [f"k0001{digit}" for digit in range(10)]
    assert list(store.yield_keys(prefix="x")) == []

    async def also() -> list[str]:
        return [key async for key in store.ayield_keys(prefix="k")]

    assert asyncio.run(also()) == everything[1:-1]
    keys = store.yield_keys()
    next(keys)
    store.mdelete(everything)
    assert len(list(keys)) == 999, "the rest of its page: a snapshot that was held would show all"


def test_stores_are_runs_and_apart(db: Database) -> None:
    one, other = OccamKVStore[int](db, name="one"), OccamKVStore[int](db, name="other")
    one.mset([("k", 1)])
    assert other.mget(["k"]) == [None]
    assert [run.name for run in db.runs.query_runs(tag="langchain-store")] == ["langchain-store/one"]
    other.mset([])
    other.mdelete(["k"])
    assert len(db.runs.list_runs()) == 1


async def test_thousands_of_tasks_at_once(db: Database) -> None:
    store: OccamKVStore[int] = OccamKVStore(occamdb.aio.wrap(db))
    await asyncio.gather(*(store.amset([(f"{number}", number)]) for number in range(2000)))
    assert await store.amget([f"{number}" for number in range(2000)]) == list(range(2000))
    await asyncio.gather(*(store.amdelete([f"{number}"]) for number in range(2000)))
    assert [key async for key in store.ayield_keys()] == []


def test_values_may_expire(db: Database) -> None:
    store: OccamKVStore[int] = OccamKVStore(db, ttl=0.05)
    store.mset([("k", 1)])
    wait_until(lambda: store.mget(["k"]) == [None], what="the end of a value")


def test_what_cannot_be_stored(db: Database) -> None:
    store: OccamKVStore[Any] = OccamKVStore(db)
    with pytest.raises(ValueEncodingError):
        store.mset([("good", 1), ("bad", object())])
    for call in (lambda: store.mset([(7, 1)]), lambda: store.mget([b"k"]), lambda: store.mdelete([None])):  # type: ignore[list-item]
        with pytest.raises(TypeError, match="a key must be a str"):
            call()
    assert list(store.yield_keys()) == [] == db.runs.list_runs()


def set_pairs(peer: Peer, path: Path, name: str) -> None:
    with open_database(path) as db:
        store: OccamKVStore[Any] = OccamKVStore(db)
        peer.say("ready")
        peer.hear()
        for number in range(200):
            store.mset([("left", [name, number]), ("right", [name, number])])


def test_calls_of_two_processes_do_not_mix(start: Callable[..., Worker], database_path: Path) -> None:
    with open_database(database_path) as db:
        store: OccamKVStore[Any] = OccamKVStore(db)
        workers = [start(set_pairs, database_path, name, method="spawn") for name in ("ann", "bob")]
        for worker in workers:
            assert worker.hear() == "ready"
        for worker in workers:
            worker.say("go")
        while any(worker.process.is_alive() for worker in workers):
            left, right = store.mget(["left", "right"])
            assert left == right
        for worker in workers:
            worker.result()
        last: Any = store.mget(["left"])[0]
        assert last[1] == 199


# --- The cache ---


@pytest.mark.parametrize(
    "answer",
    [
        Generation(text="t", generation_info={"n": [1, {"m": None}]}),
        GenerationChunk(text="t"),
        ChatGeneration(
            message=AIMessage(
                [{"type": "text", "text": "hi"}],
                id="m1",
                tool_calls=[{"name": "search", "args": {"q": 1}, "id": "c", "type": "tool_call"}],
                usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
                response_metadata={"model": "m"},
            )
        ),
        ChatGeneration(message=HumanMessage("hi", name="ada")),
        ChatGenerationChunk(message=AIMessageChunk(content="hi")),
    ],
)
def test_answers_come_back_as_they_were(db: Database, answer: Generation) -> None:
    cache = OccamCache(db)
    cache.update("p", "m", [answer])
    found = cache.lookup("p", "m")
    assert found == [answer] and [type(each) for each in found] == [type(answer)]


def test_prompt_and_model_are_told_apart(db: Database) -> None:
    cache = OccamCache(db)
    cache.update("ab", "c", [Generation(text="t")])
    assert cache.lookup("a", "bc") is None and cache.lookup("ab\ud800", "c") is None
    cache.update("x" * 1_000_000, "c", [])
    assert cache.lookup("x" * 1_000_000, "c") == []


def test_answers_that_cannot_be_kept(db: Database) -> None:
    class Other(Generation):
        pass

    cache = OccamCache(db)
    with pytest.raises(TypeError, match="not Other"):
        cache.update("p", "m", [Other(text="t")])
    with pytest.raises(ValueEncodingError):
        cache.update("p", "m", [Generation(text="t", generation_info={"n": object()})])
    assert cache.lookup("p", "m") is None and db.runs.list_runs() == []


def test_an_answer_may_expire(db: Database) -> None:
    cache = OccamCache(db, ttl=0.05)
    cache.update("p", "m", [Generation(text="t")])
    wait_until(lambda: cache.lookup("p", "m") is None, what="the end of an answer")


def test_a_model_is_asked_once(database_path: Path) -> None:
    with OccamCache(database_path) as cache:
        model = FakeListChatModel(responses=["first", "second"], cache=cache)
        assert [model.invoke("hello").content, model.invoke("hello").content] == ["first", "first"]

    async def again() -> Any:
        async with OccamCache(str(database_path)) as cache:
            return await FakeListChatModel(responses=["other"], cache=cache).ainvoke("hello")

    assert asyncio.run(again()).content == "other", "the text of another model is another key"


def test_without_langchain_it_says_what_to_install() -> None:
    program = "import sys; sys.modules['langchain_core.caches'] = None; import occamdb.plugins.langchain"
    done = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True)
    assert done.returncode == 1 and "pip install 'occamdb[langchain]'" in done.stderr
