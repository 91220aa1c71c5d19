"""OccamSaver in one process: conflicts, branches, graphs with subgraphs, lists, and what is refused."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import INTERRUPT
from langgraph.types import Command, interrupt

import occamdb
import occamdb.aio
from occamdb import Database
from occamdb.plugins.langgraph import CheckpointConflict, OccamSaver, StaleWriteOwner
from tests.plugins.langgraph_graphs import Log, chain_of, checkpoint, id_of, metadata, says, thread
from tests.support.processes import environment


@pytest.fixture
def db() -> Iterator[Database]:
    with occamdb.open_in_memory() as database:
        yield database


@pytest.fixture
def saver(db: Database) -> OccamSaver:
    return OccamSaver(db)


def put(saver: OccamSaver, config: Any, step: int = 0, **more: Any) -> Any:
    return saver.put(config, checkpoint(), metadata(step, **more), {})


# --- Conflicts ---


def test_a_second_child_of_a_checkpoint_is_refused(saver: OccamSaver) -> None:
    parent = put(saver, thread("t"))
    child = put(saver, parent, 1)
    with pytest.raises(CheckpointConflict) as refused:
        put(saver, parent, 1)
    error = refused.value
    assert (error.thread_id, error.checkpoint_ns) == ("t", "")
    assert (error.parent_id, error.latest_child) == (id_of(parent), id_of(child))
    assert "graph.invoke" in error.hint and error.details["latest_child"] == id_of(child)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.parent_id, str(again)) == (CheckpointConflict, error.parent_id, str(error))
    assert [id_of(each.config) for each in saver.list(thread("t"))] == [id_of(child), id_of(parent)]


async def test_it_is_refused_in_an_event_loop(db: Database) -> None:
    saver = OccamSaver(occamdb.aio.wrap(db))
    parent = await saver.aput(thread("t"), checkpoint(), metadata(), {})

    async def child() -> Any:
        return await saver.aput(parent, checkpoint(), metadata(1), {})

    results = await asyncio.gather(*(child() for _ in range(20)), return_exceptions=True)
    refused = [each for each in results if isinstance(each, CheckpointConflict)]
    assert len(refused) == 19
    assert len([each async for each in saver.alist(thread("t"))]) == 2


async def test_thousands_of_tasks_at_once(db: Database) -> None:
    saver = OccamSaver(occamdb.aio.wrap(db))
    configs = await asyncio.gather(
        *(saver.aput(thread(f"{number}"), checkpoint(), metadata(), {}) for number in range(1500))
    )
    found = await asyncio.gather(*(saver.aget_tuple(config) for config in configs))
    assert all(each is not None for each in found)


def test_threads_of_a_process_race_as_well(saver: OccamSaver) -> None:
    parent, gate, results = put(saver, thread("t")), threading.Barrier(4), []

    def child() -> None:
        gate.wait()
        try:
            results.append(put(saver, parent, 1))
        except CheckpointConflict as conflict:
            results.append(conflict)

    workers = [threading.Thread(target=child) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sum(isinstance(each, CheckpointConflict) for each in results) == 3


def test_forks_are_stored_if_they_are_allowed(db: Database) -> None:
    saver = OccamSaver(db, allow_forks=True)
    parent = put(saver, thread("t"))
    put(saver, parent, 1)
    put(saver, parent, 1)
    assert len(list(saver.list(thread("t")))) == 3


def test_the_same_checkpoint_may_be_put_again(saver: OccamSaver) -> None:
    parent, again = put(saver, thread("t")), checkpoint({"k": 1})
    for value in (1, 2):
        again["channel_values"] = {"k": value}
        stored = saver.put(parent, again, metadata(1), {"k": 1})
    found = saver.get_tuple(stored)
    assert found is not None and found.checkpoint["channel_values"] == {"k": 2}
    assert len(list(saver.list(thread("t")))) == 2


def test_a_checkpoint_that_was_read_after_its_child_may_get_another_one(saver: OccamSaver) -> None:
    parent = put(saver, thread("t"))
    put(saver, parent, 1)
    read = saver.get_tuple(parent)
    assert read is not None
    put(saver, read.config, 1)
    with pytest.raises(CheckpointConflict):
        put(saver, read.config, 1)  # the caller knows of one child, and there are two by now
    (listed,) = saver.list(thread("t"), before=thread("t", "", "~"), filter={"step": 0})
    put(saver, listed.config, 1)


def test_the_owner_of_a_thread_that_was_removed_stores_nothing(saver: OccamSaver) -> None:
    owner = saver.claim_write_ownership("t")
    parent = put(owner, thread("t"))
    saver.delete_thread("t")
    with pytest.raises(StaleWriteOwner):
        put(owner, parent, 1)
    assert list(saver.list(thread("t"))) == []


def test_a_parent_that_was_pruned_has_a_successor(saver: OccamSaver) -> None:
    parent = put(saver, thread("t"))
    latest = put(saver, parent, 1)
    saver.prune(["t"])
    with pytest.raises(CheckpointConflict):
        put(saver, parent, 1)
    put(saver, latest, 2)


def test_a_thread_begins_once(saver: OccamSaver) -> None:
    saver.put(thread("t"), checkpoint(), {"source": "input", "step": -1, "parents": {}}, {})
    with pytest.raises(CheckpointConflict, match="was begun by"):
        saver.put(thread("t"), checkpoint(), {"source": "input", "step": -1, "parents": {}}, {})
    saver.put(thread("t", "child:1"), checkpoint(), {"source": "input", "step": -1, "parents": {}}, {})


# --- Branches that are meant ---


def test_a_graph_goes_back_in_time(saver: OccamSaver) -> None:
    graph, config = chain_of(Log, a=says("a"), b=says("b")).compile(checkpointer=saver), thread("t")
    graph.invoke({"log": ["in"]}, config)
    before_b = next(each for each in graph.get_state_history(config) if each.next == ("b",))
    assert graph.invoke(None, before_b.config)["log"] == ["in", "a", "b"]
    assert graph.invoke({"log": ["new"]}, before_b.config)["log"] == ["in", "a", "new", "a", "b"]
    changed = graph.update_state(before_b.config, {"log": ["changed"]})
    assert graph.invoke(None, changed)["log"] == ["in", "a", "changed", "b"]
    copied = graph.update_state(before_b.config, None, as_node="__copy__")
    assert graph.get_state(copied).values["log"] == ["in", "a"]
    assert graph.invoke({"log": ["last"]}, config)["log"][-3:] == ["last", "a", "b"]


def test_branches_that_count_alike_keep_their_own_values(saver: OccamSaver) -> None:
    """Versions are numbers, so two branches give one version to different values of a channel."""
    root = saver.put(thread("t"), checkpoint({"k": "root"}), metadata(), {"k": 1})
    one = saver.put(root, checkpoint({"k": "one"}, {"k": 2}), metadata(1), {"k": 2})
    read = saver.get_tuple(root)
    assert read is not None
    two = saver.put(read.config, checkpoint({"k": "two"}, {"k": 2}), metadata(1), {"k": 2})
    for config, value in ((root, "root"), (one, "one"), (two, "two")):
        found = saver.get_tuple(config)
        assert found is not None and found.checkpoint["channel_values"] == {"k": value}


def test_a_value_that_did_not_change_is_stored_once(db: Database, saver: OccamSaver) -> None:
    config, size = thread("t"), 10_000
    for step in range(5):
        values = {"big": "x" * size, "count": step}
        config = saver.put(
            config, checkpoint(values, {"big": 1, "count": step}), metadata(step), {"count": step}
        )
    (run,) = db.runs.query_runs(tag="langgraph")
    stored = [found.value[1] for _, found in db.scan(run, "value/")]
    assert sum(len(value) > size for value in stored) == 1
    found = saver.get_tuple(config)
    assert found is not None and found.checkpoint["channel_values"] == {"big": "x" * size, "count": 4}


# --- Graphs ---


def asking(state: Any) -> dict[str, list[str]]:
    return {"log": [interrupt("what?")]}


def test_a_graph_waits_for_a_human_in_a_subgraph(saver: OccamSaver) -> None:
    inner = chain_of(Log, before=says("before"), ask=asking).compile()
    graph = chain_of(Log, outer=inner).compile(checkpointer=saver)
    waiting = graph.invoke({"log": []}, thread("t"))
    assert waiting["__interrupt__"][0].value == "what?"
    inside: Any = graph.get_state(thread("t"), subgraphs=True).tasks[0].state
    assert inside.values["log"] == ["before"]
    assert graph.invoke(Command(resume="this"), thread("t"))["log"] == ["before", "this"]


def test_a_subgraph_with_a_memory_of_its_own_is_replayed(saver: OccamSaver) -> None:
    inner = chain_of(Log, say=says("inner")).compile(checkpointer=True)
    graph = chain_of(Log, first=says("first"), sub=inner).compile(checkpointer=saver)
    graph.invoke({"log": ["one"]}, thread("t"))
    before = next(each for each in graph.get_state_history(thread("t")) if each.next == ("sub",))
    graph.invoke({"log": ["two"]}, thread("t"))
    graph.invoke(None, before.config)
    graph.invoke({"log": ["three"]}, thread("t"))
    assert graph.get_state(thread("t")).values["log"].count("inner") >= 2


async def test_a_graph_in_an_event_loop(db: Database) -> None:
    saver = OccamSaver(occamdb.aio.wrap(db))
    graph = chain_of(Log, a=says("a"), ask=asking).compile(checkpointer=saver)
    for durability in ("sync", "async", "exit"):
        config = thread(durability)
        await graph.ainvoke({"log": []}, config, durability=durability)
        assert (await graph.ainvoke(Command(resume="b"), config))["log"] == ["a", "b"]
        assert (await anext(graph.aget_state_history(config))).values["log"] == ["a", "b"]


def test_special_writes_are_replaced_and_others_are_not(saver: OccamSaver) -> None:
    config = put(saver, thread("t"))
    for value in ("first", "second"):
        saver.put_writes(config, [("k", value), (INTERRUPT, value)], "task", "path")
    found = saver.get_tuple(config)
    assert found is not None and found.pending_writes is not None
    assert sorted(found.pending_writes) == [("task", INTERRUPT, "second"), ("task", "k", "first")]


def test_writes_come_back_in_the_order_of_their_tasks(saver: OccamSaver) -> None:
    config = put(saver, thread("t"))
    saver.put_writes(config, [("k", str(number)) for number in range(12)], "a", "~2")
    saver.put_writes(config, [("k", "earlier")], "b", "~1")
    saver.put_writes(config, [("k", "input")], "c")
    found = saver.get_tuple(config)
    assert found is not None and found.pending_writes is not None
    assert [write[2] for write in found.pending_writes] == ["input", "earlier", *map(str, range(12))]


# --- Lists and runs ---


def test_all_threads_are_listed_the_latest_first(saver: OccamSaver) -> None:
    configs = [put(saver, thread(f"t{number % 3}", "a/b%" if number % 2 else "")) for number in range(9)]
    listed = list(saver.list(None))
    assert [id_of(each.config) for each in listed] == [id_of(each) for each in reversed(configs)]
    assert listed[1].config["configurable"]["checkpoint_ns"] == "a/b%"
    assert [id_of(each.config) for each in saver.list(None, limit=2)] == [
        id_of(each.config) for each in listed[:2]
    ]
    both = list(saver.list({"configurable": {"thread_id": "t0"}}))
    assert [each.config["configurable"]["checkpoint_ns"] for each in both] == ["", "a/b%", ""]
    assert list(saver.list(None, limit=0)) == []


def test_a_list_holds_nothing_while_it_is_read(saver: OccamSaver) -> None:
    config = thread("t")
    for step in range(200):
        config = put(saver, config, step)
    listing = saver.list(thread("t"))
    next(listing)
    saver.prune(["t"])
    assert len(list(listing)) == 63, "the rest of its page: a snapshot that was held would show all 199"


def test_a_thread_is_a_run(db: Database, saver: OccamSaver) -> None:
    put(saver, thread("thread 7"))
    (found,) = db.runs.query_runs(tag="langgraph")
    assert found.name == "langgraph/thread 7" and found.metadata == {"thread_id": "thread 7"}
    db.runs.delete_run(found, cascade=True)
    assert saver.get_tuple(thread("thread 7")) is None
    put(saver, thread("thread 7"))
    saver.delete_thread("thread 7")
    assert db.runs.list_runs() == []


def test_a_thread_is_copied_once(saver: OccamSaver) -> None:
    saver.put_writes(put(saver, put(saver, thread("t")), 1), [("k", 1)], "task")
    saver.copy_thread("t", "copy")
    source, target = (list(saver.list(thread(name))) for name in ("t", "copy"))
    assert [each.checkpoint for each in source] == [each.checkpoint for each in target]
    assert target[0].pending_writes == [("task", "k", 1)]
    put(saver, target[0].config, 2)  # the copy goes its own way
    with pytest.raises(CheckpointConflict):
        saver.copy_thread("t", "copy")
    assert len(list(saver.list(thread("t")))) == 2


# --- Ownership ---


async def test_an_owner_that_was_superseded_stores_nothing(saver: OccamSaver) -> None:
    first = await saver.aclaim_write_ownership("t")
    config = await first.aput(thread("t"), checkpoint(), metadata(), {})
    await first.acheck_write_ownership()
    second = await saver.aclaim_write_ownership("t")
    for _ in range(2):
        with pytest.raises(StaleWriteOwner) as refused:
            await first.aput(config, checkpoint(), metadata(1), {})
        assert refused.value.is_stale_write_owner_error is True
        with pytest.raises(StaleWriteOwner):
            await first.aput_writes(config, [("__resume__", "stale")], "task")
        with pytest.raises(StaleWriteOwner):
            await first.acheck_write_ownership()
    await second.aput_writes(config, [("__resume__", "current")], "task")
    await second.aput(config, checkpoint(), metadata(1), {})
    found = await saver.aget_tuple(config)
    assert found is not None and found.pending_writes == [("task", "__resume__", "current")]
    assert len([each async for each in saver.alist(thread("t"))]) == 2


def test_ownership_is_of_one_thread(saver: OccamSaver) -> None:
    owner = saver.claim_write_ownership("t")
    saver.claim_write_ownership("another")
    put(owner, thread("t"))
    with pytest.raises(ValueError, match="owns thread 't' and writes to it only"):
        put(owner, thread("another"))


def test_a_deleted_thread_has_no_former_owner(saver: OccamSaver) -> None:
    former = saver.claim_write_ownership("t")
    saver.delete_thread("t")
    saver.claim_write_ownership("t")
    with pytest.raises(StaleWriteOwner):
        put(former, thread("t"))


class Meddling(JsonPlusSerializer):
    """A serializer that does something the first time it sees a certain value, in the middle of a transaction."""

    def __init__(self, deed: Any) -> None:
        super().__init__()
        self.deed = deed

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        if obj == "meddle" and self.deed is not None:
            deed, self.deed = self.deed, None
            deed()
        return super().dumps_typed(obj)


@pytest.mark.parametrize("isolation", ["serializable", "snapshot"])
def test_the_commit_looks_again_whatever_the_isolation_of_the_database(isolation: Any) -> None:
    begun = {"source": "input", "step": -1, "parents": {}}
    with occamdb.open_in_memory(isolation=isolation) as db:
        plain = OccamSaver(db)
        meddler = Meddling(lambda: plain.claim_write_ownership("t"))
        owner = OccamSaver(db, serde=meddler).claim_write_ownership("t")
        with pytest.raises(StaleWriteOwner):
            owner.put(thread("t"), checkpoint({"k": "meddle"}), metadata(), {"k": 1})
        assert list(plain.list(thread("t"))) == []

        meddler = Meddling(lambda: plain.put(thread("u"), checkpoint(), begun, {}))  # type: ignore[arg-type]
        with pytest.raises(CheckpointConflict):
            OccamSaver(db, serde=meddler).put(thread("u"), checkpoint({"k": "meddle"}), begun, {"k": 1})  # type: ignore[arg-type]
        assert len(list(plain.list(thread("u")))) == 1

        parent = put(plain, thread("v"))
        meddler = Meddling(lambda: put(plain, parent, 1))
        with pytest.raises(CheckpointConflict):
            OccamSaver(db, serde=meddler).put(parent, checkpoint({"k": "meddle"}), metadata(1), {"k": 1})
        assert len(list(plain.list(thread("v")))) == 2


# --- What is refused ---


@pytest.mark.parametrize("thread_id", [7, None, b"t", ("t",)])
def test_a_thread_id_is_text(saver: OccamSaver, thread_id: Any) -> None:
    with pytest.raises(TypeError, match="must be a str, got"):
        saver.get_tuple(thread(thread_id))
    with pytest.raises(TypeError, match="must be a str, got"):
        put(saver, thread(thread_id))
    with pytest.raises(TypeError, match="must be a str, got"):
        saver.delete_thread(thread_id)


def test_incomplete_configurations(saver: OccamSaver) -> None:
    with pytest.raises(ValueError, match="needs a thread"):
        saver.get_tuple({"configurable": {}})
    with pytest.raises(ValueError, match="empty"):
        saver.get_tuple(thread(""))
    with pytest.raises(TypeError, match="checkpoint_id must be a str"):
        saver.get_tuple({"configurable": {"thread_id": "t", "checkpoint_id": 3}})
    with pytest.raises(ValueError, match="checkpoint_id"):
        saver.put_writes(thread("t"), [("k", 1)], "task")
    with pytest.raises(ValueError, match="strategy"):
        saver.prune(["t"], strategy="keep_some")


def test_a_value_that_cannot_be_stored_stores_nothing(db: Database, saver: OccamSaver) -> None:
    with pytest.raises(TypeError, match="not msgpack serializable"):
        saver.put(thread("t"), checkpoint({"k": 1, "bad": lambda: None}), metadata(), {"k": 1, "bad": 1})
    with pytest.raises(TypeError, match="not msgpack serializable"):
        saver.put_writes(thread("t", "", "c"), [("k", 1), ("bad", lambda: None)], "task")
    assert db.runs.list_runs() == [] and saver.get_tuple(thread("t")) is None


def test_another_serializer(db: Database) -> None:
    class Reversed:
        def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
            return "reversed", plaintext[::-1]

        def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
            return ciphertext[::-1]

    saver = OccamSaver(db, serde=EncryptedSerializer(Reversed(), JsonPlusSerializer()))
    config = saver.put(
        thread("t"), checkpoint({"k": "a secret value"}), metadata(note="a secret note"), {"k": 1}
    )
    saver.put_writes(config, [("k", "a secret write")], "task")
    (run,) = db.runs.list_runs()
    assert "secret" not in repr(db.kv.list_with_values(run))
    found = saver.get_tuple(config)
    assert found is not None and found.checkpoint["channel_values"] == {"k": "a secret value"}
    assert found.metadata["note"] == "a secret note"  # type: ignore[typeddict-item]


def test_paths_are_opened_and_closed(database_path: Path) -> None:
    with OccamSaver(database_path) as saver:
        put(saver, thread("t"))

    async def again() -> Any:
        async with OccamSaver(str(database_path)) as saver:
            return await saver.aget_tuple(thread("t"))

    assert asyncio.run(again()) is not None


def test_without_langgraph_it_says_what_to_install() -> None:
    program = "import sys; sys.modules['langgraph.checkpoint.base'] = None; import occamdb.plugins.langgraph"
    done = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True)
    assert done.returncode == 1 and "pip install 'occamdb[langgraph]'" in done.stderr
