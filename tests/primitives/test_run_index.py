"""RunIndex: the status table pair by pair, indices, queries, deletion, `start`."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from occamdb.engine.model.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    InvalidTransition,
    NotFoundError,
)
from occamdb.engine.model.public_types import RESERVED_RUN, RunId, TypeTag
from occamdb.primitives import ALLOWED_TRANSITIONS, RunMetadata, RunStatus, Thought, layout

# Written out once more: the test must not share the table that it checks.
ALLOWED = {
    ("active", "completed"),
    ("active", "failed"),
    ("active", "cancelled"),
    ("active", "paused"),
    ("active", "archived"),
    ("paused", "active"),
    ("paused", "cancelled"),
    ("paused", "archived"),
    ("completed", "archived"),
    ("failed", "archived"),
    ("cancelled", "archived"),
}
WAY_TO: dict[str, list[str]] = {
    "active": [],
    "completed": ["completed"],
    "failed": ["failed"],
    "cancelled": ["cancelled"],
    "paused": ["paused"],
    "archived": ["archived"],
}
NAMED_CALLS = {
    "complete_run": "completed",
    "pause_run": "paused",
    "resume_run": "active",
    "cancel_run": "cancelled",
    "archive_run": "archived",
}


def ids(runs: list[RunMetadata]) -> list[RunId]:
    return [run.run_id for run in runs]


def run_in(do: Any, status: str) -> RunId:
    created: RunMetadata = do.runs.create_run(f"a run that is {status}")
    for step in WAY_TO[status]:
        do.runs.update_status(created.run_id, step)
    return created.run_id


def index_keys(db: Any) -> list[bytes]:
    return list(db.space(RESERVED_RUN, TypeTag.RUN, raw=True).keys())


# --- Creating and reading ---


def test_create_run(do: Any) -> None:
    before = datetime.now(UTC)
    created = do.runs.create_run("agent 7")
    assert isinstance(created, RunMetadata)
    assert isinstance(created.run_id, RunId)
    assert (created.name, created.status, created.parent_run_id) == ("agent 7", RunStatus.ACTIVE, None)
    assert (created.tags, created.metadata, created.completed_at, created.error) == ((), {}, None, None)
    assert before - timedelta(seconds=1) < created.created_at == created.updated_at <= datetime.now(UTC)
    assert do.runs.get_run(created.run_id) == created
    assert do.runs.get_run(str(created.run_id)) == created
    assert do.runs.get_run(uuid.UUID(str(created.run_id))) == created


def test_create_run_with_options(do: Any) -> None:
    parent = do.runs.create_run("parent").run_id
    own = RunId.new()
    created = do.runs.create_run_with_options(
        "child", parent=parent, tags=["x", "y", "x"], metadata={"a": [1]}, run_id=own
    )
    assert (created.run_id, created.parent_run_id) == (own, parent)
    assert (created.tags, created.metadata) == (("x", "y"), {"a": [1]})
    assert do.runs.get_run(own) == created
    assert ids(do.runs.get_child_runs(parent)) == [own]
    with pytest.raises(AlreadyExistsError):
        do.runs.create_run_with_options(run_id=own)
    assert do.runs.count() == 2


def test_a_parent_must_exist(do: Any) -> None:
    with pytest.raises(NotFoundError):
        do.runs.create_run_with_options(parent=RunId.new())
    assert do.runs.list_runs() == []


def test_absent_runs(do: Any) -> None:
    missing = RunId.new()
    assert do.runs.get_run(missing) is None
    assert do.runs.get_child_runs(missing) == []
    assert do.runs.count() == 0
    calls: list[Any] = [
        lambda: do.runs.update_status(missing, "completed"),
        lambda: do.runs.fail_run(missing, "x"),
        lambda: do.runs.add_tags(missing, ["a"]),
        lambda: do.runs.remove_tags(missing, ["a"]),
        lambda: do.runs.update_metadata(missing, {"a": 1}),
        *((lambda name=name: getattr(do.runs, name)(missing)) for name in NAMED_CALLS),
    ]
    for call in calls:
        with pytest.raises(NotFoundError) as caught:
            call()
        assert str(missing) in caught.value.message and caught.value.hint


# --- Status ---


@pytest.mark.parametrize("current", WAY_TO)
def test_every_pair_of_statuses(do: Any, current: str) -> None:
    for requested in WAY_TO:
        run_id = run_in(do, current)
        before = do.runs.get_run(run_id)
        if (current, requested) in ALLOWED:
            after = do.runs.update_status(run_id, RunStatus(requested))
            assert after.status == requested
            assert after == do.runs.get_run(run_id)
            assert after.updated_at >= before.updated_at
            finished = requested in ("completed", "failed", "cancelled")
            assert after.completed_at == (after.updated_at if finished else before.completed_at)
        else:
            with pytest.raises(InvalidTransition) as caught:
                do.runs.update_status(run_id, requested)
            error = caught.value
            assert (error.current, error.requested) == (current, requested)
            assert set(error.allowed) == {to for at, to in ALLOWED if at == current}
            assert str(run_id) in error.message and error.hint
            assert do.runs.get_run(run_id) == before
        now = do.runs.get_run(run_id).status
        for status in RunStatus:
            assert ids(do.runs.query_runs(status=status)) == ([run_id] if status is now else [])
            assert do.runs.count(status=status) == (status is now)
        do.runs.delete_run(run_id)


def test_the_table_of_this_test_is_complete() -> None:
    assert set(WAY_TO) == {status.value for status in RunStatus}
    assert {(at.value, to.value) for at, tos in ALLOWED_TRANSITIONS.items() for to in tos} == ALLOWED


@pytest.mark.parametrize("call", NAMED_CALLS)
def test_the_named_calls_follow_the_same_table(do: Any, call: str) -> None:
    for current in WAY_TO:
        run_id = run_in(do, current)
        if (current, NAMED_CALLS[call]) in ALLOWED:
            assert getattr(do.runs, call)(run_id).status == NAMED_CALLS[call]
        else:
            with pytest.raises(InvalidTransition):
                getattr(do.runs, call)(run_id)


@pytest.mark.parametrize("current", list(WAY_TO))
def test_fail_run(do: Any, current: str) -> None:
    run_id = run_in(do, current)
    if current == "active":
        failed = do.runs.fail_run(run_id, "it broke")
        assert (failed.status, failed.error) == (RunStatus.FAILED, "it broke")
        assert failed.completed_at is not None
        assert do.runs.archive_run(run_id).error == "it broke"
    else:
        with pytest.raises(InvalidTransition):
            do.runs.fail_run(run_id, "it broke")


def test_fail_run_takes_an_exception(do: Any) -> None:
    assert do.runs.fail_run(run_in(do, "active"), ValueError("no")).error == "ValueError: no"
    assert do.runs.fail_run(run_in(do, "active"), KeyboardInterrupt()).error == "KeyboardInterrupt"
    with pytest.raises(InvalidArgumentError):
        do.runs.fail_run(run_in(do, "active"), 5)


def test_two_status_changes_at_once(db: Any, run: RunId) -> None:
    run_id = db.runs.create_run().run_id
    tries = []

    def complete(txn: Any) -> None:
        tries.append(1)
        if len(tries) == 1:
            txn.runs.get_run(run_id)
            db.runs.cancel_run(run_id)
        txn.runs.complete_run(run_id)

    with pytest.raises(InvalidTransition):
        db.transaction(run, complete)
    assert db.runs.get_run(run_id).status is RunStatus.CANCELLED


# --- Tags, metadata, queries ---


def test_tags(do: Any) -> None:
    run_id = do.runs.create_run_with_options(tags=["a"]).run_id
    assert do.runs.add_tags(run_id, ["b", "a", "c"]).tags == ("a", "b", "c")
    assert do.runs.remove_tags(run_id, ["a", "zzz"]).tags == ("b", "c")
    assert ids(do.runs.query_runs(tag="b")) == [run_id]
    assert do.runs.query_runs(tag="a") == []
    assert do.runs.query_runs(tag="bc") == []


def test_metadata(do: Any) -> None:
    run_id = do.runs.create_run_with_options(metadata={"a": 1, "b": 2}).run_id
    assert do.runs.update_metadata(run_id, {"b": 3, "c": 4}).metadata == {"a": 1, "b": 3, "c": 4}
    assert do.runs.update_metadata(run_id, {"d": 5}, replace=True).metadata == {"d": 5}
    assert do.runs.update_metadata(run_id, {}, replace=True).metadata == {}


def test_query_runs_combines_filters(do: Any) -> None:
    parent = do.runs.create_run().run_id
    runs = [do.runs.create_run_with_options(f"{n}", parent=parent, tags=["t"]) for n in range(4)]
    do.runs.create_run_with_options(tags=["t"])
    do.runs.complete_run(runs[1].run_id)
    do.runs.complete_run(runs[2].run_id)
    found = do.runs.query_runs(status="completed", tag="t", parent=parent)
    assert ids(found) == [runs[1].run_id, runs[2].run_id]
    assert ids(do.runs.query_runs(status="Completed", tag="t", limit=1)) == [runs[1].run_id]
    assert ids(do.runs.query_runs(parent=parent, reverse=True, limit=2)) == [runs[3].run_id, runs[2].run_id]
    assert len(do.runs.query_runs()) == 6
    assert do.runs.query_runs(tag="t", limit=0) == []
    assert ids(do.runs.get_child_runs(parent, limit=3)) == ids(runs)[:3]


def test_runs_are_listed_in_order_of_creation(do: Any) -> None:
    runs = []
    for n in range(4):
        # Random ids: the order must come from the time of creation.
        runs.append(do.runs.create_run_with_options(f"{n}", run_id=uuid.uuid4()))
        while datetime.now(UTC) <= runs[-1].created_at:
            pass
    assert do.runs.list_runs() == runs
    assert do.runs.list_runs(limit=2) == runs[:2]
    assert do.runs.list_runs(limit=2, reverse=True) == [runs[3], runs[2]]
    times = [each.created_at for each in runs]
    assert do.runs.query_runs(created_after=times[1], created_before=times[3]) == runs[1:3]
    assert do.runs.query_runs(created_after=times[3]) == runs[3:]
    assert do.runs.query_runs(created_before=times[1], status="active") == runs[:1]


def test_wrong_arguments_are_refused(do: Any) -> None:
    run_id = do.runs.create_run().run_id
    calls: list[Any] = [
        lambda: do.runs.create_run(5),
        lambda: do.runs.create_run_with_options(tags="abc"),
        lambda: do.runs.create_run_with_options(tags=[""]),
        lambda: do.runs.create_run_with_options(metadata=[1]),
        lambda: do.runs.create_run_with_options(run_id="not a uuid"),
        lambda: do.runs.create_run_with_options(run_id=RESERVED_RUN),
        lambda: do.runs.get_run(uuid.UUID(int=0)),
        lambda: do.runs.delete_run(RESERVED_RUN),
        lambda: do.runs.delete_run(5),
        lambda: do.runs.update_status(run_id, "done"),
        lambda: do.runs.update_status(run_id, None),
        lambda: do.runs.add_tags(run_id, "abc"),
        lambda: do.runs.query_runs(status="done"),
        lambda: do.runs.query_runs(limit=-1),
        lambda: do.runs.query_runs(created_after=datetime(2024, 1, 1)),
    ]
    for call in calls:
        with pytest.raises(InvalidArgumentError) as caught:
            call()
        assert caught.value.hint
    assert do.runs.count() == 1


# --- Deleting ---


def fill(db: Any, run_id: RunId) -> None:
    db.kv.put(run_id, "k", 1)
    db.events.append(run_id, "t", {})
    db.cells.set(run_id, "c", 1)
    db.traces.record(run_id, Thought("x"), tags=["t"])
    db.transaction(run_id, lambda txn: txn.space(0x42).put("later primitive", 1))


def data_keys(db: Any, run_id: RunId) -> int:
    return sum(db.space(run_id, tag, raw=True).count() for tag in (*TypeTag, 0x10, 0x42, 0xFE))


def test_delete_run_removes_everything(do: Any, db: Any) -> None:
    doomed, other = (do.runs.create_run_with_options(tags=["t"]).run_id for _ in range(2))
    keys_of_other_alone = [key for key in index_keys(db) if doomed.bytes not in key]
    fill(db, doomed)
    fill(db, other)
    kept = data_keys(db, other)
    assert do.runs.delete_run(doomed) == 1
    assert data_keys(db, doomed) == 0
    assert data_keys(db, other) == kept > 8
    assert do.runs.get_run(doomed) is None
    assert ids(do.runs.query_runs(tag="t")) == [other]
    assert index_keys(db) == keys_of_other_alone


def test_delete_run_with_a_tree_of_runs(do: Any, db: Any) -> None:
    root = do.runs.create_run().run_id
    tree = [root]
    for parent in range(6):
        tree += [do.runs.create_run_with_options(parent=tree[parent]).run_id for _ in range(2)]
    other = do.runs.create_run().run_id
    for run_id in (*tree, other):
        fill(db, run_id)
    assert do.runs.delete_run(tree[1], cascade=True) == 7
    assert ids(do.runs.get_child_runs(root)) == [tree[2]]
    assert do.runs.delete_run(root, cascade=True) == 6
    assert ids(do.runs.list_runs()) == [other]
    assert [data_keys(db, run_id) for run_id in tree] == [0] * len(tree)
    assert len(index_keys(db)) == 6


def test_delete_run_alone_leaves_its_children_without_a_parent(do: Any, db: Any) -> None:
    parent = do.runs.create_run().run_id
    child = do.runs.create_run_with_options(parent=parent, tags=["t"]).run_id
    fill(db, child)
    kept = data_keys(db, child)
    assert do.runs.delete_run(parent) == 1
    assert do.runs.get_run(child).parent_run_id is None
    assert data_keys(db, child) == kept
    assert ids(do.runs.list_runs()) == [child]
    assert not [key for key in index_keys(db) if parent.bytes in key]


def test_delete_run_that_is_not_in_the_index(do: Any, db: Any) -> None:
    unlisted = RunId.new()
    fill(db, unlisted)
    assert do.runs.delete_run(unlisted) == 0
    assert data_keys(db, unlisted) == 0


def test_delete_run_of_any_size_is_one_commit(db: Any) -> None:
    run_id = db.runs.create_run().run_id
    for batch in range(10):
        db.kv.put_many(run_id, {f"{batch}-{n}": n for n in range(2000)})
    before = db.kv.get_versioned(run_id, "0-0").version
    snapshot = db.begin(run_id, read_only=True)
    version = db.kv.put(run_id, "last", 1)
    db.runs.delete_run(run_id)
    assert db.kv.put(run_id, "after", 1) == version + 2
    assert snapshot.kv.count() == 20_000
    assert snapshot.kv.get_versioned("0-0").version == before
    snapshot.abort()
    assert list(db.kv.list(run_id)) == ["after"]


def test_a_deleted_run_can_be_made_again(db: Any) -> None:
    run_id = db.runs.create_run().run_id
    fill(db, run_id)
    old = db.kv.get_versioned(run_id, "k").version
    db.runs.delete_run(run_id)
    again = db.runs.create_run_with_options(run_id=run_id)
    assert again.run_id == run_id
    assert db.events.append(run_id, "t", {}).sequence == 0
    assert db.kv.put(run_id, "k", 2) > old
    assert db.events.verify_chain(run_id).length == 1


def test_an_append_that_races_with_deletion_is_not_half_there(db: Any) -> None:
    run_id = db.runs.create_run().run_id
    db.events.append(run_id, "t", {})
    tries = []

    def append(txn: Any) -> int:
        sequence: int = txn.events.append("t", {}).sequence
        tries.append(sequence)
        if len(tries) == 1:
            db.runs.delete_run(run_id)
        return sequence

    assert db.transaction(run_id, append) == 0
    assert tries == [1, 0]
    assert db.events.verify_chain(run_id).length == 1


def test_delete_in_a_transaction_with_other_writes(db: Any) -> None:
    doomed, other = (db.runs.create_run().run_id for _ in range(2))
    fill(db, doomed)
    with db.begin(other) as txn:
        txn.for_run(doomed).kv.put("unseen", 1)
        txn.runs.delete_run(doomed)
        assert txn.for_run(doomed).kv.count() == 0
        txn.kv.put("noted", str(doomed))
    assert data_keys(db, doomed) == 0
    assert db.kv.get(other, "noted") == str(doomed)


# --- start ---


def test_start_completes_the_run(db: Any) -> None:
    with db.runs.start("s", tags=["t"], metadata={"a": 1}) as run:
        assert run.status is RunStatus.ACTIVE
        assert db.runs.get_run(run.run_id) == run
    done = db.runs.get_run(run.run_id)
    assert (done.status, done.tags, done.metadata) == (RunStatus.COMPLETED, ("t",), {"a": 1})


def test_start_fails_the_run_with_the_exception(db: Any) -> None:
    with pytest.raises(ZeroDivisionError), db.runs.start("s") as run:
        _ = 1 // 0
    failed = db.runs.get_run(run.run_id)
    assert failed.status is RunStatus.FAILED
    assert failed.error == "ZeroDivisionError: integer division or modulo by zero"


def test_start_nests(db: Any) -> None:
    with db.runs.start("outer") as outer, db.runs.start("inner", parent=outer.run_id) as inner:
        pass
    assert db.runs.get_run(inner.run_id).parent_run_id == outer.run_id
    assert db.runs.count(status="completed") == 2


@pytest.mark.parametrize("call", ["complete_run", "cancel_run", "pause_run", "archive_run", "delete_run"])
def test_start_leaves_what_the_block_decided(db: Any, call: str) -> None:
    with db.runs.start("s") as run:
        getattr(db.runs, call)(run.run_id)
        decided = db.runs.get_run(run.run_id)
    assert db.runs.get_run(run.run_id) == decided


def test_start_fails_a_paused_run(db: Any) -> None:
    with pytest.raises(KeyboardInterrupt), db.runs.start("s") as run:
        db.runs.pause_run(run.run_id)
        raise KeyboardInterrupt
    assert db.runs.get_run(run.run_id).status is RunStatus.FAILED


def test_runs_are_per_namespace(db: Any) -> None:
    run_id = db.runs.create_run().run_id
    other = db.namespace(tenant="other")
    assert other.runs.get_run(run_id) is None
    assert other.runs.list_runs() == []
    other.runs.create_run_with_options(run_id=run_id)
    other.kv.put(run_id, "k", 1)
    db.runs.delete_run(run_id)
    assert other.runs.get_run(run_id) is not None
    assert other.kv.get(run_id, "k") == 1


def test_layout_of_the_index(db: Any) -> None:
    """A run has its record and one entry in each index: status, parent, creation, name, and one a tag."""
    db.runs.create_run_with_options(tags=["a", "b"])
    assert sorted(key[:1] for key in index_keys(db)) == [
        layout.RUN_NAMES_WHOLE,
        layout.RUN,
        layout.RUN_BY_STATUS,
        layout.RUN_BY_TAG,
        layout.RUN_BY_TAG,
        layout.RUN_BY_PARENT,
        layout.RUN_BY_CREATION,
        layout.RUN_BY_NAME,
    ]
