"""The demo's agents and its report, in one process on a database in memory."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

import occamdb
from occamdb import LeaseLost
from occamdb.tools import corpus, demo_agent
from occamdb.tools.demo_agent import (
    BATCHES,
    FIGURES,
    TAKEN_OVER,
    WORD,
    Figures,
    Plan,
    cell_name,
    prepare,
    run_agent,
)
from occamdb.tools.demo_report import gather, read_index, recounted
from tests.support.processes import wait_until


@pytest.fixture
def db() -> Iterator[occamdb.Database]:
    with occamdb.open_in_memory() as database:
        yield database


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Ten files, each with one word of its own and some shared ones."""
    source = tmp_path / "source"
    source.mkdir()
    for number in range(10):
        (source / f"{number}.txt").write_text(f"shared words w{number} " * (number + 1))
    return source


def planned(db: occamdb.Database, source: Path, batch_size: int = 3) -> Plan:
    shared = db.runs.create_run("index")
    plan = Plan(shared.run_id, source, corpus.text_files(source), batch_size)
    prepare(db, plan)
    return plan


def _agent(db: occamdb.Database, plan: Plan, number: int) -> demo_agent._Agent:
    run = db.runs.create_run(f"indexer-{number}")
    return demo_agent._Agent(db, plan, number, run.run_id)


def test_batches_cover_the_files_once(db: occamdb.Database, tree: Path) -> None:
    plan = planned(db, tree)
    assert plan.batch_count == 4
    assert [name for number in range(plan.batch_count) for name in plan.batch(number)] == plan.files


def test_one_agent_indexes_everything(db: occamdb.Database, tree: Path) -> None:
    plan = planned(db, tree)
    figures = run_agent(db, plan, 1)
    assert (
        read_index(db, plan)
        == recounted(plan)
        == Counter({"shared": 55, "words": 55} | {f"w{n}": n + 1 for n in range(10)})
    )
    assert (figures.files, figures.words, figures.batches) == (10, 165, 4)
    assert figures.conflicts == figures.retries == figures.taken_over == 0


def test_each_agent_is_a_completed_run_with_events_and_traces(db: occamdb.Database, tree: Path) -> None:
    plan = planned(db, tree)
    figures = run_agent(db, plan, 1)
    (agent,) = db.runs.get_child_runs(plan.shared)
    assert (agent.name, agent.status.value) == ("indexer-1", "completed")
    assert [e.payload["file"] for e in db.events.read_by_type(agent.run_id, "indexed")] == plan.files
    (root,) = db.traces.get_roots(agent.run_id)
    tree_of_agent = db.traces.get_tree(agent.run_id, root.id)
    assert [len(batch.children) for batch in tree_of_agent.children] == [3, 3, 3, 1]
    assert Figures(**db.kv.get(agent.run_id, FIGURES)) == figures


def test_the_shared_log_tells_of_batches_and_records(db: occamdb.Database, tree: Path) -> None:
    plan = planned(db, tree)
    run_agent(db, plan, 1)
    batches = db.events.read_by_type(plan.shared, "batch-indexed")
    assert [event.payload["batch"] for event in batches] == [0, 1, 2, 3]
    largest = db.events.read_by_type(plan.shared, "largest-file")
    assert [event.payload["words"] for event in largest] == [3 * n for n in range(1, 11)]


def test_a_batch_that_another_agent_has_is_waited_for_and_taken_over(
    db: occamdb.Database, tree: Path
) -> None:
    """The other one indexed a file and went: its task is ready again, and its file is not counted twice."""
    plan = planned(db, tree)
    other = _agent(db, plan, 9)
    task = other.claim()
    assert task is not None and task.payload == 0
    other._index_file(task, 0, plan.batch(0)[0], other.root)
    with ThreadPoolExecutor(1) as pool:
        mine = pool.submit(run_agent, db, plan, 1)
        # All that is left is the other one's.
        wait_until(lambda: db.tasks.stats(plan.shared, BATCHES).done == 3)
        assert not mine.done()
        db.tasks.fail(plan.shared, task, "gone")
        figures = mine.result(timeout=60)
    assert (figures.files, figures.batches, figures.taken_over) == (9, 4, 1)
    (event,) = db.events.read_by_type(plan.shared, TAKEN_OVER)
    assert event.payload == {"agent": 1, "batch": 0, "done": 1, "files": 3}
    assert read_index(db, plan) == recounted(plan)
    state = db.cells.read(plan.shared, cell_name(0))
    assert state is not None
    assert state.value == {"agent": 1, "done": 3}


def test_an_agent_whose_claim_is_over_counts_nothing_more(db: occamdb.Database, tree: Path) -> None:
    plan = planned(db, tree)
    late = _agent(db, plan, 9)
    task = late.claim()
    assert task is not None
    db.tasks.fail(plan.shared, task, "its lease ran out")
    run_agent(db, plan, 1)
    for position in (0, 2):  # in the middle of the batch, and at its end
        with pytest.raises(LeaseLost):
            late._index_file(task, position, plan.batch(0)[position], late.root)
    assert read_index(db, plan) == recounted(plan)


def test_agents_at_the_same_time_count_exactly(db: occamdb.Database, tree: Path) -> None:
    plan = planned(db, tree, batch_size=1)
    with ThreadPoolExecutor(4) as pool:
        figures = list(pool.map(lambda number: run_agent(db, plan, number), range(1, 5)))
    report = gather(db, plan, recounted(plan), seconds=1.0)
    assert report.faults == []
    assert report.total == sum(figures, Figures())
    assert report.total.files == 10
    assert report.total.batches == 10
    assert set(report.chains) == {"indexer-1", "indexer-2", "indexer-3", "indexer-4", "shared index"}


def test_the_report_sees_a_wrong_count(db: occamdb.Database, tree: Path) -> None:
    plan = planned(db, tree)
    run_agent(db, plan, 1)
    db.kv.increment(plan.shared, WORD + "w3", 1)
    faults = gather(db, plan, recounted(plan), seconds=1.0).faults
    assert faults == ["the index differs from the recount: 1 words, 'w3' 5 instead of 4"]


def test_the_report_sees_a_lost_file(db: occamdb.Database, tree: Path) -> None:
    plan = planned(db, tree)
    task = db.tasks.claim(plan.shared, BATCHES)
    assert task is not None
    db.tasks.complete(plan.shared, task)  # and nothing was indexed
    run_agent(db, plan, 1)
    faults = gather(db, plan, recounted(plan), seconds=1.0).faults
    assert len(faults) == 2
    assert "the index differs" in faults[0]
    assert "the progress cell says 147 words, the recount 165" in faults[1]


def test_the_report_sees_that_nobody_was_killed(db: occamdb.Database, tree: Path) -> None:
    plan = planned(db, tree)
    run_agent(db, plan, 1)
    faults = gather(db, replace(plan, kills=True), recounted(plan), seconds=1.0).faults
    assert faults == ["no agent was killed, or nobody took its work over"]


def test_the_report_sees_a_broken_chain(db: occamdb.Database, tree: Path) -> None:
    from occamdb.primitives import layout

    plan = planned(db, tree)
    run_agent(db, plan, 1)
    log = db.space(plan.shared, 0x02, raw=True)
    stored = log.get(layout.event(1))
    log.put(layout.event(1), stored[:-1] + bytes([stored[-1] ^ 1]))
    faults = gather(db, plan, recounted(plan), seconds=1.0).faults
    assert len(faults) == 1
    assert faults[0].startswith("shared index: its hash is ")


def test_the_figures_add_up() -> None:
    total = Figures(files=1, seconds=0.5) + Figures(files=2, words=3)
    assert total == Figures(files=3, words=3, seconds=0.5)
