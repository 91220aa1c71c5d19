"""Several primitives in one transaction: all of it or none, under contention and with hypothesis."""

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from occamdb.engine.model.errors import ConflictError, InvalidTransition, NotFoundError
from occamdb.engine.model.public_types import RESERVED_RUN, RunId, TypeTag
from occamdb.primitives import RunStatus, Thought, ToolCall
from tests.support.audit import audit
from tests.support.databases import memory_database


def work(txn: Any, n: int) -> None:
    """One step of an agent: touches everything."""
    parent = txn.kv.get("last trace")
    txn.kv.put("last", n)
    txn.kv.increment("steps")
    event = txn.events.append("step", {"n": n})
    txn.cells.transition("state", lambda state: (state.value + 1, None))
    call = ToolCall("step", {"event": event.sequence})
    trace = txn.traces.record_child(parent, call, tags=["step"]) if parent else txn.traces.record(call)
    txn.kv.put("last trace", trace)
    txn.runs.update_metadata(txn.run_id, {"steps": n})


def prepared(db: Any) -> RunId:
    run_id: RunId = db.runs.create_run("worker").run_id
    db.cells.init(run_id, "state", 0)
    return run_id


def everything(db: Any, run_id: RunId) -> dict[bytes, Any]:
    """All keys of a run with their versions, and the whole run index."""
    found = {}
    for tag in TypeTag:
        for key, row in db.space(run_id, tag, raw=True).scan():
            found[bytes((tag,)) + key] = (row.value, row.version)
    for key, row in db.space(RESERVED_RUN, TypeTag.RUN, raw=True).scan():
        found[b"index" + key] = (row.value, row.version)
    return found


def test_all_five_commit_together(db: Any) -> None:
    run_id = prepared(db)
    for n in range(1, 6):
        version = db.kv.get_versioned(run_id, "last")
        db.transaction(run_id, lambda txn, n=n: work(txn, n))
        assert version is None or db.kv.get_versioned(run_id, "last").version == version.version + 1
    assert db.kv.get(run_id, "steps") == db.events.len(run_id) == db.cells.read(run_id, "state").value == 5
    assert db.traces.count(run_id) == 5
    assert db.traces.get_tree(run_id, db.traces.get_roots(run_id)[0].id).size == 5
    assert db.runs.get_run(run_id).metadata == {"steps": 5}
    audit(db, run_id)


@pytest.mark.parametrize("end", ["abort", "exception", "conflict", "invalid"])
def test_none_of_it_is_there_when_it_does_not_commit(db: Any, end: str) -> None:
    run_id = prepared(db)
    db.transaction(run_id, lambda txn: work(txn, 1))
    if end == "conflict":
        txn = db.begin(run_id)
        work(txn, 2)
        db.kv.put(run_id, "last", "somebody else")
        before = everything(db, run_id)
        with pytest.raises(ConflictError):
            txn.commit()
    else:
        before = everything(db, run_id)
        with pytest.raises((KeyError, NotFoundError, InvalidTransition)), db.begin(run_id) as txn:
            work(txn, 2)
            if end == "exception":
                raise KeyError("no")
            if end == "invalid":
                txn.runs.resume_run(run_id)
            txn.abort()
            raise KeyError("after the abort")
    assert everything(db, run_id) == before
    audit(db, run_id)


def test_read_your_writes_over_all_primitives(db: Any) -> None:
    run_id = prepared(db)
    with db.begin(run_id) as txn:
        for n in range(1, 4):
            work(txn, n)
            assert txn.kv.get("steps") == len(txn.events) == txn.traces.count() == n
            assert txn.cells.read("state").value == n
        assert txn.events.verify_chain().length == 3
        assert [event.payload["n"] for event in txn.events.read_by_type("step")] == [1, 2, 3]
        assert len(txn.traces.query_by_tag("step")) == 2
        assert txn.runs.get_run(run_id).metadata == {"steps": 3}
        assert db.kv.get(run_id, "steps") is None
        assert db.traces.count(run_id) == 0
    audit(db, run_id)


def test_threads_in_contention(db: Any) -> None:
    """Threads of one process run the same transaction on one run: each step happens exactly once, in one order."""
    run_id = prepared(db)
    count, each = 4, 25
    errors: list[BaseException] = []

    def agent() -> None:
        try:
            for _ in range(each):
                db.transaction(run_id, lambda txn: work(txn, txn.kv.get("last", 0) + 1))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=agent) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    steps = count * each
    assert db.kv.get(run_id, "last") == db.kv.get(run_id, "steps") == steps
    assert [event.payload["n"] for event in db.events.iterate(run_id)] == list(range(1, steps + 1))
    assert db.traces.count(run_id) == steps
    audit(db, run_id)


steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["put", "increment", "append", "transition", "record", "child", "tag", "pause", "resume"]
        ),
        st.integers(0, 3),
    ),
    max_size=8,
)


@given(st.lists(st.tuples(steps, st.booleans()), max_size=6))
def test_any_mixture_holds_together(transactions: list[tuple[list[tuple[str, int]], bool]]) -> None:
    """Whatever is committed or aborted: the audit finds everything consistent, and aborts leave no trace."""
    with memory_database() as db:
        run_id = prepared(db)
        for plan, commit in transactions:
            before = everything(db, run_id)
            txn = db.begin(run_id)
            try:
                for what, n in plan:
                    one_step(txn, what, n)
            except InvalidTransition:
                commit = False
            if commit:
                txn.commit()
            else:
                txn.abort()
                assert everything(db, run_id) == before
            audit(db, run_id)


def one_step(txn: Any, what: str, n: int) -> None:
    if what == "put":
        txn.kv.put(f"k{n}", n)
    elif what == "increment":
        txn.kv.increment("counter", n)
    elif what == "append":
        txn.events.append(f"t{n}", {"n": n})
    elif what == "transition":
        txn.cells.transition("state", lambda state: (state.value + n, None))
    elif what == "record":
        txn.traces.record(Thought(str(n)), tags=[f"t{n}"])
    elif what == "child":
        roots = txn.traces.get_roots(limit=1)
        if roots:
            txn.traces.record_child(roots[0].id, Thought("child"))
    elif what == "tag":
        txn.runs.add_tags(txn.run_id, [f"t{n}"])
    elif what == "pause":
        txn.runs.pause_run(txn.run_id)
    elif what == "resume":
        txn.runs.resume_run(txn.run_id)


def test_the_audit_itself_finds_what_is_wrong(db: Any) -> None:
    """The canary: an index entry without its trace, and a status that the index does not have."""
    run_id = prepared(db)
    db.transaction(run_id, lambda txn: work(txn, 1))
    audit(db, run_id)
    for tag, run, pick in (
        (TypeTag.TRACE, run_id, 0),
        (TypeTag.TRACE, run_id, -1),
        (TypeTag.RUN, RESERVED_RUN, 0),
        (TypeTag.RUN, RESERVED_RUN, -1),
        (TypeTag.EVENT, run_id, 0),
        (TypeTag.EVENT, run_id, 1),
        (TypeTag.EVENT, run_id, -1),
    ):
        space = db.space(run, tag, raw=True)
        key = list(space.keys())[pick]
        value = space.get(key)
        space.delete(key)
        with pytest.raises(AssertionError):
            audit(db, run_id)
        space.put(key, value)
    audit(db, run_id)
    assert db.runs.get_run(run_id).status is RunStatus.ACTIVE
