"""What a primitive's invariants rest on is checked at commit whatever the isolation.

Under "snapshot" isolation an ordinary read is not. Each test lets two transactions overlap that would break an
invariant together: one of them must conflict, and the audit must find everything in order.
"""

from typing import Any

import pytest

from occamdb.engine.model.errors import ConflictError
from occamdb.engine.model.public_types import RunId
from occamdb.primitives import RunStatus, Thought
from tests.support.audit import audit


def snapshot(db: Any, run: Any) -> Any:
    return db.begin(run, isolation="snapshot")


both_isolations = pytest.mark.parametrize("isolation", ["snapshot", "serializable"])


@both_isolations
@pytest.mark.parametrize("how", ["parent alone", "cascade"])
def test_a_child_run_conflicts_with_the_deletion_of_its_parent(
    db: Any, run: RunId, isolation: str, how: str
) -> None:
    parent = db.runs.create_run("parent").run_id
    txn = db.begin(run, isolation=isolation)
    child = txn.runs.create_run_with_options(parent=parent).run_id
    db.runs.delete_run(parent, cascade=how == "cascade")
    with pytest.raises(ConflictError):
        txn.commit()
    assert db.runs.get_run(child) is None
    audit(db)


@both_isolations
@pytest.mark.parametrize("cascade", [False, True])
def test_the_deletion_of_a_parent_conflicts_with_a_new_child(
    db: Any, run: RunId, isolation: str, cascade: bool
) -> None:
    parent = db.runs.create_run("parent").run_id
    txn = db.begin(run, isolation=isolation)
    txn.runs.delete_run(parent, cascade=cascade)
    child = db.runs.create_run_with_options(parent=parent).run_id
    with pytest.raises(ConflictError):
        txn.commit()
    assert db.runs.get_run(child).parent_run_id == parent
    audit(db)


@both_isolations
def test_a_grandchild_conflicts_with_a_cascade_from_the_top(db: Any, run: RunId, isolation: str) -> None:
    top = db.runs.create_run("top").run_id
    middle = db.runs.create_run_with_options(parent=top).run_id
    txn = db.begin(run, isolation=isolation)
    txn.runs.delete_run(top, cascade=True)
    db.runs.create_run_with_options(parent=middle)
    with pytest.raises(ConflictError):
        txn.commit()
    audit(db)


@both_isolations
@pytest.mark.parametrize("form", ["record_child", "record_with_options"])
def test_a_child_trace_conflicts_with_the_deletion_of_its_run(
    db: Any, run: RunId, isolation: str, form: str
) -> None:
    parent = db.traces.record(run, Thought("parent"))
    txn = db.begin(run, isolation=isolation)
    if form == "record_child":
        child = txn.traces.record_child(parent, Thought("child"))
    else:
        child = txn.traces.record_with_options(Thought("child"), parent_id=parent)
    db.runs.delete_run(run)
    with pytest.raises(ConflictError):
        txn.commit()
    assert db.traces.get(run, child) is None
    audit(db, run)


@both_isolations
def test_two_appends_conflict_at_the_head(db: Any, run: RunId, isolation: str) -> None:
    db.events.append(run, "t", {})
    txn = db.begin(run, isolation=isolation)
    txn.events.append("t", {"n": 1})
    db.events.append(run, "t", {"n": 2})
    with pytest.raises(ConflictError):
        txn.commit()
    audit(db, run)


@both_isolations
def test_an_append_conflicts_with_the_deletion_of_the_log(db: Any, run: RunId, isolation: str) -> None:
    db.events.append(run, "t", {})
    txn = db.begin(run, isolation=isolation)
    txn.events.append("t", {"n": 1})
    db.runs.delete_run(run)
    with pytest.raises(ConflictError):
        txn.commit()
    audit(db, run)


@both_isolations
def test_two_changes_of_a_status_conflict(db: Any, run: RunId, isolation: str) -> None:
    found = db.runs.create_run("r").run_id
    txn = db.begin(run, isolation=isolation)
    txn.runs.complete_run(found)
    db.runs.fail_run(found, "no")
    with pytest.raises(ConflictError):
        txn.commit()
    assert db.runs.get_run(found).status is RunStatus.FAILED
    audit(db)


@both_isolations
def test_a_change_of_tags_conflicts_with_the_deletion(db: Any, run: RunId, isolation: str) -> None:
    found = db.runs.create_run("r").run_id
    txn = db.begin(run, isolation=isolation)
    txn.runs.add_tags(found, ["t"])
    db.runs.delete_run(found)
    with pytest.raises(ConflictError):
        txn.commit()
    assert db.runs.query_runs(tag="t") == []
    audit(db)


@both_isolations
def test_a_parent_of_the_same_transaction_needs_no_check(db: Any, run: RunId, isolation: str) -> None:
    with db.begin(run, isolation=isolation) as txn:
        parent = txn.runs.create_run("parent").run_id
        child = txn.runs.create_run_with_options(parent=parent).run_id
        top = txn.traces.record(Thought("top"))
        below = txn.traces.record_child(top, Thought("below"))
    assert db.runs.get_run(child).parent_run_id == parent
    assert db.traces.get(run, below).parent_id == top
    audit(db, run)


def test_ordinary_reads_stay_unchecked(db: Any, run: RunId) -> None:
    parent = db.runs.create_run("parent").run_id
    db.kv.put(run, "read", 1)
    txn = snapshot(db, run)
    assert txn.kv.get("read") == 1
    txn.runs.create_run_with_options(parent=parent)
    assert txn.kv.get("read") == 1 and list(txn.kv.keys()) == ["read"]
    assert txn.isolation == "snapshot"
    db.kv.put(run, "read", 2)
    txn.commit()
    audit(db, run)


def test_checked_reads_of_a_space(db: Any, run: RunId) -> None:
    """A missing key and a walked range are checked as well; in a read-only transaction nothing is."""
    space = db.space(run, 0x20, raw=True)
    for read in (
        lambda there: there.get_checked(b"absent"),
        lambda there: list(there.keys_checked(b"ab")),
    ):
        txn = snapshot(db, run)
        read(txn.space(0x20, raw=True))
        txn.kv.put("k", 1)
        space.put(b"absent", 1)
        with pytest.raises(ConflictError):
            txn.commit()
        space.delete(b"absent")
    with db.begin(run, read_only=True) as txn:
        assert txn.space(0x20).get_checked("absent", 5) == 5
        assert list(txn.space(0x20).keys_checked()) == []


def test_a_checked_read_that_raises_leaves_the_isolation_as_it_was(db: Any, run: RunId) -> None:
    txn = snapshot(db, run)
    with pytest.raises(Exception, match="key"):
        txn.space(0x20).get_checked("")
    assert txn.isolation == "snapshot"
    txn.abort()
