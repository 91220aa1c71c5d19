"""LangGraph threads that several processes work on: kills, races, owners. Each process is a real one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import occamdb
from occamdb.plugins.langgraph import CheckpointConflict, OccamSaver, StaleWriteOwner
from tests.plugins.langgraph_graphs import (
    DeltaLog,
    Log,
    chain_of,
    checkpoint,
    id_of,
    metadata,
    says,
    thread,
)
from tests.support.processes import Peer, Worker, open_database

Start = Callable[..., Worker]
CONFIG = thread("t")


def noting(peer: Peer, word: str, *, wait: bool = False) -> Callable[[Any], dict[str, list[str]]]:
    """A node that tells the test that it runs, and waits for an answer if asked to."""

    def node(state: Any) -> dict[str, list[str]]:
        peer.say(word)
        if wait:
            peer.hear()
        return {"log": [word]}

    return node


# --- A process is killed between two nodes, and another one goes on ---


def run_until_killed(peer: Peer, path: Path, state: Any) -> None:
    with open_database(path) as db:
        graph = chain_of(state, first=noting(peer, "first"), second=noting(peer, "second", wait=True))
        graph.compile(checkpointer=OccamSaver(db)).invoke({"log": ["input"]}, CONFIG, durability="sync")


def resume(peer: Peer, path: Path, state: Any) -> Any:
    with open_database(path) as db:
        graph = chain_of(state, first=noting(peer, "first"), second=noting(peer, "second"))
        return graph.compile(checkpointer=OccamSaver(db)).invoke(None, CONFIG)["log"]


async def _aresume(peer: Peer, path: Path, state: Any) -> Any:
    async with occamdb.aio.open(path) as db:
        graph = chain_of(state, first=noting(peer, "first"), second=noting(peer, "second"))
        return (await graph.compile(checkpointer=OccamSaver(db)).ainvoke(None, CONFIG))["log"]


def aresume(peer: Peer, path: Path, state: Any) -> Any:
    return asyncio.run(_aresume(peer, path, state))


def killed_and_resumed(start: Start, path: Path, state: Any, go_on: Any) -> None:
    with open_database(path):
        first = start(run_until_killed, path, state, method="spawn")
        assert [first.hear(), first.hear()] == ["first", "second"]
        first.kill()
        second = start(go_on, path, state, method="spawn")
        assert second.hear() == "second", "the node that had finished does not run again"
        assert second.result() == ["input", "first", "second"]


def test_a_killed_graph_is_resumed_in_another_process(start: Start, database_path: Path) -> None:
    killed_and_resumed(start, database_path, Log, resume)


def test_it_is_resumed_in_an_event_loop(start: Start, database_path: Path) -> None:
    killed_and_resumed(start, database_path, Log, aresume)


def test_a_killed_graph_with_a_delta_channel_is_resumed(start: Start, database_path: Path) -> None:
    killed_and_resumed(start, database_path, DeltaLog, resume)


# --- Two processes continue one thread ---


def outcome_of(call: Callable[[], Any]) -> Any:
    try:
        return call()["log"]
    except CheckpointConflict as conflict:
        return conflict


def race(peer: Peer, path: Path, word: str, durability: Any) -> Any:
    with open_database(path) as db:
        graph = chain_of(Log, only=noting(peer, word, wait=True)).compile(checkpointer=OccamSaver(db))
        peer.say("ready")
        peer.hear()
        return outcome_of(lambda: graph.invoke({"log": [f"to {word}"]}, CONFIG, durability=durability))


def ids_and_parents(saver: OccamSaver) -> dict[str, str | None]:
    return {
        id_of(each.config): None if each.parent_config is None else id_of(each.parent_config)
        for each in saver.list(CONFIG)
    }


def raced(start: Start, path: Path, durability: str) -> tuple[Any, Any]:
    """Ann loads a thread and is in her node when Bob loads it; she ends her turn, then he his. What both get."""
    with open_database(path) as db:
        saver = OccamSaver(db)
        ann, bob = (start(race, path, word, durability, method="spawn") for word in ("ann", "bob"))
        for worker in (ann, bob):
            assert worker.hear() == "ready"
        ann.say("go")
        assert ann.hear() == "ann"
        bob.say("go")
        assert bob.hear() == "bob"
        ann.say("go on")
        hers = ann.result()
        bob.say("go on")
        his = bob.result()
        parents = list(ids_and_parents(saver).values())
        assert len(parents) == len(set(parents)), "no checkpoint has two children"
        latest = saver.get_tuple(CONFIG)
        assert latest is not None
        assert latest.checkpoint["channel_values"]["log"] in (hers, his)
        return hers, his


def test_of_two_that_end_a_turn_of_one_thread_the_second_is_refused(
    start: Start, database_path: Path
) -> None:
    with open_database(database_path) as db:
        graph = chain_of(Log, only=says("before")).compile(checkpointer=OccamSaver(db))
        graph.invoke({"log": ["begin"]}, CONFIG)
    hers, his = raced(start, database_path, "exit")
    assert hers == ["begin", "before", "to ann", "ann"] and isinstance(his, CheckpointConflict)


def test_of_two_that_begin_one_thread_the_second_is_refused(start: Start, database_path: Path) -> None:
    hers, his = raced(start, database_path, "exit")
    assert hers == ["to ann", "ann"] and isinstance(his, CheckpointConflict)
    assert his.parent_id is None and his.thread_id == "t"


def test_a_turn_that_was_overtaken_is_refused(start: Start, database_path: Path) -> None:
    """Here every step is stored at once: Bob goes on from Ann's input, and her own next step comes too late."""
    hers, his = raced(start, database_path, "sync")
    assert isinstance(hers, CheckpointConflict) and hers.parent_id is not None
    assert his == ["to ann", "to bob", "bob"]


def put_child(peer: Peer, path: Path, parent: str, allow_forks: bool) -> Any:
    with open_database(path) as db:
        saver = OccamSaver(db, allow_forks=allow_forks)
        peer.say("ready")
        peer.hear()
        try:
            return id_of(saver.put(thread("t", "", parent), checkpoint(), metadata(1), {}))
        except CheckpointConflict as conflict:
            return conflict


def children_of_two_processes(start: Start, path: Path, allow_forks: bool) -> list[Any]:
    with open_database(path) as db:
        parent = id_of(OccamSaver(db).put(CONFIG, checkpoint(), metadata(), {}))
        workers = [start(put_child, path, parent, allow_forks, method="spawn") for _ in range(2)]
        for worker in workers:
            assert worker.hear() == "ready"
        for worker in workers:
            worker.say("go")
        results = [worker.result() for worker in workers]
        stored = [child for child, above in ids_and_parents(OccamSaver(db)).items() if above == parent]
        assert sorted(stored) == sorted(each for each in results if isinstance(each, str))
        return results


def test_of_two_puts_with_one_parent_one_is_stored(start: Start, database_path: Path) -> None:
    results = children_of_two_processes(start, database_path, allow_forks=False)
    (won,) = (each for each in results if isinstance(each, str))
    (lost,) = (each for each in results if not isinstance(each, str))
    assert isinstance(lost, CheckpointConflict) and lost.latest_child == won


def test_forks_can_be_allowed(start: Start, database_path: Path) -> None:
    results = children_of_two_processes(start, database_path, allow_forks=True)
    assert all(isinstance(each, str) for each in results)


# --- Ownership ---


def own_and_write(peer: Peer, path: Path) -> Any:
    """A worker that claims a thread, sleeps through another one's claim, and wakes up."""
    with open_database(path) as db:
        owner = OccamSaver(db).claim_write_ownership("t")
        graph = chain_of(Log, only=noting(peer, "mine", wait=True)).compile(checkpointer=owner)
        try:
            graph.invoke({"log": ["input"]}, CONFIG, durability="sync")
        except StaleWriteOwner as stale:
            return stale.thread_id, stale.is_stale_write_owner_error
        return "nothing was refused"


def test_a_worker_that_was_superseded_while_it_slept_stores_nothing(
    start: Start, database_path: Path
) -> None:
    with open_database(database_path) as db:
        sleeper = start(own_and_write, database_path, method="spawn")
        assert sleeper.hear() == "mine"
        sleeper.stop()
        owner = OccamSaver(db).claim_write_ownership("t")
        graph = chain_of(Log, only=says("theirs")).compile(checkpointer=owner)
        assert graph.invoke(None, CONFIG)["log"] == ["input", "theirs"]
        before = ids_and_parents(owner)
        sleeper.resume()
        sleeper.say("go on")
        assert sleeper.result() == ("t", True)
        assert ids_and_parents(owner) == before
        assert graph.get_state(CONFIG).values["log"] == ["input", "theirs"]
