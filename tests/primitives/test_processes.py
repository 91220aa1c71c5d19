"""Many processes on one run, through each primitive: nothing lost, one order, bounded retries."""

from collections.abc import Callable
from typing import Any

import pytest

from occamdb.engine.model.public_types import RunId
from occamdb.primitives import ChainVerification, Database, RunStatus, Thought
from tests.primitives.test_cross_primitive import prepared, work
from tests.support.audit import audit
from tests.support.engines import Engine, Place
from tests.support.processes import Peer, Worker

PROCESSES = 6
pytestmark = pytest.mark.by_default("shared")


def team_of(start: Callable[..., Worker], function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What PROCESSES workers return that began at the same moment, each with its number."""
    team = [start(function, number, *arguments) for number in range(PROCESSES)]
    for worker in team:
        worker.hear()
    for worker in team:
        worker.say("go")
    return [worker.result() for worker in team]


def ready(peer: Peer) -> None:
    peer.say("ready")
    peer.hear()


def incrementing(peer: Peer, number: int, place: Place, run: RunId, count: int) -> list[int]:
    with place.open() as db:
        ready(peer)
        return [db.kv.increment(run, "n", number + 1) for _ in range(count)]


def test_processes_increment_one_counter(
    engine: Engine, placed: Database, place: Place, run: RunId, start: Callable[..., Worker]
) -> None:
    each = engine.examples(200)
    results = team_of(start, incrementing, place, run, each)
    assert placed.kv.get(run, "n") == each * sum(range(1, PROCESSES + 1))
    seen = [value for values in results for value in values]
    assert len(set(seen)) == len(seen)
    assert all(values == sorted(values) for values in results)


def appending(peer: Peer, number: int, place: Place, run: RunId, count: int) -> list[int]:
    with place.open() as db:
        ready(peer)
        sequences = []
        for n in range(count):
            events = db.events.append_many(run, [(f"by {number}", {"n": n, "of": 2})] * 2)
            sequences += [event.sequence for event in events]
        return sequences


def test_processes_append_to_one_log(
    engine: Engine, placed: Database, place: Place, run: RunId, start: Callable[..., Worker]
) -> None:
    each = 60
    results = team_of(start, appending, place, run, each)
    total = 2 * each * PROCESSES
    assert sorted(sequence for sequences in results for sequence in sequences) == list(range(total))
    assert placed.events.verify_chain(run) == ChainVerification(True, total)
    for number, sequences in enumerate(results):
        assert sequences == sorted(sequences)
        own = placed.events.read_by_type(run, f"by {number}")
        assert [event.sequence for event in own] == sequences
        assert [event.payload["n"] for event in own] == [n for n in range(each) for _ in range(2)]
    audit(placed, run)


def transitioning(peer: Peer, number: int, place: Place, run: RunId, count: int) -> list[int]:
    with place.open() as db:
        ready(peer)

        def step(state: Any) -> tuple[Any, int]:
            return {"n": state.value["n"] + 1, "by": number}, state.value["n"]

        return [db.cells.transition(run, "c", step) for _ in range(count)]


def test_processes_transition_one_cell(
    engine: Engine, placed: Database, place: Place, run: RunId, start: Callable[..., Worker]
) -> None:
    placed.cells.init(run, "c", {"n": 0})
    results = team_of(start, transitioning, place, run, 60)
    state = placed.cells.read(run, "c")
    assert state is not None
    assert state.value["n"] == 60 * PROCESSES
    assert sorted(value for values in results for value in values) == list(range(60 * PROCESSES))


def claiming(peer: Peer, number: int, place: Place, run: RunId, tasks: int) -> list[int]:
    from occamdb.engine.model.errors import AlreadyExistsError

    with place.open() as db:
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
    engine: Engine, placed: Database, place: Place, run: RunId, start: Callable[..., Worker]
) -> None:
    results = team_of(start, claiming, place, run, 150)
    assert sorted(task for tasks in results for task in tasks) == list(range(150))
    for number, tasks in enumerate(results):
        assert all(placed.cells.read(run, f"task {task}").value == number for task in tasks)  # type: ignore[union-attr]


def tracing(peer: Peer, number: int, place: Place, run: RunId, root: str, count: int) -> list[str]:
    with place.open() as db:
        ready(peer)
        return [
            db.traces.record_child(run, root, Thought(f"{number}"), tags=[f"by {number}"])
            for _ in range(count)
        ]


def test_processes_record_under_one_root(
    engine: Engine, placed: Database, place: Place, run: RunId, start: Callable[..., Worker]
) -> None:
    root = placed.traces.record(run, Thought("root"))
    results = team_of(start, tracing, place, run, root, 50)
    assert placed.traces.count(run) == 1 + 50 * PROCESSES
    for number, recorded in enumerate(results):
        assert [trace.id for trace in placed.traces.query_by_tag(run, f"by {number}")] == recorded
    assert placed.traces.get_tree(run, root).size == 1 + 50 * PROCESSES
    audit(placed, run)


def running(peer: Peer, number: int, place: Place, parent: RunId, tag: str, count: int) -> list[RunId]:
    with place.open() as db:
        ready(peer)
        runs = []
        for n in range(count):
            with db.runs.start(f"{number}.{n}", parent=parent, tags=[tag]) as run:
                db.kv.put(run.run_id, "k", n)
            runs.append(run.run_id)
        return runs


def test_processes_create_runs_under_one_parent(
    engine: Engine, placed: Database, place: Place, run: RunId, start: Callable[..., Worker]
) -> None:
    parent = placed.runs.create_run("parent").run_id
    results = team_of(start, running, place, parent, str(run), 25)
    expected = {run_id for runs in results for run_id in runs}
    assert {each.run_id for each in placed.runs.get_child_runs(parent)} == expected
    assert (
        len(placed.runs.query_runs(status=RunStatus.COMPLETED, tag=str(run)))
        == len(expected)
        == 25 * PROCESSES
    )
    audit(placed, *expected)
    assert placed.runs.delete_run(parent, cascade=True) == 1 + len(expected)
    assert all(placed.kv.count(run_id) == 0 for run_id in expected)


def working(peer: Peer, number: int, place: Place, run: RunId, count: int) -> None:
    with place.open() as db:
        ready(peer)
        for _ in range(count):
            db.transaction(run, lambda txn: work(txn, txn.kv.get("last", 0) + 1))


def test_processes_in_contention_over_all_five(
    engine: Engine, placed: Database, place: Place, start: Callable[..., Worker]
) -> None:
    run = prepared(placed)
    team_of(start, working, place, run, 25)
    steps = 25 * PROCESSES
    assert placed.kv.get(run, "last") == placed.kv.get(run, "steps") == steps
    assert [event.payload["n"] for event in placed.events.iterate(run)] == list(range(1, steps + 1))
    state, metadata = placed.cells.read(run, "state"), placed.runs.get_run(run)
    assert state is not None and metadata is not None
    assert (state.value, metadata.metadata) == (steps, {"steps": steps})
    assert placed.traces.count(run) == steps
    audit(placed, run)
