"""Many processes on one run, through each primitive: nothing lost, one order, bounded retries."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from occamdb.engine.model.public_types import RunId
from occamdb.primitives import ChainVerification, Database, RunStatus, Thought
from tests.primitives.test_cross_primitive import prepared, work
from tests.support.audit import audit
from tests.support.processes import Peer, Worker, open_database

PROCESSES = 6


def team_of(start: Callable[..., Worker], function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What PROCESSES workers return that began at the same moment, each with its number."""
    team = [start(function, number, *arguments) for number in range(PROCESSES)]
    for worker in team:
        worker.hear()
    for worker in team:
        worker.say("go")
    return [worker.result() for worker in team]


@pytest.fixture
def shared(shared_path: Path) -> Iterator[Database]:
    with open_database(shared_path) as db:
        yield db


def ready(peer: Peer) -> None:
    peer.say("ready")
    peer.hear()


def incrementing(peer: Peer, number: int, path: Path, run: RunId, count: int) -> list[int]:
    with open_database(path) as db:
        ready(peer)
        return [db.kv.increment(run, "n", number + 1) for _ in range(count)]


def test_processes_increment_one_counter(
    shared: Database, shared_path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    results = team_of(start, incrementing, shared_path, run, 200)
    assert shared.kv.get(run, "n") == 200 * sum(range(1, PROCESSES + 1))
    seen = [value for values in results for value in values]
    assert len(set(seen)) == len(seen)
    assert all(values == sorted(values) for values in results)


def appending(peer: Peer, number: int, path: Path, run: RunId, count: int) -> list[int]:
    with open_database(path) as db:
        ready(peer)
        sequences = []
        for n in range(count):
            events = db.events.append_many(run, [(f"by {number}", {"n": n, "of": 2})] * 2)
            sequences += [event.sequence for event in events]
        return sequences


def test_processes_append_to_one_log(
    shared: Database, shared_path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    each = 60
    results = team_of(start, appending, shared_path, run, each)
    total = 2 * each * PROCESSES
    assert sorted(sequence for sequences in results for sequence in sequences) == list(range(total))
    assert shared.events.verify_chain(run) == ChainVerification(True, total)
    for number, sequences in enumerate(results):
        assert sequences == sorted(sequences)
        own = shared.events.read_by_type(run, f"by {number}")
        assert [event.sequence for event in own] == sequences
        assert [event.payload["n"] for event in own] == [n for n in range(each) for _ in range(2)]
    audit(shared, run)


def transitioning(peer: Peer, number: int, path: Path, run: RunId, count: int) -> list[int]:
    with open_database(path) as db:
        ready(peer)

        def step(state: Any) -> tuple[Any, int]:
            return {"n": state.value["n"] + 1, "by": number}, state.value["n"]

        return [db.cells.transition(run, "c", step) for _ in range(count)]


def test_processes_transition_one_cell(
    shared: Database, shared_path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    shared.cells.init(run, "c", {"n": 0})
    results = team_of(start, transitioning, shared_path, run, 60)
    state = shared.cells.read(run, "c")
    assert state is not None
    assert state.value["n"] == 60 * PROCESSES
    assert sorted(value for values in results for value in values) == list(range(60 * PROCESSES))


def claiming(peer: Peer, number: int, path: Path, run: RunId, tasks: int) -> list[int]:
    from occamdb.engine.model.errors import AlreadyExistsError

    with open_database(path) as db:
        ready(peer)
        claimed = []
        for task in range(tasks):
            try:
                db.cells.init(run, f"task {task}", number)
                claimed.append(task)
            except AlreadyExistsError:
                continue
        return claimed


def test_each_task_is_claimed_once(
    shared: Database, shared_path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    results = team_of(start, claiming, shared_path, run, 150)
    assert sorted(task for tasks in results for task in tasks) == list(range(150))
    for number, tasks in enumerate(results):
        assert all(shared.cells.read(run, f"task {task}").value == number for task in tasks)  # type: ignore[union-attr]


def tracing(peer: Peer, number: int, path: Path, run: RunId, root: str, count: int) -> list[str]:
    with open_database(path) as db:
        ready(peer)
        return [
            db.traces.record_child(run, root, Thought(f"{number}"), tags=[f"by {number}"])
            for _ in range(count)
        ]


def test_processes_record_under_one_root(
    shared: Database, shared_path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    root = shared.traces.record(run, Thought("root"))
    results = team_of(start, tracing, shared_path, run, root, 50)
    assert shared.traces.count(run) == 1 + 50 * PROCESSES
    for number, recorded in enumerate(results):
        assert [trace.id for trace in shared.traces.query_by_tag(run, f"by {number}")] == recorded
    assert shared.traces.get_tree(run, root).size == 1 + 50 * PROCESSES
    audit(shared, run)


def running(peer: Peer, number: int, path: Path, parent: RunId, tag: str, count: int) -> list[RunId]:
    with open_database(path) as db:
        ready(peer)
        runs = []
        for n in range(count):
            with db.runs.start(f"{number}.{n}", parent=parent, tags=[tag]) as run:
                db.kv.put(run.run_id, "k", n)
            runs.append(run.run_id)
        return runs


def test_processes_create_runs_under_one_parent(
    shared: Database, shared_path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    parent = shared.runs.create_run("parent").run_id
    results = team_of(start, running, shared_path, parent, str(run), 25)
    expected = {run_id for runs in results for run_id in runs}
    assert {each.run_id for each in shared.runs.get_child_runs(parent)} == expected
    assert (
        len(shared.runs.query_runs(status=RunStatus.COMPLETED, tag=str(run)))
        == len(expected)
        == 25 * PROCESSES
    )
    audit(shared, *expected)
    assert shared.runs.delete_run(parent, cascade=True) == 1 + len(expected)
    assert all(shared.kv.count(run_id) == 0 for run_id in expected)


def working(peer: Peer, number: int, path: Path, run: RunId, count: int) -> None:
    with open_database(path) as db:
        ready(peer)
        for _ in range(count):
            db.transaction(run, lambda txn: work(txn, txn.kv.get("last", 0) + 1))


def test_processes_in_contention_over_all_five(
    shared: Database, shared_path: Path, start: Callable[..., Worker]
) -> None:
    run = prepared(shared)
    team_of(start, working, shared_path, run, 25)
    steps = 25 * PROCESSES
    assert shared.kv.get(run, "last") == shared.kv.get(run, "steps") == steps
    assert [event.payload["n"] for event in shared.events.iterate(run)] == list(range(1, steps + 1))
    state, metadata = shared.cells.read(run, "state"), shared.runs.get_run(run)
    assert state is not None and metadata is not None
    assert (state.value, metadata.metadata) == (steps, {"steps": steps})
    assert shared.traces.count(run) == steps
    audit(shared, run)
