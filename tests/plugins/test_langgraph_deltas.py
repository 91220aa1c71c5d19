"""Delta channels: LangGraph stores their writes, and their whole value now and then. Removing must not break them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.types import _DeltaSnapshot

import occamdb
from occamdb import Database
from occamdb.plugins.langgraph import OccamSaver
from tests.plugins.langgraph_graphs import DeltaLog, chain_of, checkpoint, id_of, metadata, says, thread

CONFIG = thread("t")


@pytest.fixture
def db() -> Iterator[Database]:
    with occamdb.open_in_memory() as database:
        yield database


@pytest.fixture
def saver(db: Database) -> OccamSaver:
    return OccamSaver(db)


def graph_on(saver: BaseCheckpointSaver[Any]) -> Any:
    return chain_of(DeltaLog, a=says("a"), b=says("b")).compile(checkpointer=saver)


def turns(saver: BaseCheckpointSaver[Any], count: int, durability: Any = "sync") -> list[str]:
    """Run a graph so often; what its log should hold."""
    for number in range(count):
        graph_on(saver).invoke({"log": [f"{number}"]}, CONFIG, durability=durability)
    return [word for number in range(count) for word in (f"{number}", "a", "b")]


def delta_chain(saver: OccamSaver, stored: dict[int, Any], steps: int, run_ids: str = "") -> list[Any]:
    """A line of checkpoints. Those in `stored` have a value of the channel; at each a write is pending."""
    configs: list[Any] = []
    for step in range(steps):
        values = {"k": stored[step]} if step in stored else {}
        more: dict[str, Any] = {} if step in stored else {"counters_since_delta_snapshot": {"k": (1, 1)}}
        if run_ids:
            more["run_id"] = run_ids[step]
        config = configs[-1] if configs else CONFIG
        configs.append(
            saver.put(config, checkpoint(values, {"k": step}), metadata(step, **more), {"k": step})
        )
        saver.put_writes(configs[-1], [("other", -step), ("k", step)], f"task {step}")
    return configs


def writes_of(saver: OccamSaver, config: Any) -> tuple[Any, list[Any]]:
    entry = saver.get_delta_channel_history(config=config, channels=["k"])["k"]
    return entry.get("seed"), [write[2] for write in entry["writes"]]


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_a_graph_reads_what_it_wrote(saver: OccamSaver, durability: str) -> None:
    for count in range(1, 6):
        saver.delete_thread("t")
        expected = turns(saver, count, durability)
        assert graph_on(saver).get_state(CONFIG).values["log"] == expected


def test_every_earlier_state_is_that_of_the_memory_saver(saver: OccamSaver) -> None:
    memory = InMemorySaver()
    for each in (saver, memory):
        turns(each, 4)
        early = list(graph_on(each).get_state_history(CONFIG))[5].config
        graph_on(each).invoke({"log": ["branch"]}, early)
        graph_on(each).update_state(early, {"log": ["changed"]}, as_node="a")
    ours, theirs = (
        [state.values.get("log") for state in graph_on(each).get_state_history(CONFIG)]
        for each in (saver, memory)
    )
    assert ours == theirs and len(ours) > 15


def test_the_nearest_stored_value_and_the_writes_since(saver: OccamSaver) -> None:
    configs = delta_chain(saver, {0: ["old"], 2: ["plain"]}, 6)
    assert writes_of(saver, configs[5]) == (["plain"], [2, 3, 4]), "the last one's own write is still pending"
    assert writes_of(saver, configs[2]) == (["old"], [0, 1])
    assert writes_of(saver, configs[0]) == (None, [])
    assert saver.get_delta_channel_history(config=configs[5], channels=[]) == {}
    both = saver.get_delta_channel_history(config=CONFIG, channels=["k", "other", "absent"])
    assert [write[2] for write in both["other"]["writes"]] == [0, -1, -2, -3, -4] and "seed" not in both[
        "other"
    ]
    assert both["absent"] == {"writes": []}


async def test_the_same_in_an_event_loop(saver: OccamSaver) -> None:
    configs = delta_chain(saver, {1: _DeltaSnapshot(["whole"])}, 4)
    entry = (await saver.aget_delta_channel_history(config=configs[3], channels=["k"]))["k"]
    assert entry["seed"].value == ["whole"] and [write[2] for write in entry["writes"]] == [1, 2]


def test_parallel_writes_are_replayed_by_path(saver: OccamSaver) -> None:
    config = saver.put(CONFIG, checkpoint({"k": []}), metadata(), {"k": 1})
    saver.put_writes(config, [("k", "second")], "0", "~pull, 02")
    saver.put_writes(config, [("k", "first")], "f", "~pull, 01")
    saver.put_writes(config, [("k", "input")], "f0")
    head = saver.put(config, checkpoint({}), metadata(1), {})
    assert writes_of(saver, head) == ([], ["input", "first", "second"])


def test_a_loop_of_parents_ends(saver: OccamSaver) -> None:
    first = checkpoint()
    one = saver.put(CONFIG, first, metadata(), {})
    two = saver.put(one, checkpoint(), metadata(1), {})
    saver.put_writes(two, [("k", 1)], "task")
    saver.put(two, first, metadata(2), {})  # an id that is stored, as a child of its own child
    assert writes_of(saver, one) == (None, [1])


# --- Removing ---


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_pruning_keeps_what_the_latest_state_is_computed_from(saver: OccamSaver, count: int) -> None:
    expected = turns(saver, count)
    before = len(list(saver.list(CONFIG)))
    saver.prune(["t"])
    assert graph_on(saver).get_state(CONFIG).values["log"] == expected
    assert len(list(saver.list(CONFIG))) <= min(before, 6)
    graph_on(saver).invoke({"log": ["more"]}, CONFIG)
    assert graph_on(saver).get_state(CONFIG).values["log"] == [*expected, "more", "a", "b"]


def test_pruning_ends_at_the_nearest_stored_value(saver: OccamSaver) -> None:
    configs = delta_chain(saver, {0: ["old"], 3: ["whole"]}, 6)
    saver.prune(["t"])
    assert [id_of(each.config) for each in saver.list(CONFIG)] == [
        id_of(each) for each in reversed(configs[3:])
    ]
    assert writes_of(saver, configs[5]) == (["whole"], [3, 4])
    (run,) = saver.engine.db.runs.list_runs()
    assert len(saver.engine.db.list(run, "value/")) == 1, "values that nothing names are gone"


def test_deleting_a_run_leaves_later_states_whole(saver: OccamSaver) -> None:
    configs = delta_chain(saver, {0: ["old"], 2: ["whole"]}, 6, run_ids="aabbbc")
    saver.delete_for_runs(["b", "unknown"])
    listed = [id_of(each.config) for each in saver.list(CONFIG)]
    assert listed == [id_of(configs[at]) for at in (5, 1, 0)]
    assert all(saver.get_tuple(configs[at]) is None for at in (2, 3, 4))
    assert writes_of(saver, configs[5]) == (["whole"], [2, 3, 4])
    saver.put(configs[5], checkpoint({}), metadata(6), {})


def test_what_is_hidden_goes_when_nothing_needs_it(saver: OccamSaver) -> None:
    configs = delta_chain(saver, {0: ["old"], 2: ["whole"]}, 6, run_ids="aabbbc")
    saver.delete_for_runs(["b"])
    db = saver.engine.db
    (run,) = db.runs.list_runs()
    assert len(db.list(run, "hidden/")) == 3
    saver.put(configs[5], checkpoint({"k": ["all"]}, {"k": 9}), metadata(6), {"k": 9})
    saver.prune(["t"])
    assert db.list(run, "hidden/") == [] and len(db.list(run, "row/")) == 1
    assert db.list(run, "write/") == [] and len(db.list(run, "value/")) == 1


def test_a_run_that_is_deleted_by_its_parts(saver: OccamSaver) -> None:
    delta_chain(saver, {0: ["old"]}, 4, run_ids="abab")
    for run_id in "ba":
        saver.delete_for_runs([run_id])
    (run,) = saver.engine.db.runs.list_runs()
    assert saver.engine.db.list(run) == ["thread"]


def test_a_copy_of_a_thread_has_the_same_states(saver: OccamSaver) -> None:
    expected = turns(saver, 3)
    saver.copy_thread("t", "copy")
    saver.delete_thread("t")
    assert graph_on(saver).get_state(thread("copy")).values["log"] == expected
