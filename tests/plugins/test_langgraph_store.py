"""OccamStore: items, batches, filters, namespaces, times to live; in threads, event loops and processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from langgraph.store.base import (
    BaseStore,
    GetOp,
    InvalidNamespaceError,
    ListNamespacesOp,
    MatchCondition,
    Op,
    PutOp,
    SearchOp,
)

import occamdb
import occamdb.aio
from occamdb import Database, ValueEncodingError
from occamdb.plugins.langgraph import OccamSaver, OccamStore
from tests.plugins.langgraph_graphs import Log, chain_of, thread
from tests.support.processes import Peer, Worker, open_database, wait_until

NS = ("users", "ada")


@pytest.fixture
def db() -> Iterator[Database]:
    with occamdb.open_in_memory() as database:
        yield database


@pytest.fixture
def store(db: Database) -> OccamStore:
    return OccamStore(db)


def keys(items: Any) -> list[str]:
    return [item.key for item in items]


def run_of(store: OccamStore) -> Any:
    (run,) = store.engine.db.runs.query_runs(tag="langgraph-store")
    return run


# --- Items and batches ---


def test_an_item_is_created_updated_and_deleted(store: OccamStore) -> None:
    before = datetime.now(UTC)
    assert store.get(NS, "likes") is None
    store.put(NS, "likes", {"what": "engines"})
    first = store.get(NS, "likes")
    assert first is not None
    assert (first.namespace, first.key, first.value) == (NS, "likes", {"what": "engines"})
    assert before <= first.created_at == first.updated_at <= datetime.now(UTC)
    store.put(NS, "likes", {"what": ["looms", None, 2.5]})
    second = store.get(NS, "likes")
    assert second is not None and second.value == {"what": ["looms", None, 2.5]}
    assert second.created_at == first.created_at and second.updated_at > first.updated_at
    store.delete(NS, "likes")
    store.delete(NS, "likes")
    assert store.get(NS, "likes") is None


def test_a_batch_reads_the_state_before_what_it_writes(store: OccamStore) -> None:
    store.put(NS, "old", {"n": 1})
    ops: list[Op] = [
        GetOp(NS, "old"),
        PutOp(NS, "old", {"n": 2}),
        PutOp(NS, "new", {"n": 3}),
        SearchOp(("users",), filter={"n": {"$gte": 1}}),
        ListNamespacesOp(),
        GetOp(NS, "new"),
        PutOp(("other",), "x", {"n": 4}),
        PutOp(("other",), "x", None),
    ]
    got, _, _, found, namespaces, absent, *_ = store.batch(ops)
    assert got.value == {"n": 1} and keys(found) == ["old"]  # type: ignore[union-attr]
    assert namespaces == [NS] and absent is None
    assert {key: store.get(NS, key).value["n"] for key in ("old", "new")} == {"old": 2, "new": 3}  # type: ignore[union-attr]
    assert store.list_namespaces() == [NS], "of two puts of one item the last one counts"
    assert store.batch([]) == []


def test_a_batch_is_stored_whole_or_not_at_all(store: OccamStore) -> None:
    with pytest.raises(ValueEncodingError):
        store.batch([PutOp(NS, "good", {"n": 1}), PutOp(NS, "bad", {"n": object()})])
    assert store.search(("users",)) == []


async def test_the_same_in_an_event_loop(db: Database) -> None:
    store = OccamStore(occamdb.aio.wrap(db))
    await asyncio.gather(*(store.aput(NS, f"{n:04}", {"n": n}) for n in range(1500)))
    assert sorted(keys(await store.asearch(NS, limit=2000, filter={"n": {"$lt": 3}}))) == [
        "0000",
        "0001",
        "0002",
    ]
    assert (await store.aget(NS, "0007")).value == {"n": 7}  # type: ignore[union-attr]
    assert await store.alist_namespaces(max_depth=1) == [("users",)]
    await store.adelete(NS, "0007")
    assert await store.aget(NS, "0007") is None
    got = await asyncio.gather(*(store.aget(NS, f"{n:04}") for n in range(1500)))
    assert sum(item is not None for item in got) == 1499


def test_stores_of_other_names_are_apart(db: Database, store: OccamStore) -> None:
    OccamStore(db, name="second").put(NS, "k", {"n": 2})
    assert store.get(NS, "k") is None
    assert sorted(run.name for run in db.runs.query_runs(tag="langgraph-store")) == ["langgraph-store/second"]


# --- Searching ---


def test_searching_pages_and_order(store: OccamStore) -> None:
    for number in range(25):
        store.put(("docs", f"user{number % 2}"), f"{number}", {"n": number})
    store.put(("docs", "user0"), "4", {"n": 4})  # the latest update
    assert keys(store.search(("docs",), limit=3)) == ["4", "24", "23"]
    assert keys(store.search(("docs",), limit=3, offset=3)) == ["22", "21", "20"]
    assert len(store.search(("docs",))) == 10 and len(store.search((), limit=100)) == 25
    assert keys(store.search(("docs", "user1"), limit=2)) == ["23", "21"]
    assert (
        store.search(("docs",), offset=25) == [] == store.search(("docs",), limit=0) == store.search(("do",))
    )
    assert store.search(("docs",), limit=1)[0].score is None


@pytest.mark.parametrize(
    ("condition", "found"),
    [
        ({}, "abcd"),
        ({"kind": "report"}, "ab"),
        ({"n": 2}, "b"),
        ({"n": {"$gt": 1}}, "bc"),
        ({"n": {"$gte": 1, "$lt": 3}}, "ab"),
        ({"n": {"$lte": 2.0}}, "ab"),
        ({"n": {"$eq": 3}}, "c"),
        ({"n": {"$ne": 3}}, "abd"),
        ({"kind": {"$gt": "note"}}, "ab"),
        ({"kind": "report", "n": {"$gt": 1}}, "b"),
        ({"by": {"name": "ada"}}, "ad"),
        ({"by": {"name": "ada", "age": {"$gt": 30}}}, "d"),
        ({"by.name": "ada"}, "ad"),
        ({"by.age.x": 1}, ""),
        ({"a.b": 1}, "c"),
        ({"tags": ["x", "y"]}, "a"),
        ({"tags": ("x", "y")}, "a"),
        ({"done": True}, "a"),
        ({"n": True}, ""),
        ({"done": 1}, ""),
        ({"n": None}, "d"),
        ({"n": {"$gt": "1"}}, ""),
        ({"absent": {"$lt": 5}}, ""),
        ({"kind": "x' OR '1'='1"}, ""),
        ({"kind') --": "x"}, ""),
    ],
)
def test_filters(store: OccamStore, condition: dict[str, Any], found: str) -> None:
    store.put(NS, "a", {"kind": "report", "n": 1, "by": {"name": "ada"}, "tags": ["x", "y"], "done": True})
    store.put(NS, "b", {"kind": "report", "n": 2, "by": {"name": "bob"}, "done": False})
    store.put(NS, "c", {"kind": "note", "n": 3, "by": "ada", "a.b": 1})
    store.put(NS, "d", {"by": {"name": "ada", "age": 36}})
    assert "".join(sorted(keys(store.search(("users",), filter=condition)))) == found


def test_an_unknown_operator_is_refused(store: OccamStore) -> None:
    store.put(NS, "a", {"n": 1})
    with pytest.raises(ValueError, match=r"unknown operator '\$near'.*\$lte"):
        store.search(NS, filter={"n": {"$near": 1}})


# --- Namespaces ---

PATHS = [
    ("a", "b", "c"),
    ("a", "b", "d", "e"),
    ("a", "b", "d", "i"),
    ("a", "b", "f"),
    ("a", "c", "f"),
    ("b", "a", "f"),
    ("users", "123"),
    ("users", "456", "settings"),
    ("admin", "users", "789"),
]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({}, sorted(PATHS)),
        ({"prefix": ("a", "b")}, PATHS[:4]),
        ({"prefix": ("a", "*", "f")}, [("a", "b", "f"), ("a", "c", "f")]),
        ({"prefix": ("*", "users")}, [("admin", "users", "789")]),
        ({"suffix": ("f",)}, [("a", "b", "f"), ("a", "c", "f"), ("b", "a", "f")]),
        ({"suffix": ("d", "*")}, [("a", "b", "d", "e"), ("a", "b", "d", "i")]),
        ({"prefix": ("a",), "suffix": ("f",)}, [("a", "b", "f"), ("a", "c", "f")]),
        ({"prefix": ("a", "b"), "max_depth": 3}, [("a", "b", "c"), ("a", "b", "d"), ("a", "b", "f")]),
        ({"max_depth": 1}, [("a",), ("admin",), ("b",), ("users",)]),
        ({"max_depth": 1, "limit": 2, "offset": 1}, [("admin",), ("b",)]),
        ({"prefix": ("nobody",)}, []),
        ({"prefix": ("a", "b", "c", "d")}, []),
    ],
)
def test_namespaces(store: OccamStore, wanted: dict[str, Any], found: Any) -> None:
    for path in PATHS:
        for number in range(3):
            store.put(path, f"={number}", {"n": 1})
    assert store.list_namespaces(**wanted) == found


def test_a_namespace_ends_with_its_last_item(store: OccamStore) -> None:
    store.put(("a", "b"), "k", {})
    store.put(("a",), "k", {})
    store.delete(("a", "b"), "k")
    assert store.list_namespaces() == [("a",)]


def test_labels_and_keys_may_hold_anything(store: OccamStore) -> None:
    names = ["a", "a=", "=a", "a/", "/a", "a%", "%3D", "%2F%25", "ä", "日本", "a\n", "a*", "a[b]?"]
    names += [">", "<", "A", "a b"]
    for label in names:
        for key in ["", *names]:
            store.put((label, label), key, {"at": [label, key]})
    assert store.list_namespaces(limit=1000) == sorted((label, label) for label in names)
    for label in names:
        assert {item.value["at"][1] for item in store.search((label,), limit=1000)} == {"", *names}
        assert {item.key for item in store.search((label, label), limit=1000)} == {"", *names}
        item = store.get((label, label), label)
        assert item is not None and item.value == {"at": [label, label]}
    assert store.search(("a", "a="), limit=5) == [], "a prefix ends at the end of a label"


# --- Times to live ---


def seconds_left(store: OccamStore, key: str) -> float | None:
    return store.engine.db.kv.ttl(run_of(store), f"item/users/ada/={key}")


def age(store: OccamStore, key: str, left: float) -> None:
    """Make an item as old as if it had only so many seconds left."""
    db, stored = store.engine.db, f"item/users/ada/={key}"
    db.put(run_of(store), stored, db.get(run_of(store), stored), ttl=left)


def test_an_item_is_gone_when_its_time_has_passed(store: OccamStore) -> None:
    store.put(NS, "short", {"n": 1}, ttl=0.05 / 60)
    store.put(NS, "long", {"n": 1}, ttl=60)
    store.put(NS, "for ever", {"n": 1})
    wait_until(lambda: store.get(NS, "short", refresh_ttl=False) is None, what="the end of an item")
    assert sorted(keys(store.search(NS))) == ["for ever", "long"]
    assert seconds_left(store, "for ever") is None


def test_the_default_time_and_its_exceptions(db: Database) -> None:
    store = OccamStore(db, ttl={"default_ttl": 10})
    for key, ttl in (("default", {}), ("longer", {"ttl": 30}), ("for ever", {"ttl": None})):
        store.put(NS, key, {"n": 1}, **ttl)
    left = [seconds_left(store, key) for key in ("default", "longer", "for ever")]
    assert left[2] is None and 590 < (left[0] or 0) <= 600 and 1790 < (left[1] or 0) <= 1800


@pytest.mark.parametrize("read", ["get", "search"])
def test_reading_lets_an_item_live_longer(store: OccamStore, read: str) -> None:
    def look(**given: Any) -> None:
        found = store.get(NS, "k", **given) if read == "get" else store.search(NS, filter={"n": 1}, **given)
        assert found

    for key, n in (("k", 1), ("other", 2)):
        store.put(NS, key, {"n": n}, ttl=60)
        age(store, key, 100)
    look(refresh_ttl=False)
    assert (seconds_left(store, "k") or 0) <= 100
    updated = store.get(NS, "k", refresh_ttl=False)
    look()
    assert (seconds_left(store, "k") or 0) > 3500
    assert (seconds_left(store, "other") or 0) <= 100, "only what was found lives longer"
    assert store.get(NS, "k", refresh_ttl=False) == updated, "reading is no update"


async def test_reading_in_an_event_loop_does_so_too(db: Database) -> None:
    store = OccamStore(db)
    await store.aput(NS, "k", {"n": 1}, ttl=60)
    age(store, "k", 100)
    await store.aget(NS, "k")
    assert (seconds_left(store, "k") or 0) > 3500


def test_a_store_may_say_that_reading_does_not_count(db: Database) -> None:
    store = OccamStore(db, ttl={"default_ttl": 60, "refresh_on_read": False})
    store.put(NS, "k", {"n": 1})
    age(store, "k", 100)
    store.get(NS, "k")
    assert (seconds_left(store, "k") or 0) <= 100
    store.put(NS, "k", {"n": 2})
    assert (seconds_left(store, "k") or 0) > 3500


def test_a_read_does_not_bring_back_what_was_deleted_or_changed(store: OccamStore) -> None:
    """The refresh is a transaction of its own, which looks at the item again."""
    from occamdb.plugins._langgraph_store import _Batch

    store.put(NS, "k", {"n": 1}, ttl=60)
    batch = _Batch("default", [GetOp(NS, "k")])
    with store.engine.db.begin(run_of(store), read_only=True) as txn:
        batch.read(txn)
    store.delete(NS, "k")
    store.engine.db.transaction(run_of(store), batch.refresh)
    assert store.get(NS, "k") is None
    store.put(NS, "k", {"n": 2})
    store.engine.db.transaction(run_of(store), batch.refresh)
    assert seconds_left(store, "k") is None


# --- What is refused ---


def test_vector_search_is_refused(db: Database, store: OccamStore) -> None:
    with pytest.raises(NotImplementedError, match=r"no vector search: leave query out.*filter"):
        store.search(NS, query="engines")
    with pytest.raises(NotImplementedError, match="no vector search: leave index out"):
        OccamStore(db, index={"dims": 3, "embed": len})
    store.put(NS, "k", {"n": 1}, index=False)
    store.put(NS, "k", {"n": 2}, index=["n"])  # has no effect in a store without an index
    assert store.search(NS)[0].value == {"n": 2}


@pytest.mark.parametrize("label", ["", "a.b", 3, "a\0"])
def test_labels_that_langgraph_does_not_have(store: OccamStore, label: Any) -> None:
    namespace = ("a", label)
    for op in (
        GetOp(namespace, "k"),
        PutOp(namespace, "k", {}),
        SearchOp(namespace),
        ListNamespacesOp((MatchCondition("prefix", namespace),)),
    ):
        with pytest.raises(InvalidNamespaceError):
            store.batch([PutOp(("fine",), "k", {}), op])
    assert store.list_namespaces() == []


@pytest.mark.parametrize(
    ("op", "error"),
    [
        ("get", ValueError),
        (GetOp(NS, 3), TypeError),  # type: ignore[arg-type]
        (PutOp((), "k", {}), ValueError),
        (PutOp(NS, "k", ["v"]), TypeError),  # type: ignore[arg-type]
        (SearchOp(NS, limit=-1), ValueError),
        (ListNamespacesOp(offset=-1), ValueError),
        (ListNamespacesOp((MatchCondition("infix", ("a",)),)), ValueError),  # type: ignore[arg-type]
    ],
)
def test_operations_that_are_none(store: OccamStore, op: Any, error: type[Exception]) -> None:
    store.put(("a",), "k", {})
    with pytest.raises(error):
        store.batch([op])


# --- Graphs and processes ---


def test_a_graph_remembers_from_thread_to_thread(db: Database, store: OccamStore) -> None:
    def node(state: Any, *, store: BaseStore) -> dict[str, list[str]]:
        known = [item.key for item in store.search(NS)]
        store.put(NS, f"visit {len(known) + 1}", {"n": 1})
        return {"log": sorted(known)}

    graph = chain_of(Log, node=node).compile(checkpointer=OccamSaver(db), store=store)
    graph.invoke({"log": []}, thread("one"))
    assert graph.invoke({"log": []}, thread("two"))["log"] == ["visit 1"]


def write_batches(peer: Peer, path: Path, name: str) -> None:
    with open_database(path) as db:
        store = OccamStore(db)
        peer.say("ready")
        peer.hear()
        for number in range(200):
            store.batch([PutOp(("pair",), side, {"by": name, "n": number}) for side in ("left", "right")])


def test_batches_of_two_processes_do_not_mix(start: Callable[..., Worker], database_path: Path) -> None:
    with open_database(database_path) as db:
        store = OccamStore(db)
        workers = [start(write_batches, database_path, name, method="spawn") for name in ("ann", "bob")]
        for worker in workers:
            assert worker.hear() == "ready"
        for worker in workers:
            worker.say("go")
        seen = 0
        while any(worker.process.is_alive() for worker in workers):
            found = {item.key: item.value for item in store.search(("pair",))}
            assert found.get("left") == found.get("right")
            seen += bool(found)
        for worker in workers:
            worker.result()
        assert seen and len(store.search(("pair",))) == 2


def test_a_path_is_opened_and_closed(database_path: Path) -> None:
    with OccamStore(database_path) as store:
        store.put(NS, "k", {"n": 1})

    async def again() -> Any:
        async with OccamStore(str(database_path)) as store:
            return await store.aget(NS, "k")

    assert asyncio.run(again()).value == {"n": 1}
