"""Runs by name, roots, several tags, pages, renaming, and a run's metadata in place of its id."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from occamdb.engine.model.errors import InvalidArgumentError, NotFoundError
from occamdb.engine.model.public_types import RESERVED_RUN, RunId, TypeTag
from occamdb.primitives import RunMetadata, Thought, layout


def ids(runs: list[RunMetadata]) -> list[RunId]:
    return [run.run_id for run in runs]


def forget_names(db: Any) -> None:
    """Leave the index as a version without names left it."""
    space = db.space(RESERVED_RUN, TypeTag.RUN, raw=True)
    for key in [*space.keys(layout.RUN_BY_NAME), *space.keys(layout.RUN_NAMES_WHOLE)]:
        space.delete(key)


def test_a_named_id_is_the_same_everywhere() -> None:
    assert str(RunId.named("thread-42")) == "5a02d18c-c7f3-57b2-a2bc-f75f36e11e65"
    assert RunId.named("thread-42") != RunId.named("thread-43")
    for wrong in ("", None, b"x", "\ud800"):
        with pytest.raises(InvalidArgumentError):
            RunId.named(wrong)  # type: ignore[arg-type]


def test_get_or_create(do: Any) -> None:
    first = do.runs.get_or_create("thread-42", tags=["t"], metadata={"n": 1})
    assert (first.run_id, first.name, first.tags) == (RunId.named("thread-42"), "thread-42", ("t",))
    assert do.runs.get_or_create("thread-42", tags=["other"]) == first
    assert do.runs.count() == 1
    do.runs.delete_run(first)
    assert do.runs.get_or_create("thread-42").run_id == first.run_id


def test_get_or_create_takes_the_oldest_run_of_the_name(do: Any) -> None:
    oldest = do.runs.create_run("x")
    do.runs.create_run("x")
    assert do.runs.get_or_create("x") == oldest


def test_get_or_create_knows_its_run_after_a_renaming(do: Any) -> None:
    run = do.runs.get_or_create("old")
    renamed = do.runs.rename_run(run, "new")
    assert do.runs.get_or_create("old") == do.runs.get_or_create("new") == renamed


@pytest.mark.parametrize("isolation", ["serializable", "snapshot"])
def test_all_who_ask_at_once_get_one_run(db: Any, isolation: str) -> None:
    view = db.namespace(tenant=str(uuid.uuid4()))

    def ask(_: int) -> RunId:
        found: RunId = view.transaction(
            RunId.new(), lambda txn: txn.runs.get_or_create("shared"), isolation=isolation
        ).run_id
        return found

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(40))) == {RunId.named("shared")}
    assert view.runs.count() == 1


@pytest.mark.parametrize("name", ["", "a", "ü" * 3000])
@pytest.mark.parametrize("old", [False, True], ids=["indexed", "of_an_earlier_version"])
def test_find_and_query_by_name(db: Any, name: str, old: bool) -> None:
    runs = [db.runs.create_run(name, tags=["t"]), db.runs.create_run("b"), db.runs.create_run(name)]
    if old:
        forget_names(db)
        runs.append(db.runs.create_run(name))
    named = [run for run in runs if run.name == name]
    assert db.runs.find(name) == runs[0]
    assert db.runs.find("nobody") is None
    assert db.runs.query_runs(name=name) == named
    assert db.runs.query_runs(name=name, limit=1, reverse=True) == [runs[-1]] if old else [runs[2]]
    assert db.runs.query_runs(name=name, tag="t") == [runs[0]]
    assert db.runs.query_runs(name=name, status="failed") == []
    if name:
        assert db.runs.get_or_create(name) == runs[0]


def test_rename(do: Any) -> None:
    run = do.runs.create_run("before")
    renamed = do.runs.rename_run(run.run_id, "after")
    assert (renamed.run_id, renamed.name) == (run.run_id, "after")
    assert do.runs.find("before") is None
    assert do.runs.find("after") == renamed
    with pytest.raises(NotFoundError):
        do.runs.rename_run(RunId.new(), "x")
    with pytest.raises(InvalidArgumentError):
        do.runs.rename_run(run, 7)


def test_roots(do: Any) -> None:
    root = do.runs.create_run("root")
    do.runs.create_run("child", parent=root)
    assert do.runs.query_runs(roots=True) == [root]
    assert len(do.runs.query_runs(parent=None)) == 2
    with pytest.raises(InvalidArgumentError):
        do.runs.query_runs(roots=True, parent=root)


def test_several_tags(do: Any) -> None:
    both = do.runs.create_run("both", tags=["a", "b"])
    for tag in "ab":
        do.runs.create_run(tag, tags=[tag])
    assert do.runs.query_runs(tags=["a", "b"]) == do.runs.query_runs(tag="a", tags=["b"]) == [both]
    with pytest.raises(InvalidArgumentError):
        do.runs.query_runs(tags="ab")


@pytest.mark.parametrize("reverse", [False, True])
def test_pages_of_runs_created_in_one_transaction(db: Any, run: RunId, reverse: bool) -> None:
    made = db.transaction(run, lambda txn: [txn.runs.create_run(f"{n}", tags=["t"]) for n in range(10)])
    expected = sorted(ids(made), reverse=reverse)  # one time for all: by id
    for wanted in ({}, {"tag": "t"}, {"roots": True}, {"status": "active", "tag": "t"}):
        found: list[RunMetadata] = []
        while page := db.runs.query_runs(
            **wanted, limit=3, reverse=reverse, after=found[-1].run_id if found else None
        ):
            found += page
        assert ids(found) == expected
    assert ids(db.runs.list_runs(after=expected[3], reverse=reverse)) == expected[4:]


def test_a_page_goes_on_behind_a_deleted_run(db: Any) -> None:
    runs = [db.runs.create_run(f"{n}") for n in range(4)]
    db.runs.delete_run(runs[1])
    assert db.runs.list_runs(after=runs[1]) == runs[2:]
    with pytest.raises(NotFoundError):
        db.runs.list_runs(after=runs[1].run_id)


def test_children_page(do: Any) -> None:
    parent = do.runs.create_run("p")
    children = [do.runs.create_run("c", parent=parent) for _ in range(3)]
    found = sorted(children, key=lambda run: (run.created_at, run.run_id))
    assert do.runs.get_child_runs(parent, after=found[0]) == found[1:]
    assert do.runs.get_child_runs(RunId.new()) == []


def test_status_with_an_error(do: Any) -> None:
    run = do.runs.create_run("r")
    with pytest.raises(InvalidArgumentError):
        do.runs.update_status(run, "completed", error="no")
    assert do.runs.update_status(run, "failed", error=ValueError("no")).error == "ValueError: no"


def test_metadata_of_a_run_is_taken_for_the_run(db: Any) -> None:
    run = db.runs.create_run("r")
    for _ in range(2):  # the second time from what is cached
        db.kv.put(run, "k", 1)
        assert db.kv.get(run.run_id, "k") == db.kv.get(run, "k") == 1
    trace = db.traces.record(run, Thought("x"))
    with db.begin(run) as txn:
        assert txn.run_id == run.run_id
        assert txn.traces.get(trace).id == trace
    assert db.runs.get_run(run) == run
    assert db.runs.create_run("child", parent=run).parent_run_id == run.run_id


def test_what_knows_a_run_may_come_to_know_another(db: Any) -> None:
    class Agent:
        run_id = RunId.new()

    agent = Agent()
    db.kv.put(agent, "k", 1)
    agent.run_id = RunId.new()
    assert db.kv.get(agent, "k") is None


def test_create_run_takes_everything(do: Any) -> None:
    own = uuid.uuid4()
    run = do.runs.create_run("r", run_id=own, tags=["t"], metadata={"a": 1})
    assert (run.run_id, run.tags, run.metadata) == (own, ("t",), {"a": 1})
    assert do.runs.create_run_with_options("s", parent=run).parent_run_id == own
